"""What was measured of a picture: y = A(x) + sigma eps, with A an object and laws that it must obey.

An operator maps data (batch, *shape) to measurements (batch, ...), each sample on its own. Of a linear one the samplers
ask two more things, its adjoint and its damped inverse

    A* y  with  <A x, y> = <x, A* y>,
    R_d y = A* (A A* + d)^-1 y = (A* A + d)^-1 A* y,            R_0 = A+, the pseudo-inverse (Moore & Penrose),

which for a prior N(m, r^2 I) and noise sigma is all of Bayes' rule: E[x | y] = m + R_d (y - A m), d = sigma^2 / r^2.
Where the singular values are known R_d is exact; an operator that is known by A and A* alone gets it from conjugate
gradients on (A* A + d) x = A* y (Hestenes & Stiefel 1952), each sample with steps of its own.

Of a non-linear one they ask for derivatives, which automatic differentiation gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError
from ..noise import Noise
from ..processes.gaussian import fit
from ..processes.laws import require


class Operator:
    """Base of the measurement operators: a call maps (batch, *shape) to measurements (batch, ...).

    shape: of the data, without the batch. An operator of your own needs `shape` and `__call__`, differentiable for
    the samplers that guide.
    """

    shape: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def measured(self) -> tuple[int, ...]:
        """The shape of a measurement, without the batch."""
        return tuple(self(torch.zeros(1, *self.shape)).shape[1:])

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        """A'(x)* v, the gradient of <A(x), v>, shaped like x."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((self(x) * v).sum(), x)[0]

    def push(self, x: Tensor, u: Tensor) -> Tensor:
        """A'(x) u, the derivative along u, shaped like A(x)."""
        return torch.func.jvp(self, (x,), (u,))[1]


class LinearOperator(Operator):
    """Base of the linear operators: a call is A x, `adjoint` is A* y; `inverse` follows, and may be overridden."""

    iterations: int = 50

    def adjoint(self, y: Tensor) -> Tensor:
        """A* y, (batch, *shape)."""
        raise NotImplementedError

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        """R_d y = A* (A A* + d)^-1 y, (batch, *shape); damping d >= 0, a float or (batch,). At 0 it is A+ y."""
        goal = self.adjoint(y)

        def product(x: Tensor) -> Tensor:
            return self.adjoint(self(x)) + fit(damping, x) * x

        return conjugate_gradients(product, goal, self.iterations)

    def pull(self, x: Tensor, v: Tensor) -> Tensor:
        return self.adjoint(v)

    def push(self, x: Tensor, u: Tensor) -> Tensor:
        return self(u)


