"""Categorical processes: symbols that are replaced by others, each position alone, until nothing of the data is left.

**The chain.** A position holds one of S states and jumps at the rates beta(t) R, with R (S, S) a generator: rates from
row to column off the diagonal, rows that add up to 0. With the clock tau(t) = integral of beta the chance to be in j
at t after i at s is

    q(x_t = j | x_s = i) = expm((tau_t - tau_s) R)_ij.

The clock is read off a schedule, whose alpha(t) = e^-tau is the chance that R's unit rate has not struck, so that every
schedule, grid and distribution of times that Gaussian processes have serves here too (`flow`: alpha = 1 - t).

Any R will do that leads from everywhere to one stationary law pi, from which sampling starts. The first K states are
the symbols that data are made of; there may be more, such as a mask. The two chains in use, masked and uniform, need no
matrices: see `replacement`.

**Backwards.** A network tells the chances p(x_0 | x_t) of each position. Bayes' rule on the chain gives

    p(x_s | x_t) = sum_x0 p(x_0 | x_t) q(x_s | x_t, x_0),  q(x_s | x_t, x_0) = q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0),

that is w(x_0) = p(x_0 | x_t) / q(x_t | x_0), pushed to s and weighed by q(x_t | x_s) (Austin et al. 2021, eq. 4). The
bridge draws every position from this. Positions that change in the same step are drawn independently, which is where a
step errs, and why many steps err less.

**Rates.** The reversed chain jumps from x to y != x at beta(t) R_yx sum_x0 w(x_0) q_t(y | x_0) (Campbell et al. 2022,
prop. 3; w q_t summed is the concrete score of Lou et al. 2024).

Sources: Austin et al. 2021 (arXiv 2107.03006, D3PM); Campbell et al. 2022 (2205.14987); Lou et al. 2024 (2310.16834,
SEDD).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SolverError
from ..noise import Draws, symbols
from .schedule import CLEAN, Level, Scalar, Schedule
from .schedules import Flow

IMPOSSIBLE = -1e9  # the log of a chance of 0: its exponential is 0, and differences of two stay finite
_LONG = 60.0  # e^-60 of what is left of the data is nothing in float64


@dataclass(frozen=True)
class CategoricalPrediction:
    """What a denoiser says about x_0: log-chances of the symbols, normalised when made.

    value: logits, (batch, ..., symbols). x_t: the state (batch, ...) in int64. `x0` is the likeliest symbol.
    """

    value: Tensor
    x_t: Tensor
    level: Level
    process: Any
    kind: ClassVar[str] = "log-chances"
    variance: ClassVar[None] = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", self.value.log_softmax(-1))

    def to(self, kind: str) -> Tensor:
        """The log-chances, (batch, ..., symbols): there is no other row. Raises SolverError where one is asked for."""
        if kind != self.kind:
            raise SolverError(
                f"symbols have log-chances and no row {kind!r}: leave out repairs of guidance, and solvers of numbers"
            )
        return self.value

    @property
    def chances(self) -> Tensor:
        """p(x_0 | x_t), (batch, ..., symbols)."""
        return self.value.exp()

    @property
    def x0(self) -> Tensor:
        """The likeliest symbols, (batch, ...) in int64."""
        return self.value.argmax(-1)


def log_certain(x: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Log-chances (batch, ..., count) of what is known to be x (batch, ...)."""
    return (F.one_hot(x, count).to(dtype) - 1) * -IMPOSSIBLE


