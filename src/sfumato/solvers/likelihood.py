"""Exact log-probability: the probability flow, followed from data to noise with the volume that it spreads over.

Along dy/du = g(y, u) the density at the moving point changes by d log p / du = -div g (Chen et al. 2018), so

    log p_0(x) = log p_1(y_1) + int div g(y_u, u) du,

with p_1 the normal law that sampling starts from. It is the log-probability of what the flow draws, and it equals the
data's as far as the denoiser is exact; it is no bound.

**Which density.** Clean data may lie on a surface and have none, and no network is right at sigma = 0. The integration
starts at sigma / alpha = sigma_min, so what is reported is the density of data + sigma_min eps, at x. It is a proper
density, the law of what the sampler holds before its last step. Data of deviation s in some direction lose there about
(sigma_min / s)^2 / 2 nats by it.

**Coordinates.** In the flow frame, y = x / (alpha + sigma) and u = sigma / (alpha + sigma), both ends are finite, but a
direction of deviation s turns from data to noise around u = s, on a scale of s, so steps must grow with u. Even steps
in w = sqrt(u) do: dy/dw = 2 w g, with Dormand & Prince's method of order 5. Steps even in log u spend so many near the
data that too few are left where the components of a mixture part. y is smaller than x by the factor 1 - u at the start,
which adds dim log(1 - u).

**Divergence.** Either exactly, by one backward pass for each dimension, or from probes z with independent signs,
E[z^T (dg/dy) z] = div g (Hutchinson 1990), one backward pass each. A probe stays the same along the whole path
(Grathwohl et al. 2019), so each gives one unbiased estimate of the integral, and their spread an interval (Student's).
"An evaluation" is one of the denoiser together with its divergence.

**Error of the steps.** At the ends of two steps h, where all is known anyway, Simpson's rule gives the same integrals
again, to order 4 only, and what it differs by stands for the error:

    e_k = (int div)_k - h/3 (d_k + 4 d_k+1 + d_k+2),    f_k = y_k+2 - y_k - h/3 (g_k + 4 g_k+1 + g_k+2),

    E = sum_k |e_k + f_k . grad log p_u(y_k+2)|,

d and g the divergence and the slope at the ends. A path led astray by f changes what is still to come by its product
with the score. E is on the safe side, several times the error seen. The pair's embedded formula, free as well, fell
short of the error by up to 80 times, and following a second path of half as many steps costs half as much again.

**Bits per dimension.** A value k of 256 in [-1, 1] stands for the interval of width 2/255 around it. With v uniform in
it, log P(k) >= E_v log p(v) + dim log(2/255) (Theis et al. 2016): what is reported is an upper bound of -log2 P by this
uniform dequantisation, and exact otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from ..denoisers import Condition, Denoises
from ..errors import SolverError
from ..noise import Noise
from ..processes.gaussian import fit
from .adaptive import PAIRS, frame_level, weighted
from .grid import LogSNRGrid, check_steps

_PAIR = PAIRS["dormand-prince"]
DEQUANTISE, PROBE = 0, 1  # steps of the noise


@dataclass(frozen=True)
class LogLikelihood:
    """log p(x) in nats (batch,), with what is known of its error.

    error: of the steps, (batch,). deviation: the standard error from the probes, (batch,), zero for an exact trace.
    evaluations: how often the denoiser and its divergence were asked. probes: 0 for an exact trace.
    """

    nats: Tensor
    error: Tensor
    deviation: Tensor
    evaluations: int
    probes: int

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """nats -+ (error + t deviation), with t Student's quantile for the number of probes."""
        half = self.error + (student(level, self.probes - 1) * self.deviation if self.probes else 0.0)
        return self.nats - half, self.nats + half


