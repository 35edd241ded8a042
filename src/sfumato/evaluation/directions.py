"""Directions of meaning in a network's bottleneck, found without labels.

The features h of the narrowest place of a denoising network behave nearly linearly: the same step added to them
changes different pictures, at different noise levels, in the same way (Kwon et al. 2022, arXiv 2210.10960). Which steps
matter can be asked of the network itself. With x0(h) the prediction as a function of the features at points x_t,

    J = d x0 / d h,        J v_i = s_i u_i,        s_1 >= s_2 >= ...

the right singular vectors v_i are the unit steps that move the prediction most (Park et al. 2023, arXiv 2307.12868, for
the map before the bottleneck; Haas et al. 2023, arXiv 2303.11073, for this one). Stacked over many x_t, J^T J is the
sum of theirs, and the v_i are directions that all of them share; for one x_t they are its own. J is never made: power
iteration with k vectors at once needs J v (forward mode) and J^T u (reverse mode),

    V <- orth(J^T J V),       and at the end  V^T J^T J V = R diag(s^2) R^T,   V <- V R     (Rayleigh and Ritz).

The other way asks the features alone: the principal axes of h over many x_t, top eigenvectors of their covariance,
whatever they do to the picture. (Härkönen et al. 2020, arXiv 2004.02546, for another kind of model.)

Both are orthonormal. A direction's length says nothing, so each carries the standard deviation of the features along
it, and a strength counts in these: strength 2 goes two deviations along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..denoisers import Condition, Denoises
from ..errors import BundleError, SolverError, choose
from ..files import write_atomically
from ..networks import Tap, bottleneck, rewired
from ..noise import Noise
from ..processes import Level, Prediction

METHODS = ("jacobian", "pca")
FORMAT = "sfumato-directions"


class Singular(NamedTuple):
    """The largest singular triples of a Jacobian: J right[i] = values[i] left[i]; right (k, ...), left (k, ...)."""

    right: Tensor
    values: Tensor
    left: Tensor
    rounds: int


def singular_vectors(
    function: Callable[[Tensor], Tensor], point: Tensor, k: int, rounds: int = 50, tolerance: float = 1e-4
) -> Singular:
    """The k largest singular triples of d function / d x at a point, by power iteration on all of them at once.

    Stops when no vector of the span moved by more than `tolerance` (the sine of the angle), or after `rounds`. A round
    costs k derivatives forward and k backward. Two vectors more than asked are carried along, so that the last asked
    for converges as fast as s_(k+2) / s_k allows. Raises SolverError for a k beyond the size of x.
    """
    size = point.numel()
    if not 1 <= k <= size:
        raise SolverError(f"there are {size} directions at most, so k must lie from 1 to {size}, not {k}")
    carried = min(k + 2, size)
    start = Noise(0, carried).normal(torch.empty(carried, size, dtype=torch.float64))
    basis = torch.linalg.qr(start.mT)[0].mT.to(point)
    pull: Any = torch.func.vjp(function, point)[1]

    def push(v: Tensor) -> Tensor:
        return torch.func.jvp(function, (point,), (v.reshape(point.shape),))[1]

    done, moved = 0, 1.0
    while done < rounds and moved >= tolerance:
        done += 1
        image = torch.stack([pull(push(v))[0].detach().flatten() for v in basis])
        new = torch.linalg.qr(image.double().mT)[0].mT.to(point)
        moved = float((new[:k] - new[:k] @ basis.mT @ basis).norm(dim=1).max())
        basis = new
    pushed = torch.stack([push(v).detach() for v in basis])
    gram = pushed.flatten(1).double()
    squares, turn = torch.linalg.eigh(gram @ gram.mT)
    turn = turn.flip(1)[:, :k].mT
    values = squares.flip(0)[:k].clamp(min=0).sqrt()
    left = torch.einsum("ij,j...->i...", turn.to(point), pushed)
    left = left / values.clamp(min=1e-30).to(point).reshape(-1, *[1] * (left.ndim - 1))
    right = (turn @ basis.double()).to(point).reshape(k, *point.shape)
    return Singular(right, values, left, done)


@dataclass(frozen=True)
class Directions:
    """Orthonormal directions (k, ...) of the features at `path`, the features' standard deviation along each (k,).

    values: how much the prediction moves for a unit step (jacobian), or the deviation (pca), largest first. about:
    how they were found, plain text. weights: the SHA-256 of the network they belong to, "" for any.
    """

    vectors: Tensor
    deviations: Tensor
    values: Tensor
    path: str
    weights: str = ""
    about: str = ""

    def __len__(self) -> int:
        return len(self.vectors)

    def step(self, strengths: dict[int, float]) -> Tensor:
        """sum_i strength_i deviation_i v_i, shaped like one sample's features. Raises SolverError for none such."""
        for number in strengths:
            if not 0 <= number < len(self):
                raise SolverError(f"there is no direction {number}: there are 0 to {len(self) - 1}")
        return sum(
            (s * float(self.deviations[i]) * self.vectors[i] for i, s in strengths.items()),
            torch.zeros_like(self.vectors[0]),
        )

    def save(self, path: str | Path) -> None:
        """Write them as safetensors."""
        tensors = {name: getattr(self, name).contiguous() for name in ("vectors", "deviations", "values")}
        named = {name: getattr(self, name) for name in ("path", "weights", "about")}
        write_atomically(Path(path), save(tensors, {"format": FORMAT, **named}))

    @classmethod
    def load(cls, path: str | Path, weights: str = "") -> Directions:
        """Read them; weights: the SHA-256 of the network they are wanted for, `Model.fingerprint`.

        Raises BundleError for a file that is none or damaged, and for the directions of another network.
        """
        if not Path(path).is_file():
            raise BundleError(
                f"{path}: there is no such file of directions; make one: sfumato directions BUNDLE"
            )
        try:
            with safe_open(path, "pt") as file:
                about = dict(file.metadata() or {})
                if about.pop("format", None) != FORMAT:
                    raise BundleError(f"{path} holds no directions: its format is not {FORMAT!r}")
                found = cls(**{name: file.get_tensor(name) for name in file.keys()}, **about)  # noqa: SIM118
        except (SafetensorError, TypeError) as error:
            raise BundleError(f"{path} holds no whole directions: {str(error).splitlines()[0]}") from None
        if weights and found.weights and found.weights != weights:
            raise BundleError(
                f"{path} holds directions of another network: its weights have the SHA-256 {found.weights[:12]}, "
                f"these {weights[:12]}"
            )
        return found


