"""DNA with binding sites: sequences drawn from the frequency matrices of the JASPAR database.

A motif is a matrix of counts, how often each base was seen at each of its places; f (4, width) are its frequencies.
JASPAR holds matrices and not the sites that they were counted in, so the sequences are made, each of them

    background    bases drawn one by one, G and C in 41 % as in man, p = (.295, .205, .205, .295)
    one site      drawn from f, a base a column, put at an even random place, on the strand that is written

with the motif's name as its label. Nothing else is in them: a model of these data learns twelve sites, where in a
sequence they may stand, and that there is one. The draws are keyed by a fixed seed, so the data are always the same.

A window of bases x is scored by its log-odds, in bits, and a sequence by its best window,

    S(x) = max_k sum_j log2 (f_j(x_k+j) + .01) / (1.04 p(x_k+j)).
"""

from __future__ import annotations

import sqlite3
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from sfumato.domains.records import LARGEST, Records, labelled
from sfumato.errors import DataError

WHEEL = "pyjaspar-4.0.0-py3-none-any.whl"
BASES, BACKGROUND = "ACGT", np.array([0.295, 0.205, 0.205, 0.295])
LENGTH, EACH = 40, 2000
MOTIFS = {
    "CTCF": "MA0139.2", "ESR1": "MA0112.4", "HNF1A": "MA0046.3", "HNF4A": "MA1494.2", "HSF1": "MA0486.2",
    "IRF1": "MA0050.2", "MEF2A": "MA0052.3", "REST": "MA0138.3", "RFX5": "MA0510.3", "SRF": "MA0083.3",
    "TP53": "MA0106.3", "ZNF143": "MA0088.2",
}  # fmt: skip
"""Name and matrix of each: of vertebrates, of as many families as can be, with 15 to 23 bits of information."""


def motif_matrices(folder: Path) -> dict[str, np.ndarray]:
    """The frequencies (4, width) of each motif, in the order A, C, G, T. Raises DataError for a file that is none."""
    with tempfile.TemporaryDirectory(prefix="sfumato-jaspar-") as place:
        path = Path(place) / "jaspar.sqlite"
        try:
            with zipfile.ZipFile(folder / WHEEL) as archive:
                inside = archive.getinfo("pyjaspar/data/JASPAR2026.sqlite")
                if inside.file_size > LARGEST:
                    raise DataError(f"{WHEEL}: {inside.filename} is larger than {LARGEST} bytes")
                path.write_bytes(archive.read(inside))
            database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
            try:
                return {name: _matrix(database, identity) for name, identity in MOTIFS.items()}
            finally:
                database.close()
        except (KeyError, zipfile.BadZipFile, sqlite3.Error) as error:
            raise DataError(f"{WHEEL} holds no JASPAR database that can be read: {error}") from None


def _matrix(database: sqlite3.Connection, identity: str) -> np.ndarray:
    asked = "SELECT d.row, d.col, d.val FROM MATRIX_DATA d JOIN MATRIX m ON m.ID = d.ID"
    asked += " WHERE m.BASE_ID = ? AND m.VERSION = ?"
    rows = database.execute(asked, identity.split(".")).fetchall()
    if not rows:
        raise DataError(f"JASPAR holds no matrix {identity}")
    counts = np.zeros((4, max(column for _, column, _ in rows)))
    for base, column, value in rows:
        counts[BASES.index(base), column - 1] = value
    return counts / counts.sum(0)


def motif_records(folder: Path, split: str) -> Records:
    """`EACH` sequences of `LENGTH` bases for every motif, labelled by its name."""
    from sfumato.domains.image_data import keyed_words  # needs torch, which a list of the sources does not

    pairs: list[tuple[str, str | None]] = []
    for number, (name, f) in enumerate(motif_matrices(folder).items()):
        u = keyed_words(0, number, 0, EACH * (2 * LENGTH + 1)).reshape(EACH, -1) * 2.0**-64
        bases = _drawn(BACKGROUND[:, None], u[:, :LENGTH])
        site = _drawn(f, u[:, LENGTH : LENGTH + f.shape[1]])
        places = (u[:, -1] * (LENGTH - f.shape[1] + 1)).astype(np.int64)
        np.put_along_axis(bases, places[:, None] + np.arange(f.shape[1]), site, 1)
        letters = np.array(list(BASES))[bases]
        pairs += [("".join(row), name) for row in letters]
    return labelled(pairs, {})


def _drawn(f: np.ndarray, u: np.ndarray) -> np.ndarray:
    """A base for each of u (n, width), in [0, 1), by the frequencies f (4, width)."""
    return np.minimum((u[:, None] >= f.cumsum(0)[None]).sum(1), 3)


def best_log_odds(texts: list[str], f: np.ndarray) -> np.ndarray:
    """S(x) of each text, in bits; minus infinity for one that is shorter than the motif or holds other letters."""
    odds = np.log2((f + 0.01) / (1.04 * BACKGROUND[:, None]))
    number = np.full(256, -1)
    number[list(BASES.encode())] = range(4)
    width, found = f.shape[1], np.full(len(texts), -np.inf)
    for k, text in enumerate(texts):
        bases = number[np.frombuffer(text.encode("ascii", "replace"), np.uint8)]
        if len(bases) >= width and (bases >= 0).all():
            windows = np.lib.stride_tricks.sliding_window_view(bases, width)
            found[k] = odds[windows, np.arange(width)].sum(1).max()
    return found
