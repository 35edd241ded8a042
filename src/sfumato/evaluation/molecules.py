"""How good sampled molecules are, by the standards of those who make them.

    atom stability       share of atoms whose bonds add up to a valence, bonds told by distances (`domains.bonds`)
    molecule stability   share of molecules all of whose atoms are
    validity             share that RDKit reads with these bonds; it may be in several parts
    connected            share that it reads and that are in one part
    uniqueness           share of the valid ones that are different, by canonical SMILES of the largest part
    novelty              share of the different valid ones that the training set does not have

That is the protocol of Hoogeboom et al. 2022 (EDM, arXiv:2203.17003, section 5.1). Held-out real molecules are judged
alike: that is the floor. Atoms of one molecule know each other, so the interval of the first is from resampling
molecules; the others' are Wilson's.

**Properties.** Whether molecules have what was asked for is said by a judge that has seen real ones only: boosted trees
over how many atoms of each element and bonds of each kind there are, and over the eigenvalues of the Coulomb matrix

    C_ii = Z_i^2.4 / 2,     C_ij = Z_i Z_j / |x_i - x_j|                                  (Rupp et al. 2012, eq. 1),

on top of a linear model of the counts. Its mean absolute error on held-out real molecules is the floor of the error of
samples; the error of real molecules drawn at random for the same wishes is what asking for nothing would score.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from sfumato.domains.bonds import VALENCES, Molecule, bond_orders, smiles, stable_atoms
from sfumato.errors import DataError, MissingExtra, choose
from sfumato.evaluation.measure import Measure, interval
from sfumato.evaluation.sequences import share

CHARGES = {
    "H": 1, "C": 6, "N": 7, "O": 8, "F": 9, "Si": 14, "P": 15, "S": 16, "Cl": 17, "Br": 35, "I": 53,
}  # fmt: skip
_PAIRS = list(combinations_with_replacement(VALENCES, 2))
_LENGTH = 29  # eigenvalues that a judge sees, the largest
_MOST = 20_000  # molecules that a judge learns from
_READ: dict[
    str, set[str]
] = {}  # of training sets by their SHA-256: a minute for QM9, and asked for again and again


def _stability(molecules: Sequence[Molecule]) -> tuple[np.ndarray, np.ndarray]:
    """(stable atoms, atoms) of each molecule."""
    stable = [stable_atoms(one) for one in molecules]
    return np.array([s.sum() for s in stable]), np.array([len(s) for s in stable])


def _known(domain: Any, train: Any) -> set[str]:
    """The molecules of a training set as SMILES."""
    if (key := train.sha256()) not in _READ:
        parts = np.array_split(np.arange(len(train)), len(train) // 1000 + 1)
        read = (smiles(one) for rows in parts for one in domain.molecules(train.tensor(rows)))
        _READ[key] = {found[0] for found in read if found is not None}
    return _READ[key]


def molecule_measures(domain: Any, molecules: Sequence[Molecule], train: Any, held: Any) -> list[Measure]:
    """The measures of sampled molecules. train, held: `Examples` of the domain."""
    draw = np.random.default_rng(0)
    n = len(molecules)
    real = domain.molecules(held.tensor(np.sort(draw.permutation(len(held))[: max(n, 100)])))
    (right, atoms), (right_real, atoms_real) = _stability(molecules), _stability(real)
    read, read_real = ([smiles(one) for one in part] for part in (molecules, real))
    valid, valid_real = ([one for one in part if one is not None] for part in (read, read_real))
    different = {text for text, _ in valid}

    def stable(rows: Any) -> float:
        return float(right[rows].sum() / max(atoms[rows].sum(), 1))

    value = stable(np.arange(n))
    low, high = interval(value, [stable(draw.integers(0, n, n)) for _ in range(200)], (0.0, 1.0))
    note = "bonds add up to a valence"
    floor = float(right_real.sum() / atoms_real.sum())
    found = [Measure("atom stability", value, low, high, n, "higher", floor, note)]
    for name, part, part_real, total, note in (
        ("molecule stability", right == atoms, right_real == atoms_real, n, "all its atoms are stable"),
        ("validity", [r is not None for r in read], [r is not None for r in read_real], n, "RDKit reads it"),
        ("connected", [p == 1 for _, p in valid], [p == 1 for _, p in valid_real], n, "valid, in one part"),
    ):
        floor = float(np.sum(part_real)) / len(real)
        found.append(share(name, int(np.sum(part)), total, floor, note))
    real_ones, known = {text for text, _ in valid_real}, _known(domain, train)
    distinct = len(real_ones) / max(len(valid_real), 1)
    unseen = len(real_ones - known) / max(len(real_ones), 1)
    return [
        *found,
        share("uniqueness", len(different), len(valid), distinct, "of the valid, by their largest part"),
        share("novelty", len(different - known), len(different), unseen, "of the different valid ones"),
    ]


def descriptors(molecules: Sequence[Molecule]) -> np.ndarray:
    """Counts of elements and of bonds of each kind and order, then eigenvalues of the Coulomb matrix, (n, numbers).

    None of it changes when a molecule is turned, mirrored, moved, or its atoms are put in another order.
    """
    elements = list(VALENCES)
    found = np.zeros((len(molecules), counted() + _LENGTH))
    for row, molecule in zip(found, molecules, strict=True):
        kinds = np.array([elements.index(choose(e, elements, "element", DataError)) for e in molecule[0]])
        row[: len(elements)] = np.bincount(kinds, minlength=len(elements))
        orders = np.triu(bond_orders(molecule))
        for i, j in zip(*np.nonzero(orders), strict=True):
            a, b = sorted((kinds[i], kinds[j]))
            row[len(elements) + 3 * _PAIRS.index((elements[a], elements[b])) + orders[i, j] - 1] += 1
        charge = np.array([CHARGES[e] for e in molecule[0]], dtype=float)
        gap = np.linalg.norm(molecule[1][:, None] - molecule[1][None], axis=2)
        np.fill_diagonal(gap, 1.0)
        coulomb = charge[:, None] * charge / np.maximum(gap, 0.1)
        np.fill_diagonal(coulomb, charge**2.4 / 2)
        values = np.sort(np.linalg.eigvalsh(coulomb))[::-1][:_LENGTH]
        row[counted() : counted() + len(values)] = values
    return found


def counted() -> int:
    """How many of the descriptors are counts."""
    return len(VALENCES) + 3 * len(_PAIRS)


class PropertyJudge:
    """What a property of molecules is, learned from real ones: `judge(molecules)`, (n,). Raises MissingExtra."""

    def __init__(self, domain: Any, train: Any, held: Any, name: str, most: int = _MOST):
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
            from sklearn.linear_model import Ridge
        except ImportError:
            raise MissingExtra("scikit-learn", "molecules") from None
        self.name, k = name, domain.properties.index(choose(name, domain.properties, "property", DataError))
        draw = np.random.default_rng(0)
        parts = []
        for data, size in ((train, most), (held, max(most // 10, 100))):
            rows = np.sort(draw.permutation(len(data))[:size])
            values = np.asarray(data.at(rows)["properties"], np.float64)[:, k]
            there = np.isfinite(values)
            parts.append((descriptors(domain.molecules(data.tensor(rows[there]))), values[there]))
        (x, y), (x_held, y_held) = parts
        self._line: Any = Ridge(alpha=1.0).fit(x[:, : counted()], y)
        rest = y - self._line.predict(x[:, : counted()])
        self._trees: Any = HistGradientBoostingRegressor(max_iter=300, random_state=0).fit(x, rest)
        self.held = y_held
        self.error = float(np.abs(self._of(x_held) - y_held).mean())

    def _of(self, x: np.ndarray) -> np.ndarray:
        return self._line.predict(x[:, : counted()]) + self._trees.predict(x)

    def __call__(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return self._of(descriptors(molecules))


def property_error(judge: PropertyJudge, molecules: Sequence[Molecule], asked: np.ndarray) -> Measure:
    """Mean |judge(molecule) - asked|; details: "random", that of real molecules drawn at random for the same wishes."""
    gaps = np.abs(judge(molecules) - asked)
    draw = np.random.default_rng(0)
    value = float(gaps.mean())
    spread = [gaps[draw.integers(0, len(gaps), len(gaps))].mean() for _ in range(200)]
    low, high = interval(value, spread, (0.0, np.inf))
    random = float(np.abs(judge.held[None] - np.asarray(asked)[:, None]).mean())
    note = (
        f"of the judge, {judge.error:.3g} on held-out molecules; molecules drawn at random score {random:.3g}"
    )
    return Measure(
        f"{judge.name} error", value, low, high, len(gaps), "lower", judge.error, note, {"random": random}
    )
