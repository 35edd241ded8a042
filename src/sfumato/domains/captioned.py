"""Pictures, their captions and their labels as one state: any of the three drawn, given any others.

    picture   numbers (channels, height, width) in [-1, 1]
    caption   numbers (1, dim): the caption's vector of a frozen sentence encoder, of unit size a number
    label     a symbol (1,)

Each is a leaf of a joint state with a time of its own (`processes.joint`), so one model draws pictures of a caption,
labels of a picture, and captions' vectors of either. A caption is asked for in words; of a drawn vector the nearest of
the training set's captions is what it is shown by, so those are kept with the domain.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.examples import Domain, Examples
from sfumato.domains.images import Images, as_source
from sfumato.domains.source import Source
from sfumato.errors import DataError, choose

MOST_CAPTIONS = 5000


@dataclass(frozen=True)
class Captioned(Domain):
    """States {"picture": float32 (n, c, h, w), "caption": float32 (n, 1, dim), "label": int64 (n, 1)}.

    size, channels: of the pictures. patch: pixels on a side of a token. dim: of a caption's vector. known: captions of
    the data, by which drawn ones are shown. Raises DataError for a size that no patch divides.
    """

    name: ClassVar[str] = "captioned"
    suffix: ClassVar[str] = "png"
    sources: ClassVar[bool] = True
    size: int = 16
    channels: int = 3
    patch: int = 2
    dim: int = 384
    known: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "known", tuple(self.known))
        if self.size < 1 or self.patch < 1 or self.size % self.patch:
            raise DataError(f"a patch of {self.patch} does not divide pictures of {self.size}")

    @property
    def shape(self) -> Any:
        """The shapes of the three leaves."""
        return {"picture": (self.channels, self.size, self.size), "caption": (1, self.dim), "label": (1,)}

    @property
    def symbols(self) -> dict[str, int]:
        """How many labels there are. Raises DataError while they are left to data not yet read."""
        if len(self.classes) < 2:
            raise DataError("labels are taken from the data, and there must be two at least: read them first")
        return {"label": len(self.classes)}

    @property
    def network(self) -> dict[str, Any]:
        """The patch of the picture's leaf."""
        return {"picture": {"patch": self.patch}}

    @property
    def images(self) -> Images:
        """The domain of the pictures alone."""
        return Images(size=(self.size, self.size), channels=self.channels)  # type: ignore[arg-type]

    def read(self, source: Source | str | Path) -> Examples:
        """The pictures at a source with captions and labels. Raises DataError for one that lacks either."""
        data = self.images.read(as_source(source))
        if not data.captions or data.labels is None:
            raise DataError(
                f"{data.name} has no captions or no labels, and this domain is of pictures with both"
            )
        prompts = data.prompts()
        texts = data.encoded().texts
        assert texts is not None
        vectors = texts.sentences(prompts).numpy().astype(np.float32)
        domain = replace(
            self, classes=self.classes or data.classes, dim=vectors.shape[1],
            known=self.known or tuple(dict.fromkeys(prompts))[:MOST_CAPTIONS],
        )  # fmt: skip
        stored = {"picture": data.images, "caption": vectors, "label": data.labels}
        return Examples(domain, stored, groups=data.groups, name=data.name, about=data.card())

    # -- states -----------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> dict[str, Tensor]:
        """States of stored pictures (n, h, w, c), vectors of length 1 (n, dim) and labels (n,)."""
        vectors = torch.from_numpy(np.asarray(stored["caption"])) * self.dim**0.5
        labels = torch.from_numpy(np.asarray(stored["label"]).astype(np.int64))
        return {
            "picture": self.images.encode(stored["picture"]),
            "caption": vectors[:, None],
            "label": labels[:, None],
        }

    def decode(self, samples: Any) -> dict[str, Tensor]:
        """Pictures in [0, 1], captions' vectors of length 1, labels."""
        return {
            "picture": self.images.decode(samples["picture"]),
            "caption": torch.nn.functional.normalize(samples["caption"][:, 0].float(), dim=1),
            "label": samples["label"][:, 0],
        }

    def text(self, samples: Any) -> list[str]:
        """The label of each, and the nearest known caption."""
        labels = [self.classes[int(k)] for k in samples["label"][:, 0]]
        if not self.known:
            return labels
        from sfumato.domains.text import embed  # what it needs is an extra

        near = self.decode(samples)["caption"].cpu() @ embed(self.known).sentences(self.known).T
        return [f"{label}: {self.known[int(k)]}" for label, k in zip(labels, near.argmax(1), strict=True)]

    # -- what may be asked for --------------------------------------------------------------------------------
    @property
    def asks(self) -> tuple[str, ...]:
        """The leaves."""
        return ("picture", "caption", "label")

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """States of what is given: pictures (n, c, h, w) in [-1, 1] or the path of one, captions in words, labels by
        name. Raises DataError for others."""
        count, found = len(noise.indices), {}
        for name, value in given.items():
            many = np.iterable(value) and not isinstance(value, str)
            values: list[Any] = list(value) if many else [value] * count
            if len(values) != count:
                raise DataError(f"{len(values)} of {name!r} were given for {count} samples")
            if name == "label":
                try:
                    numbers = [
                        self.classes.index(choose(v, self.classes, "label", DataError))
                        if isinstance(v, str)
                        else operator.index(v)
                        for v in values
                    ]
                except TypeError:
                    raise DataError(
                        f"a label is one of {', '.join(self.classes)}, not {value!r:.60}"
                    ) from None
                if not all(0 <= k < len(self.classes) for k in numbers):
                    raise DataError(f"labels are 0 to {len(self.classes) - 1}, not {numbers}")
                found[name] = torch.tensor(numbers)[:, None]
            elif name == "caption":
                from sfumato.domains.text import (
                    embed,
                    text_encoder,
                    warn_of_cuts,
                )  # what they need is an extra

                if not all(isinstance(v, str) and v for v in values):
                    raise DataError("a caption is given in words")
                warn_of_cuts(text_encoder(), values)
                found[name] = (embed(values).sentences(values) * self.dim**0.5)[:, None]
            elif isinstance(value, Tensor):
                found[name] = value.float()
            elif not isinstance(values[0], str | Path):
                raise DataError(f"a picture is a path or a tensor, not {values[0]!r:.60}")
            else:
                found[name] = (
                    self.images.read(Source(path=Path(values[0]))).tensor()[:1].expand(count, -1, -1, -1)
                )
        if "picture" in found and found["picture"].shape != (count, *self.shape["picture"]):
            raise DataError(
                f"{count} samples need pictures {self.shape['picture']}, not {tuple(found['picture'].shape)}"
            )
        return found

    # -- what samples become ----------------------------------------------------------------------------------
    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write each picture as a PNG, named by its number, label and caption."""
        return self.images.write(samples["picture"], folder, None, start, self.text(samples))

    def picture(self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None) -> Any:
        """All pictures in a grid."""
        return self.images.picture(samples["picture"], columns, rows)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None) -> Any:
        """A column for each batch of the same samples."""
        return self.images.strip([batch["picture"] for batch in batches], captions)
