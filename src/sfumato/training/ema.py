"""Averages of the weights while they are trained, with a power-function or an exponential profile.

The power-function average (Karras et al., "Analyzing and improving the training dynamics of diffusion
models", 2024, section 3) weighs the weights theta(tau) seen at time tau of a run of length t by tau^gamma:

    average(t) = integral_0^t tau^gamma theta(tau) dtau / integral_0^t tau^gamma dtau

Weights that are constant between two updates, at a and at b > a images, contribute integral_a^b =
(b^(gamma+1) - a^(gamma+1)) / (gamma+1), so the average obeys, exactly,

    average(b) = beta average(a) + (1 - beta) theta(b),     beta = (a / b)^(gamma+1)

With b - a = 1 that is the paper's (1 - 1/t)^(gamma+1). At a = 0 beta is 0: the random initial weights have no
part in it, and no warm-up is needed. Its width in units of the run, the standard deviation of the normalised
profile, is

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)

whose inverse is the largest root of a cubic (`gamma_of`). The exponential average halves an old weight's part
every `halflife` images, where the half-life is at most `ramp` times the images seen (the ramp-up of EDM,
Karras et al. 2022):

    beta = 2^(-(b - a) / min(halflife, ramp · b))

From saved power-function averages every other can be had afterwards: `posthoc.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sfumato.errors import RunError

from .config import GREATEST_SIGMA_REL, TrainingConfig


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma >= 0 of the profile whose width is sigma_rel, 0 < sigma_rel <= 12^(-1/2) = 0.2887.

    Squared, the relation reads gamma^3 + 7 gamma^2 + (16 - q) gamma + (12 - q) = 0 with q = sigma_rel^-2.
    """
    if not 0 < sigma_rel <= GREATEST_SIGMA_REL:
        raise RunError(
            f"sigma_rel {sigma_rel} must be above 0 and at most {GREATEST_SIGMA_REL:.4f} (the plain mean)"
        )
    q = sigma_rel**-2.0
    return max(float(np.roots([1.0, 7.0, 16.0 - q, 12.0 - q]).real.max()), 0.0)


def sigma_rel_of(gamma: float) -> float:
    """The width of the profile tau^gamma, as a share of the run."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


class Profile(Protocol):
    """How an average forgets."""

    @property
    def name(self) -> str: ...
    def forget(self, before: int, after: int) -> float: ...


@dataclass(frozen=True)
class Power:
    """tau^gamma, given by its width sigma_rel."""

    sigma_rel: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "_gamma", gamma_of(self.sigma_rel))

    @property
    def gamma(self) -> float:
        return self._gamma  # type: ignore[attr-defined]

    @property
    def name(self) -> str:
        return f"power-{self.sigma_rel:g}"

    def forget(self, before: int, after: int) -> float:
        """1 - beta between `before` and `after` images: by expm1, since beta is 1 - 1e-6 late in a long
        run."""
        return -math.expm1((self.gamma + 1) * math.log(before / after)) if before > 0 else 1.0


@dataclass(frozen=True)
class Exponential:
    """A half-life in images, ramped up with the images seen."""

    halflife: int
    ramp: float = 0.05

    def __post_init__(self) -> None:
        if self.halflife <= 0 or self.ramp <= 0:
            raise RunError(f"half-life {self.halflife} and ramp {self.ramp} must be above 0")

    @property
    def name(self) -> str:
        return f"exponential-{self.halflife}"

    def forget(self, before: int, after: int) -> float:
        """1 - beta between `before` and `after` images."""
        if before <= 0:
            return 1.0
        return -math.expm1(-math.log(2.0) * (after - before) / min(self.halflife, self.ramp * after))


def profiles_of(config: TrainingConfig) -> list[Profile]:
    """The averages a configuration asks for; the first is the one that is validated and exported."""
    profiles: list[Profile] = [Power(width) for width in config.ema]
    if config.ema_halflife:
        profiles.append(Exponential(config.ema_halflife, config.ema_ramp))
    return profiles


class Averages:
    """Running averages of named parameters, one for each profile.

    parameters: name -> parameter (any shape; frozen ones are left out by the caller). Averages have the
    parameters' own device, dtype and memory layout, which lets one foreach call update all of them: one pass
    over memory a profile.
    """

    def __init__(self, parameters: Mapping[str, Tensor], profiles: Sequence[Profile]):
        self.names = list(parameters)
        self.profiles = list(profiles)
        if len({profile.name for profile in profiles}) != len(self.profiles):
            raise RunError(f"two averages of the same name: {[profile.name for profile in profiles]}")
        self._sources = [p.detach() for p in parameters.values()]
        self._on_cpu = all(source.device.type == "cpu" for source in self._sources)
        self._tracks = {
            p.name: [s.clone(memory_format=torch.preserve_format) for s in self._sources] for p in profiles
        }

    @torch.no_grad()
    def update(self, before: int, after: int) -> None:
        """Take in the weights as they are now, after the step that led from `before` to `after` images."""
        if not 0 <= before < after:
            raise ValueError(f"images must grow, not go from {before} to {after}")
        tracks = [self._tracks[profile.name] for profile in self.profiles]
        shares = [profile.forget(before, after) for profile in self.profiles]
        if self._on_cpu:
            # All averages of one weight while it is in the cache: this is a matter of memory traffic only.
            for source, *averages in zip(self._sources, *tracks, strict=True):
                for average, share in zip(averages, shares, strict=True):
                    average.lerp_(source, share)
            return
        for track, share in zip(tracks, shares, strict=True):
            torch._foreach_lerp_(track, self._sources, share)  # pyright: ignore[reportPrivateImportUsage]

    def track(self, name: str) -> dict[str, Tensor]:
        """The average of that name, parameter by parameter (not copies)."""
        return dict(zip(self.names, self._tracks[name], strict=True))

    def state(self) -> dict[str, Tensor]:
        """Every average as "track/parameter" -> tensor (not copies)."""
        return {f"{track}/{name}": t for track in self._tracks for name, t in self.track(track).items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave; raises RunError if a tensor is missing or has another shape."""
        for key, tensor in self.state().items():
            if key not in state or state[key].shape != tensor.shape:
                found = tuple(state[key].shape) if key in state else "nothing"
                raise RunError(
                    f"the average {key} should have shape {tuple(tensor.shape)}, the checkpoint has {found}"
                )
            tensor.copy_(state[key])
