"""Sequences of symbols: peptides, SMILES, DNA, words of any alphabet.

A text is cut into symbols, by letters or as SMILES are (an atom in brackets, Cl and Br are one symbol each), and the
symbols become numbers, the place of each in the alphabet. Symbol 0 is the end: a sequence shorter than `length` is
filled up with it, so a model that learned where sequences end says how long its samples are. What comes after the first
end is not part of a sample.

With `pieces`, what often stands together is joined into one symbol more, that many times (`pieces`): sequences are
shorter, and a ring or a group is one decision of a model. Everything below then holds of pieces.

A text with gaps, which a model is to fill, has "?" for a symbol that is not known (in DNA also N, in peptides X, where
the alphabet has no such symbol), and ends in "..." where it goes on as the model will. A gap before the end may come
out as the end: a model decides where its sequences stop. With pieces a gap is one piece, of one symbol or more.

A record that is too long, empty, cannot be read, or holds a symbol that the alphabet does not have is left out and
counted, and so is a SMILES in a file of one's own that RDKit cannot read, where it is installed (extra "molecules").
The data card says how many were. If none is left, that is an error. A sequence that a file holds twice is held out both
times or not at all.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.bonds import rdkit
from sfumato.domains.examples import Domain, Examples, alike
from sfumato.domains.pieces import Pieces, learn
from sfumato.domains.records import SUFFIXES, Records, numbered, open_records
from sfumato.domains.source import Source
from sfumato.errors import DataError, MissingExtra, choose

_SMILES = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|.")
_FASTA = ("peptide", "dna")
_GAPS = {"dna": "?N", "peptide": "?X"}
DIALECTS = ("text", "peptide", "dna", "smiles")


@dataclass(frozen=True)
class Sequences(Domain):
    """Sequences of at most `length` symbols, states int64 (n, length).

    dialect: "text", "peptide", "dna" or "smiles": how a text is cut, which files are written, what is judged.
    alphabet: the symbols after the end, which is number 0; () takes those of the data, in order. length: None takes
    that of the longest. pieces: how many joins of neighbours are learned from the data (extra "sequences"); joins: the
    learned ones, kept on the data card. Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "sequences"
    sources: ClassVar[bool] = True
    alphabet: tuple[str, ...] = ()
    length: int | None = None
    dialect: str = "text"
    pieces: int = 0
    joins: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        choose(self.dialect, DIALECTS, "dialect of sequences", DataError)
        for key in ("alphabet", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if len(set(self.alphabet)) < len(self.alphabet) or "" in self.alphabet:
            raise DataError("an alphabet is different symbols, none of them empty")
        if self.length is not None and (isinstance(self.length, bool) or not 1 <= self.length <= 65_535):
            raise DataError(f"length must be a whole number from 1 on, not {self.length!r}")
        if type(self.pieces) is not int or not 0 <= self.pieces <= 10_000:
            raise DataError(f"pieces must be a whole number from 0 to 10,000, not {self.pieces!r}")
        if not isinstance(self.joins, list | tuple):
            raise DataError(f"joins are pairs of pieces, not {self.joins!r}")
        known: dict[Any, tuple[str, ...]] = {
            symbol: (symbol,) for symbol in self.alphabet
        }  # pieces as symbols
        for pair in self.joins:
            pieces = tuple(pair) if isinstance(pair, list | tuple) else ()
            if len(pieces) != 2 or not all(isinstance(one, str) and one in known for one in pieces):
                raise DataError(f"a join is of two pieces that are there before it, and {pair!r} is not")
            joined = known[pieces[0]] + known[pieces[1]]
            if known.setdefault("".join(pieces), joined) != joined:
                raise DataError(f"the join {pair!r} is written like another piece")
        if len(self.alphabet) > 10_000:
            raise DataError(f"an alphabet of {len(self.alphabet)} symbols is too large: at most 10,000")
        object.__setattr__(self, "joins", tuple((a, b) for a, b in self.joins))

    @property
    def shape(self) -> tuple[int, ...]:
        """(length,). Raises DataError while it is left to data not yet read."""
        if self.length is None or not self.alphabet:
            raise DataError("alphabet and length are taken from the data: read them first, or set both")
        return (self.length,)

    @property
    def symbols(self) -> int:
        """How many states a position of the data has: the alphabet, what is joined of it, and the end."""
        return len(self.names) + 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What a state stands for, from number 1 on: the alphabet's symbols and then the joined pieces."""
        return tuple(dict.fromkeys([*self.alphabet, *map("".join, self.joins)]))

    @cached_property
    def _cutter(self) -> Pieces:
        return Pieces(self.alphabet, self.joins)

    @property
    def suffix(self) -> str:  # type: ignore[override]
        """What the names of written files end in."""
        return "fasta" if self.dialect in _FASTA else "smi" if self.dialect == "smiles" else "txt"

    def cut(self, text: str) -> list[str]:
        """The symbols of a text."""
        return _SMILES.findall(text) if self.dialect == "smiles" else list(text)

    def numbers(self, cut: Iterable[Sequence[str]]) -> Iterable[list[int]]:
        """The numbers of texts that were cut into symbols of the alphabet, joined into pieces if there are joins."""
        if self.joins:
            return self._cutter.numbers(cut)
        of = {symbol: k for k, symbol in enumerate(self.alphabet, 1)}
        return ([of[symbol] for symbol in symbols] for symbols in cut)

    def read(self, source: Source | str | Path) -> Examples:
        """The sequences at a source, a named one or a file; see `records`."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        found = open_records(place)
        cut = [self.cut(text.upper() if self.dialect in _FASTA else text) for text in found.texts]
        read = range(len(cut))
        if self.dialect == "smiles" and place.name is None:
            read = _molecules(found.texts)
            if not read:
                raise DataError(f"no record of {place.path} is a molecule that RDKit can read")
        counted = Counter(symbol for k in read for symbol in cut[k])
        alphabet = self.alphabet or tuple(sorted(counted))
        known = frozenset(alphabet)
        kept = [k for k in read if cut[k] and known.issuperset(cut[k])]
        texts = [cut[k] for k in kept]
        joins = self.joins or (learn(texts, alphabet, self.pieces) if self.pieces and texts else ())
        domain = replace(self, alphabet=alphabet, joins=joins)
        rows = list(domain.numbers(texts))
        length = self.length or max(map(len, rows), default=0)
        short = [k for k, row in enumerate(rows) if len(row) <= length]
        if not short:
            strange = next((s for s in counted if s not in known), None)
            raise DataError(
                f"no record of {place.name or place.path} has between 1 and {length} known symbols"
                + (f": {strange!r} is not in the alphabet" if strange else "")
            )
        stored = np.zeros((len(short), length), np.uint8 if domain.symbols <= 256 else np.uint16)
        for row, k in zip(stored, short, strict=True):
            row[: len(rows[k])] = rows[k]
        kept = [kept[k] for k in short]
        classes = self.classes or found.classes
        labels = None if found.labels is None else found.labels[kept]
        if labels is not None and classes != found.classes:
            labels = numbered(found.classes, classes)[1][labels]
        (title,) = found.about["sources"]
        about = found.about | {"left_out": found.left_out + len(cut) - len(kept)}
        domain = replace(domain, length=length, classes=() if labels is None else classes)
        groups = () if place.name is not None else alike(["".join(cut[k]) for k in kept])
        return Examples(domain, stored, labels, groups=groups, name=title, about=about)

    def encode(self, stored: Any) -> Tensor:
        """States, int64 (n, length)."""
        return torch.from_numpy(np.asarray(stored).astype(np.int64))

    def text(self, samples: Any) -> list[str]:
        """The sequences, as they are written: symbols up to the first end."""
        rows = samples.tolist() if hasattr(samples, "tolist") else samples
        found = []
        for row in rows:
            end = row.index(0) if 0 in row else len(row)
            found.append("".join(self.names[k - 1] for k in row[:end]))
        return found

    def partial(self, given: str) -> Tensor:
        """States (n, length) with -1 in the gaps, of a text such as "CC?c1ccccc1" or a file of them."""
        path = Path(given)
        is_file = path.suffix.lower() in SUFFIXES and (path.is_file() or "." not in self.alphabet)
        found = open_records(Source(path=path, labels="none")) if is_file else Records((given,))
        if found.left_out:
            raise DataError(
                f"{given}: {found.left_out} of its records cannot be read (sfumato data check says why)"
            )
        return torch.stack([self._gapped(text) for text in found.texts])

    def _gapped(self, text: str) -> Tensor:
        (length,) = self.shape
        gaps = {symbol for symbol in _GAPS.get(self.dialect, "?") if symbol not in self.alphabet}
        body = text.removesuffix("...")
        row = []
        symbols = self.cut(body.upper() if self.dialect in _FASTA else body)
        for gap, run in groupby(symbols, lambda symbol: symbol in gaps):
            run = list(run)
            if not gap:
                for symbol in run:
                    choose(symbol, [*self.alphabet, *gaps], f"symbol in {text!r}", DataError)
            row += [-1] * len(run) if gap else next(iter(self.numbers([run])))
        if len(row) > length:
            what = "pieces" if self.joins else "symbols"
            raise DataError(f"{text!r} has {len(row)} {what}, and the model's sequences at most {length}")
        state = torch.full((length,), 0 if body == text else -1)
        state[: len(row)] = torch.tensor(row, dtype=torch.long)
        return state

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write a file a sample, FASTA with its number and label in the header, or one line of SMILES or text."""
        texts = self.text(samples)
        if self.dialect in _FASTA:
            named = [""] * len(texts)
            if labels is not None:
                named = [f" {self.classes[int(k)]}" if int(k) < len(self.classes) else "" for k in labels]
            texts = [f">sample-{start + k}{named[k]}\n{text}" for k, text in enumerate(texts)]
        return self._files(texts, folder, labels, start)


def _molecules(texts: Sequence[str]) -> Sequence[int]:
    """Which SMILES RDKit can read; all of them where it is not installed."""
    try:
        read = rdkit().MolFromSmiles
    except MissingExtra:
        return range(len(texts))
    return [k for k, text in enumerate(texts) if read(text) is not None]
