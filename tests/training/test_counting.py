"""Which tokens are counted: each once, in training mode only, however the activations are saved."""

import numpy as np
import pytest

from tests.training.models import (
    BATCH,
    LENGTH,
    NUM_EXPERTS,
    TOP_K,
    Feed,
    enable_checkpointing,
    make_model,
    text_batches,
    torch,
    train,
    training,
)

LoadBalancer = training.LoadBalancer
describe_router = training.describe_router

CHECKPOINTED = ["deepseek_v3", "minimax_m2", "ernie4_5_moe"]


def loads(reports):
    return [[layer.load_E.tolist() for layer in report.layers] for report in reports]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("name", CHECKPOINTED)
def test_recomputation_under_gradient_checkpointing_is_not_counted(name, use_reentrant):
    plain_model, model = make_model(name), make_model(name)
    plain = train(plain_model, LoadBalancer.attach(plain_model, rule="sign"), text_batches(2))
    enable_checkpointing(model, use_reentrant)
    calls = []
    model.get_submodule("model.layers.1.mlp.experts").register_forward_pre_hook(lambda *args: calls.append(1))
    balancer = LoadBalancer.attach(model, rule="sign")
    assert loads(train(model, balancer, text_batches(2))) == loads(plain)
    assert len(calls) == 4, "the experts ran twice a step, so there was something not to count"


