"""The torch side of `train_moe`: the model, what its routers say, training, evaluation, checkpoints, prices.

Importing this module needs torch and transformers; `experiments.train_moe` says so where they are missing.
Letters in names: T tokens, E routed experts, K picks per token.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy, linear
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

from alflb import duality, metrics
from alflb.exact import recertify, solve_exact
from alflb.io import Row, atomic_write
from alflb.problem import AssignmentProblem, target_load_E
from alflb.rules import Observation, Rule, Sight
from alflb.traces import RouterTrace, write_trace
from alflb.training import LoadBalancer
from experiments._moe_settings import Arm, Size
from experiments._text import Corpus


class SoftmaxRouter(DeepseekV3TopkRouter):  # type: ignore[misc]  # transformers is not typed for mypy here
    """The router of DeepSeek-V3 with softmax scores: a token's scores sum to one."""

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits, weights of the chosen experts, and which they are."""
        logits_TE = linear(hidden_states.view(-1, self.hidden_dim).float(), self.weight.float())
        scores_TE = logits_TE.softmax(dim=-1)
        experts_TK = torch.topk(scores_TE + self.e_score_correction_bias, self.top_k, dim=-1, sorted=False)[1]
        weights_TK = scores_TE.gather(1, experts_TK)
        weights_TK = weights_TK / weights_TK.sum(dim=-1, keepdim=True) * self.routed_scaling_factor
        return logits_TE, weights_TK, experts_TK


def build_model(size: Size, vocab_size: int, seed: int) -> Any:
    """A DeepSeek-V3 model of random weights: routed and shared experts, the first layer dense, the gate of the size.

    Expert matrices are multiplied by the implementation ``grouped_mm`` of transformers, which takes its own slow path
    where torch or the hardware has none.
    """
    config = DeepseekV3Config(
        vocab_size=vocab_size,
        hidden_size=size.hidden,
        intermediate_size=size.dense_width,
        moe_intermediate_size=size.expert_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        n_shared_experts=size.shared_experts,
        n_routed_experts=size.num_experts,
        num_experts_per_tok=size.top_k,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=size.routed_scale,
        kv_lora_rank=size.latent_rank,
        q_lora_rank=None,
        qk_rope_head_dim=size.head_width // 2,
        qk_nope_head_dim=size.head_width // 2,
        v_head_dim=size.head_width,
        first_k_dense_replace=1,
        max_position_embeddings=size.sequence,
        num_mtp_layers=0,
        tie_word_embeddings=size.tied,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM._from_config(config, experts_implementation="grouped_mm")
    if size.gate == "softmax":
        for layer in model.model.layers[config.first_k_dense_replace :]:
            layer.mlp.gate = _with_softmax(layer.mlp.gate, config)
    return model


def _with_softmax(gate: DeepseekV3TopkRouter, config: DeepseekV3Config) -> SoftmaxRouter:
    """A softmax router of the same weights."""
    other = SoftmaxRouter(config)
    other.load_state_dict(gate.state_dict())
    return other


def count_parameters(size: Size, vocab_size: int) -> int:
    """Parameters of a model that is never given memory."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(size, vocab_size, 0).parameters())


@dataclass
class Routing:
    """What one router said in the forwards of one step, in the order of the tokens."""

    gate: str
    logits_TE: list[torch.Tensor] = field(default_factory=list)
    experts_TK: list[torch.Tensor] = field(default_factory=list)

    def scores_TE(self) -> NDArray[np.float32]:
        """Scores before the bias."""
        return torch.cat([_scores(logits.detach(), self.gate) for logits in self.logits_TE]).cpu().numpy()

    def load_E(self) -> NDArray[np.int64]:
        """Tokens per expert."""
        num_experts = self.logits_TE[0].shape[1]
        experts = torch.cat([chosen.reshape(-1) for chosen in self.experts_TK])
        return torch.bincount(experts, minlength=num_experts).cpu().numpy()


