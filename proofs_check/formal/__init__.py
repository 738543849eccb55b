"""Proofs for every size, checked by Coq: which theorem stands for which claim, and the build that checks them.

Nothing here needs Coq to be imported. Files are compiled in a scratch folder, once per process, and Coq is asked for
the axioms under every theorem of `THEOREMS`; a proof counts only if there are none.
"""

from __future__ import annotations

import atexit
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
INSTALL = (
    "apt-get install coq libcoq-mathcomp-ssreflect libcoq-mathcomp-algebra libcoq-mathcomp-zify "
    "libcoq-mathcomp-algebra-tactics"
)
"""What Debian 12 needs: Coq 8.16 and MathComp 1.15."""

CLOSED = "Closed under the global context"


@dataclass(frozen=True)
class Theorem:
    """A machine-checked statement."""

    claim: str
    file: str
    """Without its suffix, in this folder."""
    name: str
    says: str
    """The statement in a few words."""


THEOREMS = (
    Theorem("C0", "topk", "top_sum_max", "S_K is the largest sum of K entries"),
    Theorem("C0", "topk", "card_topk", "top-K has K entries"),
    Theorem("C0", "executable", "run_loadE", "the load, computed"),
    Theorem("C0", "executable", "run_DE", "D, computed"),
    Theorem("C0", "executable", "run_benefitE", "the switching benefit, computed"),
    Theorem("C0", "executable", "run_signsE", "a run of the sign rule, computed"),
    Theorem("C0", "executable", "run_proportional_stepE", "a proportional step, computed"),
    Theorem("C0", "executable", "run_violationE", "the violation, computed"),
    Theorem("C0", "executable", "run_affinityE", "the affinity, computed"),
    Theorem("C0", "executable", "run_spreadE", "the spread, computed"),
    Theorem("C0", "executable", "run_score_rangeE", "the score range, computed"),
    Theorem("C0", "executable", "run_multiplicityE", "the multiplicity, computed"),
    Theorem("C1", "c1_lagrangian_identity", "lagrangian_identity", "the identity, any step"),
    Theorem("C1", "c1_lagrangian_identity", "benefit_ge0", "no switching benefit is negative"),
    Theorem("C1", "c1_lagrangian_identity", "lagrangian_identity_of_steps", "the identity for steps eps (L - A)"),
    Theorem("C2", "c2_monotonicity_condition", "sandwich_lower", "the lower side"),
    Theorem("C2", "c2_monotonicity_condition", "sandwich_upper", "the upper side"),
    Theorem("C2", "c2_monotonicity_condition", "no_rise_iff", "D does not rise if and only if the condition holds"),
    Theorem("C2", "c2_monotonicity_condition", "no_rise_iff_of_steps", "the same for steps eps (L - A)"),
    Theorem("C2", "c2_monotonicity_condition", "surely_no_rise", "the sufficient condition"),
    Theorem("C2", "c2_monotonicity_condition", "sign_rule_raises_D", "D can rise by u, at every step size u"),
    Theorem("C2", "c2_monotonicity_condition", "proportional_rule_raises_D", "D can rise by eps / 2, at every eps"),
    Theorem("C3", "c3_preference_rule", "preference_rule", "tokens follow the larger step, any step"),
    Theorem("C3", "c3_preference_rule", "sign_preference_cases", "the sign rule's moves"),
    Theorem("C3", "c3_preference_rule", "proportional_preference", "the proportional rule's moves"),
    Theorem("C4", "c4_absorbing_band", "absorbing_band", "the sharp band and every larger one absorb"),
    Theorem("C4", "c4_absorbing_band", "absorbing_band_forever", "the same for all later steps"),
    Theorem("C4", "c4_absorbing_band", "absorbing_above", "its upper side by itself"),
    Theorem("C4", "c4_absorbing_band", "absorbing_below", "its lower side by itself"),
    Theorem("C4", "c4_absorbing_band", "absorbing_band_as_stated", "m (E - 1), as first stated"),
    Theorem("C4", "c4_attained", "sharp_band_attained", "the sharp band is attained for every m and E"),
    Theorem("C4", "counterexamples", "half_windows_are_too_short", "m(u) in place of m(2u) is refuted"),
    Theorem("C5", "c5_finite_entry", "finite_entry", "inside the sharp band from step floor(E R / 2) on"),
    Theorem("C5", "c5_finite_entry", "finite_entry_few_experts", "from step R on, for at most three experts"),
    Theorem("C5", "counterexamples", "R_steps_are_not_enough", "R steps are not enough for four experts"),
    Theorem("C6", "c6_balance_implies_optimality", "balance_implies_optimality", "all three inequalities"),
    Theorem("C6", "c6_balance_implies_optimality", "feasible_nearby", "the same, no optimum needed"),
    Theorem("C6", "counterexamples", "balance_bound_attained", "the first bound is attained"),
    Theorem("C6", "counterexamples", "balance_bound_needs_equal_targets", "the bound fails for unequal targets"),
    Theorem("C9", "c9_regret_recursion", "logarithmic_regret", "the bound, given the recursion of its proof"),
    Theorem("C10", "c10_constant_step", "constant_step", "the pathwise inequality, any batches"),
    Theorem("C11", "c11_bounded_bias", "bounded_bias", "spread(p_n) <= max(spread(p_0), rho + 2u), any batches"),
    Theorem("C11", "c11_bounded_bias", "fixed_batch_gap", "D - LP* <= E B (rho + u) from step floor(E R / 2) on"),
    Theorem("C12", "c12_adversarial_regret", "adversarial_regret", "the bound at the best step, against every bias"),
    Theorem("C12", "c12_adversarial_regret", "online_regret", "the bound at every step size and comparator"),
    Theorem("C12", "c12_adversarial_regret", "squared_violation_le", "|A - L|^2 <= T^2 (K - K^2 / E)"),
    Theorem("C14", "c14_whiteness", "white_iff_kalman", "observations are white iff the gain is Kalman's"),
    Theorem("C14", "c14_whiteness", "lagged_covariance", "the covariance of observations at every lag"),
    Theorem("C14", "c14_whiteness", "kalman_gain_best", "that gain alone has the least next variance"),
    Theorem("LP", "duality", "certificate_sound", "a plan that passes the solver's certificate is optimal"),
    Theorem(
        "LP", "strong_duality", "strong_duality", "an optimum and a bias of the same value exist, rational targets"
    ),
    Theorem("LP", "strong_duality", "equal_targets_duality", "the same for equal targets, with spread(p) <= rho"),
    Theorem("LP", "strong_duality", "feasible_iff", "feasible iff targets are in 0 ... T and sum to K T"),
    Theorem("LP", "whole_plans", "whole_plan_exists", "whole targets in 0 ... T that sum to K T can be met"),
    Theorem("LP", "whole_plans", "best_whole_plan", "a best plan of whole targets has a certifying bias"),
    Theorem("LP", "duality", "weak_duality", "D(p) bounds every feasible value"),
    Theorem("LP", "duality", "complementary_slackness", "complementary slackness implies optimality"),
    Theorem("LP", "duality", "exact_balance_optimal", "exact balance is optimal"),
    Theorem("LP", "certificate", "certified_optimal", "the same as a program, for one instance at a time"),
)
"""Every main theorem, the most important one of each claim first."""

