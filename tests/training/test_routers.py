"""Finding routers: those that are known, those that are described, and the errors that say how to describe one."""

import pytest

from tests.training.models import make_model, torch, training

LoadBalancer = training.LoadBalancer
RouterLayout = training.RouterLayout
describe_router = training.describe_router
find_routers = training.find_routers

nn = torch.nn


class Gate(nn.Module):
    """A gate as in DeepSeek's own inference code: a trainable-looking bias, and (weights, indices) as output."""

    def __init__(self, num_experts=6, top_k=2):
        super().__init__()
        self.top_k = top_k
        self.weight = nn.Parameter(torch.randn(num_experts, 8))
        self.bias = nn.Parameter(torch.zeros(num_experts))

    def forward(self, x):
        scores = nn.functional.linear(x, self.weight).sigmoid()
        indices = torch.topk(scores + self.bias, self.top_k, dim=-1)[1]
        return scores.gather(1, indices), indices


class Moe(nn.Module):
    """The shape of torchtitan's block, with its names: it owns bias and counts, and hands the bias to its router."""

    class Router(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 6, bias=False)

        def forward(self, x, expert_bias_E):
            scores = self.gate(x).sigmoid()
            picks = torch.topk(scores + expert_bias_E, k=2, dim=1)[1]
            return scores.gather(1, picks), picks, scores

    def __init__(self):
        super().__init__()
        self.router = Moe.Router()
        self.register_buffer("expert_bias_E", torch.zeros(6))
        self.register_buffer("tokens_per_expert_E", torch.zeros(6), persistent=False)

    def forward(self, x):
        weights, picks, _ = self.router(x, self.expert_bias_E)
        if self.training:
            self.tokens_per_expert_E.add_(torch.bincount(picks.flatten(), minlength=6))
        return weights.sum(1, keepdim=True) * x


describe_router(Gate, bias="bias", output=1)
describe_router(Moe, bias="expert_bias_E", module="router", output=1)


def test_a_described_gate_is_balanced():
    model = nn.Sequential(nn.Linear(8, 8), Gate())
    with pytest.raises(ValueError, match=r"1.bias requires grad"):
        LoadBalancer.attach(model, rule="sign")
    model[1].bias.requires_grad_(False)
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    _, picks = model(torch.randn(32, 8))
    report = balancer.step()
    assert report.layers[0].load_E.tolist() == torch.bincount(picks.flatten(), minlength=6).tolist()
    assert sorted(set(model[1].bias.tolist())) == pytest.approx([-0.1, 0.1])


def test_a_described_block_is_balanced_and_its_own_counts_agree():
    model = nn.Sequential(Moe(), Moe())
    balancer = LoadBalancer.attach(model, schedule=0.1, rule="sign")
    assert balancer.layer_names == ["0", "1"]
    model(torch.randn(32, 8))
    report = balancer.step()
    for layer, block in zip(report.layers, model):
        assert layer.load_E.tolist() == block.tokens_per_expert_E.tolist()
        assert torch.equal(block.expert_bias_E.double(), torch.tensor(layer.bias_E).float().double())
    model.eval()
    model(torch.randn(32, 8))
    assert model[0].tokens_per_expert_E.sum() == 64, "evaluations count for neither"
    with pytest.raises(RuntimeError, match="no token was counted"):
        balancer.step()


def test_subclasses_of_a_described_class_are_found():
    class Special(Moe):
        pass

    assert [router.path for router in find_routers(nn.Sequential(Special()))] == ["0.expert_bias_E"]


def test_a_model_without_bias_gets_one_error_that_says_how_to_describe_one():
    model = make_model("qwen3_moe")
    with pytest.raises(ValueError, match="found no router with a selection bias in Qwen3MoeForCausalLM") as caught:
        LoadBalancer.attach(model, rule="sign")
    headline, *how = str(caught.value).splitlines()
    assert (
        "Qwen3MoeExperts there, but no e_score_correction_bias or expert_bias or balancing_biases next to them"
        in headline
    )
    assert len(how) == 3
    recipe = "\n".join(how).replace("path.of.one.moe.block", "0").replace("path.to.bias", "router.gate.bias")
    recipe = recipe.replace("path.to.experts", "router").replace("name_of_indices", "x")

    class Other(Moe):
        def __init__(self):
            super().__init__()
            self.router.gate = nn.Linear(8, 6)
            self.router.gate.bias.requires_grad_(False)

    other = nn.Sequential(Other())
    exec(recipe, {"model": other})
    assert [router.path for router in find_routers(other)] == ["0.router.gate.bias"]


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ({"bias": "nothing", "output": 1}, "does not fit its description.*has no attribute 'nothing'"),
        ({"bias": "a.b", "output": 1}, "does not fit its description.*has no attribute"),
        ({"bias": "weight", "module": "experts", "output": 1}, "does not fit its description.*has no attribute"),
        ({"bias": "weight", "argument": "picks"}, "forward of Block has no argument 'picks'"),
        (
            {"bias": "weight"},
            "argument is None, output is None and topk is False; say where the picks are by one of them",
        ),
        ({"bias": "weight", "argument": "x", "output": 1}, "say where the picks are by one of them"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(layout, message):
    class Block(nn.Linear):
        def forward(self, x):
            return x

    def describe_and_find():
        describe_router(Block, **layout)
        find_routers(nn.Sequential(Block(2, 2)))

    with pytest.raises(ValueError, match=message):
        describe_and_find()


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="block is 'Gate'; pass the class of a module"):
        describe_router("Gate", bias="bias", output=1)
    with pytest.raises(ValueError, match="model is 'deepseek'; pass a torch"):
        LoadBalancer.attach("deepseek", rule="sign")


def test_two_candidates_for_a_bias_are_an_error_that_asks_which():
    model = make_model()
    model.model.layers[1].mlp.expert_bias = nn.Buffer(torch.zeros(8))
    with pytest.raises(ValueError, match=r"several tensors .*\(expert_bias, gate.e_score_correction_bias\); say which"):
        LoadBalancer.attach(model, rule="sign")


def test_wrappers_do_not_change_names():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

    model = make_model()
    names = LoadBalancer.attach(model, rule="sign").layer_names
    apply_activation_checkpointing(model, check_fn=lambda module: type(module).__name__ == "DeepseekV3Experts")
    wrapped = torch.compile(torch.nn.Sequential(model)[0], backend="eager")
    assert LoadBalancer.attach(wrapped, rule="sign").layer_names == names
    assert find_routers(model)[0].layout == RouterLayout(
        "gate.e_score_correction_bias", "experts._checkpoint_wrapped_module", argument="top_k_index"
    )


def test_layers_without_numbers_of_their_own_are_labeled_by_path():
    model = nn.ModuleDict({"first": Moe(), "second": Moe()})
    assert [layer.label for layer in LoadBalancer.attach(model, rule="sign")._layers.values()] == ["first", "second"]