class MatrixFree(LinearOperator):
    """A linear operator known by what it does: forward(x) and backward(y), its adjoint; inverted iteratively.

    iterations: of conjugate gradients; as many as there are different singular values are exact.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        iterations: int = 50,
    ):
        self.forward, self.backward, self.shape = forward, backward, tuple(shape)
        self.iterations = iterations

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.backward(y)


def conjugate_gradients(product: Callable[[Tensor], Tensor], goal: Tensor, iterations: int) -> Tensor:
    """x with product(x) = goal, both (batch, ...), for a positive semi-definite product, from x = 0.

    Every sample has its own step sizes and stops when its residual has fallen to rounding, or where the product has
    no positive curvature left, so a sample alone is the same sample in a batch.
    """

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    x, residual, direction = torch.zeros_like(goal), goal, goal
    size = first = dot(goal, goal)
    least = first * torch.finfo(goal.dtype).eps ** 2
    for _ in range(iterations):
        mapped = product(direction)
        curvature = dot(direction, mapped)
        going = (size > least) & (curvature > 0)
        if not bool(going.any()):
            break
        step = torch.where(going, size / torch.where(going, curvature, 1.0), 0.0)
        x = x + fit(step, x) * direction
        residual = residual - fit(step, x) * mapped
        new = dot(residual, residual)
        direction = residual + fit(torch.where(going, new / size.clamp(min=1e-300), 0.0), x) * direction
        size = torch.where(going, new, 0.0)
    return x


@dataclass(frozen=True, eq=False)
class Measurement:
    """y = A(x) + sigma eps: what is known of each sample. y: (batch, ...), one row a sample. sigma: of the noise.

    Raises SolverError for a y that does not fit the operator or is not finite, or a sigma below 0.
    """

    operator: Operator
    y: Tensor
    sigma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma < math.inf:
            raise SolverError(f"sigma of the measurement's noise must be at least 0, not {self.sigma!r}")
        measured = self.operator.measured
        if tuple(self.y.shape[1:]) != measured:
            raise SolverError(
                f"this operator measures {measured} of data {self.operator.shape}, but y has {tuple(self.y.shape[1:])}"
            )
        if not bool(self.y.isfinite().all()):
            raise SolverError("a measurement must be finite: y holds NaN or infinity")

    def rows(self, rows: Any) -> Measurement:
        """The measurements of some of the samples."""
        return replace(self, y=self.y[rows])

    def repeat(self, count: int) -> Measurement:
        """Each measurement `count` times in a row."""
        return replace(self, y=self.y.repeat_interleave(count, 0))

    def residual(self, x: Tensor) -> Tensor:
        """y - A(x)."""
        return self.y.to(x) - self.operator(x)

    @property
    def linear(self) -> LinearOperator:
        """The operator, which must be linear. Raises SolverError otherwise."""
        if not isinstance(self.operator, LinearOperator):
            raise SolverError(
                f"this sampler needs a linear operator, not {type(self.operator).__name__}: take 'dps', or 'particles' "
                "with proposal 'dps'"
            )
        return self.operator

    def project(self, x: Tensor) -> Tensor:
        """x + A+ (y - A x): the nearest x that agrees with y."""
        return x + self.linear.inverse(self.residual(x))


def measure(operator: Operator, x: Tensor, sigma: float = 0.0, noise: Noise | None = None) -> Measurement:
    """Measure x (batch, *shape): y = A(x) + sigma eps with eps keyed by the noise."""
    y = operator(x)
    if sigma > 0:
        y = y + sigma * (noise or Noise(0, len(x))).normal(y, stream=1 << 41)
    return Measurement(operator, y, sigma)


def check_operator(operator: Operator, tolerance: float = 1e-8) -> None:
    """Raise LawBroken unless an operator obeys the laws of its kind, on random data in float64.

    A sample alone is measured as in a batch. Linear: A(a x + b z) = a A x + b A z; <A x, y> = <x, A* y>;
    (A* A + d) R_d y = A* y for d > 0, also where d differs by sample; A A+ A = A and A+ A A+ = A+.
    `pull` is the adjoint of `push`, whether linear or not.
    """
    noise = Noise(0, 3)
    like = torch.zeros(3, *operator.shape, dtype=torch.float64)
    x, z = noise.normal(like), noise.normal(like, stream=1)
    y = operator(x)
    require(y.shape[0] == 3, f"a measurement keeps the batch first, but 3 samples gave {tuple(y.shape)}")

    def close(a: Tensor, b: Tensor, law: str, slack: float = tolerance) -> None:
        size = max(float(a.abs().max()), float(b.abs().max()), 1e-12)
        gap = float((a - b).abs().max()) / size
        require(gap <= slack, f"{law} is off by {gap:.1e}")

    close(operator(x[1:2]), y[1:2], "a sample alone and in a batch", 1e-10)
    v = noise.normal(y, stream=2)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).flatten(1).sum(1)

    close(dot(operator.push(x, z), v), dot(z, operator.pull(x, v)), "<A' z, v> = <z, A'* v>")
    if not isinstance(operator, LinearOperator):
        return
    close(operator(2 * x - 3 * z), 2 * y - 3 * operator(z), "linearity")
    close(dot(y, v), dot(x, operator.adjoint(v)), "<A x, y> = <x, A* y>")
    for d in (0.3, torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)):
        found = operator.inverse(v, d)
        close(
            operator.adjoint(operator(found)) + fit(d, found) * found,
            operator.adjoint(v),
            "(A* A + d) R_d y = A* y",
        )
    # singular values that count as zero leave what they stand for
    slack = max(tolerance, 10 * getattr(operator, "cutoff", 0.0))
    close(operator(operator.inverse(y)), y, "A A+ A = A", slack)
    found = operator.inverse(v)
    close(operator.inverse(operator(found)), found, "A+ A A+ = A+", slack)
