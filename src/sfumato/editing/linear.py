"""Linear operators whose singular values are known, so that their damped inverses are exact.

With A = U diag(s) V*,  R_d = V diag(s / (s^2 + d)) U*. What differs is how U and V are applied:

    Mask           known pixels; s = 1
    Channels       y = M x over the channels of each pixel: U, V of a small matrix. `grey` makes a picture grey
    Separable      y = L x R^T, rows and columns apart: two small decompositions, s_ij = s_i s_j.
                   `downsample` (mean or bicubic) and `blur` (Gaussian, mirrored at the border) are such
    Convolution    any kernel, round the border: U, V are Fourier's, s = |H|
    Linear         any matrix; `radon` makes that of a tomography with few angles
    FourierLines   rows of the Fourier transform (an MRI with few lines); A* A is diagonal in Fourier space,
                   (m(k) + m(-k)) / 2, since a real picture's frequencies k and -k say the same

A singular value below `cutoff` times the largest counts as zero where nothing damps it: a blur has some of 1e-10, and
dividing by them would make a picture of rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..processes.gaussian import fit
from .operator import LinearOperator

CUTOFF = 1e-4


def _gain(s: Tensor, damping: Any, y: Tensor, cutoff: float) -> Tensor:
    """s / (s^2 + d), (batch, *s.shape) where d differs by sample; 0 where d = 0 and s counts as zero."""
    d = torch.as_tensor(damping, dtype=torch.float64).to(s)
    d = d.reshape(-1, *[1] * s.ndim) if d.ndim else d
    kept = (s > cutoff * s.max()) | (d > 0)
    return torch.where(kept, s / torch.where(kept, s * s + d, 1.0), 0.0).to(y.dtype)


class Identity(LinearOperator):
    """y = x: what is left is to take the noise away."""

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        return y * fit(1 / (1 + damping), y)


class Mask(LinearOperator):
    """y = the known pixels, (batch, known): inpainting, and outpainting where the mask is a frame's inside.

    mask: True where known, of the data's shape or one that broadcasts to it, such as (1, height, width).
    Raises SolverError for a mask that does not fit, or under which nothing is known or nothing is left to find.
    """

    def __init__(self, mask: Tensor, shape: Sequence[int]):
        self.shape = tuple(shape)
        try:
            self.mask = mask.bool().expand(self.shape).clone()
        except RuntimeError:
            raise SolverError(
                f"a mask of {tuple(mask.shape)} does not fit data of {self.shape}: it must have their height and width"
            ) from None
        known = int(self.mask.sum())
        if known in (0, self.mask.numel()):
            what = "nothing is known" if known == 0 else "everything is known, and nothing left to find"
            raise SolverError(f"the mask is empty: {what}")

    def __call__(self, x: Tensor) -> Tensor:
        return x[:, self.mask.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.shape)
        x[:, self.mask.to(y.device)] = y
        return x

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        x = self.adjoint(y)
        return x * fit(1 / (1 + damping), x)


class Linear(LinearOperator):
    """y = M x of flattened data, (batch, rows); or of each channel where M has height x width columns.

    matrix: (rows, numbers of a sample) or (rows, height * width). cutoff: see above.
    Raises SolverError for a matrix that does not fit.
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int], cutoff: float = CUTOFF):
        self.shape, self.cutoff = tuple(shape), cutoff
        self.matrix = matrix.double()
        if self.matrix.ndim != 2 or self.matrix.shape[1] not in (
            math.prod(self.shape),
            math.prod(self.shape[-2:]),
        ):
            raise SolverError(f"a matrix of {tuple(matrix.shape)} does not fit data of {self.shape}")
        self.whole = self.matrix.shape[1] == math.prod(self.shape)
        u, self.s, v = torch.linalg.svd(self.matrix, full_matrices=False)
        self.u, self.v = u, v.mT

    def _apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        return x @ matrix.mT.to(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(self.matrix, x.flatten(1) if self.whole else x.flatten(-2))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(self.matrix.mT, y).reshape(len(y), *self.shape)

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        gain = _gain(self.s.to(y.device), damping, y, self.cutoff)
        if gain.ndim > 1 and not self.whole:
            gain = gain.reshape(len(y), *[1] * (y.ndim - 2), -1)
        return self._apply(self.v, gain * self._apply(self.u.mT, y)).reshape(len(y), *self.shape)


class Channels(LinearOperator):
    """y = M x over the channels of every pixel, (batch, rows, height, width). matrix: (rows, channels)."""

    def __init__(self, matrix: Tensor, shape: Sequence[int], cutoff: float = CUTOFF):
        self.shape, self.cutoff = tuple(shape), cutoff
        self.matrix = matrix.double()
        if self.matrix.ndim != 2 or self.matrix.shape[1] != self.shape[0]:
            raise SolverError(f"a matrix of {tuple(matrix.shape)} does not fit {self.shape[0]} channels")
        u, self.s, v = torch.linalg.svd(self.matrix, full_matrices=False)
        self.u, self.v = u, v.mT

    def _apply(self, matrix: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("rc,nchw->nrhw", matrix.to(x), x)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(self.matrix, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(self.matrix.mT, y)

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        gain = _gain(self.s.to(y.device), damping, y, self.cutoff)[..., None, None]
        return self._apply(self.v, gain * self._apply(self.u.mT, y))


def grey(shape: Sequence[int]) -> Channels:
    """The brightness of a colour picture, y = .299 R + .587 G + .114 B (ITU-R BT.601). Raises SolverError if grey."""
    if shape[0] != 3:
        raise SolverError(f"a picture of {shape[0]} channels cannot be colourised: the model's data need 3")
    return Channels(torch.tensor([[0.299, 0.587, 0.114]]), shape)


class Separable(LinearOperator):
    """y = L x R^T for every channel, (batch, channels, rows of L, rows of R)."""

    def __init__(self, left: Tensor, right: Tensor, shape: Sequence[int], cutoff: float = CUTOFF):
        self.shape, self.cutoff = tuple(shape), cutoff
        self.left, self.right = left.double(), right.double()
        if (left.shape[1], right.shape[1]) != self.shape[-2:]:
            raise SolverError(
                f"matrices of {tuple(left.shape)} and {tuple(right.shape)} do not fit data of {self.shape}"
            )
        u, s, v = torch.linalg.svd(self.left, full_matrices=False)
        u2, s2, v2 = torch.linalg.svd(self.right, full_matrices=False)
        self.u, self.v, self.s = (u, u2), (v.mT, v2.mT), s[:, None] * s2

    @staticmethod
    def _apply(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        return left.to(x) @ x @ right.mT.to(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self._apply(self.left, self.right, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._apply(self.left.mT, self.right.mT, y)

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        gain = _gain(self.s.to(y.device), damping, y, self.cutoff)
        gain = gain[:, None] if gain.ndim > 2 else gain
        return self._apply(*self.v, gain * self._apply(self.u[0].mT, self.u[1].mT, y))


def _cubic(x: Tensor) -> Tensor:
    """The interpolation kernel of Keys (1981) with a = -1/2."""
    x = x.abs()
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def _resize(old: int, new: int, kernel: str) -> Tensor:
    """The matrix (new, old) of a filtered reduction; what hangs over the border is shared among the rest."""
    factor = old / new
    centre = (torch.arange(new, dtype=torch.float64)[:, None] + 0.5) * factor - 0.5
    distance = (torch.arange(old, dtype=torch.float64) - centre) / factor
    weight = _cubic(distance) if kernel == "bicubic" else (distance.abs() < 0.5 + 1e-9).double()
    return weight / weight.sum(1, keepdim=True)


def downsample(shape: Sequence[int], factor: int, kernel: str = "mean") -> Separable:
    """A picture `factor` times smaller: the mean of each block, or "bicubic" with the kernel as wide as the reduction.

    Raises SolverError for a factor that does not divide the picture's sides.
    """
    choose(kernel, ("mean", "bicubic"), "kernel of a reduction", SolverError)
    height, width = shape[-2:]
    if (
        isinstance(factor, bool)
        or not isinstance(factor, int)
        or factor < 2
        or height % factor
        or width % factor
    ):
        raise SolverError(
            f"pictures of {width}x{height} can be reduced by a whole factor of both sides above 1, not by {factor!r}"
        )
    sides = [_resize(side, side // factor, kernel) for side in (height, width)]
    return Separable(sides[0], sides[1], shape)


def blur(shape: Sequence[int], width: float) -> Separable:
    """A Gaussian blur of standard deviation `width` in pixels, mirrored at the border. Raises SolverError below 0."""
    if not 0 < width < math.inf:
        raise SolverError(f"the width of a blur must be positive, not {width!r}")

    def side(n: int) -> Tensor:
        reach = min(math.ceil(4 * width), 4 * n)
        offsets = torch.arange(-reach, reach + 1)
        weight = torch.exp(-0.5 * (offsets.double() / width) ** 2)
        places = (torch.arange(n)[:, None] + offsets) % (2 * n)
        places = torch.where(places < n, places, 2 * n - 1 - places)
        matrix = torch.zeros(n, n, dtype=torch.float64)
        return matrix.scatter_add_(1, places, (weight / weight.sum()).expand(n, -1).contiguous())

    return Separable(side(shape[-2]), side(shape[-1]), shape)


class Convolution(LinearOperator):
    """y = k * x for every channel, round the border, (batch, *shape). kernel: (a, b), odd, centred.

    Raises SolverError for a kernel that is larger than the picture or has no centre.
    """

    def __init__(self, kernel: Tensor, shape: Sequence[int], cutoff: float = CUTOFF):
        self.shape, self.cutoff = tuple(shape), cutoff
        sides = tuple(kernel.shape)
        if len(sides) != 2 or not all(k % 2 and k <= n for k, n in zip(sides, self.shape[-2:], strict=True)):
            raise SolverError(
                f"a kernel has two odd sides within the picture's {self.shape[-2:]}, not {sides}"
            )
        padded = torch.zeros(self.shape[-2:], dtype=torch.float64)
        padded[: sides[0], : sides[1]] = kernel.double()
        self.transfer = torch.fft.rfft2(padded.roll((-(sides[0] // 2), -(sides[1] // 2)), (0, 1)))

    def _filter(self, x: Tensor, by: Tensor) -> Tensor:
        kind = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        return torch.fft.irfft2(torch.fft.rfft2(x) * by.to(x.device, kind), s=self.shape[-2:])

    def __call__(self, x: Tensor) -> Tensor:
        return self._filter(x, self.transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self.transfer.conj())

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        size = self.transfer.abs()
        gain = _gain(size.to(y.device), damping, y, self.cutoff)
        phase = self.transfer.conj() / size.clamp(min=1e-300)
        return self._filter(y, (gain[:, None] if gain.ndim > 2 else gain) * phase.to(y.device))


class FourierLines(LinearOperator):
    """Some rows of the Fourier transform, real and imaginary parts, (batch, channels, 2, lines, width): a fast MRI.

    lines: which rows of the transform, numbered from frequency 0 as `torch.fft.fftfreq` does.
    Raises SolverError for no line, or one out of range.
    """

    def __init__(self, lines: Sequence[int], shape: Sequence[int]):
        self.shape = tuple(shape)
        height = self.shape[-2]
        self.lines = torch.tensor(sorted(set(lines)), dtype=torch.long)
        if not len(self.lines) or not all(0 <= k < height for k in self.lines.tolist()):
            raise SolverError(f"lines are some of 0 to {height - 1}, at least one; given {list(lines)}")
        row = torch.zeros(height, dtype=torch.float64)
        row[self.lines] = 1
        self.weight = ((row + row.roll(-1).flip(0)) / 2)[:, None]

    def __call__(self, x: Tensor) -> Tensor:
        rows = torch.fft.fft2(x, norm="ortho")[..., self.lines.to(x.device), :]
        return torch.stack([rows.real, rows.imag], -3)

    def _spread(self, y: Tensor) -> Tensor:
        full = torch.complex(*y.unbind(-3))
        rows = full.new_zeros(len(y), *self.shape)
        rows[..., self.lines.to(y.device), :] = full
        return rows

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.fft.ifft2(self._spread(y), norm="ortho").real

    def inverse(self, y: Tensor, damping: Any = 0.0) -> Tensor:
        root = self.weight.sqrt().to(y.device)
        gain = _gain(root, damping, y, CUTOFF) / torch.where(root > 0, root, 1.0).to(y.dtype)
        spectrum = torch.fft.fft2(self.adjoint(y))
        return torch.fft.ifft2((gain[:, None] if gain.ndim > 2 else gain) * spectrum).real


def radon(shape: Sequence[int], angles: Sequence[float] | int) -> Linear:
    """Line integrals through square pictures at some angles, in picture widths, (batch, channels, angles x detectors).

    angles: in radians, or how many, even over half a turn. A pixel's weight is shared between the two detectors that
    its centre falls between; detectors are a pixel wide and cover the diagonal. An explicit matrix: pictures up to
    about 64 x 64. Raises SolverError for pictures that are not square, or no angle.
    """
    height, width = shape[-2:]
    turns = [math.pi * k / angles for k in range(angles)] if isinstance(angles, int) else list(angles)
    if height != width or not turns:
        raise SolverError(f"a tomography takes a square picture and at least one angle, not {width}x{height}")
    detectors = math.ceil(width * math.sqrt(2)) + 1
    place = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    down, across = torch.meshgrid(place, place, indexing="ij")
    matrix = torch.zeros(len(turns), detectors, width * width, dtype=torch.float64)
    for row, turn in zip(matrix, turns, strict=True):
        at = (across * math.cos(turn) + down * math.sin(turn)).flatten() + (detectors - 1) / 2
        low = at.floor().long().clamp(0, detectors - 2)
        share = at - low
        row.scatter_add_(0, low[None], (1 - share)[None])
        row.scatter_add_(0, low[None] + 1, share[None])
    return Linear(matrix.flatten(0, 1) / width, shape)