class Steered(nn.Module):
    """A denoiser whose network's features at `path` have a fixed step added, at times within a window.

    h -> h + step, step (...) like one sample's features, the same for all samples: so sample i alone is still sample i
    in a batch. A step of zero is the denoiser itself, to the bit. window: the (earliest, latest) times, 0 being data,
    at which it is added. It wraps any denoiser that holds the network, another `Steered` included, and adds nothing to
    the parameters. Raises SolverError for a path that leads nowhere or is never reached, or a step of another shape.
    """

    def __init__(
        self,
        denoiser: Any,
        step: Tensor,
        path: str | None = None,
        window: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        if not 0 <= window[0] <= window[1] <= 1:
            raise SolverError(f"a window is two times in [0, 1], the smaller first, not {window}")
        self.denoiser, self.process = denoiser, denoiser.process
        self.step, self.window = step, window
        self.path = found(denoiser, path)

    @property
    def network(self) -> nn.Module:
        """The network inside, unsteered."""
        return self.denoiser.network

    @property
    def parameterisation(self) -> str:
        """The row the network predicts."""
        return self.denoiser.parameterisation

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        level = self.process.level(t)
        low, high = self.window
        if isinstance(level.time, Tensor) and level.time.ndim:  # each sample at its own time
            within: Any = ((level.time >= low) & (level.time <= high)).to(x_t.device)
        else:
            within = bool(low <= float(level.time) <= high)
            if not within:
                return self.denoiser(x_t, t, condition)

        def edit(h: Tensor) -> Tensor:
            self._fits(h)
            step = self.step.to(h)
            if isinstance(within, bool):
                return h + step
            # guidance asks with several branches in one batch, each with all the samples
            rows = within.repeat(len(h) // len(within)).reshape(-1, *[1] * step.ndim)
            return torch.where(rows, h + step, h)

        return tapped(self.denoiser, self.path, edit, x_t, t, condition)

    def _fits(self, h: Tensor) -> None:
        if h.shape[1:] != self.step.shape:
            raise SolverError(
                f"features at {self.path!r} are {tuple(h.shape[1:])} a sample, the step is {tuple(self.step.shape)}: "
                "it belongs to another network"
            )


def found(denoiser: Any, path: str | None) -> str:
    """The path of the module to look at: the one given if it is there, else the network's bottleneck."""
    if path is None:
        path = bottleneck(denoiser)
        if path is None:
            raise SolverError(
                "this denoiser holds no network whose bottleneck is known: say which module, path=..."
            )
        return path
    try:
        denoiser.get_submodule(path)
    except AttributeError:
        raise SolverError(f"this denoiser has no module {path!r}") from None
    return path


def tapped(
    denoiser: Any,
    path: str,
    edit: Callable[[Tensor], Tensor],
    x_t: Tensor,
    t: float | Tensor | Level,
    condition: Condition,
) -> Prediction:
    """One call of a denoiser with the features at a path edited. Raises SolverError if they are never reached."""
    met: list[bool] = []

    def through(h: Tensor) -> Tensor:
        met.append(True)
        return edit(h)

    said = rewired(denoiser, path, lambda module: Tap(module, through))(x_t, t, condition)
    if not met:
        raise SolverError(
            f"the module {path!r} is never reached: steer the network that was not compiled or exported"
        )
    return said


def features(
    denoiser: Any, x_t: Tensor, t: float | Level, condition: Condition = None, path: str | None = None
) -> Tensor:
    """The features of each x_t, (batch, ...), at a path: by default the bottleneck."""
    kept: list[Tensor] = []

    def keep(h: Tensor) -> Tensor:
        kept.append(h)
        return h

    tapped(denoiser, found(denoiser, path), keep, x_t, t, condition)
    return kept[-1]


def find_directions(
    denoiser: Denoises,
    x0: Tensor,
    k: int = 6,
    *,
    times: Sequence[float] = (0.7, 0.5),
    method: str = "jacobian",
    condition: Condition = None,
    path: str | None = None,
    seed: int = 0,
    rounds: int = 8,
) -> Directions:
    """The k directions that matter most to a denoiser at noisy states of the data x0, (batch, ...), real or its own.

    times: the noise levels looked at, together. method: "jacobian" for the steps that move the prediction most, "pca"
    for the axes along which the features themselves vary most (at most batch - 1 of them). condition: of x0, or none.
    path: of the module; by default the bottleneck. Each sample is noised by its own draws. Raises SolverError for
    an unknown method, no times, or more directions than there can be.
    """
    choose(method, METHODS, "method of finding directions", SolverError)
    if not times or not all(0 < t <= 1 for t in times):
        raise SolverError(f"times must be one or more in (0, 1], not {tuple(times)}")
    path = found(denoiser, path)
    # of a stream of their own: samples of the same seed were made from the first
    noise = Noise(seed, len(x0)).normal(x0, stream=2)
    process = denoiser.process
    states = [(process.corrupt(x0, t, noise), t) for t in times]
    with torch.no_grad():
        each = [features(denoiser, x_t, t, condition, path) for x_t, t in states]
    shape = each[0].shape[1:]
    # what a noise level does to all features alike is no difference between pictures
    centred = torch.cat([(h - h.mean(0)).flatten(1).double() for h in each])
    freedom = max(len(each) * (len(x0) - 1), 1)
    if method == "pca":
        if not 1 <= k <= min(freedom, centred.shape[1]):
            raise SolverError(
                f"features of {len(x0)} samples at {len(times)} times vary along {min(freedom, centred.shape[1])} "
                f"axes at most, not {k}: give more samples"
            )
        _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
        vectors, values = axes[:k], spread[:k] / freedom**0.5
        told = ""
    else:

        def predictions(step: Tensor) -> Tensor:
            return torch.stack(
                [tapped(denoiser, path, lambda h: h + step, x, t, condition).x0 for x, t in states]
            )

        triples = singular_vectors(
            predictions, torch.zeros(shape, dtype=x0.dtype, device=x0.device), k, rounds
        )
        # re-orthonormalised in float64, from which float32 vectors are off by their rounding
        vectors = torch.linalg.qr(triples.right.flatten(1).double().mT)[0].mT
        vectors = vectors * (vectors * triples.right.flatten(1)).sum(1, keepdim=True).sign()
        values = triples.values / len(states[0][0]) ** 0.5 / len(times) ** 0.5
        told = f", {triples.rounds} rounds"
    # a direction and its opposite are the same one: its largest element is made positive
    largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
    vectors = vectors * largest.sign()
    deviations = ((centred @ vectors.mT).square().sum(0) / freedom).sqrt()
    about = f"{method} at times {', '.join(f'{t:g}' for t in times)} of {len(x0)} samples{told}"
    return Directions(
        vectors.reshape(k, *shape).to(x0.dtype), deviations.float(), values.float(), path, about=about
    )
