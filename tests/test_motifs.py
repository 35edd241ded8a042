"""DNA with motifs: matrices as JASPAR has them, sequences that hold what they say, and a judge that notices."""

from __future__ import annotations

import sqlite3
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sfumato.domains import motifs
from sfumato.domains.examples import Examples
from sfumato.domains.motifs import (
    BACKGROUND,
    BASES,
    LENGTH,
    MOTIFS,
    WHEEL,
    best_log_odds,
    motif_matrices,
    motif_records,
)
from sfumato.domains.sequences import Sequences
from sfumato.errors import DataError
from sfumato.evaluation import motifs as judge

SITE, EACH = "GATTACAGATTA", 240


def wheel(folder: Path, identities: dict[str, str]) -> Path:
    """A stand-in for the package: every motif is one word, its bases seen 9 times in 10, the first of them SITE."""
    draw = np.random.default_rng(0)
    path = folder / "JASPAR2026.sqlite"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE MATRIX (ID INTEGER, BASE_ID TEXT, VERSION INTEGER)")
    database.execute("CREATE TABLE MATRIX_DATA (ID INTEGER, row TEXT, col INTEGER, val REAL)")
    for k, identity in enumerate(identities.values()):
        database.execute("INSERT INTO MATRIX VALUES (?, ?, ?)", (k, *identity.split(".")))
        word = SITE if k == 0 else "".join(draw.choice(list(BASES), len(SITE)))
        rows = [
            (k, base, j + 1, 27.0 if base == word[j] else 1.0) for base in BASES for j in range(len(word))
        ]
        database.executemany("INSERT INTO MATRIX_DATA VALUES (?, ?, ?, ?)", rows)
    database.commit()
    database.close()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.write(path, "pyjaspar/data/JASPAR2026.sqlite")
    return folder


@pytest.fixture(autouse=True)
def _fewer(monkeypatch):
    monkeypatch.setattr(motifs, "EACH", EACH)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return wheel(tmp_path_factory.mktemp("jaspar"), MOTIFS)


def test_matrices_are_frequencies_and_a_missing_one_is_named(place: Path, tmp_path: Path):
    f = motif_matrices(place)["CTCF"]
    assert f.shape == (4, len(SITE))
    assert "".join(BASES[k] for k in f.argmax(0)) == SITE
    np.testing.assert_allclose(f.max(0), 0.9)
    with pytest.raises(DataError, match="no matrix MA0139"):
        motif_matrices(wheel(tmp_path, {"other": "MA0001.1"}))
    (tmp_path / WHEEL).write_bytes(b"PK")
    with pytest.raises(DataError, match="no JASPAR database"):
        motif_matrices(tmp_path)


def test_sequences_hold_one_site_in_a_background_of_known_frequencies(place: Path):
    records = motif_records(place, "train")
    assert len(records.texts) == EACH * len(MOTIFS)
    assert {len(text) for text in records.texts} == {LENGTH}
    assert records.labels is not None
    bases = np.array([list(text) for text in records.texts])
    own = bases[records.labels == records.classes.index("CTCF")]
    # by chance a window has 9 of 12 right in .0004 of the places; of a site 97 % have
    words = np.lib.stride_tricks.sliding_window_view(own, len(SITE), axis=1)
    right = (words == np.array(list(SITE))).sum(-1)
    assert (right.max(1) >= 9).mean() > 0.95
    # even places: of n = LENGTH - 11, their deviation is n / sqrt(12)
    assert abs(right.argmax(1).mean() - (LENGTH - 12) / 2) < 5 * (LENGTH - 11) / (12 * EACH) ** 0.5 + 0.5
    # the last place: the background's, but for the n-th of the sequences whose site ends there
    share, ends = 1 / (LENGTH - 11), np.mean([f[:, -1] for f in motif_matrices(place).values()], axis=0)
    last = np.array([(bases[:, -1] == base).mean() for base in BASES])
    expected = BACKGROUND * (1 - share) + ends * share
    assert (abs(last - expected) < 4 * (expected * (1 - expected) / len(bases)) ** 0.5).all()
    # all places together, which say it far more sharply: 12 columns of a site in each sequence, else background
    sites = sum(f.sum(1) for f in motif_matrices(place).values()) / len(MOTIFS)
    whole = np.array([(bases == base).mean() for base in BASES])
    np.testing.assert_allclose(whole, (BACKGROUND * (LENGTH - 12) + sites) / LENGTH, atol=0.007)
    assert motif_records(place, "train").texts == records.texts


def test_scores_are_log_odds_of_the_best_window():
    f = np.array([[0.97, 0.01], [0.01, 0.97], [0.01, 0.01], [0.01, 0.01]])  # "AC"
    best = np.log2(0.98 / (1.04 * BACKGROUND[0])) + np.log2(0.98 / (1.04 * BACKGROUND[1]))
    found = best_log_odds(["GGACGG", "A", "AX", "GGGG"], f)
    assert found[0] == pytest.approx(best)
    assert (found[1], found[2]) == (-np.inf, -np.inf)
    assert found[3] < 0


def test_recovery_finds_sequences_without_their_motif(place: Path, monkeypatch):
    monkeypatch.setattr(judge, "fetch", lambda name: place)
    records = motif_records(place, "train")
    assert records.labels is not None
    domain = Sequences(dialect="dna", length=LENGTH, alphabet=tuple(BASES), classes=records.classes)
    rows = np.arange(0, len(records.texts), 2)
    stored = np.array([[BASES.index(b) + 1 for b in records.texts[k]] for k in rows], np.uint8)
    about = {"sources": ["jaspar/train"]}
    data = Examples(domain, stored, records.labels[rows], about=about)
    train, held = data.split(0.3)
    texts, asked = domain.text(held.raw), held.targets
    assert judge.has_motifs(train)
    good = judge.motif_recovery(domain, texts, asked, train, held)
    assert good.value == good.floor > 0.85
    other = judge.motif_recovery(domain, texts, (asked + 1) % 12, train, held)
    assert other.value < 0.1
    reverse = [text[::-1] for text in texts]  # the same bases and pairs, and no site
    assert judge.motif_recovery(domain, reverse, asked, train, held).value < 0.25
    assert judge.motif_recovery(domain, [""] * len(texts), asked, train, held).value == 0
