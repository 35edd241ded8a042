"""What a model can be asked for: a user's words turned into the tensors that a network takes.

    {"label": "Sneaker"}  ->  {"label": (count,) long}

One value stands for all samples, a list for one each. A name the model does not have, a label out of range or a list
of the wrong length is refused before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import BundleError, choose


@dataclass(frozen=True)
class Conditions:
    """The conditions of one model. classes: names of its labels, () for none. free: whether it may go without any."""

    classes: tuple[str, ...] = ()
    free: bool = True

    @property
    def names(self) -> list[str]:
        """What may be asked for."""
        return ["label"] if self.classes else []

    def tensors(self, given: Mapping[str, Any] | None, count: int) -> dict[str, Tensor] | None:
        """The condition of `count` samples as tensors (count, ...) by name, None for none.

        Raises BundleError for one that the model does not have, or none where it needs one.
        """
        if not given:
            if self.classes and not self.free:
                raise BundleError(
                    'this model was trained with a label always: give a condition={"label": ...}'
                )
            return None
        for name in given:
            choose(name, self.names, "condition", BundleError)
        return {"label": self.labels(given["label"], count)}

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