@dataclass(frozen=True)
class Categorical:
    """Base of the categorical processes: states (batch, ...) in int64, data from 0 to symbols - 1.

    schedule: its alpha(t) is e^-tau of the chain. A process gives `generator` and `stationary`; the rest follows, by
    matrix exponentials unless it knows better. Raises SolverError for fewer than 2 symbols, a schedule whose alpha
    does not fall, or data that are not symbols.
    """

    law: ClassVar[str] = ""
    names: ClassVar[tuple[str, ...]] = ("evidence", "chances")  # of what a network's logits may be
    symbols: int
    schedule: Schedule = Flow()

    def __post_init__(self) -> None:
        if isinstance(self.symbols, bool) or not isinstance(self.symbols, int) or self.symbols < 2:
            raise SolverError(f"a categorical process needs at least 2 symbols, not {self.symbols!r}")
        if not isinstance(self.schedule, Schedule) or self.schedule.path == "ve":
            raise SolverError(
                f"the schedule of a categorical process says what is kept: 'flow' or one with alpha falling to 0, "
                f"not {self.schedule!r}"
            )

    # -- what a process gives ----------------------------------------------------------------------------------
    @property
    def states(self) -> int:
        """S, how many states a position has."""
        return self.symbols

    @property
    def generator(self) -> Tensor:
        """R, (states, states) in float64."""
        raise NotImplementedError

    @property
    def stationary(self) -> Tensor:
        """pi with pi R = 0, (states,) in float64: the law of pure noise."""
        raise NotImplementedError

    def known(self, value: Tensor, x_t: Tensor, t: Level) -> Tensor:
        """Logits of x_0 with what x_t says of its own position put in, value + log q(x_t | x_0), up to a constant."""
        own = self.pull(x_t, t, CLEAN, torch.float64)[..., : self.symbols]
        return value + own.log().clamp(min=IMPOSSIBLE).to(value.dtype)

    # -- levels and shapes -------------------------------------------------------------------------------------
    def level(self, t: Scalar | Level) -> Level:
        """The noise level at time t."""
        return self.schedule.level(t)

    def state_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of a state whose data have this shape, without the batch."""
        return tuple(shape)

    def data(self, state: Tensor) -> Tensor:
        """The part of a state that is data: all of it."""
        return state

    def rate(self, t: Scalar | Level) -> Any:
        """beta(t) = -alpha' / alpha, how fast the chain's clock runs. Raises SolverError where alpha = 0."""
        level = self.level(t)
        time = torch.as_tensor(level.time, dtype=torch.float64).reshape(-1)
        beta = -self.schedule.rates(time)[0] / torch.as_tensor(level.alpha, dtype=torch.float64).reshape(-1)
        if not bool(beta.isfinite().all()):
            raise SolverError("the chain's clock is infinitely fast where alpha = 0: stay at times below 1")
        return beta if isinstance(level.time, Tensor) and level.time.ndim else float(beta)

    # -- the forward law ---------------------------------------------------------------------------------------
    def transition(self, t: Scalar | Level, s: Scalar | Level = CLEAN) -> Tensor:
        """q(x_t = j | x_s = i) in row i and column j, (states, states) or (batch, states, states) in float64."""
        tau = -kept(self.level(t), self.level(s)).log()
        return self.generator.to(tau.device).mul(tau.clamp(max=self._longest)[..., None, None]).matrix_exp()

    @cached_property
    def _longest(self) -> float:
        """The tau after which nothing is left of the data: longer ones only cost."""
        return _LONG

    def push(self, weights: Tensor, t: Level, s: Level = CLEAN) -> Tensor:
        """sum_i w_i q(x_t = j | x_s = i) of weights (batch, ..., symbols or states) over x_s: (batch, ..., states)."""
        move = self.transition(t, s).to(weights.dtype)
        full = self._all_states(weights)
        return (full.flatten(1, -2) @ move).reshape(full.shape) if full.ndim > 2 else _rows(full, move)

    def pull(self, x_t: Tensor, t: Level, s: Level, dtype: torch.dtype) -> Tensor:
        """q(x_t | x_s = i) for every i, (batch, ..., states)."""
        column = self.transition(t, s).to(dtype).mT
        if column.ndim == 2:
            return column[x_t]
        return column[torch.arange(len(x_t), device=x_t.device).reshape(-1, *[1] * (x_t.ndim - 1)), x_t]

    def _all_states(self, weights: Tensor) -> Tensor:
        return F.pad(weights, (0, self.states - weights.shape[-1]))

    def pure(self, like: Tensor, noise: Draws, stream: int = 0) -> Tensor:
        """States from the stationary law, shaped like `like`."""
        return symbols(self.stationary.to(like.device).expand(*like.shape, -1), noise, stream)

    def prior(self, like: Tensor, noise: Draws, level: Level | None = None) -> Tensor:
        """Where sampling starts, (batch, ...) in int64 whatever the dtype of `like`: pure noise."""
        return self.pure(like, noise)

    def corrupt(self, x0: Tensor, t: Scalar | Level, noise: Draws) -> Tensor:
        """Draw x_t from q(x_t | x_0), (batch, ...) in int64."""
        self._check(x0)
        chances = self.push(F.one_hot(x0, self.symbols).double(), self.level(t))
        return symbols(chances, noise)

    def _check(self, x0: Tensor) -> None:
        if x0.dtype != torch.long:
            raise SolverError(
                f"symbols are whole numbers (int64), not {str(x0.dtype).removeprefix('torch.')}"
            )
        if x0.numel() and not 0 <= int(x0.min()) <= int(x0.max()) < self.symbols:
            raise SolverError(
                f"symbols run from 0 to {self.symbols - 1}; these run from {int(x0.min())} to {int(x0.max())}"
            )

    # -- backwards ---------------------------------------------------------------------------------------------
    def certain(
        self, x0: Tensor, x_t: Tensor, t: Scalar | Level, dtype: torch.dtype
    ) -> CategoricalPrediction:
        """The prediction of who knows x_0."""
        return CategoricalPrediction(log_certain(x0, self.symbols, dtype), x_t, self.level(t), self)

    def weights(self, prediction: CategoricalPrediction) -> Tensor:
        """w(x_0) = p(x_0 | x_t) / q(x_t | x_0), (batch, ..., symbols); 0 for an x_0 that cannot lead to x_t."""
        x_t, value = prediction.x_t, prediction.value
        reached = self.pull(x_t, prediction.level, CLEAN, value.dtype)[..., : self.symbols]
        tiny = torch.finfo(value.dtype).tiny
        return torch.where(reached > 0, value.exp() / reached.clamp(min=tiny), 0.0)

    def reverse(self, prediction: CategoricalPrediction, s: Scalar | Level, eta: float = 1.0) -> Tensor:
        """p(x_s | x_t) = sum_x0 p(x_0 | x_t) q(x_s | x_t, x_0) of each position, (batch, ..., states).

        Raises SolverError for eta outside [0, 1], or below 1 where noise is no thing that could be kept.
        """
        x_t, t, s = prediction.x_t, prediction.level, self.level(s)
        chances = self.push(self.weights(prediction), s) * self.pull(x_t, t, s, prediction.value.dtype)
        chances = chances / chances.sum(-1, keepdim=True)
        return chances if eta == 1 else eta * chances + (1 - eta) * self._holding(prediction, s, eta)

    def _holding(self, prediction: CategoricalPrediction, s: Level, eta: float) -> Tensor:
        raise SolverError(
            f"only masked and uniform chains can hold a share of their noise: eta is 1, not {eta!r}"
        )

    def bridge(
        self,
        x_t: Tensor,
        prediction: CategoricalPrediction,
        t: Scalar | Level,
        s: Scalar | Level,
        noise: Draws,
        eta: float = 1.0,
    ) -> Tensor:
        """Draw x_s from sum_x0 p(x_0 | x_t) q(x_s | x_t, x_0), each position alone; eta = 1 is the chain."""
        return symbols(self.reverse(prediction, s, eta), noise)

    def reverse_rates(self, prediction: CategoricalPrediction) -> Tensor:
        """R_yx sum_x0 w(x_0) q_t(y | x_0) for all y != x, 0 for x itself, (batch, ..., states), a unit of tau.

        Times beta(t) it is the rate at which the reversed chain jumps to y.
        """
        ratio = self.push(self.weights(prediction), prediction.level)
        rates = self._into(prediction.x_t, ratio.dtype) * ratio
        return rates.scatter(-1, prediction.x_t[..., None], 0.0)

    def _into(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """R_yx for every y, (batch, ..., states); what stands at x itself is not used."""
        return self.generator.to(x.device, dtype).mT[x]

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "categorical",
            "law": self.law,
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "schedule": self.schedule.to_json(),
        }


def kept(t: Level, s: Level) -> Tensor:
    """a = alpha_t / alpha_s, in float64; 0 where both are pure noise."""
    now, then = (torch.as_tensor(level.alpha, dtype=torch.float64) for level in (t, s))
    return torch.where(then > 0, now / then.clamp(min=1e-300), 0.0)


def _rows(weights: Tensor, move: Tensor) -> Tensor:
    return weights @ move if move.ndim == 2 else (weights[:, None] @ move)[:, 0]


@dataclass(frozen=True)
class MatrixChain(Categorical):
    """The chain of any generator R: rates[i][j] from state i to state j, rows that add up to 0, S >= symbols states.

    alpha(t) = e^-tau(t) as ever, so rates are per unit of tau. Raises SolverError for a matrix that is not square, too
    small, has negative rates or rows that do not add up to 0, or leaves more than one law in the end.
    """

    law: ClassVar[str] = "matrix"
    rates: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        rows = self.rates.tolist() if isinstance(self.rates, Tensor) else self.rates
        object.__setattr__(self, "rates", tuple(tuple(map(float, row)) for row in rows))
        count = len(self.rates)
        if count < self.symbols or any(len(row) != count for row in self.rates):
            raise SolverError(
                f"rates of {self.symbols} symbols are a square of at least as many states, not "
                f"{count} rows of {sorted({len(row) for row in self.rates})}"
            )
        given = torch.tensor(self.rates, dtype=torch.float64)
        away = given - given.diagonal().diag()
        if not bool((away >= 0).all()) or not float(given.sum(1).abs().max()) <= 1e-6 * float(away.max()):
            raise SolverError(
                "rates are 0 or more off the diagonal, and the rows of their matrix add up to 0"
            )
        # rows given in float32 add up to 0 in float32 alone
        object.__setattr__(self, "rates", tuple(map(tuple, (away - away.sum(1).diag()).tolist())))
        if not self._gap > 1e-9:
            raise SolverError("these rates leave more than one law in the end, and so no prior to start from")

    @property
    def states(self) -> int:
        return len(self.rates)

    @cached_property
    def generator(self) -> Tensor:  # type: ignore[override]
        with torch.inference_mode(False):  # what is kept must be fit to be differentiated later
            return torch.tensor(self.rates, dtype=torch.float64)

    @cached_property
    def _gap(self) -> float:
        """How fast the slowest part of the data goes: the second smallest -Re of R's eigenvalues."""
        return float((-torch.linalg.eigvals(self.generator).real).sort().values[1])

    @cached_property
    def _longest(self) -> float:  # type: ignore[override]
        return _LONG / self._gap

    @cached_property
    def stationary(self) -> Tensor:  # type: ignore[override]
        with torch.inference_mode(False):
            law = (self.generator * self._longest).matrix_exp().mean(0).clamp(min=0)
            return law / law.sum()
