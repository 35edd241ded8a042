"""A cascade: small pictures from one model, enlarged by another that is shown them; the two are run as one model.

The second is an ordinary conditional model. Its network sees, beside x_t, the small picture y in the slot "image",

    y' = alpha(u) up(y) + sigma(u) eps,          and a plane of c_noise(u) = -lambda(u) / 8,

brought to its own size and noised by its own process to a time u: noise-conditioning augmentation (Ho et al. 2022,
arXiv:2106.15282, section 4). In training y is a shrunken real picture and u uniform in [0, most]; in sampling y is what
the base drew, and u a small constant. A base makes errors that real pictures do not have. Noise of the size of those
errors hides them from the second model, which learned to trust y only as far as u says. At u = 0 it would trust every
pixel, at u = 1 none.

A base may have a base of its own, so that a cascade has as many stages as it needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .denoisers.denoiser import LOG_SNR_LIMIT, rows
from .errors import BundleError, SolverError
from .noise import Draws, Noise
from .processes import Gaussian
from .solvers import Unfinished

LOW = 1 << 43  # the stream of what the small picture is noised with
APART = 0xCA5CADE  # between the seeds of stages: the noise of one must say nothing of the other's


def enlarged(low: Tensor, size: Sequence[int], process: Gaussian, u: float | Tensor, noise: Draws) -> Tensor:
    """The slot "image" of small pictures `low` (batch, c, h, w): (batch, c + 1, *size), noised to the time u.

    u: a time, or one a picture, (batch,). Pictures are enlarged bicubically; see the file's docstring.
    """
    x = F.interpolate(low, size=tuple(size), mode="bicubic", align_corners=False)
    level = process.level(u)
    seen, _ = process.view(process.corrupt(x, level, noise.normal(x, LOW)), level)
    told = -rows(level, x).log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / 8
    return torch.cat([seen, told.to(x).reshape(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1)


@dataclass(frozen=True)
class Base:
    """What a model enlarges: the pictures of `model`, noised to the time `level` in [0, 1] when it samples.

    Raises BundleError for a level out of range.
    """

    model: Any  # a `Model`
    level: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.level <= 1:
            raise BundleError(f"the level of a cascade's noise is a time in [0, 1], not {self.level!r}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pictures that are enlarged, (channels, height, width)."""
        return tuple(self.model.domain.shape)

    def check(self, model: Any) -> None:
        """Raise BundleError unless these pictures are smaller ones of the kind that `model` makes."""
        (c, *small), (channels, *large) = self.shape, model.domain.shape
        if c != channels or any(a > b for a, b in zip(small, large, strict=True)) or small == large:
            raise BundleError(f"pictures of {self.shape} cannot be enlarged to {tuple(model.domain.shape)}")
        own = self.model.conditions
        if own.classes and own.classes != model.classes:
            raise BundleError("the labels of a cascade's base are not those of the model that enlarges")
        for key in ("name", "hash"):
            if own.text is not None and own.text[key] != (model.info.get("text") or {}).get(key):
                raise BundleError("the base of a cascade reads its prompts by another text encoder")

    def image(self, low: Any, noise: Noise, *, size: Sequence[int], process: Gaussian) -> Tensor:
        """The slot "image" of pictures (count, channels, height, width) in [-1, 1]. Raises BundleError for others."""
        if not isinstance(low, Tensor) or low.shape[1:] != self.shape:
            raise BundleError(
                f"this model enlarges pictures of {self.shape}, not {tuple(getattr(low, 'shape', ()))[1:]}"
            )
        return enlarged(low.float(), size, process, self.level, noise.at(0))

    def draw(
        self, condition: Mapping[str, Any] | None, indices: Sequence[int], seed: int, batch: int
    ) -> Tensor:
        """Pictures to enlarge, one for each sample, of what of the condition the base knows."""
        own = {
            name: value for name, value in (condition or {}).items() if name in self.model.conditions.names
        }
        try:
            return self.model.sample(indices=indices, condition=own or None, seed=seed ^ APART, batch=batch)
        except Unfinished as error:  # small pictures are no finished samples
            raise SolverError(f"the base of the cascade: {error}") from error