OTHER_CLAIMS = ("LP",)
"""What is proved here and has no module of its own in `proofs_check`."""


@dataclass(frozen=True)
class Proof:
    """What Coq says of one theorem."""

    theorem: Theorem
    seconds: float
    """Compile time of its file, imports not counted."""
    assumptions: str
    """Coq's answer to Print Assumptions."""

    @property
    def holds(self) -> bool:
        """Whether the theorem rests on no axiom and no unfinished proof."""
        return self.assumptions == CLOSED


class CoqError(RuntimeError):
    """A file that Coq refuses, with its message."""


@cache
def available() -> bool:
    """Whether Coq and the libraries that the proofs use are installed."""
    if shutil.which("coqc") is None:
        return False
    try:
        run_coq("libraries", "From mathcomp Require Import all_ssreflect ssralg ssrnum ssrint rat zify ring.")
    except CoqError:
        return False
    return True


def prove(theorems: Iterable[Theorem]) -> list[Proof]:
    """Check theorems: compile their files and what these import, and ask what each rests on.

    Raises
    ------
    CoqError
        If a file does not compile: a proof has failed.
    """
    chosen = tuple(theorems)
    seconds = {one.file: compiled(one.file) for one in chosen}
    answers = _assumptions(chosen)
    return [Proof(one, seconds[one.file], answers[one.name]) for one in chosen]


@cache
def compiled(name: str) -> float:
    """Compile a file of this folder, after its imports; the seconds it took."""
    source = FOLDER / f"{name}.v"
    for line in re.findall(r"^From alflb Require Import ([\w ]+)\.$", source.read_text(), re.MULTILINE):
        for other in line.split():
            compiled(other)
    start = time.perf_counter()
    run_coq(name, source.read_text())
    return time.perf_counter() - start


def run_coq(name: str, text: str) -> str:
    """Compile a text among the files compiled so far, and return what Coq printed."""
    (_scratch() / f"{name}.v").write_text(text)
    command = ["coqc", "-q", "-w", "none", "-Q", ".", "alflb", f"{name}.v"]
    done = subprocess.run(command, cwd=_scratch(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CoqError(f"Coq refuses {name}.v: {done.stderr.strip()}")
    return done.stdout


@cache
def _scratch() -> Path:
    """A folder of this process, so that no compiled file is left among the sources."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return Path(folder.name)


def _assumptions(theorems: tuple[Theorem, ...]) -> dict[str, str]:
    """Coq's answer for each theorem: `CLOSED`, or the axioms it rests on."""
    lines = [f"From alflb Require Import {' '.join(sorted({one.file for one in theorems}))}."]
    for one in theorems:
        lines += [f'Goal True. idtac "= {one.name}". Abort.', f"Print Assumptions {one.file}.{one.name}."]
    answers = re.split(r"^= (\w+)$", run_coq("assumptions", "\n".join(lines)), flags=re.MULTILINE)
    return {name: answer.strip() for name, answer in zip(answers[1::2], answers[2::2])}
