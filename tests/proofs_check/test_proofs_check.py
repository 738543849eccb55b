"""All of proofs_check in quick form: claims hold, controls fail, proofs are proofs, planted mutations are caught."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

import alflb.simulation
from alflb import bounds, duality
from alflb.kernels import numba_, reference
from alflb.rules import Observation, make_rule
from alflb.rules.proportional import Proportional
from alflb.rules.sign import Sign
from proofs_check import _runner, _smt, formal
from proofs_check import c2_monotonicity_condition as c2
from proofs_check import c4_absorbing_band as c4
from proofs_check import c5_finite_entry as c5
from proofs_check import c9_logarithmic_regret as c9
from proofs_check import c13_sign_rule_noise as c13
from proofs_check import c16_unequal_targets as c16
from proofs_check.__main__ import app, claims
from proofs_check._instances import FAMILIES, draw, smallest
from proofs_check._witnesses import WITNESSES

CLAIMS = {module.CLAIM: module for module in claims()}
QUICK = {"C0": 150, "C7": 7, "C8": 10, "C9": 10, "C12": 80, "C13": 8, "C18": 60, "C19": 7, "C20": 8, "LAW": 12000}


def size(claim):
    return QUICK.get(claim, 200)


@pytest.mark.parametrize("claim", CLAIMS)
def test_claim_holds(claim):
    verdict = CLAIMS[claim].check(seed=1, instances=size(claim))
    assert verdict.holds, verdict.witness
    assert verdict.instances >= min(7, size(claim))


@pytest.mark.parametrize("claim", CLAIMS)
def test_control_is_refuted(claim):
    counts = {"C4": 1000, "C5": 1000}
    assert not CLAIMS[claim].BROKEN(seed=1, instances=counts.get(claim, size(claim))).holds


@pytest.mark.parametrize("claim", ["C4", "C5", "C14", "C15", "C16", "C17", "C18"])
def test_sharper_claim_holds(claim):
    assert CLAIMS[claim].sharper(seed=3, instances=300).holds


@pytest.mark.parametrize(("num_experts", "distance"), [(4, 600), (5, 600), (6, 3000)])
def test_entry_takes_longer_than_the_withdrawn_conjecture(num_experts, distance):
    """R steps are not enough for E >= 4: the family tends to 2 (E - 1)/(E + 1) R as its range grows."""
    one = c5.rotating(num_experts, distance)
    assert bounds.crossing_multiplicity(one.problem.scores_TE, 2 * one.step_size) == 1
    reach = bounds.sharp_entry_time(2, one.score_range, one.step_size)
    load_NE = one.run(2 * reach, from_zero=True).load_NE
    band = num_experts * bounds.sharp_band(1, num_experts)
    entry = 1 + int(np.flatnonzero((np.abs(one.excess(load_NE)) > band).any(axis=1)).max())
    assert reach < entry <= bounds.sharp_entry_time(num_experts, one.score_range, one.step_size)
    free_of_width = distance // (2 * one.step_size)
    assert entry / free_of_width == pytest.approx(2 * (num_experts - 1) / (num_experts + 1), rel=0.02)


def test_the_sign_rule_balances_the_median_batch_where_tokens_depend_on_each_other():
    share = [c13.mean_share(step_size, num_steps=6000) for step_size in (1e-2, 1e-3)]
    assert max(share) < 0.36  # balance would be 0.5, and a smaller step does not come closer
    assert share[1] < share[0]


def test_the_bias_drifts_without_end_next_to_a_target_of_zero():
    one = c16.drifting()
    bias_NE, load_NE = one.follow(600)
    assert one.score_range == 0
    assert not load_NE[10:, 0].any()
    assert np.ptp(bias_NE[600]) > 1.9 * np.ptp(bias_NE[300]) > 100


def test_bernsteins_bound_is_above_the_exact_quantile_and_not_far():
    """The union of exact binomial tails, for a batch in common use."""
    num_tokens, top_k, num_experts, failure = 2048, 6, 64, 0.01
    exact = stats.binom.isf(failure / num_experts, num_tokens, top_k / num_experts) / (top_k * num_tokens / num_experts)
    said = bounds.max_vio_bound(num_tokens, top_k, num_experts, failure=failure)
    assert exact - 1 <= said <= 1.3 * (exact - 1)


@pytest.mark.parametrize("witness", WITNESSES, ids=lambda witness: witness.name)
def test_named_witness_is_as_recorded(witness):
    assert witness.holds, witness.measure(witness.instance)


@pytest.mark.parametrize("claim", [claim for claim, module in CLAIMS.items() if hasattr(module, "PROOF")])
def test_proof_and_its_control(claim):
    pytest.importorskip("z3")
    proved = _smt.prove(claim, CLAIMS[claim].PROOF, cells=6, seconds=30.0)
    assert proved.proved
    assert not proved.refuted
    assert not proved.undecided
    assert proved.control_refuted


@pytest.mark.parametrize("num_experts", [2, 3, 4, 6])
@pytest.mark.parametrize("most", [1, 2, 4])
def test_the_sharp_band_is_attained_in_a_cycle_of_length_two(num_experts, most):
    one = c4.tight(num_experts, most)
    assert bounds.crossing_multiplicity(one.problem.scores_TE, 2) == most
    load_NE = one.run(4).load_NE
    assert np.array_equal(load_NE[0], load_NE[2])
    deviation = np.abs(one.excess(load_NE)).max()
    assert deviation == num_experts * bounds.sharp_band(most, num_experts)


@pytest.mark.parametrize("step_size", [1, 7, 1000])
def test_no_step_size_makes_the_proportional_rule_monotone(step_size):
    tie = next(one.instance for one in WITNESSES if one.name == "proportional rule raises D")
    scaled = type(tie)(tie.scores, 1, tie.bias, step_size, tie.next_bias)
    assert c2.rise(scaled, "proportional") == step_size / 2


def test_recorded_counterexamples_are_the_smallest():
    for name, found in c2.counterexamples().items():
        recorded = next(one.instance for one in WITNESSES if one.name == name)
        assert found is not None
        assert found.as_dict() == recorded.as_dict()


def test_smallest_finds_nothing_where_there_is_nothing():
    assert smallest(lambda one: False, max_size=2) is None


def test_instances_cover_what_they_promise():
    drawn = list(draw(0, 40 * len(FAMILIES)))
    assert any(one.top_k == one.num_experts - 1 > 1 for one in drawn)
    assert any(not one.problem.is_integral for one in drawn)
    assert any(len(np.unique(one.scores, axis=0)) < one.num_tokens for one in drawn)
    assert any(len(np.unique(one.scores, axis=1)[0]) < one.num_experts for one in drawn)


def test_regret_of_a_quadratic_by_step_size():
    """c = 1/(2 mu) is not logarithmic but log squared; smaller c is a power; c = 1/mu is logarithmic."""
    at_half = [c9.quadratic_regret(0.5, n) / np.log(n) ** 2 for n in (1000, 100_000)]
    assert 0.15 < at_half[1] < at_half[0] < 0.25
    quarter = [c9.quadratic_regret(0.25, n) for n in (1000, 100_000)]
    assert np.log(quarter[1] / quarter[0]) / np.log(100) == pytest.approx(1 - 2 * 0.25, abs=0.02)
    one = [c9.quadratic_regret(1.0, n) for n in (1000, 100_000)]
    assert (one[1] - one[0]) / np.log(100) == pytest.approx(1.0, abs=0.01)


# ---- the command line ----


@pytest.fixture(autouse=True)
def short_proofs(monkeypatch):
    monkeypatch.setattr(_runner, "QUICK_PROOF_SECONDS", 1.0)
    monkeypatch.setattr(formal, "available", lambda: False)  # test_formal.py runs Coq


def run(*arguments):
    return CliRunner().invoke(app, arguments)


def test_table_json_and_exit_code():
    done = run("--claim", "C1", "--instances", "30", "--json")
    assert done.exit_code == 0
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["part"] for row in rows] == ["check", "control", "witnesses", "proof", "all sizes"]
    assert all(row["passed"] and row["claim"] == "C1" for row in rows)
    done = run("--claim", "c5", "--budget", "3s")
    assert done.exit_code == 0
    assert "finite entry" in done.stdout
    assert "worst instance" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [(["--budget", "soon"], "duration"), (["--claim", "C77"], "C77"), (["--instances", "0"], "--instances")],
)
def test_bad_command_line_is_exit_code_2(arguments, word):
    done = run(*arguments)
    assert done.exit_code == 2
    assert word in done.stderr


def test_a_refuted_claim_is_exit_code_1_with_its_counterexample(monkeypatch):
    monkeypatch.setattr(c2, "check", c2.BROKEN)
    done = run("--claim", "C2", "--instances", "50")
    assert done.exit_code == 1
    assert "counterexample" in done.stdout


def test_a_control_that_holds_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(c2, "BROKEN", c2.check)
    done = run("--claim", "C2", "--instances", "50")
    assert done.exit_code == 1
    assert "NOT REFUTED" in done.stdout


def test_without_z3_proofs_are_skipped_and_say_so(monkeypatch):
    monkeypatch.setattr(_smt, "available", lambda: False)
    done = run("--claim", "C3", "--instances", "20")
    assert done.exit_code == 0
    assert "skipped" in done.stdout


# ---- planted mutations ----


def ties_to_the_highest(scores_TE, bias_E, top_k):
    experts_TK, load_E, dual_sum = reference_allocate(scores_TE[:, ::-1], np.asarray(bias_E)[::-1], top_k)
    return reference.Allocation(np.sort(scores_TE.shape[1] - 1 - experts_TK, axis=1), load_E[::-1].copy(), dual_sum)


def shifted_counts(scores_TE, bias_E, top_k):
    found = reference_allocate(scores_TE, bias_E, top_k)
    return found._replace(load_E=np.roll(found.load_E, 1))


def worst_experts(scores_TE, bias_E, top_k):
    return reference_allocate(-scores_TE, -np.asarray(bias_E), top_k)


def blind_to_the_bias(scores_TE, bias_E, top_k):
    return reference_allocate(scores_TE, np.zeros_like(bias_E), top_k)


def one_pick_less(scores_TE, bias_E, top_k):
    return reference_allocate(scores_TE, bias_E, max(1, top_k - 1))


reference_allocate = reference.allocate
reference_loads = reference.loads
numba_loads = numba_.loads

KERNELS = [
    (ties_to_the_highest, ["C0"]),
    (shifted_counts, ["C0", "C1", "C2", "C4", "C5", "C10"]),
    (worst_experts, ["C0", "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C10"]),
    (blind_to_the_bias, ["C0", "C1", "C2", "C5", "C6", "C8", "C10"]),
    (one_pick_less, ["C0", "C6", "C7"]),
]


def caught(claim):
    """Whether a claim, its sharper form or its witnesses notice; a crash counts as noticing."""
    module = CLAIMS[claim]
    try:
        held = [module.check(seed=2, instances=size(claim)).holds]
        held += [module.sharper(seed=2, instances=200).holds] if hasattr(module, "sharper") else []
        held += [one.holds for one in WITNESSES if one.claim == claim]
    except (AssertionError, ValueError, IndexError, ZeroDivisionError):
        return True
    return not all(held)


@pytest.mark.parametrize(("mutant", "eyes"), KERNELS, ids=lambda value: getattr(value, "__name__", ""))
def test_mutated_reference_kernels_are_caught(mutant, eyes, monkeypatch):
    monkeypatch.setattr(reference, "allocate", mutant)
    missed = [claim for claim in eyes if not caught(claim)]
    assert not missed


def test_a_mutated_compiled_kernel_is_caught(monkeypatch):
    monkeypatch.setattr(
        numba_, "loads", lambda scores_TE, bias_E, top_k: ties_to_the_highest(scores_TE, bias_E, top_k)[1:]
    )
    assert caught("C0")


SIMULATIONS = {
    "load one step late": lambda run: SimpleNamespace(
        **{**vars(run), "load_NE": np.concatenate([run.load_NE[:1], run.load_NE[:-1]]), "num_steps": run.num_steps}
    ),
    "bias one step early": lambda run: SimpleNamespace(
        **{**vars(run), "bias_NE": np.concatenate([run.bias_NE[1:], run.bias_NE[-1:]]), "num_steps": run.num_steps}
    ),
    "recentred": lambda run: SimpleNamespace(
        **{**vars(run), "bias_NE": run.bias_NE - run.bias_NE.mean(axis=1, keepdims=True), "num_steps": run.num_steps}
    ),
}


@pytest.mark.parametrize("name", SIMULATIONS)
def test_mutated_simulations_are_caught(name, monkeypatch):
    from proofs_check import _instances

    honest = alflb.simulation.simulate
    monkeypatch.setattr(_instances, "simulate", lambda *args, **more: SIMULATIONS[name](honest(*args, **more)))
    assert caught("C0")


RULES = {
    "sign flipped": (Sign, lambda self, load_E, target_E: np.sign(load_E - target_E), ["C0", "C4", "C5"]),
    "sign(0) = 1": (Sign, lambda self, load_E, target_E: np.where(load_E > target_E, -1.0, 1.0), ["C0"]),
    "sign(0) = -1": (Sign, lambda self, load_E, target_E: np.where(load_E >= target_E, -1.0, 1.0), ["C0"]),
    "sign recentred": (
        Sign,
        lambda self, load_E, target_E: np.sign(target_E - load_E) - np.sign(target_E - load_E).mean(),
        ["C0"],
    ),
    "twice the step": (Sign, lambda self, load_E, target_E: 2 * np.sign(target_E - load_E), ["C0", "C4", "C5"]),
    "proportional flipped": (
        Proportional,
        lambda self, load_E, target_E: (load_E - target_E) / target_E.mean(),
        ["C0", "C9", "C10"],
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_mutated_rules_are_caught(name, monkeypatch):
    rule, direction, eyes = RULES[name]
    monkeypatch.setattr(rule, "direction", direction)
    missed = [claim for claim in eyes if not caught(claim)]
    assert not missed


def open_windows(scores, width):
    return honest_multiplicity(scores, max(0.0, width - 1e-9))


honest_multiplicity = bounds.crossing_multiplicity
honest_max_vio = bounds.max_vio_bound

BOUNDS = {
    "open windows": ("crossing_multiplicity", open_windows, ["C0"]),
    "windows half as wide": ("crossing_multiplicity", lambda s, w: honest_multiplicity(s, w / 2), ["C0", "C4"]),
    "sharp band without 1/E": ("sharp_band", lambda m, e: m * (e - 1) - 1, ["C4"]),
    "sharp band as first stated": ("sharp_band", lambda m, e: m * (e - 1), ["C4"]),
    "band of E - 2": ("absorbing_band", lambda m, e: m * (e - 2), ["C4"]),
    "entry in R - 1": ("sharp_entry_time", lambda e, r, u: max(0, int(r // (2 * u)) - 2), ["C5"]),
    "half the gap": ("gap_bound", lambda v, s, r: v * (s + r) / 4, ["C6"]),
    "gap without rho": ("gap_bound", lambda v, s, r: v * s / 2, ["C6"]),
    "half the excess": ("affinity_excess_bound", lambda v, r: v * r / 4, ["C6"]),
    "half the loss": ("affinity_loss_bound", lambda v, s: v * s / 4, ["C6"]),
    "no distance": ("constant_step_gap", lambda d, n, eta, g: eta * g / 2, ["C10"]),
    "a quarter of eta G^2": ("constant_step_gap", lambda d, n, eta, g: d / (2 * eta * n) + eta * g / 4, ["C10"]),
    "spread within rho": ("bias_spread_bound", lambda start, rho, u, **_: max(start, rho), ["C11"]),
    "spread without the start": ("bias_spread_bound", lambda start, rho, u, **_: rho + 2 * u, ["C11"]),
    "regret of K picks only": (
        "adversarial_regret",
        lambda rho, n, e, k: 0.4 * rho * (n * k * (e - k)) ** 0.5,
        ["C12"],
    ),
    "a pull too strong": ("sign_pull", lambda t, e, r: 1e3, ["C13"]),
    "rho for unequal targets": ("optimal_spread", lambda rho, e, k, **_: rho, ["C16"]),
    "c = 1 up to K = 2": (
        "optimal_spread",
        lambda rho, e, k, **_: rho if k <= 2 or k >= e - 1 else 2 * rho,
        ["C16"],
    ),
    "spread without the delay": ("bias_spread_bound", lambda s, rho, u, delay=0: max(s, rho + 2 * u), ["C17"]),
    "spread of d steps, not d + 1": (
        "bias_spread_bound",
        lambda s, rho, u, delay=0: max(s, rho + 2 * u * max(delay, 1)),
        ["C17"],
    ),
    "a path for nothing": (
        "dynamic_regret",
        lambda rho, n, e, k, v: 0.5 * rho * (n * k * (e - k)) ** 0.5,
        ["C18"],
    ),
    "half the largest MaxVio": (
        "max_vio_bound",
        lambda t, k, e, failure: 0.5 * honest_max_vio(t, k, e, failure=failure),
        ["C19"],
    ),
    "a pull of ties too strong": ("sign_pull_of_ties", lambda t, e, k, r, c: 1e3, ["C20"]),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_mutated_bounds_are_caught(name, monkeypatch):
    attribute, mutant, eyes = BOUNDS[name]
    monkeypatch.setattr(bounds, attribute, mutant)
    missed = [claim for claim in eyes if not caught(claim)]
    assert not missed


def test_a_benefit_of_the_wrong_sign_is_caught(monkeypatch):
    honest = duality.step_certificate

    def mutant(problem, bias, next_bias):
        step = honest(problem, bias, next_bias)
        return type(step)(**{**vars(step), "benefit": -step.benefit})

    monkeypatch.setattr(duality, "step_certificate", mutant)
    assert caught("C1")


def test_the_recentred_rule_is_not_the_sign_rule():
    load_E, target_E = np.array([4, 1, 1]), np.full(3, 2.0)
    seen = Observation(1, target_E, load_E=load_E)
    plain, _ = make_rule("sign", 1.0).step(np.zeros(3), seen, ())
    recentred, _ = make_rule("recentred_sign", 1.0).step(np.zeros(3), seen, ())
    assert plain.mean() != 0
    assert abs(recentred.mean()) < 1e-15
