"""Pieces of text that often stand together, as one symbol each: byte-pair encoding.

Begin with the symbols of an alphabet, and join the pair of neighbours that is commonest into a symbol more; again,
`count` times. A text is then cut by the same joins in the same order. Sequences become several times shorter, and what
stands together in nearly every text (a ring "c1ccccc1", its number opened and closed) is one decision of a model
instead of eight that have to agree. For SMILES this is SMILES pair encoding (Li & Fourches 2021); joining itself is
done by the package `tokenizers`, extra "sequences".

    cc2, c1, (=O), ...        joins ("c", "c"), ("cc", "2"), ("c", "1"), ("=", "O"), ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra

LEARN = 50_000  # texts from which joins are learned: more of them do not change the common ones
_CHUNK = 20_000
_FIRST = 0x4E00  # a symbol may be several letters; to the package it is one letter, from here on


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra("tokenizers", "sequences") from None
    return tokenizers


class Pieces:
    """The pieces of an alphabet and its joins; number 0 is kept free for the end.

    alphabet: single symbols, numbered from 1 on in their order. joins: pairs of pieces, the earliest joined first;
    each one's piece has the next number. Needs the extra "sequences".
    """

    def __init__(self, alphabet: Sequence[str], joins: Sequence[tuple[str, str]] = ()) -> None:
        self.joins = tuple((a, b) for a, b in joins)
        self.letters = {symbol: chr(_FIRST + k) for k, symbol in enumerate(alphabet)}
        self.names = list(dict.fromkeys(chain(alphabet, (a + b for a, b in self.joins))))
        package = _tokenizers()
        written = dict(self.letters)  # each piece as letters of the package
        for a, b in self.joins:
            written.setdefault(a + b, written[a] + written[b])
        model = package.models.BPE(
            {written[name]: k for k, name in enumerate(self.names, 1)},
            [(written[a], written[b]) for a, b in self.joins],
        )
        self._cutter = package.Tokenizer(model)

    def numbers(self, texts: Iterable[Sequence[str]]) -> Iterator[list[int]]:
        """The numbers of the pieces of each text. texts: symbols of the alphabet each, and no others."""
        words = ("".join([self.letters[symbol] for symbol in symbols]) for symbols in texts)
        while chunk := list(islice(words, _CHUNK)):
            for found in self._cutter.encode_batch_fast(chunk):
                yield found.ids


def learn(texts: Sequence[Sequence[str]], alphabet: Sequence[str], count: int) -> tuple[tuple[str, str], ...]:
    """At most `count` joins, the commonest pair of neighbours first, of texts cut into symbols of the alphabet."""
    package = _tokenizers()
    letters = Pieces(alphabet).letters
    rows = np.unique(np.linspace(0, len(texts) - 1, min(LEARN, len(texts))).astype(int))
    cutter = package.Tokenizer(package.models.BPE())
    trainer = package.trainers.BpeTrainer(
        vocab_size=len(alphabet) + count,
        min_frequency=2,
        initial_alphabet=list(letters.values()),
        show_progress=False,
    )
    words = ("".join([letters[symbol] for symbol in texts[int(k)]]) for k in rows)
    cutter.train_from_iterator(words, trainer)
    names = {letter: symbol for symbol, letter in letters.items()}
    merges = json.loads(cutter.to_str())["model"]["merges"]
    return tuple(
        ("".join(names[letter] for letter in a), "".join(names[letter] for letter in b)) for a, b in merges
    )
