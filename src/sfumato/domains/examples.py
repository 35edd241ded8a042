"""What every kind of data has in common: a domain, and a set of its examples ready to train on.

A `Domain` says what one kind of data is: how it is read, becomes a model's state, is written, shown and judged. Most of
what training asks of a data set has nothing to do with the kind: which examples are held out, which come in a batch,
how many there are of each class, and a hash of them all. `Examples` is that, over one array with an example a row (or
a dict of such arrays, for states of several leaves); a domain of one's own needs to make no other.

A domain of pictures is `Images`, whose data are an `ImageData`: as this one, with crops and mirroring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.image_data import Rows
from sfumato.errors import DataError, choose

if TYPE_CHECKING:
    from PIL.Image import Image

    from sfumato.domains.text import Texts

Stored = np.ndarray | Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Domain:
    """Base of the domains: a frozen description of the data, which a bundle keeps as JSON.

    classes: names, in the order of the labels; () for none. A subclass gives `shape`, `read`, `text` and, where its
    states are not what is stored, `encode` and `decode`; and better ways of writing, showing and judging than these.
    """

    name: ClassVar[str] = ""
    suffix: ClassVar[str] = "txt"
    sources: ClassVar[bool] = False
    """Whether `read` is given a `Source`, of names and files that sfumato knows, or the recipe's text as it is."""
    spreads: ClassVar[bool] = False
    """Whether states are (channels, *places) and larger ones are data too, so that windows may draw them."""
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one state, without the batch."""
        raise NotImplementedError

    def read(self, source: Any) -> Examples:
        """The examples at a source. Raises DataError in one line for whatever is wrong with them."""
        raise NotImplementedError

    @property
    def network(self) -> dict[str, Any]:
        """What a network of these data is told besides their shape, such as {"numbers": 3} for a slot of its own."""
        return {}

    # -- what a model of these data may be asked for, besides a label -----------------------------------------------
    @property
    def asks(self) -> tuple[str, ...]:
        """Names that a condition may have: `model.sample(8, condition={name: ...})`."""
        return ()

    def told(self, stored: Stored) -> dict[str, Tensor]:
        """What a network is told of examples in training, (n, ...) by slot."""
        return {}

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """What it is told in sampling, (n, ...) by slot, of what a user asks for by the names of `asks`.

        noise: the draws of the n samples, for what is needed and was left open. Raises DataError for what cannot be.
        """
        return {}

    @property
    def agree(self) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None:
        """(estimate of states (n, *shape), what was told by slot) -> the estimate, brought to agree with it; or None.

        For what was told may say a part of the state exactly, and a network knows that only as well as it has learned
        to; see `denoisers.Agreeing`. Of states that are one tensor of numbers.
        """
        return None

    def questions(self, data: Examples, count: int) -> dict[str, Any]:
        """What a model is asked for, by the names of `asks`, where it is judged beside `data`; {}: nothing."""
        return {}

    def encode(self, stored: Stored) -> Any:
        """States (n, *shape) of stored examples (n, ...)."""
        return torch.from_numpy(np.ascontiguousarray(stored))

    def decode(self, samples: Any) -> Any:
        """What people call the data, of states (n, *shape); here the states themselves."""
        return samples

    def text(self, samples: Any) -> list[str]:
        """Each sample as text, (n,)."""
        raise NotImplementedError

    def partial(self, given: str) -> Tensor:
        """States (n, *shape) with gaps, -1 where nothing is known, from a text or a file, to be filled by a model."""
        raise DataError(f"{self.name} have no gaps that a model could fill")

    # -- what samples become ---------------------------------------------------------------------------------------
    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write samples as files, each whole or not at all: `sample-00007.txt`, or `sample-00007-label-3.txt`."""
        return self._files(self.text(samples), folder, labels, start)

    def _files(
        self, contents: Iterable[str | bytes], folder: str | Path, labels: Any, start: int
    ) -> list[Path]:
        """Write each content as it comes, text with a newline at its end: what was written before an error is whole."""
        from sfumato.files import write_atomically

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for number, content in enumerate(contents):
            mark = (
                ""
                if labels is None or int(labels[number]) == len(self.classes)
                else f"-label-{int(labels[number])}"
            )
            paths.append(folder / f"sample-{start + number:05d}{mark}.{self.suffix}")
            write_atomically(paths[-1], f"{content}\n".encode() if isinstance(content, str) else content)
        return paths

    def picture(self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None) -> Image:
        """One picture of all samples: their text, a line each, with the captions of their rows before it."""
        from sfumato.domains.sheets import sheet

        texts = self.text(samples)
        each = max(len(texts) // len(rows), 1) if rows else 1
        captions = [rows[min(k // each, len(rows) - 1)] for k in range(len(texts))] if rows else None
        return sheet(texts, captions)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None) -> Image:
        """How the same samples change from batch to batch: the first of each, a line each."""
        from sfumato.domains.sheets import sheet

        return sheet([self.text(batch)[0] for batch in batches], captions)

    def measures(self, samples: Any, labels: Any, train: Examples, held: Examples) -> list[Any] | None:
        """How good samples are, a list of `Measure`, by standards of one's own; None: by those that sfumato has."""
        return None

    # -- keeping -----------------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; inverse of `from_json`."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {"kind": self.name, **plain}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Any:
        """The domain that `to_json` described. Raises DataError for names it does not know."""
        values = dict(values)
        if (kind := values.pop("kind", cls.name)) != cls.name:
            raise DataError(f"this describes a domain of kind {kind!r}, not {cls.name!r}")
        for key in values:
            choose(key, cls.__dataclass_fields__, f"setting of {cls.name}", DataError)
        return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


FEW_GROUPS = 20


def alike(names: Sequence[str]) -> tuple[str, ...]:
    """Groups of examples by what they have in common; () if no two have, or if they are too few to hold any out."""
    return tuple(names) if FEW_GROUPS <= len(set(names)) < len(names) else ()


@dataclass(frozen=True)
class Examples(Rows):
    """A set of examples with their labels: what `Domain.read` gives.

    domain: theirs, complete. stored: (n, ...), or a dict of such arrays. labels: int64 (n,) in 0 .. classes - 1, or
    None. groups: what each is a variant of, or (): a group is held out as a whole or not at all. rows: which rows of
    `stored` these data are; None: all. about: what the data card says of where they are from. captions: one or several
    texts an example, the plainest first, or (); texts: their embeddings, see `encoded`.
    Raises DataError if these do not fit each other.
    """

    domain: Any
    stored: Any
    labels: np.ndarray | None = None
    groups: tuple[str, ...] = ()
    rows: np.ndarray | None = None
    name: str = "examples"
    about: dict[str, Any] = field(default_factory=dict)
    captions: tuple[tuple[str, ...], ...] = ()
    texts: Texts | None = None

    def __post_init__(self) -> None:
        count = len(self._first)
        if any(len(leaf) != count for leaf in self._leaves.values()):
            raise DataError("all leaves of the data need one row for each example")
        if self.labels is not None:
            if self.labels.shape != (count,):
                raise DataError(f"{count} examples cannot have labels of shape {self.labels.shape}")
            low, top = int(self.labels.min(initial=0)), int(self.labels.max(initial=-1))
            if low < 0 or top >= len(self.domain.classes):
                raise DataError(f"labels must be in 0..{len(self.domain.classes) - 1}: found {low} to {top}")
        self._check_captions(count)

    @property
    def _leaves(self) -> dict[str, np.ndarray]:
        return dict(self.stored) if isinstance(self.stored, Mapping) else {"": self.stored}

    @property
    def _first(self) -> np.ndarray:
        return next(iter(self._leaves.values()))

    def __len__(self) -> int:
        return len(self._first) if self.rows is None else len(self.rows)

    @property
    def raw(self) -> Stored:
        """What is stored of these examples, in their order."""
        return self.at(np.arange(len(self)))

    def at(self, indices: Any) -> Stored:
        """What is stored of the examples at `indices`."""
        rows = self._rows(indices)
        found = {name: leaf[rows] for name, leaf in self._leaves.items()}
        return found if isinstance(self.stored, Mapping) else found[""]

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """{"x": states (n, *shape), "condition": {"label": long (n,), slot: (n, ...)}}; with nothing to tell none.

        Once captions are `encoded` the condition holds the two slots of text, of the caption that is shown this time.
        """
        stored, rows = self.at(indices), self._rows(indices)
        condition = dict(self.domain.told(stored)) | self._said(rows, seed, images_seen)
        if self.labels is not None:
            condition["label"] = torch.from_numpy(self.labels[rows])
        return {"x": self.domain.encode(stored), **({"condition": condition} if condition else {})}

    def tensor(self, indices: Any = None) -> Tensor:
        """States, (n, *shape); of all examples, or of those at `indices`."""
        return self.domain.encode(self.at(np.arange(len(self)) if indices is None else indices))

    def sha256(self) -> str:
        """SHA-256 of what is trained on and its labels: the same data have the same, however kept."""
        digest = hashlib.sha256(f"{len(self)}".encode())
        rows = self._rows(np.arange(len(self)))
        for name, leaf in self._leaves.items():
            digest.update(f"{name} {leaf.dtype.str} {leaf.shape[1:]};".encode())
            for start in range(0, len(rows), 4096):
                digest.update(np.ascontiguousarray(leaf[rows[start : start + 4096]]).tobytes())
        if self.labels is not None:
            digest.update(self.labels[rows].astype("<i8").tobytes())
        if self.captions:
            digest.update(json.dumps([self.captions[row] for row in rows]).encode())
        return digest.hexdigest()

    def card(self) -> dict[str, Any]:
        """What a bundle says of its data."""
        texts = [self.captions[row] for row in self._rows(np.arange(len(self)))] if self.captions else []
        unknown = {"licence": "not stated", "origin": "not stated", "citation": "not stated"}
        return {
            **unknown, **self.about, "name": self.name, "count": len(self), "classes": self.counts(),
            "captions": sum(map(len, texts)), "sha256": self.sha256(),
        }  # fmt: skip
