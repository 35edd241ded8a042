"""Langevin dynamics at fixed noise levels: annealed from level to level, or as the corrector of another solver.

**One step** at a level, for the density of x_t there, whose score is -eps / sigma with eps the denoiser's:

    x <- x - h sigma eps + c sigma z,      z ~ N(0, I),      c^2 = 2h.

The length h has no unit, and the step reads the same in x_t as in x_t / alpha, so it serves every Gaussian process. It
is the one rule of two papers: with r the ratio of drift to noise where eps has its expected size sqrt(dim),

    h = 2 r^2 = e / (2 sigma_L^2),      e the epsilon of NCSN, whose step at sigma_i is e sigma_i^2 / sigma_L^2
                                        (Song & Ermon 2019, alg. 1; on CIFAR-10 e = 2e-5, sigma_L = 0.01: r = 0.22);
                                        r the `snr` of predictor-corrector sampling (Song et al. 2021, alg. 4 and 5).

Song et al. put measured norms in place of the expected ones, means over the batch, which makes a sample depend on its
neighbours. Measured for each sample alone they would still tie the length to the very noise it multiplies; with the
expected ones the chain is Langevin's, and its law is known: on data N(mu, v), with S = alpha^2 v + sigma^2 and
q = h sigma^2 / S <= h, the distance to alpha mu shrinks by 1 - q a step and the variance tends to

    c^2 / h * S / (2 - q) :      S / (1 - q / 2) for c^2 = 2h,      S (1 - h / 2) / (1 - q / 2) for c^2 = h (2 - h).

The first is right where the data are wide against the noise (q near 0), the second where they are narrow (q near h), as
pictures are in most directions. The second is the *consistent* amount of noise (Jolicoeur-Martineau et al. 2021): were
x_0 known it would keep exactly sigma of noise, and h = 1 is to denoise and add fresh noise. The step is stable for
h < 2, r < 1.

**Annealed.** From level to level x / alpha stays as it is (from alpha = 0, where it is infinite, x / sigma does), then
come `inner` steps at the new level. NCSN's L levels are those of the grid but the clean one; at the first nothing is
done, as the prior is its law already. The step to clean data is the x_0 of the denoiser (Jolicoeur-Martineau et al.;
NCSNv2), one evaluation more. Where levels are close the variance lags behind the level's by about

    |d log(sigma / alpha)| / (h inner)      of itself, whatever v,

so `inner` h must be large against the spacing of the levels, and many levels do what many inner steps do.

**Predictor-corrector.** Any solver makes the step and `corrections` Langevin steps at its new level follow, so that
what the solver got wrong is forgotten at the rate q. Clean data are not corrected. A predictor that looks back
(multistep) then looks back at states from before they were corrected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from ..errors import SolverError
from ..noise import Draws
from ..processes import Categorical, Gaussian, Level
from .ancestral import Ancestral
from .solver import Denoise, Solver

CORRECTOR = 1 << 40  # the corrector's streams of noise begin beyond any that a predictor uses


def _check(solver: Solver, snr: float, name: str, count: int, least: int) -> None:
    if not 0 < snr < 1:
        raise SolverError(
            f"snr of the {solver.kind} solver lies in (0, 1), where a step is stable, not {snr!r}"
        )
    if isinstance(count, bool) or not isinstance(count, int) or not least <= count <= 10_000:
        raise SolverError(
            f"{name} of the {solver.kind} solver must be a whole number from {least} to 10,000, not {count!r}"
        )


def langevin(
    denoise: Denoise, x: Tensor, level: Level, noise: Draws, snr: float, streams: range, consistent: bool
) -> Tensor:
    """x after a Langevin step for each of `streams`, the streams of noise they draw from, at one level.

    x <- x - h sigma eps + c sigma z with h = 2 snr^2 and c^2 = 2h, or h (2 - h) if consistent; x (batch, ...).
    """
    h = 2 * snr**2
    spread = math.sqrt(h * (2 - h) if consistent else 2 * h)
    for stream in streams:
        eps = denoise(x, level).eps
        x = x - (h * level.sigma) * eps + (spread * level.sigma) * noise.normal(x, stream)
    return x


@dataclass(frozen=True)
class AnnealedLangevin(Solver):
    """Annealed Langevin dynamics (NCSN): `inner` steps at each level; the last step is the denoiser's x_0.

    snr: r, in (0, 1), h = 2 r^2. inner: steps a level. consistent: the smaller noise c^2 = h (2 - h) instead of 2h.
    A step to clean data takes one evaluation, any other `inner`. Raises SolverError for values out of range.
    Source: Song & Ermon 2019 (arXiv 1907.05600), alg. 1; Song & Ermon 2020 (2006.09011) for the last step;
    Jolicoeur-Martineau et al. 2021 (2009.05475) for the consistent noise.
    """

    kind: ClassVar[str] = "annealed-langevin"
    stochastic: ClassVar[bool] = True
    snr: float = 0.5
    inner: int = 5
    consistent: bool = False

    def __post_init__(self) -> None:
        _check(self, self.snr, "inner", self.inner, 1)

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return self.inner

    def cost(self, steps: int) -> int:
        return (steps - 1) * self.inner + 1  # clean data take no walk, only the denoiser's word

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        if s.sigma == 0:
            return s.alpha * denoise(x, t).x0, None
        x = (s.alpha / t.alpha if t.alpha > 0 else s.sigma / t.sigma) * x
        return langevin(denoise, x, s, noise, self.snr, range(self.inner), self.consistent), None


@dataclass(frozen=True)
class PredictorCorrector(Solver):
    """Any solver's step, then `corrections` Langevin steps at the level it reached.

    predictor: the solver, whose evaluations and processes are this one's. snr, consistent: as for `AnnealedLangevin`.
    corrections = 0 is the predictor itself. Each correction costs one evaluation; clean data take none.
    Raises SolverError for values out of range, or a predictor that has corrections of its own.
    Source: Song et al. 2021 (arXiv 2011.13456), alg. 1 to 5.
    """

    kind: ClassVar[str] = "predictor-corrector"
    predictor: Solver = Ancestral()
    snr: float = 0.16
    corrections: int = 1
    consistent: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.predictor, Solver) or isinstance(self.predictor, PredictorCorrector):
            raise SolverError(
                f"the predictor is a solver without corrections of its own, not {self.predictor!r}: "
                "raise the number of corrections instead"
            )
        _check(self, self.snr, "corrections", self.corrections, 0)

    @property
    def order(self) -> int:  # type: ignore[override]
        return 1 if self.corrections else self.predictor.order

    @property
    def evaluations(self) -> int:  # type: ignore[override]
        return self.predictor.evaluations + self.corrections

    def cost(self, steps: int) -> int:
        return self.predictor.cost(steps) + self.corrections * (steps - 1)

    @property
    def start_order(self) -> int:
        return min(self.order, self.predictor.start_order)

    @property
    def least_steps(self) -> int:  # type: ignore[override]
        return self.predictor.least_steps

    def within(self, steps: int) -> PredictorCorrector:
        return replace(self, predictor=self.predictor.within(steps))

    @property
    def stochastic(self) -> bool:  # type: ignore[override]
        return self.corrections > 0 or self.predictor.stochastic

    @property
    def serves(self) -> tuple[type, ...]:  # type: ignore[override]
        if not self.corrections:
            return self.predictor.serves
        # symbols have no score to walk along
        return tuple(cls for cls in self.predictor.serves if not issubclass(cls, Categorical))

    def init(self, x: Tensor) -> Any:
        return self.predictor.init(x)

    def step(
        self, denoise: Denoise, process: Gaussian, x: Tensor, t: Level, s: Level, carry: Any, noise: Draws
    ) -> tuple[Tensor, Any]:
        x, carry = self.predictor.step(denoise, process, x, t, s, carry, noise)
        if s.sigma > 0:
            streams = range(CORRECTOR, CORRECTOR + self.corrections)
            x = langevin(denoise, x, s, noise, self.snr, streams, self.consistent)
        return x, carry

    def to_json(self) -> dict[str, Any]:
        return super().to_json() | {"predictor": self.predictor.to_json()}