class Routers:
    """The routers of a model and their biases, by layer; what they choose is kept only inside `recording`."""

    def __init__(self, model: Any, gate: str) -> None:
        self.gate = gate
        self.gates = {
            index: layer.mlp.gate for index, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")
        }
        self._recorded: dict[int, Routing] | None = None
        for layer, router in self.gates.items():
            router.register_forward_hook(self._hook(layer))

    @contextlib.contextmanager
    def recording(self) -> Iterator[dict[int, Routing]]:
        """Collect what routers choose in forward passes inside the context."""
        self._recorded = {layer: Routing(self.gate) for layer in self.gates}
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def bias_E(self, layer: int) -> NDArray[np.float64]:
        """The bias in force."""
        return self.gates[layer].e_score_correction_bias.detach().cpu().numpy().astype(np.float64)

    def set_bias(self, layer: int, bias_E: NDArray[np.float64]) -> None:
        """Put a bias in force, rounded to the buffer's float32."""
        buffer = self.gates[layer].e_score_correction_bias
        buffer.copy_(torch.from_numpy(bias_E).to(buffer))

    def _hook(self, layer: int) -> Callable[..., None]:
        def record(module: Any, arguments: Any, output: tuple[torch.Tensor, ...]) -> None:
            if self._recorded is not None:
                self._recorded[layer].logits_TE.append(output[0])
                self._recorded[layer].experts_TK.append(output[2])

        return record


def _scores(logits_TE: torch.Tensor, gate: str) -> torch.Tensor:
    """Scores of one of `experiments._moe_settings.GATES`."""
    return logits_TE.softmax(dim=1) if gate == "softmax" else logits_TE.sigmoid()


def auxiliary_loss(logits_TE: torch.Tensor, experts_TK: torch.Tensor, gate: str) -> torch.Tensor:
    r"""Load-balancing loss of one layer and batch, 1 at exact balance.

    .. math:: \sum_k f_k P_k,\quad f_k = \frac{E}{K T} A_k,\quad
              P_k = \frac1T \sum_i \frac{\sigma(z_{ik})}{\sum_j \sigma(z_{ij})}

    With a softmax gate P_k is the mean of softmax scores. Only P has a gradient. Source: Switch Transformer (arXiv
    2101.03961) and GShard, with the normalized sigmoid scores of DeepSeek-V3 (arXiv 2412.19437) in place of softmax
    probabilities.
    """
    num_tokens, num_experts = logits_TE.shape
    load_E = torch.bincount(experts_TK.reshape(-1), minlength=num_experts)
    fraction_E = load_E.to(logits_TE.dtype) * (num_experts / (experts_TK.shape[1] * num_tokens))
    scores_TE = _scores(logits_TE, gate)
    share_E = (scores_TE / scores_TE.sum(dim=1, keepdim=True)).mean(dim=0)
    return fraction_E @ share_E


@dataclass(frozen=True)
class Files:
    """Where a run leaves what is not in its rows; None for nowhere."""

    checkpoint: Path | None = None
    checkpoint_every: int = 0
    """Steps; 0 for at evaluations only."""
    resume: bool = False
    """Whether to take up the checkpoint if there is one."""
    traces: Path | None = None
    """Folder for router traces of held-out text at evaluations."""
    trace_every: int = 0
    """Steps between traces of training batches, in a folder of their own for each run; 0 for none."""
    model: Path | None = None
    """Where the trained model is saved as transformers saves one."""


def measure(
    size: Size, arm: Arm, corpus: Corpus, seed: int, *, device: str = "cpu", files: Files | None = None
) -> tuple[list[Row], dict[str, float]]:
    """Train one model; its rows, and how fast it went (which is in no row).

    Rows are of three kinds: ``run``, one; ``layer``, one for each router with MaxVio of every step's batch; ``look``,
    one for each router and each of the steps `Size.look_at`, with the prices of `price`.
    """
    files = files or Files()
    trainer = Trainer(size, arm, corpus, seed, device)
    if files.checkpoint is not None and files.resume and files.checkpoint.exists():
        trainer.load(files.checkpoint)
    if files.traces is not None and files.trace_every:
        trainer.watch = _BatchTraces(trainer, files.traces, files.trace_every)
    every = files.checkpoint_every or size.num_steps
    for step in sorted({*size.look_at, *range(every, size.num_steps, every)}):
        if step <= trainer.step:
            continue
        trainer.train(until=step)
        if step in size.look_at:
            _look(trainer, files.traces)
        if files.checkpoint is not None and step < size.num_steps:
            trainer.save(files.checkpoint)
    if files.checkpoint is not None:
        files.checkpoint.unlink(missing_ok=True)
    if files.model is not None:
        trainer.model.save_pretrained(files.model)
    tokens = size.num_steps * size.tokens_per_step
    speed = {
        "tokens": tokens,
        "wall_seconds": trainer.history.wall_seconds,
        "cpu_seconds": trainer.history.cpu_seconds,
        "tokens_per_wall_second": tokens / trainer.history.wall_seconds,
        "tokens_per_cpu_second": tokens / trainer.history.cpu_seconds,
    }
    return _rows(trainer), speed


