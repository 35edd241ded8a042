"""Any average afterwards: power-function averages of every width from a few saved ones.

(Karras et al. 2024, section 3.2 and appendix C.) An average of width given by gamma, taken at t images, is
the inner product of the weights' history theta(tau) with the profile

    p_{gamma, t}(tau) = (gamma + 1) tau^gamma / t^(gamma+1)     on [0, t], else 0.

Averages are linear in their profile. So if a combination sum_i x_i p_i of the saved profiles is close to a
wished-for profile p, the same combination of the saved weights is close to the wished-for average. Least
squares over tau,

    min_x || sum_i x_i p_i - p ||^2    =>   A x = b,   A_ij = <p_i, p_j>,  b_i = <p_i, p>,

needs inner products only, which are closed: with m = min(t_a, t_b), M = max(t_a, t_b),

    <p_a, p_b> = (g_a + 1)(g_b + 1) / (t_a^(g_a+1) t_b^(g_b+1)) · integral_0^m tau^(g_a + g_b) dtau
               = (g_a + 1)(g_b + 1) / (g_a + g_b + 1) · (m / t_a)^(g_a) (m / t_b)^(g_b) / M.

We solve under sum_i x_i = 1 (a Lagrange multiplier): every profile integrates to 1, so weights that never
moved are then reproduced exactly. A is divided by its diagonal on both sides first, else times of 10^3 and
10^8 sit in one matrix.

Snapshots are files `<images>.safetensors`, each with every power-function track and its sigma_rel in the
header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sfumato.errors import RunError
from sfumato.files import write_atomically

from .ema import Averages, Power, gamma_of
from .tensors import refuse_foreign, write_safetensors

_Numbers = np.ndarray | np.float64


def inner(gamma_a: _Numbers, time_a: _Numbers, gamma_b: _Numbers, time_b: _Numbers) -> np.ndarray:
    """<p_a, p_b> of two power-function profiles, elementwise with broadcasting; times in images, float64."""
    least, greatest = np.minimum(time_a, time_b), np.maximum(time_a, time_b)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    return scale * (least / time_a) ** gamma_a * (least / time_b) ** gamma_b / greatest


def coefficients(saved: Sequence[tuple[float, float]], sigma_rel: float, images: float) -> np.ndarray:
    """How much of each saved average makes the wished-for one best, (len(saved),), summing to 1.

    saved: (sigma_rel, images) of each. sigma_rel, images: of the average to be made; images beyond the last
    saved average cannot be reached and raise RunError.
    """
    if not saved:
        raise RunError(
            "there are no snapshots of the averages to reconstruct from: set training.snapshot_every"
        )
    if images > max(time for _, time in saved):
        raise RunError(
            f"an average at {images:g} images lies beyond the last snapshot, {max(t for _, t in saved):g}"
        )
    gammas = np.array([gamma_of(width) for width, _ in saved])
    times = np.array([time for _, time in saved], dtype=np.float64)
    gram = inner(gammas[:, None], times[:, None], gammas, times)
    target = inner(gammas, times, np.float64(gamma_of(sigma_rel)), np.float64(images))
    scale = 1 / np.sqrt(np.diag(gram))
    count = len(saved)
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = gram * scale * scale[:, None]
    system[count, :count] = system[:count, count] = scale / scale.max()
    right = np.append(target * scale, 1 / scale.max())
    # The unknowns are x / scale and the multiplier; lstsq, as profiles that are neighbours in time are nearly
    # parallel.
    x = np.linalg.lstsq(system, right, rcond=1e-13)[0][:count] * scale
    return x / x.sum()


def distance(saved: Sequence[tuple[float, float]], sigma_rel: float, images: float) -> float:
    """Relative L2 distance between the reconstructed and the wished-for profile: 0 exact, 1 useless."""
    x = coefficients(saved, sigma_rel, images)
    gammas, times = (
        np.array([gamma_of(w) for w, _ in saved]),
        np.array([t for _, t in saved], dtype=np.float64),
    )
    gamma, time = np.float64(gamma_of(sigma_rel)), np.float64(images)
    own = inner(gamma, time, gamma, time)
    gram = inner(gammas[:, None], times[:, None], gammas, times)
    return float(np.sqrt(max(x @ gram @ x - 2 * x @ inner(gammas, times, gamma, time) + own, 0.0) / own))


def save_snapshot(folder: Path, averages: Averages, images: int) -> Path | None:
    """Write the power-function tracks as they are at `images`; returns the file, or None if there are no such
    tracks."""
    powers = [profile for profile in averages.profiles if isinstance(profile, Power)]
    if not powers:
        return None
    tensors = {f"{p.name}/{name}": tensor for p in powers for name, tensor in averages.track(p.name).items()}
    about = {"format": "sfumato ema snapshot", "images": str(images)}
    about |= {p.name: repr(p.sigma_rel) for p in powers}
    path = folder / f"{images:09d}.safetensors"
    write_atomically(path, lambda file: write_safetensors(file, tensors, about))
    return path


@dataclass(frozen=True)
class Snapshot:
    """One saved track: where it is, what its width and its time are."""

    path: Path
    track: str
    sigma_rel: float
    images: int


@dataclass(frozen=True)
class PostHoc:
    """Reconstructs averages of any width from the snapshots of a run.

    `PostHoc.of(run / "ema").weights(sigma_rel=0.07)` -> parameter name -> tensor.
    """

    snapshots: tuple[Snapshot, ...]

    @classmethod
    def of(cls, folder: Path, up_to: int | None = None) -> PostHoc:
        """The snapshots in a folder, optionally those of at most `up_to` images. Raises RunError if there are
        none."""
        found: list[Snapshot] = []
        for path in sorted(Path(folder).glob("*.safetensors")):
            refuse_foreign(path)
            with safe_open(path, "pt") as file:
                about = dict(file.metadata() or {})
            if about.pop("format", None) != "sfumato ema snapshot":
                raise RunError(f"{path} is not a snapshot of averages that sfumato wrote")
            images = int(about.pop("images"))
            if up_to is None or images <= up_to:
                found += [Snapshot(path, track, float(width), images) for track, width in about.items()]
        if not found:
            raise RunError(f"there are no snapshots of the averages in {folder}: set training.snapshot_every")
        return cls(tuple(found))

    @property
    def saved(self) -> list[tuple[float, float]]:
        """(sigma_rel, images) of each saved track."""
        return [(s.sigma_rel, float(s.images)) for s in self.snapshots]

    def distance(self, sigma_rel: float, images: int | None = None) -> float:
        """How far the reconstructed profile is from the wished-for one, relative (`distance`)."""
        return distance(self.saved, sigma_rel, images or max(s.images for s in self.snapshots))

    def weights(
        self, sigma_rel: float, images: int | None = None, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Tensor]:
        """The average of that width at that time (default: the last snapshot's), summed in float64, given as
        float32."""
        x = coefficients(self.saved, sigma_rel, images or max(s.images for s in self.snapshots))
        total: dict[str, Tensor] = {}
        for index, (snapshot, share) in enumerate(zip(self.snapshots, x, strict=True)):
            with safe_open(snapshot.path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    track, _, name = key.partition("/")
                    if track == snapshot.track:
                        part = file.get_tensor(key).to(torch.float64) * float(share)
                        total[name] = total[name].add_(part) if name in total else part
            if progress:
                progress(index + 1, len(self.snapshots))
        return {name: tensor.to(torch.float32) for name, tensor in total.items()}
