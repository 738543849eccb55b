r"""The population problem (claims C7, C8): what a token from a known distribution does on average, without sampling.

Scores of one token are independent, expert k's with density phi_k and distribution function F_k. With N_k(t) the
number of *other* experts whose biased score is above t (a Poisson-binomial count),

.. math::
   \pi_k(p) &= \int \phi_k(t - p_k)\, P(N_k(t) \le K-1)\, dt, \\
   f(p) &= \sum_k \int t\,\phi_k(t - p_k)\, P(N_k(t) \le K-1)\, dt - \tfrac{K}{E} \sum_k p_k, \\
   c_{kj}(p) &= \int \phi_k(t - p_k)\,\phi_j(t - p_j)\, P(\text{exactly } K-1 \text{ of the others above } t)\, dt .

The gradient of f is pi - K/E; its Hessian is the graph Laplacian with weights c. All values are per token, in score
units.

Quadrature is composite Gauss-Legendre between quantiles of the scores. Counts come from the generating function
G(z) = prod_j (1 - q_j + q_j z), q_j = P(score_j + p_j > t), on points of the unit circle off the negative axis: leaving
experts out is a division there, and all pairs at once are matrix products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from alflb import bounds
from alflb.duality import center
from alflb.problem import check_bias, check_count, check_number, check_scores, check_top_k

FloatArray = NDArray[np.float64]

_LEVELS = np.array([1e-15, 1e-12, 1e-9, 1e-7, 1e-5, 1e-3, 0.01, 0.05, 0.15, 0.3, 0.5])
"""Panels end at these quantiles of the scores, and at their mirror images."""

_MOST_PANELS = 80
"""Quantile panels at most, whatever the number of experts."""

_MASS_TOLERANCE = 1e-7
"""Largest accepted error of a density's mass on the grid, a check that the grid resolves it."""


class Population(ABC):
    """f, its derivatives and what the theory asks of them; subclasses say how the integrals are done."""

    top_k: int

    @property
    @abstractmethod
    def num_experts(self) -> int:
        """E."""

    @abstractmethod
    def value(self, bias: ArrayLike) -> float:
        """f(p) = E[S_K(gamma + p)] - (K/E) sum p, score units per token."""

    @abstractmethod
    def pick_probability(self, bias: ArrayLike) -> FloatArray:
        """pi(p): probability that a token picks each expert, shape (E,); sums to K."""

    @abstractmethod
    def tie_density(self, bias: ArrayLike) -> FloatArray:
        """c(p), shape (E, E): density of experts k and j tying at the top-K boundary; symmetric, zero diagonal."""

    @abstractmethod
    def first_guess(self) -> FloatArray:
        """A bias to start Newton's method from."""

    def gradient(self, bias: ArrayLike) -> FloatArray:
        """pi(p) - K/E, shape (E,): the expected relative load surplus."""
        return self.pick_probability(bias) - self.top_k / self.num_experts

    def hessian(self, bias: ArrayLike) -> FloatArray:
        """The Laplacian of the tie densities, shape (E, E), 1 / score units; its rows sum to zero."""
        weight_EE = self.tie_density(bias)
        return np.diag(weight_EE.sum(axis=1)) - weight_EE

    def curvatures(self, bias: ArrayLike) -> FloatArray:
        """The E - 1 eigenvalues of the Hessian on mean-zero directions, ascending (the gauge's zero left out)."""
        gauge = np.full((self.num_experts, self.num_experts), 1.0 / self.num_experts)
        hessian_EE = self.hessian(bias)
        # Lift the gauge above every other eigenvalue, then drop it.
        lift = 1.0 + np.abs(hessian_EE).sum(axis=1).max()
        return np.linalg.eigvalsh(hessian_EE + lift * gauge)[:-1]

    def optimum(self, *, tolerance: float = 1e-10, max_iterations: int = 100) -> FloatArray:
        """The centered p* with pi(p*) = K/E, by damped Newton.

        Raises
        ------
        RuntimeError
            If max |pi - K/E| stays above `tolerance`, as it must when experts cannot be balanced by any finite bias.
        """
        bias_E = self.first_guess()
        gradient_E = self.gradient(bias_E)
        for _ in range(max_iterations):
            if np.abs(gradient_E).max() <= tolerance:
                return bias_E
            step_E = self._newton_step(bias_E, gradient_E)
            scale = 1.0
            while True:
                trial_E = bias_E - scale * step_E
                trial_gradient_E = self.gradient(trial_E)
                if np.linalg.norm(trial_gradient_E) < np.linalg.norm(gradient_E) or scale < 1e-8:
                    break
                scale /= 2
            bias_E, gradient_E = trial_E, trial_gradient_E
        if np.abs(gradient_E).max() <= tolerance:
            return bias_E
        raise RuntimeError(
            f"Newton's method stopped with max |pi - K/E| = {np.abs(gradient_E).max():.3g} > {tolerance:g} after "
            f"{max_iterations} steps; raise tolerance if that is enough, or check that the scores overlap"
        )

    def gradient_second_moment(self, bias: ArrayLike, num_tokens: int) -> float:
        """E||g||^2 for g = A/T - K/E at this bias, batches of `num_tokens` independent tokens."""
        return bounds.gradient_second_moment(self.pick_probability(bias), num_tokens)

    def _newton_step(self, bias_E: FloatArray, gradient_E: FloatArray) -> FloatArray:
        hessian_EE = self.hessian(bias_E)
        ridge = 1e-12 * np.trace(hessian_EE) + 1e-300
        regular_EE = hessian_EE + np.trace(hessian_EE) / self.num_experts**2 + ridge * np.eye(self.num_experts)
        step_E = np.linalg.solve(regular_EE, gradient_E)
        return center(step_E)