def price(trace: RouterTrace) -> Row:
    """How far the bias in force is from the optimum of the assignment problem of these tokens.

    ``gap`` is (D(p) - LP*) / LP*; ``affinity`` is <gamma, x(p)> / LP*, which may exceed 1 when loads are
    unbalanced; ``correlation`` is that of p and the optimal bias (both centered, which a correlation does), None for a
    bias of zero; ``halves`` is that of the optimal biases of the first and the second half of the tokens, a measure of
    how much an optimal bias depends on the piece of text. It is no upper bound: halves are noisier than the whole.
    """
    problem = AssignmentProblem(trace.scores_TE, trace.top_k)
    assert trace.bias_E is not None
    solution = recertify(problem, solve_exact(problem))
    allocation = duality.allocate(problem, trace.bias_E)
    half = problem.num_tokens // 2
    halves = [
        solve_exact(AssignmentProblem(np.ascontiguousarray(part_TE), trace.top_k)).bias_E
        for part_TE in (trace.scores_TE[:half], trace.scores_TE[half:])
    ]
    return {
        "trace_tokens": problem.num_tokens,
        "max_vio_trace": float(metrics.max_vio(allocation.load_E)),
        "gap": (duality.dual_value(problem, trace.bias_E) - solution.value) / solution.value,
        "affinity": duality.affinity(problem, allocation.experts_TK) / solution.value,
        "correlation": _correlation(trace.bias_E, solution.bias_E),
        "halves": _correlation(*halves),
        "bias_spread": duality.spread(trace.bias_E),
        "optimal_spread": duality.spread(solution.bias_E),
    }


class Unbalanced:
    """Leaves every bias where it is: the arms without a rule."""

    def step(self, routed: dict[int, Routing]) -> None:
        """Nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


class BalancedByLoads(Unbalanced):
    """A load-only rule, applied by `alflb.training.LoadBalancer`, which counts for itself."""

    def __init__(self, model: Any, rule: Rule) -> None:
        self.balancer = LoadBalancer.attach(model, rule)

    def step(self, routed: dict[int, Routing]) -> None:
        """Move every bias."""
        self.balancer.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of the balancer."""
        return self.balancer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the balancer."""
        self.balancer.load_state_dict(state)


class BalancedByScores(Unbalanced):
    """A rule that sees scores: those of this batch give the bias of the next.

    A router in training has chosen before the scores of the whole batch are known, so a rule that would see them
    before routing lags by one step too. Such a rule has no memory but the biases, which the model keeps.
    """

    def __init__(self, routers: Routers, rule: Rule, size: Size) -> None:
        self.routers, self.rule, self.top_k = routers, rule, size.top_k
        self.target_E = target_load_E(size.tokens_per_step, size.num_experts, size.top_k)
        self.num_steps = 0

    def step(self, routed: dict[int, Routing]) -> None:
        """Move every bias."""
        self.num_steps += 1
        for layer, routing in routed.items():
            seen = Observation(
                self.num_steps, self.target_E, load_E=routing.load_E(), scores_TE=routing.scores_TE, top_k=self.top_k
            )
            bias_E, _ = self.rule.step(self.routers.bias_E(layer), seen, ())
            self.routers.set_bias(layer, bias_E)

    def state_dict(self) -> dict[str, Any]:
        """Steps taken."""
        return {"num_steps": self.num_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Steps taken."""
        self.num_steps = state["num_steps"]


def _balancing(model: Any, routers: Routers, arm: Arm, size: Size) -> Unbalanced:
    rule = arm.rule(size.num_steps)
    if rule is None:
        return Unbalanced()
    if rule.sees is Sight.LOADS:
        return BalancedByLoads(model, rule)
    return BalancedByScores(routers, rule, size)