def student(level: float, freedom: int) -> float:
    """The two-sided quantile of Student's law, by Fisher's expansion; within 1 % from 3 degrees of freedom at 95 %."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))


def log_likelihood(
    denoiser: Denoises,
    x: Tensor,
    condition: Condition = None,
    *,
    steps: int = 16,
    probes: int = 0,
    noise: Noise | None = None,
    sigma_min: float | None = None,
) -> LogLikelihood:
    """log p(x), (batch,) in nats, of what the probability flow of a denoiser draws.

    x: data (batch, ...). steps: even; 6 evaluations each, and 1 more. probes: 0 for the exact trace, or
    at least 4 for Hutchinson's, keyed by `noise` (seed 0 without one). sigma_min: the sigma / alpha at which the
    density is taken (None: the schedule's own smallest, or 0.002 where that is 0).
    Raises SolverError for a guided denoiser, one without derivatives, or a result that is not finite.
    """
    inner: object = denoiser
    while inner is not None:
        if getattr(inner, "guides", False):
            raise SolverError(
                "a guided flow's log-probability is not a likelihood: its score belongs to no density's diffusion; "
                "use guidance 1"
            )
        inner = getattr(inner, "denoiser", None)
    if check_steps(steps) % 2:
        raise SolverError(f"a log-likelihood needs an even number of steps, to know its error, not {steps}")
    if isinstance(probes, bool) or not isinstance(probes, int) or not (probes == 0 or probes >= 4):
        raise SolverError(
            f"probes must be 0 (exact trace) or a whole number of at least 4 (for an interval), not {probes!r}"
        )
    process, dim, count = denoiser.process, x[0].numel(), len(x)
    top, low = process.level(1.0), LogSNRGrid(sigma_min=sigma_min).ends(process)[1]
    signs = _signs(x, noise or Noise(0, count), probes)
    u_top = top.sigma / (top.alpha + top.sigma)
    first, last = math.sqrt(low / (1 + low)), math.sqrt(u_top)
    used = 0

    def slope(y: Tensor, w: float) -> tuple[Tensor, Tensor, Tensor]:
        nonlocal used
        used += 1
        with torch.inference_mode(False), torch.enable_grad():
            y = y.detach().clone().requires_grad_()
            # the schedule's own end, not the end up to rounding
            u = torch.full((count,), u_top if w == last else w * w, dtype=torch.float64, device=x.device)
            level, c, a, b = frame_level(process, "flow", u)
            prediction = denoiser(fit(c, y) * y, level, condition)
            if not prediction.value.requires_grad:  # g would still depend on y, through x_t in its row
                raise SolverError(
                    "this denoiser has no derivatives, so the divergence of its flow cannot be known"
                )
            g = prediction.combine(a, b)
            spread = divergence(g, y, signs)
            pull = fit(c, y) * prediction.to("score")  # grad log p_u(y)
        return 2 * w * g.detach(), 2 * w * spread, pull.detach()

    y = (1 - first**2) * x
    g, spread, pull = slope(y, first)
    total, error = torch.zeros_like(spread), torch.zeros_like(spread[:, 0])
    h, ends = (last - first) / steps, [(y, total, g, spread)]
    for i in range(steps):
        slopes, spreads = [g], [spread]
        for row, node in zip(_PAIR.rows, _PAIR.nodes, strict=True):
            end = last if node == 1 and i + 1 == steps else first + (i + node) * h
            g, spread, pull = slope(y + h * weighted(row, slopes), end)
            slopes.append(g)
            spreads.append(spread)
        y = y + h * weighted(_PAIR.rows[-1], slopes[:-1])
        total = total + h * weighted(_PAIR.rows[-1], spreads[:-1])
        ends.append((y, total, g, spread))
        if len(ends) == 3:
            (y_a, total_a, g_a, s_a), (_, _, g_b, s_b), _ = ends
            astray = y - y_a - h / 3 * (g_a + 4 * g_b + g)
            missed = total - total_a - h / 3 * (s_a + 4 * s_b + spread)
            error = error + (missed.mean(1) + (astray * pull).flatten(1).double().sum(1)).abs()
            ends = ends[2:]
    variance = (top.sigma**2 + (top.alpha * process.sigma_data) ** 2) / (top.alpha + top.sigma) ** 2
    size = y.flatten(1).double().square().sum(1)
    prior = -0.5 * (size / variance + dim * math.log(2 * math.pi * variance))
    each = total + (prior + dim * math.log1p(-(first**2)))[:, None]
    if not bool(each.isfinite().all()):
        bad = int((~each.isfinite().all(1)).nonzero()[0])
        raise SolverError(f"the log-likelihood of sample {bad} is not finite")
    deviation = each.std(1) / probes**0.5 if probes else torch.zeros_like(error)
    return LogLikelihood(each.mean(1), error, deviation, used, probes)


def _signs(x: Tensor, noise: Noise, probes: int) -> list[Tensor]:
    return [
        torch.where(noise.uniform(x, PROBE, stream=k) < 0.5, -1.0, 1.0).to(x.dtype) for k in range(probes)
    ]


def divergence(g: Tensor, y: Tensor, signs: list[Tensor]) -> Tensor:
    """div g at y: (batch, 1) exactly if there are no signs, else one estimate for each of them, (batch, probes).

    g, y: (batch, ...), g made of y under autograd.
    """
    if signs:
        rows = [
            z * torch.autograd.grad(g, y, z, retain_graph=k + 1 < len(signs))[0] for k, z in enumerate(signs)
        ]
        return torch.stack([row.flatten(1).double().sum(1) for row in rows], 1)
    flat, total = g.flatten(1), torch.zeros(len(y), dtype=torch.float64, device=y.device)
    for i in range(flat.shape[1]):
        last = i + 1 == flat.shape[1]
        row = torch.autograd.grad(flat[:, i].sum(), y, retain_graph=not last)[0]
        total += row.flatten(1)[:, i].double()
    return total[:, None]


def bits_per_dimension(
    denoiser: Denoises,
    x: Tensor,
    noise: Noise,
    condition: Condition = None,
    *,
    steps: int = 16,
    probes: int = 0,
    values: int = 256,
) -> Tensor:
    """Bits per dimension (batch,) of data quantised to `values` even values in [-1, 1], uniformly dequantised.

    -(log p(x + v) / dim + log(2 / (values - 1))) / log 2 with v uniform in the value's interval: see the file's head.
    """
    width = 2 / (values - 1)
    spread = (noise.uniform(x, DEQUANTISE) - 0.5) * width
    found = log_likelihood(denoiser, x + spread, condition, steps=steps, probes=probes, noise=noise)
    return -(found.nats / x[0].numel() + math.log(width)) / math.log(2)
