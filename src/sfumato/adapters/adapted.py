"""A network that others trained, as our denoiser.

Any network of a Gaussian process answers in some row y = a x_0 + b eps and is told the noise level by some number. To
use it nothing needs to be known of its training but four facts, its **reading**:

    process    alpha(t), sigma(t) of the x_t it was trained on
    predicts   the row: eps, v, x0, score, velocity, edm; and two that are rows of ours in disguise,
                   flow    y = eps - x_0 (diffusers' flow matching). The row v is (-sigma, alpha), so by x_t = alpha
                           x_0 + sigma eps
                               v = [(alpha - sigma) x_t + (alpha^2 + sigma^2) y] / (alpha + sigma),
                           which divides by nothing that vanishes
                   -edm    EDM's F with the other sign
    clock      the number it is told, a function of the noise level:
                   index    (steps - 1) t            the entry of a table of steps entries, fractions included
                   flow     steps sigma / (alpha + sigma)
                   time     t
                   sigma    sigma / alpha
                   log-snr  lambda
                   edm      -lambda / 8 = ln(sigma / alpha) / 4
    scaled     whether its input is x_t / sqrt(alpha^2 sigma_data^2 + sigma^2), of unit size, or x_t itself

Nothing is rounded: a level between two entries of the table is told as the fraction that it is. Rounding it, as some
samplers do, asks the network about another noise level than the one that x_t has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..denoisers import Condition, Denoiser
from ..denoisers.denoiser import LOG_SNR_LIMIT, rows
from ..errors import SolverError, choose
from ..processes import CLEAN, PARAMETERISATIONS, Gaussian, Level, Prediction
from ..processes.gaussian import fit, root

CLOCKS: dict[str, Callable[[Level, int], Tensor]] = {
    "index": lambda level, steps: level.time * (steps - 1),
    "flow": lambda level, steps: steps * level.sigma / (level.alpha + level.sigma),
    "time": lambda level, steps: level.time,
    "sigma": lambda level, steps: level.sigma / level.alpha,
    "log-snr": lambda level, steps: level.log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT),
    "edm": lambda level, steps: -level.log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / 8,
}
_DISGUISED = {"flow": "v", "-edm": "edm"}
PREDICTIONS = (*PARAMETERISATIONS, *_DISGUISED)


@dataclass(frozen=True)
class Reading:
    """What a network of others predicts and how it is told the noise level; see the head of this file.

    steps: how many training times there are, for the clocks that count them. Raises SolverError for unknown names.
    """

    predicts: str
    clock: str
    steps: int = 1000
    scaled: bool = False

    def __post_init__(self) -> None:
        choose(self.predicts, PREDICTIONS, "prediction", SolverError)
        choose(self.clock, CLOCKS, "clock", SolverError)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise SolverError(f"steps of a reading is a whole number from 1, not {self.steps!r}")

    @property
    def row(self) -> str:
        """The row of ours that the prediction is given in."""
        return _DISGUISED.get(self.predicts, self.predicts)

    def told(self, level: Level) -> Tensor:
        """What the network is told of a level of tensors (batch,), in float32."""
        return CLOCKS[self.clock](level, self.steps).float()

    def understood(self, answer: Tensor, x_t: Tensor, level: Level) -> Tensor:
        """The network's answer in the row `row`."""
        if self.predicts == "-edm":
            return -answer
        if self.predicts != "flow":
            return answer
        alpha, sigma = level.alpha, level.sigma
        size = alpha + sigma
        return fit((alpha - sigma) / size, x_t) * x_t + fit((alpha**2 + sigma**2) / size, x_t) * answer

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Adapted(Denoiser):
    """The denoiser of a network of others: `denoiser(x_t, t, condition) -> Prediction`, as every denoiser.

    network: (x, told (batch,), condition) -> (batch, channels or 2 channels, ...). process: what it was trained on.
    learned_variance: the second half of its channels weighs the two bounds of the reverse variance.
    """

    def __init__(
        self, network: nn.Module, process: Gaussian, reading: Reading, learned_variance: bool = False
    ):
        super().__init__(network, process, reading.row, learned_variance)
        self.reading = reading

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        seen = x_t
        if self.reading.scaled:
            size = root((level.alpha * self.process.sigma_data) ** 2 + level.sigma * level.sigma)
            seen = fit(1 / size, x_t) * x_t
        answer, variance = self.network(seen, self.reading.told(rows(level, x_t)), condition), None
        if self.learned_variance:
            answer, variance = answer.chunk(2, dim=1)
            variance = variance.to(x_t.dtype)
        if answer.shape != x_t.shape:
            raise SolverError(
                f"the network made {tuple(answer.shape)} of {tuple(x_t.shape)}; shapes must agree"
            )
        value = self.reading.understood(answer.to(x_t.dtype), x_t, level)
        return Prediction(value, self.parameterisation, x_t, level, self.process, variance)

    def levels(self, times: Sequence[float]) -> list[Level]:
        """The noise levels at times of the network's own clock, falling, and then clean data.

        So `denoiser.levels(scheduler.timesteps.tolist())` are the levels that a scheduler of diffusers visits.
        Raises SolverError for clocks other than index and flow, and for times outside theirs.
        """
        if self.reading.clock not in ("index", "flow"):
            raise SolverError(f"the clock {self.reading.clock!r} does not count steps")
        last = self.reading.steps - (self.reading.clock == "index")
        if not all(0 <= k <= last for k in times):
            raise SolverError(f"this network's times run from 0 to {last}; given {list(times)}")
        if self.reading.clock == "index":
            return [*self.process.schedule.levels([k / last for k in times]), CLEAN]
        shares = [k / last for k in times if k > 0]
        ratios = [2 * (math.log1p(-u) - math.log(u)) if u < 1 else -math.inf for u in shares]
        return [*(self.process.schedule.level_at(value) for value in ratios), CLEAN]


def as_row(value: Any, x: Tensor, width: int | None, what: str) -> Tensor:
    """A condition (batch, ..., width) on x's device; raises SolverError in one line if it has another shape."""
    if not isinstance(value, Tensor) or len(value) != len(x) or (width and value.shape[-1] != width):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        wanted = f"({len(x)}, ..., {width})" if width else f"({len(x)}, ...)"
        raise SolverError(f"the condition {what!r} must be a tensor {wanted}, not {got}")
    return value.to(x.device)


def torch_dtype(module: nn.Module) -> torch.dtype:
    """The precision of a module's floating-point weights."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