class Batches:
    """Training sequences: each epoch takes the blocks of the text in a new order, without overlap.

    A batch is a function of (seed, step) alone, so a resumed run sees what an uninterrupted one would have.
    """

    def __init__(self, ids: NDArray[np.int32], size: Size, seed: int) -> None:
        self.ids, self.size, self.seed = ids, size, seed
        self.num_blocks = len(ids) // size.sequence
        if self.num_blocks < size.sequences_per_step:
            raise ValueError(
                f"the training text has {len(ids)} tokens; one step of this size takes {size.tokens_per_step}, so "
                "give more text"
            )

    def __call__(self, step: int) -> NDArray[np.int64]:
        """The sequences of step 1, 2, ..., shape (sequences_per_step, sequence)."""
        steps_per_epoch = self.num_blocks // self.size.sequences_per_step
        epoch, position = divmod(step - 1, steps_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_blocks)
        chosen = order[position * self.size.sequences_per_step :][: self.size.sequences_per_step]
        blocks = self.ids[: self.num_blocks * self.size.sequence].reshape(self.num_blocks, -1)
        return blocks[chosen].astype(np.int64)


@dataclass
class Evaluation:
    """A model on held-out text, its biases frozen."""

    step: int
    loss: float
    """Mean cross-entropy per predicted token, nats."""
    load_LE: dict[int, NDArray[np.int64]]
    """Tokens per expert over the whole evaluation, by layer."""
    traces: dict[int, RouterTrace]
    """Scores of the first tokens with the bias in force, by layer."""


@dataclass
class History:
    """What a run has measured so far; plain lists, so that a checkpoint can hold it."""

    training_loss: list[float] = field(default_factory=list)
    max_vio: dict[int, list[float]] = field(default_factory=dict)
    """MaxVio of every step's batch, by layer."""
    looks: list[Row] = field(default_factory=list)
    """Rows of the evaluations so far."""
    wall_seconds: float = 0.0
    """Spent in training steps; never part of reproducible rows."""
    cpu_seconds: float = 0.0


