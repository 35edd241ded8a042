"""Pieces: joined as byte pairs are, and every text comes back whole."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfumato.domains.pieces import Pieces, learn
from sfumato.domains.sequences import Sequences
from sfumato.errors import DataError

ALPHABET = ("C", "Cl", "N", "[nH]", "c")


def joined(symbols: list[str], joins: tuple[tuple[str, str], ...]) -> list[str]:
    """The definition: each join in its turn, wherever it stands, from the left."""
    for a, b in joins:
        out: list[str] = []
        for symbol in symbols:
            if out and (out[-1], symbol) == (a, b):
                out[-1] += symbol
            else:
                out.append(symbol)
        symbols = out
    return symbols


@given(st.lists(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=30), min_size=1, max_size=20))
def test_texts_are_cut_as_the_definition_says_and_come_back(texts):
    joins = learn(texts, ALPHABET, 8)
    pieces = Pieces(ALPHABET, joins)
    for text, numbers in zip(texts, pieces.numbers(texts), strict=True):
        names = [pieces.names[k - 1] for k in numbers]
        assert "".join(names) == "".join(text)
        assert len(names) <= len(text)
        if len({a + b for a, b in joins}) == len(
            joins
        ):  # what two joins make alike has the number of the first
            assert names == joined(list(text), joins)


def test_the_commonest_pair_is_joined_first():
    texts = [list("CNCNCNcc"), list("CNcN")]
    pairs = Counter(pair for text in texts for pair in pairwise(text))
    joins = learn(texts, ("C", "N", "c"), 1)
    assert joins == (pairs.most_common(1)[0][0],) == (("C", "N"),)


def lines(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    parts = ["c1ccccc1", "C(=O)N", "CC", "Cl", "[nH]", "O"]
    path = folder / "all.smi"
    path.write_text("".join("".join(draw.choice(parts, draw.integers(1, 6))) + "\n" for _ in range(300)))
    return path


def test_a_domain_with_pieces_reads_writes_and_is_described_by_its_card(tmp_path: Path):
    plain = Sequences(dialect="smiles").read(lines(tmp_path))
    data = Sequences(dialect="smiles", pieces=12).read(lines(tmp_path))
    assert data.domain.text(data.tensor()) == plain.domain.text(plain.tensor())
    assert data.domain.length < plain.domain.length / 3
    assert "c1ccccc1" in data.domain.names
    assert data.domain.symbols == len(data.domain.names) + 1 == int(data.tensor().max()) + 1
    again = Sequences.from_json(json.loads(json.dumps(data.domain.to_json())))
    assert again == data.domain
    assert torch.equal(again.read(lines(tmp_path)).tensor(), data.tensor())
    short = Sequences(dialect="smiles", pieces=12, length=3).read(lines(tmp_path))
    assert short.card()["left_out"] == 300 - len(short) > 0


def test_gaps_are_pieces_and_what_is_given_stands(tmp_path: Path):
    domain = Sequences(dialect="smiles", pieces=12).read(lines(tmp_path)).domain
    (row,) = domain.partial("c1ccccc1?C(=O)N")
    ring, group = (1 + domain.names.index(piece) for piece in ("c1ccccc1", "C(=O)N"))
    assert row[:3].tolist() == [ring, -1, group]
    assert not row[3:].any()
    (open_,) = domain.partial("c1ccccc1...")
    assert open_.tolist() == [ring] + [-1] * (domain.length - 1)
    with pytest.raises(DataError, match="symbol in"):
        domain.partial("CBr")
    with pytest.raises(DataError, match="pieces, and the model's sequences at most"):
        domain.partial("?" * 40)


def test_what_is_no_join_is_refused():
    for joins in ((("C", "Q"),), (("C", "C", "C"),), (("CC", "C"), ("C", "C")), (7,)):
        with pytest.raises(DataError, match="a join is of two pieces"):
            Sequences(alphabet=("C",), joins=joins)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="joins are pairs"):
        Sequences(alphabet=("C",), joins=5)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="written like another piece"):
        Sequences(alphabet=("C", "l", "Cl"), joins=(("C", "l"),))
    for pieces in (-1, 10_001, True, 2.5):
        with pytest.raises(DataError, match="pieces must be"):
            Sequences(pieces=pieces)  # type: ignore[arg-type]