def test_a_checkpoint_function_of_another_library_is_recognized():
    """Libraries with their own reentrant checkpointing do it as an autograd function, as here."""

    class Checkpoint(torch.autograd.Function):
        @staticmethod
        def forward(ctx, run, x):
            ctx.run, ctx.x = run, x.detach()
            with torch.no_grad():
                return run(x)

        @staticmethod
        def backward(ctx, gradient):
            x = ctx.x.requires_grad_()
            with torch.enable_grad():
                ctx.run(x).backward(gradient)
            return None, x.grad

    model = make_model()
    block = model.model.layers[1].mlp
    balancer = LoadBalancer.attach(block, rule="sign")
    x = torch.randn(BATCH, LENGTH, 32, requires_grad=True)
    Checkpoint.apply(block, x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K


def test_micro_batches_add_up_until_the_step():
    model, micro = make_model(), text_batches(3)
    balancer = LoadBalancer.attach(model, "none")
    separate = []
    for batch in micro:
        model(input_ids=batch, labels=batch).loss.backward()
        separate.append(balancer.step())
    for batch in micro:
        model(input_ids=batch, labels=batch).loss.backward()
    assert loads([balancer.step()]) == np.sum([loads([report]) for report in separate], axis=0).tolist()
    assert balancer.num_steps == 4


def test_evaluation_is_not_counted_and_a_step_without_training_is_refused():
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    model.eval()
    with torch.inference_mode():
        model(text_batches(1)[0])
    model(text_batches(1)[0])
    before = balancer.biases
    with pytest.raises(RuntimeError, match=r"no token was counted since the last step.*model.train\(\)"):
        balancer.step()
    assert balancer.num_steps == 0
    model.train()
    (report,) = train(model, balancer, text_batches(1))
    assert report.layers[0].load_E.sum() == BATCH * LENGTH * TOP_K
    assert any((balancer.biases[name] != before[name]).any() for name in before)


def test_forward_passes_without_gradients_in_training_mode_are_counted():
    """No way to tell them from the first pass of reentrant checkpointing; docs/training.md says so."""
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    with torch.no_grad():
        model(text_batches(1)[0])
    with torch.inference_mode():
        model(text_batches(1)[0])
    train(model, balancer, text_batches(1))
    assert balancer.state_dict()["layers"]["model.layers.1.mlp"]["total_load"].sum() == 3 * BATCH * LENGTH * TOP_K


@pytest.mark.parametrize("name", CHECKPOINTED)
def test_padding_is_not_counted(name):
    """By the mask the model is called with; the picks of the real tokens are those of the gate."""
    model = make_model(name)
    balancer = LoadBalancer.attach(model, "none")
    (batch,) = text_batches(1)
    mask = torch.ones_like(batch)
    mask[1, LENGTH // 2 :] = 0
    picks = []
    block = model.get_submodule(balancer.layer_names[0])
    block.gate.register_forward_hook(lambda module, args, output: picks.append(output[2]))
    enable_checkpointing(model, use_reentrant=False)
    model(input_ids=batch, attention_mask=mask, labels=batch).loss.backward()
    model(batch, mask)
    model(input_ids=batch, attention_mask=torch.ones_like(batch))
    model(input_ids=batch)
    expected = [
        torch.bincount(picked.reshape(BATCH * LENGTH, TOP_K)[rows].flatten(), minlength=NUM_EXPERTS)
        for picked, rows in zip([picks[0], *picks[-3:]], [mask.flatten() > 0] * 2 + [slice(None)] * 2)
    ]
    assert balancer.step().layers[0].load_E.tolist() == sum(expected).tolist()


def test_a_mask_that_does_not_say_which_tokens_are_real_is_ignored():
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    (batch,) = text_batches(1)
    model(input_ids=batch, attention_mask=torch.zeros(BATCH, 1, LENGTH, LENGTH))
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K


def test_a_failed_forward_pass_leaves_no_mask_behind():
    model = make_model()
    balancer = LoadBalancer.attach(model, rule="sign")
    (batch,) = text_batches(1)
    with pytest.raises(Exception, match=r"."):  # whatever the model makes of it
        model(input_ids=batch.float().unsqueeze(0), attention_mask=torch.zeros_like(batch))
    balancer.discard()
    for layer in model.model.layers[1:]:
        layer.mlp(torch.randn(BATCH, LENGTH, 32))
    assert balancer.step().layers[0].load_E.sum() == BATCH * LENGTH * TOP_K


def test_a_layer_without_tokens_keeps_its_bias_and_is_not_reported():
    model = make_model()
    balancer = LoadBalancer.attach(model, "ema", 0.1)
    train(model, balancer, text_batches(1))
    before = str(balancer.state_dict()["layers"]["model.layers.2.mlp"])
    model.model.layers[2].eval()
    (report,) = train(model, balancer, text_batches(1))
    assert [layer.label for layer in report.layers] == ["layer_01"]
    assert str(balancer.state_dict()["layers"]["model.layers.2.mlp"]) == before


def test_counts_stay_exact_where_16_bits_would_call_an_underloaded_expert_balanced():
    """40,840 tokens around a mean of 40,960 are 40,960 in bf16, where numbers of that size are 256 apart."""
    block = Feed(2)
    balancer = LoadBalancer.attach(block, "sign", 0.25)
    in_bf16 = torch.zeros(2, dtype=torch.bfloat16)
    for dtype in [torch.int64, torch.int32] * 4:
        block(picks=torch.tensor([0] * 5105 + [1] * 5135, dtype=dtype).view(-1, 1))
        in_bf16 += torch.tensor([5105, 5135])
    block(torch.zeros(0, 1, dtype=torch.int64))
    assert balancer.step().layers[0].load_E.tolist() == [40840, 41080]
    assert block.bias.tolist() == [0.25, -0.25]
    assert in_bf16[0] == 40960


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler, which looks at every tensor
def test_a_compiled_model_is_counted_the_same():
    class Router(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Buffer(torch.zeros(4))

        def forward(self, scores):
            return scores, torch.topk(scores + self.bias, 2).indices

    describe_router(Router, bias="bias", output=1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), Router())
    compiled = torch.compile(model, backend="eager")
    balancer = LoadBalancer.attach(compiled, "none")
    assert balancer.layer_names == ["1"]
    for _ in range(2):  # the first call compiles
        scores, picks = compiled(torch.rand(16, 8))
        scores.sum().backward()
        assert loads([balancer.step()]) == [[np.bincount(picks.flatten(), minlength=4).tolist()]]