class IndependentScores(Population):
    r"""Independent scores with any densities, by quadrature.

    Parameters
    ----------
    distributions : frozen scipy.stats distribution, or a sequence of E of them
        Continuous distributions of the experts' scores. One distribution stands for all experts.
    top_k : int
        K.
    offsets : array_like, shape (E,), optional
        Shift of each expert's scores; required (its length is E) when one distribution is given.
    order : int
        Gauss-Legendre nodes per panel; raise it to see that digits have settled.

    Raises
    ------
    ValueError
        If the numbers of distributions and offsets differ, a distribution is discrete, or K is not in 1..E.

    References
    ----------
    Our own formulation, claims C7 and C8 in docs/claims.md; the counts after Hong (2013), "On computing the
    distribution function for the Poisson binomial distribution".

    Examples
    --------
    >>> from scipy import stats
    >>> population = IndependentScores(stats.logistic(), top_k=2, offsets=[0.0, 1.0, -1.0])
    >>> population.pick_probability([0.0, -1.0, 1.0]).round(6).tolist()
    [0.666667, 0.666667, 0.666667]
    """

    def __init__(self, distributions: Any, top_k: int, *, offsets: ArrayLike | None = None, order: int = 12) -> None:
        single = hasattr(distributions, "pdf")
        if single and offsets is None:
            raise ValueError("offsets is None; with one distribution pass offsets, one number for each expert")
        count = np.size(np.asarray(offsets)) if single else len(distributions)
        self.distributions: Sequence[Any] = [distributions] * count if single else list(distributions)
        for k, distribution in enumerate(self.distributions):
            if not hasattr(distribution, "pdf"):
                raise ValueError(
                    f"distributions[{k}] is {distribution!r}; pass a frozen continuous scipy.stats distribution"
                )
        self.offset_E = np.zeros(count) if offsets is None else check_bias(offsets, count, name="offsets")
        self.top_k = check_top_k(top_k, count)
        self._node, self._weight = np.polynomial.legendre.leggauss(check_count(order, "order"))

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.distributions)

    def value(self, bias: ArrayLike) -> float:
        """f(p)."""
        grid = self._grid(bias)
        return float(np.sum(grid.mass_EN * self._below_EN(grid) * grid.point_N) - self.top_k * grid.bias_E.mean())

    def pick_probability(self, bias: ArrayLike) -> FloatArray:
        """pi(p)."""
        grid = self._grid(bias)
        return np.sum(grid.mass_EN * self._below_EN(grid), axis=1)

    def tie_density(self, bias: ArrayLike) -> FloatArray:
        """c(p)."""
        grid = self._grid(bias)
        density_EN = grid.mass_EN / grid.weight_N
        total_EE = np.zeros((self.num_experts, self.num_experts))
        for z, scale in self._circle():
            factor_EN = 1.0 + (z - 1.0) * grid.above_EN
            count_N = grid.weight_N * factor_EN.prod(axis=0) * scale * z ** (1 - self.top_k)
            left_EN = density_EN / factor_EN
            total_EE += ((left_EN * count_N) @ left_EN.T).real
        np.fill_diagonal(total_EE, 0.0)
        return np.maximum(0.5 * (total_EE + total_EE.T), 0.0)

    def first_guess(self) -> FloatArray:
        """Minus the (1 - K/E) quantile of each expert's scores: each clears a common bar with probability K/E."""
        level = np.clip(1.0 - self.top_k / self.num_experts, 1e-6, 1 - 1e-6)
        bar_E = np.array([float(one.ppf(level)) for one in self.distributions]) + self.offset_E
        return bar_E.mean() - bar_E

    def _below_EN(self, grid: _Grid) -> FloatArray:
        """P(N_k(t) <= K - 1) for every expert and node."""
        total_EN = np.zeros_like(grid.mass_EN)
        for z, scale in self._circle():
            factor_EN = 1.0 + (z - 1.0) * grid.above_EN
            at_most = scale * np.sum(z ** -np.arange(self.top_k))
            total_EN += (factor_EN.prod(axis=0) * at_most / factor_EN).real
        return np.clip(total_EN, 0.0, 1.0)

    def _circle(self) -> list[tuple[complex, float]]:
        """The upper half of an even number >= E of points on the unit circle, and their weights.

        At -1 a factor of G can vanish, so the points avoid it; the conjugate half is accounted for by real parts.
        """
        half = (self.num_experts + 1) // 2
        angle = np.pi * (np.arange(half) + 0.5) / half
        return [(complex(np.exp(1j * a)), 1.0 / half) for a in angle]

    def _grid(self, bias: ArrayLike) -> _Grid:
        bias_E = check_bias(bias, self.num_experts)
        shift_E = bias_E + self.offset_E
        edges = self._edges(shift_E)
        middle, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
        point_N = (middle[:, None] + half[:, None] * self._node).ravel()
        weight_N = (half[:, None] * self._weight).ravel()
        mass_EN, above_EN = np.empty((2, self.num_experts, len(point_N)))
        with np.errstate(over="ignore", under="ignore"):  # exp(exp(x)) far out in a tail
            for distribution, members in self._members:
                local = point_N - shift_E[members, None]
                mass_EN[members] = distribution.pdf(local) * weight_N
                above_EN[members] = distribution.sf(local)
        missing = float(np.abs(mass_EN.sum(axis=1) - 1.0).max())
        if not missing <= _MASS_TOLERANCE:
            raise ValueError(
                f"distributions: a density's mass on the grid is off 1 by {missing:.2g}; densities must be bounded, "
                f"with tails of finite mean; raise order (now {len(self._node)}) for densities with narrow features"
            )
        return _Grid(bias_E, point_N, weight_N, mass_EN, above_EN)

    @cached_property
    def _members(self) -> list[tuple[Any, list[int]]]:
        """Distinct distributions and the experts that have them."""
        groups: dict[int, tuple[Any, list[int]]] = {}
        for k, one in enumerate(self.distributions):
            groups.setdefault(id(one), (one, []))[1].append(k)
        return list(groups.values())

    @cached_property
    def _quantiles(self) -> list[tuple[FloatArray, FloatArray]]:
        """For each distinct distribution: soft panel ends (quantiles) and hard ones (finite ends of its support)."""
        found = []
        for one, _ in self._members:
            soft = np.concatenate([one.ppf(_LEVELS), one.isf(_LEVELS)])
            hard = np.array([end for end in one.support() if np.isfinite(end)])
            found.append((np.unique(soft[np.isfinite(soft)]), hard))
        return found

    def _edges(self, shift_E: FloatArray) -> FloatArray:
        """Panel ends: every finite end of a support, quantiles of all experts thinned, and the bar of the top K."""
        pairs = list(zip(self._members, self._quantiles))
        soft = np.unique(np.concatenate([np.add.outer(shift_E[m], s).ravel() for (_, m), (s, _) in pairs]))
        hard = np.unique(np.concatenate([np.add.outer(shift_E[m], h).ravel() for (_, m), (_, h) in pairs]))
        gap = 0.3 * min(float(s[len(s) // 2 + 1] - s[len(s) // 2 - 1]) for s, _ in self._quantiles)
        kept = _thinned(soft, gap)
        while len(kept) > _MOST_PANELS:
            gap *= 1.5
            kept = _thinned(soft, gap)
        return _thinned(np.unique(np.concatenate([kept, hard, self._bar(shift_E)])), 1e-12 * float(np.ptp(soft)))

    def _bar(self, shift_E: FloatArray) -> FloatArray:
        """More panel ends around where the K-th best score lies: the expected count above crosses K there."""
        low, high = shift_E.min() - 1e3, shift_E.max() + 1e3
        goals = np.array([1e-6, 0.02, 0.2, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0]) * self.top_k
        goals = goals[goals < self.num_experts]
        lows, highs = np.full(len(goals), low), np.full(len(goals), high)
        for _ in range(40):
            middle = (lows + highs) / 2
            count = np.zeros(len(goals))
            with np.errstate(over="ignore", under="ignore"):
                for one, members in self._members:
                    count += one.sf(middle - shift_E[members, None]).sum(axis=0)
            lows, highs = np.where(count > goals, middle, lows), np.where(count > goals, highs, middle)
        return (lows + highs) / 2


@dataclass(frozen=True)
class _Grid:
    """Quadrature nodes t and what the experts do there."""

    bias_E: FloatArray
    point_N: FloatArray
    weight_N: FloatArray
    mass_EN: FloatArray
    """phi_k(t - p_k) dt."""
    above_EN: FloatArray
    """P(gamma_k + p_k > t)."""


class GumbelTopOne(Population):
    r"""Scores a_k + Gumbel(0, 1) and K = 1, in closed form (claim C8): the golden population.

    .. math::
       f(p) = \log\sum_k e^{a_k + p_k} + \gamma_{Euler} - \tfrac1E\sum_k p_k,\qquad \pi = \mathrm{softmax}(a + p).

    Parameters
    ----------
    offsets : array_like, shape (E,)
        a.

    Examples
    --------
    >>> GumbelTopOne([0.0, 1.0]).optimum().tolist()
    [0.5, -0.5]
    """

    top_k = 1

    def __init__(self, offsets: ArrayLike) -> None:
        self.offset_E = check_bias(offsets, np.size(np.asarray(offsets)), name="offsets")

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.offset_E)

    def value(self, bias: ArrayLike) -> float:
        """f(p)."""
        bias_E = check_bias(bias, self.num_experts)
        return float(np.logaddexp.reduce(self.offset_E + bias_E) + np.euler_gamma - bias_E.mean())

    def pick_probability(self, bias: ArrayLike) -> FloatArray:
        """softmax(a + p)."""
        total_E = self.offset_E + check_bias(bias, self.num_experts)
        return np.exp(total_E - np.logaddexp.reduce(total_E))

    def tie_density(self, bias: ArrayLike) -> FloatArray:
        """pi_k pi_j."""
        pi_E = self.pick_probability(bias)
        weight_EE = np.outer(pi_E, pi_E)
        np.fill_diagonal(weight_EE, 0.0)
        return weight_EE

    def first_guess(self) -> FloatArray:
        """p* = mean(a) - a, the optimum itself."""
        return self.offset_E.mean() - self.offset_E


class SampledScores(Population):
    r"""The population that a sample of scores stands for: any dependence between experts, real routers included.

    Value and pick probabilities are means over the sample. The tie density of experts k and j is the share of tokens
    whose K-th and (K+1)-th best experts are k and j, in either order, with a margin below delta, divided by 2 delta:
    a box kernel of half width delta, whose error is of order delta^2 and 1 / sqrt(tokens within it).

    Parameters
    ----------
    scores : array_like, shape (T, E)
        Finite scores of T tokens; the more, the better the curvatures.
    top_k : int
        K < E.
    window : float
        Share of the tokens that count as close to the boundary; delta is that quantile of their margins.

    Raises
    ------
    ValueError
        For bad scores, K = E, or a window outside 0..1; when the Hessian is asked for, if so many tokens tie at the
        boundary that the window is empty.

    Examples
    --------
    >>> from scipy import stats
    >>> sample = stats.logistic().rvs((200_000, 4), random_state=0)
    >>> exact = IndependentScores(stats.logistic(), top_k=2, offsets=np.zeros(4)).curvatures(np.zeros(4))
    >>> estimate = SampledScores(sample, top_k=2).curvatures(np.zeros(4))
    >>> bool(np.allclose(estimate, exact, rtol=0.05))
    True
    """

    def __init__(self, scores: ArrayLike, top_k: int, *, window: float = 0.1) -> None:
        self.scores_TE = check_scores(scores)
        if not np.isfinite(self.scores_TE).all():
            raise ValueError("scores hold -inf; a population needs finite scores")
        if self.scores_TE.shape[0] < self.scores_TE.shape[1]:
            raise ValueError(
                f"scores have shape {self.scores_TE.shape}, fewer tokens than experts; pass more tokens, or scores.T "
                "if they are (experts, tokens)"
            )
        self.top_k = check_top_k(top_k, self.scores_TE.shape[1])
        if self.top_k == self.num_experts:
            raise ValueError(f"top_k is {top_k}, all experts; nothing depends on the bias then")
        if not 0 < window <= 1:
            raise ValueError(f"window is {window}; pass a share of the tokens above 0 and at most 1")
        self.window = window

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.scores_TE.shape[1])

    def value(self, bias: ArrayLike) -> float:
        """f(p)."""
        bias_E = check_bias(bias, self.num_experts)
        cut = self.num_experts - self.top_k
        top_TK = np.partition(self.scores_TE + bias_E, cut, axis=1)[:, cut:]
        return float(top_TK.sum() / len(top_TK) - self.top_k * bias_E.mean())

    def pick_probability(self, bias: ArrayLike) -> FloatArray:
        """pi(p)."""
        cut = self.num_experts - self.top_k
        biased_TE = self.scores_TE + check_bias(bias, self.num_experts)
        picked_TK = np.argpartition(biased_TE, cut, axis=1)[:, cut:]
        return np.bincount(picked_TK.ravel(), minlength=self.num_experts) / len(biased_TE)

    def tie_density(self, bias: ArrayLike) -> FloatArray:
        """c(p)."""
        biased_TE = self.scores_TE + check_bias(bias, self.num_experts)
        cut = self.num_experts - self.top_k
        order_TE = np.argpartition(biased_TE, (cut - 1, cut), axis=1)
        last_in, first_out = order_TE[:, cut], order_TE[:, cut - 1]
        token = np.arange(len(biased_TE))
        margin_T = biased_TE[token, last_in] - biased_TE[token, first_out]
        delta = float(np.quantile(margin_T, self.window))
        if delta == 0:
            raise ValueError(
                f"scores: {self.window:.0%} of the tokens or more tie at the top-K boundary; pass finer scores or a "
                "wider window"
            )
        close_T = margin_T <= delta
        count_EE = np.zeros((self.num_experts, self.num_experts))
        np.add.at(count_EE, (last_in[close_T], first_out[close_T]), 1.0)
        return (count_EE + count_EE.T) / (2 * delta * len(biased_TE))

    def first_guess(self) -> FloatArray:
        """Minus the (1 - K/E) quantile of each expert's scores."""
        bar_E = np.quantile(self.scores_TE, 1 - self.top_k / self.num_experts, axis=0)
        return np.asarray(bar_E.mean() - bar_E, dtype=np.float64)


def gumbel_pick_range(offsets: ArrayLike, radius: float) -> tuple[float, float]:
    r"""Certified bounds on every pi_k of Gumbel scores, K = 1, over all mean-zero ||p|| <= radius.

    .. math:: \pi_k \in \bigl(1 + e^{\pm\sqrt2 R} \textstyle\sum_{j\ne k} e^{a_j - a_k}\bigr)^{-1}.

    The lower one is a certified mu: the Hessian is diag(pi) - pi pi', whose second eigenvalue is at least min_k pi_k
    by interlacing.

    Examples
    --------
    >>> gumbel_pick_range([0.0, 0.0, 0.0, 0.0], radius=0.0)
    (0.25, 0.25)
    """
    offset_E = check_bias(offsets, np.size(np.asarray(offsets)), name="offsets")
    reach = np.exp(np.sqrt(2.0) * check_number(radius, "radius"))
    others_E = np.exp(np.logaddexp.reduce(offset_E) - offset_E) - 1.0
    return float(np.min(1.0 / (1.0 + reach * others_E))), float(np.max(1.0 / (1.0 + others_E / reach)))


def _thinned(edges: FloatArray, gap: float) -> FloatArray:
    """Sorted edges without those closer than `gap` to the one kept before; both ends stay."""
    kept = [float(edges[0])]
    for edge in edges[1:-1].tolist():
        if edge - kept[-1] > gap:
            kept.append(edge)
    return np.array([*kept, float(edges[-1])])
