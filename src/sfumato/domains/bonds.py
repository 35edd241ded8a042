"""Which atoms are bonded, told by their distances alone, and what RDKit makes of it.

Two atoms of elements a, b at a distance d are bonded with the highest order k = 1, 2, 3 for which

    d < length_k(a, b) + margin_k,       margins .10, .05 and .03 angstrom,

where a double bond is thought of only below the bound of a single one, and a triple only below that of a double one.
An atom is stable if its orders add up to a valence of its element (`VALENCES`). Charges are not thought of, so that a
few real molecules are unstable by this rule as well. The rule, its margins and lengths are those of Hoogeboom et al.
2022 (EDM, arXiv:2203.17003, appendix), mean ones of chemistry's tables; S=O, which they lack, is that of a sulfoxide,
and the valences of sulfur are 2, 4 and 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra

VALENCES = {
    "H": (1,), "C": (4,), "N": (3,), "O": (2,), "F": (1,), "Cl": (1,), "Br": (1,), "I": (1,), "Si": (4,),
    "P": (3, 5), "S": (2, 4, 6),
}  # fmt: skip
MARGINS = (0.10, 0.05, 0.03)
_LENGTHS = (
    {
        "HH": 74, "HC": 109, "HN": 101, "HO": 96, "HF": 92, "CC": 154, "CN": 147, "CO": 143, "CF": 135, "NN": 145,
        "NO": 140, "NF": 136, "OO": 148, "OF": 142, "FF": 142, "HSi": 148, "HP": 144, "HS": 134, "HCl": 127,
        "HBr": 141, "HI": 161, "CSi": 185, "CP": 184, "CS": 182, "CCl": 177, "CBr": 194, "CI": 214, "NP": 177,
        "NS": 168, "NCl": 175, "NBr": 214, "NI": 222, "OSi": 163, "OP": 163, "OS": 151, "OCl": 164, "OBr": 172,
        "OI": 194, "FSi": 160, "FP": 156, "FS": 158, "FCl": 166, "FBr": 178, "FI": 187, "SiSi": 233, "SiS": 200,
        "SiCl": 202, "SiBr": 215, "SiI": 243, "PP": 221, "PS": 210, "PCl": 203, "PBr": 222, "SS": 204, "SCl": 207,
        "SBr": 225, "SI": 234, "ClCl": 199, "ClBr": 214, "BrBr": 228, "II": 266,
    },
    {"CC": 134, "CN": 129, "CO": 120, "CS": 160, "NN": 125, "NO": 121, "OO": 121, "OP": 150, "OS": 149, "PS": 186},
    {"CC": 120, "CN": 116, "CO": 113, "NN": 110},
)  # fmt: skip

Molecule = tuple[Sequence[str], np.ndarray]
"""Elements of n atoms, and their positions (n, 3) in angstrom."""


_KINDS = tuple(VALENCES)
_BOUNDS = np.array([
    [[table.get(a + b, table.get(b + a, -100)) / 100 + margin for b in _KINDS] for a in _KINDS]
    for table, margin in zip(_LENGTHS, MARGINS, strict=True)
])  # fmt: skip
"""The longest distances of bonds of orders 1 to 3, (3, kinds, kinds), in angstrom; below 0 where there is none."""


def bond_orders(molecule: Molecule) -> np.ndarray:
    """Orders 0 to 3 of the bonds between all atoms, int (n, n); of elements without a table 0."""
    elements, positions = molecule
    kinds = np.array([_KINDS.index(e) if e in _KINDS else -1 for e in elements], dtype=int)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    below = distance < _BOUNDS[:, kinds[:, None], kinds[None]]
    known = (kinds >= 0)[:, None] & (kinds >= 0) & ~np.eye(len(kinds), dtype=bool)
    return (np.cumprod(below, 0).sum(0) * known).astype(np.int64)


def stable_atoms(molecule: Molecule) -> np.ndarray:
    """Whether the orders of each atom's bonds add up to a valence of its element, bool (n,)."""
    orders = bond_orders(molecule).sum(1)
    return np.array([k in VALENCES.get(e, ()) for e, k in zip(molecule[0], orders, strict=True)], dtype=bool)


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
    for i, j in zip(*np.nonzero(np.triu(orders)), strict=True):
        made.AddBond(int(i), int(j), chem.BondType.values[int(orders[i, j])])
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
    if (made := built(molecule)) is None:
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
