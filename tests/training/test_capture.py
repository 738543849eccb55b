"""Captured scores are those the routers chose by, in whatever form they keep them."""

import numpy as np
import pytest
from typer.testing import CliRunner

from alflb import route
from alflb.cli.app import app
from alflb.traces import read_trace
from tests.training.models import BATCH, CONFIGS, LENGTH, ROOT, bias_tensors, make_model, text_batches, torch, training

capture = training.capture
SOFTMAX = {"ernie4_5_moe", "qwen3_moe", "olmoe", "mixtral"}


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_bias_and_groups_reproduce_the_picks(name):
    model = make_model(name)
    for bias in bias_tensors(model).values():
        bias.data += torch.linspace(-0.03, 0.03, bias.numel())
    picks = {}
    for path, module in model.named_modules():
        if path.split(".")[-1] == "experts":
            module.register_forward_pre_hook(lambda module, args, path=path: picks.setdefault(path, []).append(args[1]))
    traces = capture(model, text_batches(3))
    assert model.training
    assert len(traces) == len(picks) >= 2
    for trace, seen in zip(traces.values(), picks.values()):
        assert trace.metadata["score_function"] == ("softmax" if name in SOFTMAX else "sigmoid")
        assert trace.metadata.get("n_group") == (2 if name == "deepseek_v3" else None)
        assert (trace.bias_E is None) == (name in SOFTMAX - {"ernie4_5_moe"})
        assert trace.scores_TE.dtype == np.float32
        assert trace.document_starts_D.tolist() == list(range(0, 3 * BATCH * LENGTH, LENGTH))
        groups = {key: trace.metadata[key] for key in ("n_group", "topk_group") if key in trace.metadata}
        bias_E = np.zeros(8) if trace.bias_E is None else trace.bias_E
        chosen = route(trace.scores_TE, bias_E, trace.top_k, **groups).experts_TK
        assert (chosen == np.sort(torch.cat(seen).numpy(), axis=1)).mean() >= 0.999


def test_padding_is_left_out_and_documents_start_where_rows_do():
    (batch,) = text_batches(1)
    mask = torch.ones_like(batch)
    mask[0, 10:] = 0
    plain = capture(make_model(), [batch])["model.layers.1.mlp"]
    padded = capture(make_model(), [{"input_ids": batch, "attention_mask": mask}])["model.layers.1.mlp"]
    assert padded.document_starts_D.tolist() == [0, 10]
    assert len(padded.scores_TE) == mask.sum()
    np.testing.assert_allclose(padded.scores_TE[:10], plain.scores_TE[:10], rtol=1e-5)


def test_modules_keep_the_modes_they_had():
    model = make_model()
    model.model.layers[0].eval()
    capture(model, text_batches(1))
    assert model.training
    assert not model.model.layers[0].training
    assert not any(module._forward_hooks for module in model.modules())


def test_an_added_bias_is_captured_as_one():
    model = make_model("qwen3_moe")
    training.add_bias(model)
    for path, buffer in model.named_buffers():
        if path.endswith("expert_bias"):
            buffer += torch.linspace(-0.05, 0.05, 8)
    trace = capture(model, text_batches(2))["model.layers.0.mlp.gate"]
    np.testing.assert_allclose(trace.bias_E, np.linspace(-0.05, 0.05, 8), rtol=1e-6)
    np.testing.assert_allclose(trace.scores_TE.sum(axis=1), 1.0, rtol=1e-5)


def test_scores_that_do_not_reproduce_the_picks_are_refused():
    """A router with a bonus for the first expert that is not declared."""

    class Router(torch.nn.Linear):
        num_experts = 6

        def __init__(self):
            super().__init__(4, 6)
            self.expert_bias = torch.nn.Buffer(torch.zeros(6))

        def forward(self, x):
            scores = super().forward(x).sigmoid()
            hidden = 0.3 * torch.arange(6)
            return super().forward(x), torch.topk(scores + self.expert_bias + hidden, 2).indices

    training.describe_router(Router, bias="expert_bias", output=1)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(16, 4)
            self.router = Router()

        def forward(self, input_ids):
            return self.router(self.embed(input_ids).flatten(0, 1))

    with pytest.raises(ValueError, match=r"router: .* reproduces the picks of .*% of the tokens only"):
        capture(Model(), [torch.randint(0, 16, (4, 20))])
    with pytest.raises(ValueError, match=r"Linear has no router that chooses by torch.topk"):
        capture(torch.nn.Linear(2, 2), [torch.zeros(1, 1)])
    with pytest.raises(ValueError, match="batches is empty"):
        capture(make_model(), [])


def test_alflb_capture_writes_one_trace_per_layer(tmp_path, monkeypatch):
    def byte_tokenizer(text, add_special_tokens):
        return {"input_ids": list(text.encode())}

    monkeypatch.setattr("alflb.cli.training._load", lambda name: (make_model(name), byte_tokenizer))
    (tmp_path / "text.txt").write_text("A text of some length, for a router to read. " * 20)
    arguments = ["capture", "glm4_moe", "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "traces")]
    done = CliRunner().invoke(app, [*arguments, "--tokens", "200", "--length", "60"])
    assert done.exit_code == 0, done.output
    traces = [read_trace(path) for path in sorted((tmp_path / "traces").iterdir())]
    assert [trace.metadata["layer"] for trace in traces] == ["model.layers.1.mlp", "model.layers.2.mlp"]
    assert traces[0].scores_TE.shape == (200, 8)
    assert traces[0].document_starts_D.tolist() == [0, 60, 120, 180]
    (tmp_path / "text.txt").write_text("")
    assert CliRunner().invoke(app, arguments).exit_code == 2


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [("./nowhere", "LICENSE", "./nowhere is no folder"), ("./nowhere", "no_such_text", "no_such_text")],
)
def test_what_alflb_capture_cannot_use_is_said_before_a_model_is_loaded(model, text, message, tmp_path):
    refused = CliRunner().invoke(app, ["capture", model, "--text", str(ROOT / text), "--out", str(tmp_path / "out")])
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
