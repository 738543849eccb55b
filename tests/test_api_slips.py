"""What a new user is likely to write: accepted where unambiguous, otherwise refused in one line."""

import numpy as np
import pytest

import alflb

SCORES = np.random.default_rng(0).random((64, 4))
PROBLEM = alflb.AssignmentProblem(SCORES, 1)
RUN = alflb.simulate(SCORES, "sign", top_k=1, num_steps=3)

ACCEPTED = {
    "an array and a rule's name": lambda: RUN.load_NE.sum() == 3 * 64,
    "names of a stream and a rule": lambda: alflb.simulate("gumbel", "sign", top_k=1, num_steps=2).num_steps == 2,
    "regret against the array of the run": lambda: alflb.regret(RUN, SCORES).final >= 0.0,
    "a constant schedule without a length": lambda: alflb.make_schedule("constant", 1e-3)(7) == 1e-3,
    "plotting as an attribute": lambda: alflb.plotting.WIDTH > 0,
}

REFUSED = {
    "solve_exact of an array": (lambda: alflb.solve_exact(SCORES), r"pass AssignmentProblem\(scores, top_k\)"),
    "solve_exact of a trace": (
        lambda: alflb.solve_exact(alflb.load_router_trace()),
        r"pass AssignmentProblem\(scores, top_k\)",
    ),
    "dual_value of an array": (lambda: alflb.dual_value(SCORES, np.zeros(4)), r"pass AssignmentProblem\(scores, top_k"),
    "verify_balance of an array": (lambda: alflb.verify_balance(SCORES), r"pass AssignmentProblem\(scores, top_k\)"),
    "verify_balance of a run and a step size": (
        lambda: alflb.verify_balance(PROBLEM, RUN, step_size=0.1),
        "have no effect on a run",
    ),
    "verify_balance of no run": (lambda: alflb.verify_balance(PROBLEM, "sign"), "pass what alflb.simulate returned"),
    "regret of scores": (lambda: alflb.regret(SCORES, "gumbel"), "pass what alflb.simulate returned"),
    "regret of another stream": (lambda: alflb.regret(RUN, SCORES + 1.0), "pass its own stream"),
    "plot_regret of a run": (lambda: alflb.plot_regret(RUN), "pass what alflb.regret returned by label"),
    "plot_regret of runs": (lambda: alflb.plot_regret({"sign": RUN}), "pass what alflb.regret returned by label"),
    "a step size by name": (lambda: alflb.make_rule("sign", step_size=1e-3), r"make_rule\('sign', 1e-3\)"),
    "a schedule by name": (lambda: alflb.make_rule("sign", "linear"), r"make_schedule\(name, step_size\)"),
    "scores (experts, tokens)": (lambda: alflb.simulate(SCORES.T, "sign", top_k=1, num_steps=3), r"pass scores\.T"),
    "a trace as a stream": (lambda: alflb.simulate(alflb.load_router_trace(), "sign", top_k=6, num_steps=2), "pass a"),
    "an array as a trace": (lambda: alflb.make_stream("trace", trace=SCORES), r"pass a RouterTrace\(scores, top_k\)"),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_unambiguous_is_accepted(call):
    assert call()


@pytest.mark.parametrize(("call", "words"), REFUSED.values(), ids=REFUSED)
def test_a_slip_gets_one_line_that_says_what_to_pass(call, words):
    with pytest.raises(ValueError, match=words) as refused:
        call()
    assert "\n" not in str(refused.value)
