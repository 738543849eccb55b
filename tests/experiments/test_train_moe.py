"""`train_moe` at its smallest: what is computed by hand, what repeats, what a resumed run forgets (nothing)."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from alflb import AssignmentProblem, duality, metrics, read_trace, solve_exact
from alflb.cli.app import app as alflb_app
from alflb.problem import target_load_E
from alflb.rules import Observation
from experiments import train_moe
from experiments._moe_settings import SIZES, Arm
from experiments._text import Document, build_corpus
from tests._extras import require

torch = require("torch")
require("transformers")
moe = require("experiments._moe_training")

ROOT = Path(__file__).parents[2]
SMALLEST = dataclasses.replace(
    SIZES["smoke"], layers=2, num_steps=6, sequence=32, sequences_per_step=4, sequences_per_forward=4,
    evaluation_tokens=512, trace_tokens=256,
)  # fmt: skip


@pytest.fixture(scope="module")
def corpus():
    return train_moe.known_corpus("package", SMALLEST.vocab_size)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def trainer(corpus, arm="none", seed=0, **changes):
    return moe.Trainer(dataclasses.replace(SMALLEST, **changes), Arm.parse(arm), corpus, seed)


def biases(run):
    return {layer: run.routers.bias_E(layer) for layer in run.routers.gates}


def test_smoke_repeats_to_the_last_bit_and_differs_by_seed():
    cell = {"size": "smoke", "arm": "sign:0.01", "corpus": "package"}
    rows = train_moe.run(cell, 0)
    assert train_moe.run(cell, 0) == rows
    (summary,) = [row for row in rows if row["kind"] == "run"]
    assert summary["tokens_trained"] == 20 * 512
    assert len(summary["training_loss"]) == 20
    assert summary["training_loss"][-1] < summary["training_loss"][0] < math.log(512) + 0.1
    assert [len(row["max_vio"]) for row in rows if row["kind"] == "layer"] == [20, 20]
    assert [(row["step"], row["layer"]) for row in rows if row["kind"] == "look"] == [
        (step, layer) for step in (4, 10, 20) for layer in (1, 2)
    ]
    (other,) = [row for row in train_moe.run(cell, 1) if row["kind"] == "run"]
    assert other["training_loss"] != summary["training_loss"]


def test_arms_of_a_seed_start_from_the_same_model_and_batches(corpus):
    first = {}
    for arm in ("none", "aux:0.01", "sign:0.01", "qb"):
        run = trainer(corpus, arm)
        run.train(1)
        first[arm] = run.history.training_loss[0], run.history.max_vio[1][0]
    assert len(set(first.values())) == 1


def test_auxiliary_loss_by_hand():
    scores_TE = np.array([[0.8, 0.4, 0.2], [0.6, 0.3, 0.1], [0.5, 0.25, 0.5]])
    logits_TE = torch.tensor(np.log(scores_TE / (1 - scores_TE)), requires_grad=True)
    loss = moe.auxiliary_loss(logits_TE, torch.tensor([[0], [0], [2]]), "sigmoid")
    share_E = (scores_TE / scores_TE.sum(axis=1, keepdims=True)).mean(axis=0)
    assert float(loss.detach()) == pytest.approx(3 * (2 / 3 * share_E[0] + 1 / 3 * share_E[2]))
    loss.backward()
    assert (logits_TE.grad[:, 0] > 0).all()  # descent lowers the overloaded expert's scores
    assert (logits_TE.grad[:, 1] < 0).all()  # and raises the unused one's
    balanced = moe.auxiliary_loss(torch.randn(6, 3), torch.tensor([[0], [1], [2], [0], [1], [2]]), "sigmoid")
    assert float(balanced) == pytest.approx(1.0)


def test_only_the_auxiliary_arm_has_its_gradient(corpus):
    weights = {}
    for arm in ("none", "aux:0", "aux:0.1"):
        run = trainer(corpus, arm)
        run.train(2)
        weights[arm] = run.routers.gates[1].weight.detach().clone()
    assert torch.equal(weights["none"], weights["aux:0"])
    assert not torch.equal(weights["none"], weights["aux:0.1"])


def test_loads_of_hooks_and_balancer_agree_and_the_bias_is_the_rules(corpus):
    """The routers' own hooks count apart from the balancer's; replayed through the rule they give its biases."""
    run = trainer(corpus, "proportional:0.05:inverse_sqrt", layers=3)
    rule = run.arm.rule(SMALLEST.num_steps)
    expected = {layer: np.zeros(16) for layer in run.routers.gates}
    balance, routed = run.balance.step, []
    run.balance.step = lambda routing: (routed.append({k: r.load_E() for k, r in routing.items()}), balance(routing))
    run.train(4)
    for t, loads in enumerate(routed, start=1):
        for layer, load_E in loads.items():
            assert load_E.sum() == 128 * 2
            expected[layer], _ = rule.step(
                expected[layer], Observation(t, target_load_E(128, 16, 2), load_E=load_E), ()
            )
    for layer, bias_E in biases(run).items():
        assert np.ptp(bias_E) > 0
        assert np.array_equal(bias_E, expected[layer].astype(np.float32))


def test_quantile_balancing_sets_the_next_bias_by_this_batch(corpus):
    run = trainer(corpus, "qb")
    routed = {}
    balance = run.balance.step
    run.balance.step = lambda routing: (routed.update(routing), balance(routing))
    run.train(1)
    rule = Arm.parse("qb").rule(1)
    seen = Observation(1, target_load_E(128, 16, 2), scores_TE=routed[1].scores_TE, top_k=2)
    expected_E, _ = rule.step(np.zeros(16), seen, ())
    assert np.array_equal(biases(run)[1], expected_E.astype(np.float32))


def test_without_a_rule_the_bias_stays(corpus):
    for arm in ("none", "aux:0.01"):
        run = trainer(corpus, arm)
        run.train(2)
        assert not biases(run)[1].any()


@pytest.mark.parametrize("arm", ["sign:0.01:inverse_sqrt", "ema:0.01", "qb", "aux:0.01"])
def test_a_resumed_run_is_the_uninterrupted_one(corpus, arm, tmp_path):
    path = tmp_path / "half.pt"
    whole, _ = moe.measure(SMALLEST, Arm.parse(arm), corpus, 3)
    half = trainer(corpus, arm, seed=3)
    half.train(3)
    moe._look(half, None)  # the one look before step 6 of 6 that a run of six steps has at step 3
    half.history.looks[:0] = [row for row in _looks(whole) if row["step"] == 1]
    half.save(path)
    files = moe.Files(checkpoint=path, checkpoint_every=3, resume=True)
    resumed, _ = moe.measure(SMALLEST, Arm.parse(arm), corpus, 3, files=files)
    assert resumed == whole
    assert not path.exists()  # a finished run needs no checkpoint


def _looks(rows):
    return [{key: value for key, value in row.items() if key != "kind"} for row in rows if row["kind"] == "look"]


def test_foreign_and_damaged_checkpoints_are_refused(corpus, tmp_path):
    path = tmp_path / "run.pt"
    run = trainer(corpus, "sign:0.01")
    run.train(1)
    run.save(path)
    with pytest.raises(ValueError, match=r"run\.pt belongs to .*sign:0\.01.* not to .*sign:0\.1"):
        trainer(corpus, "sign:0.1").load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"run\.pt is not a whole checkpoint .*delete it"):
        trainer(corpus, "sign:0.01").load(path)


def test_accumulated_gradients_see_the_same_tokens(corpus):
    whole, parts = trainer(corpus, "aux:0.01"), trainer(corpus, "aux:0.01", sequences_per_forward=1)
    whole.train(1)
    parts.train(1)
    assert parts.history.max_vio == whole.history.max_vio
    assert parts.history.training_loss == pytest.approx(whole.history.training_loss, rel=1e-5)


def test_bfloat16_weights_keep_float32_masters_and_biases(corpus):
    run = trainer(corpus, "sign:0.001", precision="bfloat16", learning_rate=1e-5)
    before = [master.clone() for _, master in run.masters]
    run.train(2)
    assert {weight.dtype for weight in run.model.parameters()} == {torch.bfloat16}
    assert {master.dtype for _, master in run.masters} == {torch.float32}
    assert any(not torch.equal(master, old) for (_, master), old in zip(run.masters, before, strict=True))
    assert all(torch.equal(weight, master.bfloat16()) for weight, master in run.masters)
    assert run.routers.gates[1].e_score_correction_bias.dtype == torch.float32
    assert set(np.unique(biases(run)[1])) <= {np.float64(np.float32(k * 1e-3)) for k in range(-2, 3)}


def test_evaluation_changes_nothing(corpus):
    run, same = trainer(corpus, "sign:0.01"), trainer(corpus, "sign:0.01")
    run.train(2)
    run.evaluate()
    run.train(4)
    same.train(4)
    assert run.history.training_loss == same.history.training_loss
    assert np.array_equal(biases(run)[1], biases(same)[1])


@pytest.mark.parametrize("arm", ["none", "proportional:0.001", "qb", "aux:0.01"])
def test_softmax_gate_scores_sum_to_one_and_the_bias_steers_it(corpus, arm):
    run = trainer(corpus, arm, gate="softmax")
    seen = {}
    run.watch = lambda step, routed: seen.update({step: (routed[1], run.routers.bias_E(1))})
    run.train(3)
    for routing, bias_E in seen.values():
        scores_TE = routing.scores_TE()
        assert scores_TE.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
        picked_TE = np.zeros(scores_TE.shape, dtype=bool)
        np.put_along_axis(picked_TE, torch.cat(routing.experts_TK).numpy(), True, axis=1)
        biased_TE = scores_TE + bias_E.astype(np.float32)
        assert (np.where(picked_TE, biased_TE, np.inf).min(1) >= np.where(picked_TE, -np.inf, biased_TE).max(1)).all()
        assert picked_TE.sum(axis=0).tolist() == routing.load_E().tolist()
    assert biases(run)[1].any() == (arm in {"proportional:0.001", "qb"})


def test_gates_start_from_the_same_weights(corpus):
    one, other = trainer(corpus), trainer(corpus, gate="softmax")
    pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(weight, same) for weight, same in pairs)


def test_sgd_keeps_nothing_but_the_weights(corpus):
    run = trainer(corpus, "sign:0.01", optimizer="sgd", learning_rate=0.1)
    before = [weight.detach().clone() for weight in run.model.parameters()]
    run.train(2)
    assert not any(run.optimizer.state.values())
    assert any(not torch.equal(weight, old) for weight, old in zip(run.model.parameters(), before, strict=True))


def test_traces_of_batches_say_what_the_routers_did(corpus, tmp_path):
    files = moe.Files(traces=tmp_path, trace_every=2, checkpoint=tmp_path / "run.pt", checkpoint_every=1)
    rows, _ = moe.measure(SMALLEST, Arm.parse("sign:0.01"), corpus, 0, files=files)
    (layer,) = [row for row in rows if row["kind"] == "layer"]
    written = sorted((tmp_path / "sign-0.01_seed0_batches").iterdir())
    assert [file.name for file in written] == [f"layer1_step{step}.npz" for step in (2, 4, 6)]
    for file in written:
        trace = read_trace(file)
        load_E = duality.allocate(AssignmentProblem(trace.scores_TE, trace.top_k), trace.bias_E).load_E
        assert float(metrics.max_vio(load_E)) == pytest.approx(layer["max_vio"][trace.metadata["step"] - 1], abs=1e-4)


@pytest.mark.parametrize(
    "change", [{"learning_rate": 1e-4}, {"sequences_per_step": 2}, {"gate": "softmax"}, {"optimizer": "sgd"}]
)
def test_a_checkpoint_of_other_settings_is_refused(corpus, tmp_path, change):
    run = trainer(corpus)
    run.train(1)
    run.save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"run\.pt belongs to"):
        trainer(corpus, **change).load(tmp_path / "run.pt")


def test_price_of_the_optimal_bias_is_nothing():
    scores_TE = np.random.default_rng(0).integers(0, 1024, (64, 8)).astype(np.float32) / 1024
    optimum = solve_exact(AssignmentProblem(scores_TE, 2))
    trace = moe.RouterTrace(scores_TE, 2, optimum.bias_E)
    priced = moe.price(trace)
    assert priced["gap"] == pytest.approx(0.0, abs=1e-12)
    assert priced["correlation"] == pytest.approx(1.0)
    assert priced["bias_spread"] == priced["optimal_spread"]
    unbiased = moe.price(dataclasses.replace(trace, bias_E=np.zeros(8)))
    assert unbiased["correlation"] is None
    assert unbiased["affinity"] > 1.0  # unbalanced loads can collect more than the balanced optimum
    assert unbiased["gap"] == pytest.approx(unbiased["affinity"] - 1.0)  # at bias 0 both are top-K of the scores


def test_epochs_take_every_block_once(corpus):
    size = dataclasses.replace(SMALLEST, sequences_per_step=2)
    batches = moe.Batches(np.arange(32 * 7, dtype=np.int32), size, seed=0)
    epochs = [[batches(step) for step in range(3 * epoch + 1, 3 * epoch + 4)] for epoch in range(2)]
    for epoch in epochs:
        starts = np.concatenate(epoch)[:, 0]
        assert len(set(starts.tolist())) == 6  # of seven blocks, three steps of two
        assert (starts % 32 == 0).all()
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(batches(2), moe.Batches(np.arange(32 * 7, dtype=np.int32), size, seed=0)(2))


def test_too_little_text_is_said():
    few = build_corpus([Document(str(i), f"a few words, {i}. " * 30) for i in range(4)], vocab_size=300)
    with pytest.raises(ValueError, match=r"the training text has .* give more text"):
        moe.Trainer(dataclasses.replace(SMALLEST, sequences_per_step=400), Arm.parse("none"), few, 0)
    run = moe.Trainer(dataclasses.replace(SMALLEST, sequence=8), Arm.parse("none"), few, 0)
    with pytest.raises(ValueError, match=r"the validation text has .* give more text"):
        run.evaluate()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("1m", 9e5, 1.1e6), ("5m", 4.5e6, 5.5e6), ("20m", 1.9e7, 2.1e7), ("104m", 1.03e8, 1.05e8), ("1b", 1.1e9, 1.2e9)],
)
def test_sizes_are_as_large_as_they_are_called(name, low, high):
    assert low < moe.count_parameters(SIZES[name], SIZES[name].vocab_size) < high


def test_command_line_from_files_to_priced_traces(tmp_path):
    texts = []
    for document in train_moe._own_source()[:40]:
        texts.append(tmp_path / document.name.replace("/", "_"))
        texts[-1].write_text(document.text)
    out = tmp_path / "out"
    arguments = ["--size", "smoke", "--arms", "none,sign:0.01", "--seeds", "1", "--steps", "3", "--no-shakespeare"]
    arguments += ["--traces", "--checkpoint-every", "1", "--resume", "--out", str(out)]
    arguments += [part for path in texts for part in ("--text", str(path))]
    done = CliRunner().invoke(train_moe.app, arguments)
    assert done.exit_code == 0, done.output
    rows = train_moe.read_results(out / "smoke.json")
    assert {row["arm"] for row in rows} == {"none", "sign:0.01"}
    assert not any("second" in key for row in rows for key in row)  # speed is no part of what repeats
    speed = json.loads((out / "speed" / "smoke_none_seed0.json").read_text())
    assert speed["tokens"] == 3 * 512
    assert (out / "smoke.png").stat().st_size > 1000
    file = out / "traces" / "sign-0.01_seed0_layer1_step3.npz"
    trace = read_trace(file)
    assert trace.scores_TE.shape == (1024, 16)
    looks = {(row["arm"], row["step"], row["layer"]): row for row in rows if row["kind"] == "look"}
    assert moe.price(trace)["gap"] == looks["sign:0.01", 3, 1]["gap"]
    solved = CliRunner().invoke(alflb_app, ["solve", str(file), "--json"])
    assert solved.exit_code == 0, solved.output
    again = CliRunner().invoke(train_moe.app, ["--redraw", str(out / "smoke.json")])
    assert again.exit_code == 0, again.output
    assert "arm sign:0.01" in again.output


def test_one_text_file_and_other_sizes_are_enough(tmp_path):
    """Nothing else is installed or given; the trained model comes back with its biases."""
    text = tmp_path / "text.txt"
    text.write_text("".join(document.text for document in train_moe._own_source()[:40]))
    arguments = [
        "--size",
        "smoke",
        "--arms",
        "sign:0.01",
        "--seeds",
        "1",
        "--steps",
        "2",
        "--text",
        str(text),
        "--keep",
    ]
    arguments += ["--batch", "3", "--sequence", "32", "--precision", "bfloat16", "--learning-rate", "0.002", "--keep"]
    done = CliRunner().invoke(train_moe.app, [*arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    speed = json.loads((tmp_path / "out/speed/smoke_sign-0.01_seed0.json").read_text())
    assert speed["tokens"] == 2 * 3 * 32
    rows = train_moe.read_results(tmp_path / "out/smoke.json")
    assert {row["precision"] for row in rows} == {"bfloat16"}
    model = moe.DeepseekV3ForCausalLM.from_pretrained(tmp_path / "out/models/smoke_sign-0.01_seed0")
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "none,sing:0.01"], "unknown rule 'sing'"),
        (["--size", "large"], "unknown size 'large'"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
        (["--no-shakespeare"], "there are 0 documents"),
        (["--precision", "float8"], "precision is 'float8'; choose one of float32, bfloat16"),
        (["--optimizer", "adam"], "optimizer is 'adam'; choose one of adamw, sgd"),
        (["--gate", "relu"], "gate is 'relu'; choose one of sigmoid, softmax"),
        (["--text", str(ROOT / "CITATION.cff"), "--batch", "1000"], "bytes, and one step takes"),
        (["--no-shakespeare", "--text", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_command_line_refuses_before_it_trains(arguments, message, tmp_path):
    done = CliRunner().invoke(train_moe.app, [*arguments, "--out", str(tmp_path)])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
