"""What a model can be asked for: a user's words turned into the tensors that a network takes.

    {"label": "Sneaker"}   ->  {"label": (count,) long}
    {"image": pictures}    ->  {"image": (count, channels + 1, height, width)}, of a model that enlarges
    {"text": "red heart"}  ->  {"text": (count, tokens, dim), "text_mask": (count, tokens) bool}

One value stands for all samples, a list for one each. A name the model does not have, a label out of range or a list
of the wrong length is refused before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BundleError, choose
from .noise import Noise
from .personal import spoken


@dataclass(frozen=True)
class Conditions:
    """The conditions of one model. classes: names of its labels, () for none. free: whether it may go without any.

    text: the record of the encoder that it was trained with (name, dim, limit, hash), None if it takes no text.
    image: of a model that enlarges pictures, what makes its slot of them (`cascade.Base.image`).
    domain: of data that are no pictures, which may have conditions of its own (`Domain.asks`).
    words: learned ones, (tokens, dim) by name, that a prompt may have in angle brackets; see `personal.spoken`.
    """

    classes: tuple[str, ...] = ()
    free: bool = True
    text: Mapping[str, Any] | None = None
    words: Mapping[str, Tensor] = field(default_factory=dict)
    domain: Any = None
    image: Callable[[Any, Noise], Tensor] | None = None

    @property
    def names(self) -> list[str]:
        """What may be asked for."""
        own = [] if self.domain is None else list(self.domain.asks)
        return ["label"] * bool(self.classes) + ["text"] * (self.text is not None) + own

    @property
    def examples(self) -> list[str]:
        """Captions that the model was trained with, to show it by; [] for one that takes no text."""
        return list((self.text or {}).get("examples", ()))

    def in_turn(self, count: int) -> dict[str, Any] | None:
        """Each class, or else each example of a caption, in turn, for `count` samples; None where there are none."""
        if self.classes:
            return {"label": spread_labels(count, len(self.classes))}
        texts = self.examples
        return {"text": [texts[k % len(texts)] for k in range(count)]} if texts else None

    def tensors(
        self, given: Mapping[str, Any] | None, count: int, noise: Noise | None = None
    ) -> dict[str, Tensor] | None:
        """The condition of `count` samples as tensors (count, ...) by name, None for none.

        noise: whose draws a picture that is enlarged is noised with; of samples 0 to count - 1 of seed 0 by default.
        Raises BundleError for one that the model does not have, or none where it needs one.
        """
        given = dict(given or {})
        if self.image is not None:
            if (low := given.pop("image", None)) is None or len(low) != count:
                raise BundleError(
                    f'this model enlarges pictures: give a condition={{"image": ...}} of {count} of them'
                )
            shown = {"image": self.image(low, noise or Noise(0, count))}
            return shown | (replace(self, image=None).tensors(given, count) or {})
        needed = {}
        if self.domain is not None:
            wanted = {name: given.pop(name) for name in self.domain.asks if name in given}
            needed = self.domain.asked(wanted, noise or Noise(0, count))
        if not given:
            if needed:
                return needed
            if self.names and not self.free:
                name = self.names[0]
                raise BundleError(
                    f'this model was trained with a {name} always: give a condition={{"{name}": ...}}'
                )
            return None
        found: dict[str, Tensor] = dict(needed)
        for name in given:
            choose(name, self.names, "condition", BundleError)
        if "label" in given:
            found["label"] = self.labels(given["label"], count)
        if "text" in given:
            found |= self.texts(given["text"], count)
        return found

    def texts(self, given: Any, count: int) -> dict[str, Tensor]:
        """{"text": (count, tokens, dim), "text_mask": (count, tokens)} from one prompt or several; "" says nothing.

        Warns of a prompt that is cut at the encoder's limit. Raises BundleError for a number of prompts that does not
        fit, and where the encoder here is not the one the model was trained with; MissingExtra without the extra.
        """
        if self.text is None:
            raise BundleError("this model takes no text: leave the prompt out")
        if not isinstance(given, str | Sequence | np.ndarray):
            raise BundleError(f"a prompt is a text, or a list of texts, not {given!r}")
        values = [given] * count if isinstance(given, str) else list(given)
        if len(values) != count:
            raise BundleError(f"{len(values)} prompts were given for {count} samples")
        from .domains.text import text_encoder  # what it needs is an extra

        encoder = text_encoder(int(self.text["limit"]))
        for key in ("name", "hash"):
            if encoder.card[key] != self.text[key]:
                raise BundleError(
                    f"this model was trained with the text encoder {self.text['name']} of {key} "
                    f"{self.text[key][:12]}, and here it is {encoder.card[key][:12]}: install that one"
                )
        if strange := [value for value in values if not isinstance(value, str)]:
            raise BundleError(f"a prompt is a text, not {strange[0]!r}")

        def encode(prompts: list[str]) -> tuple[Tensor, Tensor]:
            found = encoder.padded(prompts)
            return found["text"], found["text_mask"]

        return spoken(values, self.words, encode)

    def labels(self, given: Any, count: int) -> Tensor:
        """Label numbers (count,) from one label or several, each a number or a class name.

        Raises BundleError for a label the model does not have, or a number of labels that does not fit.
        """
        if not self.classes:
            raise BundleError("this model knows no labels: leave the condition out")
        given = given.tolist() if hasattr(given, "tolist") else given  # tensors, NumPy's arrays and numbers
        names = {name: k for k, name in enumerate(self.classes)}
        values = (
            list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given] * count
        )
        if len(values) != count:
            raise BundleError(f"{len(values)} labels were given for {count} samples")
        found = []
        for value in values:
            if isinstance(value, str) and value not in names and value.isdecimal():
                value = int(value)
            if isinstance(value, str):
                value = names[choose(value, names, "class", BundleError)]
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise BundleError(f"a label is a class's name or a whole number, not {value!r}")
            if not 0 <= value < len(names):
                raise BundleError(
                    f"label {value} is out of range: the model has labels 0 to {len(names) - 1}"
                )
            found.append(int(value))
        return torch.tensor(found, dtype=torch.long)


def spread_labels(count: int, classes: int) -> Tensor:
    """Labels 0, 1, .. in turn, (count,): as many of each class as can be."""
    return torch.arange(count) % max(classes, 1)
