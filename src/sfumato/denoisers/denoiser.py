"""A denoiser: a network and a process, together saying what x_t tells of x_0.

    denoiser(x_t, t, condition) -> Prediction

Everything downstream (solvers, guidance, exporters) sees only this. The network sees inputs of unit size and one
number for the noise level, whatever the schedule:

    y = network(c_in x_t, c_noise, condition),   c_in = 1 / sqrt(alpha^2 sigma_data^2 + sigma^2),
    c_noise = -lambda/8,

which for alpha = 1 are EDM's c_in and c_noise = ln(sigma) / 4 (Karras et al. 2022, table 1). With the row `edm` the
whole is EDM's preconditioning D = c_skip x + c_out F; other rows differ in the row alone. Because the network is told
the log-SNR and not the time, a trained network can be sampled under any schedule of the same path's shape.

**Where data live.** A network may say that data lie in a subspace, by a `project(x, condition)` onto it: positions of
atoms have mean 0, places of no atom hold zeros. With P the projection and Q = 1 - P, noise falls apart into independent
parts, and Q x_t = sigma Q eps holds nothing of x_0. So E[x_0 | x_t] = E[x_0 | P x_t] lies in the subspace, P x_t has
exactly the law of the same process within it, and every row is known outside, where x_0 = 0:

    y = P network(c_in P x_t, ...) + b Q x_t / sigma.

Process, objectives and solvers stay as they are: what they make within the subspace is what they would make of noise
without a centre of mass (Hoogeboom et al. 2022, arXiv:2203.17003, section 3.1), and the loss has no part outside.

In phase space the input is (x, v), each part of unit size, and the answer is about the noise of v
(`processes.langevin`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import SolverError, choose
from ..processes import Gaussian, Level, Prediction, Rows
from ..processes.gaussian import fit
from ..processes.laws import require

Condition = Mapping[str, Tensor] | None
EDGE = 1e-6  # below this sigma, what is known to be noise is rounding
LOG_SNR_LIMIT = 20.0  # beyond it a noise level is indistinguishable from the end of the schedule in float32


class Denoises(Protocol):
    """The signature that every denoiser has, wrapped or not."""

    process: Any  # a `Rows`: what may be asked of it depends on its kind

    def __call__(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction: ...


def rows(level: Level, x: Tensor) -> Level:
    """The level as tensors (batch,) on x's device, which is what a network takes."""

    def row(value: Any) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=x.device).expand(x.shape[0])

    return Level(*map(row, level))


def noise_level(level: Level, x: Tensor) -> Tensor:
    """What a network is told of the noise, -lambda/8 kept finite, (batch,) in float64."""
    return rows(level, x).log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / -8


class Denoiser(nn.Module):
    """A network's prediction under a process.

    network: (x, noise_level (batch,), condition) -> (batch, channels or 2 channels, ...).
    parameterisation: the row the network predicts. learned_variance: the network's second half of channels
    weighs the two bounds of the reverse variance (Nichol & Dhariwal 2021, eq. 15).
    Raises SolverError for an unknown parameterisation or a network whose output has the wrong shape.
    """

    def __init__(
        self,
        network: nn.Module,
        process: Rows,
        parameterisation: str = "v",
        learned_variance: bool = False,
    ):
        super().__init__()
        self.network = network
        self.process: Any = process
        self.parameterisation = choose(parameterisation, process.names, "parameterisation", SolverError)
        if learned_variance and not isinstance(process, Gaussian):
            raise SolverError("a learned variance belongs to the chain of a gaussian process: leave it out")
        if hasattr(network, "project") and not isinstance(process, Gaussian):
            raise SolverError("a network that says where its data live (`project`) needs a gaussian process")
        self.learned_variance = learned_variance

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        inside = self._inside(x_t, condition)
        scaled, seen = self.process.view(inside, level)
        out = self.network(scaled, noise_level(level, x_t).to(x_t.dtype), condition)
        if inside is not x_t:
            out = self._inside(out.to(x_t.dtype), condition)
            noise = (x_t - inside) * fit(1 / rows(level, x_t).sigma.clamp(min=EDGE), x_t)
            b = self.process.row(self.parameterisation, level)[1]
            out, seen = out + fit(b, x_t) * noise, x_t
        variance = None
        if self.learned_variance:
            out, variance = out.chunk(2, dim=1)
        return answered(self.process, self.parameterisation, out, (x_t, seen), level, variance)

    def _inside(self, x: Tensor, condition: Condition) -> Tensor:
        project = getattr(self.network, "project", None)
        return x if project is None else project(x, condition)


def answered(
    process: Any,
    kind: str,
    out: Tensor,
    state: tuple[Tensor, Tensor],
    level: Level,
    variance: Tensor | None = None,
) -> Prediction:
    """The prediction that a network's output is, in its row. SolverError for a wrong shape.

    state: x_t, and the x_t that stands in the rows, which in phase space is another.
    """
    x_t, seen = state
    if out.shape != seen.shape:
        raise SolverError(f"the network made {tuple(out.shape)} of {tuple(seen.shape)}; shapes must agree")
    # under autocast a network answers in half precision; what it says is worked with in x_t's
    out, variance = out.to(x_t.dtype), None if variance is None else variance.to(x_t.dtype)
    if kind == "mixed":
        return Prediction(process.mixed(out, x_t, level), "eps", seen, level, process)
    return Prediction(out, kind, seen, level, process, variance)


def check_denoiser(denoiser: Denoises, x: Tensor, condition: Condition = None) -> None:
    """Raise LawBroken unless a denoiser keeps shapes, treats each sample alone and takes every form of time."""
    with torch.no_grad():
        together = denoiser(x, 0.5, condition).x0
        require(
            together.shape == x.shape, f"x0 has shape {tuple(together.shape)} for x_t of {tuple(x.shape)}"
        )
        require(bool(together.isfinite().all()), "x0 is not finite at t = 0.5")
        size = float(together.abs().max().clamp(min=1))
        for form in (denoiser.process.level(0.5), torch.full((len(x),), 0.5, device=x.device)):
            gap = float((denoiser(x, form, condition).x0 - together).abs().max()) / size
            require(gap < 1e-5, f"a time given as {type(form).__name__} changes the prediction by {gap:.1e}")
        one = None if condition is None else {name: value[:1] for name, value in condition.items()}
        gap = float((denoiser(x[:1], 0.5, one).x0 - together[:1]).abs().max()) / size
        require(gap < 1e-4, f"a sample alone differs from the same sample in a batch by {gap:.1e}")