class Trainer:
    """One run: a model, an arm that balances it, and a seed that chooses weights and batches."""

    def __init__(self, size: Size, arm: Arm, corpus: Corpus, seed: int, device: str = "cpu") -> None:
        self.size, self.arm, self.corpus, self.device = size, arm, corpus, torch.device(device)
        self.identity = {
            "size": asdict(size),
            "arm": arm.name,
            "seed": seed,
            "corpus": corpus.digest,
        }
        self.model = build_model(size, corpus.vocab_size, seed).to(self.device)
        self.masters = _masters(self.model, size.precision)
        self.optimizer = _optimizer([master for _, master in self.masters], size)
        self.routers = Routers(self.model, size.gate)
        self.batches = Batches(corpus.training_ids, size, seed)
        self.balance = _balancing(self.model, self.routers, arm, size)
        self.history = History(max_vio={layer: [] for layer in self.routers.gates})
        self.watch: Callable[[int, dict[int, Routing]], None] = lambda step, routed: None
        """Shown what the routers chose at every step, before the biases move."""

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.history.training_loss)

    def train(self, until: int) -> None:
        """Go on to step `until`."""
        self.model.train()
        while self.step < until:
            wall, cpu = time.perf_counter(), time.process_time()
            self._one_step(self.step + 1)
            self.history.wall_seconds += time.perf_counter() - wall
            self.history.cpu_seconds += time.process_time() - cpu

    def evaluate(self) -> Evaluation:
        """Loss and loads on the validation text, and the traces of its first tokens.

        Before the last step only the tokens of the traces are looked at, to save time.
        """
        size, ids = self.size, self.corpus.validation_ids
        wanted = size.evaluation_tokens if self.step == size.num_steps else size.trace_tokens
        blocks = min(wanted, len(ids)) // size.sequence
        if blocks * size.sequence < size.trace_tokens:
            raise ValueError(
                f"the validation text has {len(ids)} tokens, fewer than the {size.trace_tokens} of a trace; give "
                "more text"
            )
        sequences = ids[: blocks * size.sequence].reshape(blocks, -1).astype(np.int64)
        self.model.eval()
        losses, load_LE, scores = [], {}, {layer: [] for layer in self.routers.gates}  # type: ignore[var-annotated]
        with torch.no_grad():
            for part in _parts(sequences, size.sequences_per_forward):
                with self.routers.recording() as routed:
                    losses.append(float(self._loss(part)) * len(part))
                for layer, routing in routed.items():
                    load_LE[layer] = load_LE.get(layer, 0) + routing.load_E()
                    if sum(map(len, scores[layer])) < size.trace_tokens:
                        scores[layer].append(routing.scores_TE())
        traces = {
            layer: self.trace(layer, np.concatenate(parts)[: size.trace_tokens], self.step, "held-out text")
            for layer, parts in scores.items()
        }
        return Evaluation(self.step, math.fsum(losses) / blocks, load_LE, traces)

    def save(self, path: Path) -> None:
        """Write everything the rest of the run depends on."""
        state = {
            "identity": self.identity,
            "history": vars(self.history),
            "model": self.model.state_dict(),
            "masters": [master for weight, master in self.masters if weight is not master],
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balance.state_dict(),
        }
        with atomic_write(path) as file:
            torch.save(state, file)

    def load(self, path: Path) -> None:
        """Take up a run that `save` wrote; ValueError if it was another run, or the file is damaged."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            raise ValueError(f"{path} is not a whole checkpoint ({error}); delete it to start afresh") from None
        if state["identity"] != self.identity:
            raise ValueError(
                f"{path} belongs to {json.dumps(state['identity'])}, not to {json.dumps(self.identity)}; delete it or "
                "choose another folder"
            )
        self.model.load_state_dict(state["model"])
        with torch.no_grad():
            for master, saved in zip(
                (master for weight, master in self.masters if weight is not master), state["masters"], strict=True
            ):
                master.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.balance.load_state_dict(state["balancer"])
        self.history = History(**state["history"])

    def _one_step(self, step: int) -> None:
        size = self.size
        sequences = self.batches(step)
        total = 0.0
        with self.routers.recording() as routed:
            parts = list(_parts(sequences, size.sequences_per_forward))
            for number, part in enumerate(parts):
                loss = self._loss(part)
                total += float(loss.detach()) / len(parts)
                if self.arm.auxiliary_weight:
                    layers = [
                        auxiliary_loss(r.logits_TE[number], r.experts_TK[number], size.gate) for r in routed.values()
                    ]
                    loss = loss + self.arm.auxiliary_weight * torch.stack(layers).sum()
                (loss / len(parts)).backward()
        self._update_weights(size.learning_rate_at(step))
        for layer, routing in routed.items():
            load_E = routing.load_E()
            self.history.max_vio[layer].append(float(metrics.max_vio(load_E)))
        self.watch(step, routed)
        self.balance.step(routed)
        self.history.training_loss.append(total)

    def _loss(self, sequences: NDArray[np.int64]) -> torch.Tensor:
        """Mean cross-entropy of every next token, in float32."""
        ids = torch.from_numpy(sequences).to(self.device)
        logits = self.model(input_ids=ids).logits[:, :-1]
        return cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1))

    def _update_weights(self, learning_rate: float) -> None:
        for weight, master in self.masters:
            if weight is not master:
                master.grad = None if weight.grad is None else weight.grad.to(master.dtype)
                weight.grad = None
        torch.nn.utils.clip_grad_norm_([master for _, master in self.masters], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for weight, master in self.masters:
                if weight is not master:
                    weight.copy_(master)

    def trace(self, layer: int, scores_TE: NDArray[np.float32], step: int, text: str) -> RouterTrace:
        """Scores of one router with the bias in force."""
        metadata = {
            "score_function": self.size.gate,
            "model": f"DeepSeek-V3 classes, size {self.size.name}, trained by experiments/train_moe.py",
            "layer": layer,
            "step": step,
            "batch_tokens": self.size.tokens_per_step,
            "source": ", ".join(self.corpus.sources),
            "description": f"{text}; {json.dumps(self.identity)}",
        }
        return RouterTrace(scores_TE, self.size.top_k, self.routers.bias_E(layer), metadata)


def code_digest() -> str:
    """Digest of what decides the rows of a run: results of other code are not reused; figures may change freely."""
    digest = hashlib.sha256()
    for name in ("_moe_settings.py", "_moe_training.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()[:16]


class _BatchTraces:
    """Writes what the routers see of every n-th training batch: the scores, and the bias that was in force."""

    def __init__(self, trainer: Trainer, folder: Path, every: int) -> None:
        self.trainer, self.every = trainer, every
        self.folder = folder / f"{trainer.arm.name.replace(':', '-')}_seed{trainer.identity['seed']}_batches"

    def __call__(self, step: int, routed: dict[int, Routing]) -> None:
        if step % self.every == 0:
            for layer, routing in routed.items():
                trace = self.trainer.trace(layer, routing.scores_TE(), step, "training batch")
                write_trace(self.folder / f"layer{layer}_step{step}.npz", trace)


def _look(trainer: Trainer, traces: Path | None) -> None:
    """Evaluate and price the routers, and write their traces if there is a folder for them."""
    seen = trainer.evaluate()
    for layer, trace in seen.traces.items():
        load_E = seen.load_LE[layer]
        trainer.history.looks.append(
            {
                "step": seen.step,
                "layer": layer,
                "validation_loss": seen.loss,
                "validation_tokens": int(load_E.sum()) // trainer.size.top_k,
                "max_vio_global": float(metrics.max_vio(load_E)),
                "dead_experts": int(np.count_nonzero(load_E == 0)),
                **price(trace),
            }
        )
        if traces is not None:
            arm = trainer.arm.name.replace(":", "-")
            write_trace(traces / f"{arm}_seed{trainer.identity['seed']}_layer{layer}_step{seen.step}.npz", trace)


def _rows(trainer: Trainer) -> list[Row]:
    size, history = trainer.size, trainer.history
    end = max(1, size.num_steps // 10)
    last = [look for look in history.looks if look["step"] == size.num_steps]
    summary = {
        "parameters": sum(weight.numel() for weight in trainer.model.parameters()),
        "tokens_trained": size.num_steps * size.tokens_per_step,
        "vocab_size": trainer.corpus.vocab_size,
        "corpus_digest": trainer.corpus.digest,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "training_loss": [round(loss, 4) for loss in history.training_loss],
        "training_loss_end": float(np.mean(history.training_loss[-end:])),
        "validation_loss": last[0]["validation_loss"],
        "max_vio_global": float(np.mean([look["max_vio_global"] for look in last])),
        "max_vio_end": float(np.mean([series[-end:] for series in history.max_vio.values()])),
        "dead_experts": sum(look["dead_experts"] for look in last),
    }
    layers = [
        {"layer": layer, "max_vio": [round(value, 4) for value in series]} for layer, series in history.max_vio.items()
    ]
    return [
        {"kind": "run", **summary},
        *({"kind": "layer", **row} for row in layers),
        *({"kind": "look", **row} for row in history.looks),
    ]


def _correlation(one_E: NDArray[np.float64], other_E: NDArray[np.float64]) -> float | None:
    if min(duality.spread(one_E), duality.spread(other_E)) == 0.0:
        return None
    return float(np.corrcoef(one_E, other_E)[0, 1])


def _optimizer(weights: list[torch.Tensor], size: Size) -> torch.optim.Optimizer:
    """AdamW as language models use it, or SGD, which keeps nothing."""
    if size.optimizer == "sgd":
        return torch.optim.SGD(weights, size.learning_rate, fused=True)
    return torch.optim.AdamW(weights, size.learning_rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


def _masters(model: Any, precision: str) -> list[tuple[torch.nn.Parameter, torch.Tensor]]:
    """Each weight with the float32 value the optimizer moves: itself, or a copy when the weight becomes bfloat16.

    Buffers stay float32, the biases of the routers among them: u = 1e-3 is lost in the rounding of a bfloat16 bias.
    """
    pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    for weight in model.parameters():
        master: torch.Tensor = weight
        if precision == "bfloat16":
            master = weight.detach().clone()
            weight.data = weight.data.to(torch.bfloat16)
        pairs.append((weight, master))
    return pairs


def _parts(sequences: NDArray[np.int64], most: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(sequences), most):
        yield sequences[start : start + most]
