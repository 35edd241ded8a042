"""Which atoms are bonded, told by their distances alone, and what RDKit makes of it.

Two atoms of elements a, b at a distance d are bonded with the highest order k = 1, 2, 3 for which

    d < length_k(a, b) + margin_k,       margins .10, .05 and .03 angstrom,

where a double bond is thought of only below the bound of a single one, and a triple only below that of a double one.
An atom is stable if its orders add up to its valence: H 1, C 4, N 3, O 2, F 1. Charges are not thought of, so that a
few real molecules are unstable by this rule as well. The rule and its margins are those of Hoogeboom et al. 2022 (EDM,
arXiv:2203.17003, appendix), the lengths mean ones of chemistry's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra

VALENCES = {"H": 1, "C": 4, "N": 3, "O": 2, "F": 1}
MARGINS = (0.10, 0.05, 0.03)
_LENGTHS = (
    {
        "HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135, "NN": 145,
        "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142,
    },
    {"CC": 134, "CN": 129, "CO": 120, "NN": 125, "NO": 121, "OO": 121},
    {"CC": 120, "CN": 116, "CO": 113, "NN": 110},
)  # fmt: skip

Molecule = tuple[Sequence[str], np.ndarray]
"""Elements of n atoms, and their positions (n, 3) in angstrom."""


def _bounds(elements: Sequence[str], order: int) -> np.ndarray:
    """The longest distances of bonds of an order between kinds of atoms, (kinds, kinds); 0 where there is none."""
    table, margin = _LENGTHS[order], MARGINS[order]
    return np.array(
        [
            [(n / 100 + margin if (n := table.get(a + b, table.get(b + a, 0))) else 0.0) for b in elements]
            for a in elements
        ]
    )


_KINDS = tuple(VALENCES)
_BOUNDS = np.stack([_bounds(_KINDS, order) for order in range(3)])


def bond_orders(molecule: Molecule) -> np.ndarray:
    """Orders 0 to 3 of the bonds between all atoms, int (n, n); of elements without a table 0."""
    elements, positions = molecule
    kinds = np.array([_KINDS.index(e) if e in _KINDS else -1 for e in elements])
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    below = distance < _BOUNDS[:, kinds[:, None], kinds[None]]
    known = (kinds >= 0)[:, None] & (kinds >= 0) & ~np.eye(len(kinds), dtype=bool)
    return (np.cumprod(below, 0).sum(0) * known).astype(np.int64)


def stable_atoms(molecule: Molecule) -> np.ndarray:
    """Whether the orders of each atom's bonds add up to its valence, bool (n,)."""
    return bond_orders(molecule).sum(1) == [VALENCES.get(e, -1) for e in molecule[0]]


def rdkit() -> Any:
    """RDKit's `Chem`, silent. Raises MissingExtra."""
    try:
        from rdkit import Chem, RDLogger  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("rdkit", "molecules") from None
    RDLogger.DisableLog("rdApp.*")  # pyright: ignore[reportAttributeAccessIssue]
    return Chem


def graph(molecule: Molecule) -> Any:
    """RDKit's molecule of these atoms, bonds and positions as they are, sound or not. Raises MissingExtra."""
    chem = rdkit()
    elements, positions = molecule
    made, orders = chem.RWMol(), bond_orders(molecule)
    for element in elements:
        made.AddAtom(chem.Atom(element))
    kinds = (None, chem.BondType.SINGLE, chem.BondType.DOUBLE, chem.BondType.TRIPLE)
    for i, j in zip(*np.nonzero(np.triu(orders)), strict=True):
        made.AddBond(int(i), int(j), kinds[orders[i, j]])
    where = chem.Conformer(len(elements))
    where.SetPositions(np.ascontiguousarray(positions, np.float64))
    made.AddConformer(where)
    made.UpdatePropertyCache(strict=False)
    return made


def built(molecule: Molecule) -> Any:
    """`graph`, sanitised; None if it has no atoms or cannot be. Raises MissingExtra."""
    made = graph(molecule)
    try:
        rdkit().SanitizeMol(made)
    except (ValueError, RuntimeError):
        return None
    return made if made.GetNumAtoms() else None


def smiles(molecule: Molecule) -> tuple[str, int] | None:
    """(canonical SMILES of the largest part, number of parts) of a molecule, None for one that RDKit refuses."""
    chem = rdkit()
    made = built(molecule)
    if made is None:
        return None
    parts = chem.GetMolFrags(made, asMols=True, sanitizeFrags=False)
    largest = max(parts, key=lambda part: part.GetNumAtoms())
    try:
        return chem.MolToSmiles(chem.RemoveHs(largest)), len(parts)
    except (ValueError, RuntimeError):
        return None


def formula(elements: Sequence[str]) -> str:
    """The sum formula, carbon and hydrogen first: C2H6O."""
    order = sorted(set(elements), key=lambda e: ({"C": 0, "H": 1}.get(e, 2), e))
    return "".join(f"{e}{n if (n := list(elements).count(e)) > 1 else ''}" for e in order)
