"""Molecules as two leaves of a joint state: where atoms are, and what they are.

    positions   numbers (atoms, 3), about their mean, in units of `scale` angstrom
    elements    symbols (atoms,), 0 in places beyond a molecule's number of atoms

Each has a time of its own (`processes.joint`), so one model draws molecules, the elements of atoms whose places are
known, and the places of atoms whose elements are: conformations of a sum formula. How many atoms there are is told to
the network as in `molecules`; where a leaf is given it follows from that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.bonds import Molecule
from sfumato.domains.molecule_files import open_molecules
from sfumato.domains.molecules import Molecules
from sfumato.errors import DataError, choose

_SYMBOL = re.compile(r"([A-Z][a-z]?)(\d{0,4})")


@dataclass(frozen=True)
class MoleculeLeaves(Molecules):
    """States {"positions": float32 (n, atoms, 3), "elements": int64 (n, atoms)}; settings as of `Molecules`.

    Raises DataError for properties, which this state has no leaf for.
    """

    name: ClassVar[str] = "molecule-leaves"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.properties:
            raise DataError(
                "molecules of two leaves are asked by leaf, not by property: leave properties out"
            )

    @property
    def shape(self) -> Any:
        """The shapes of both leaves."""
        atoms = super().shape[0]
        return {"positions": (atoms, 3), "elements": (atoms,)}

    @property
    def symbols(self) -> dict[str, int]:
        """The elements, and no atom."""
        return {"elements": len(self.elements) + 1}

    # -- states ----------------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> Any:
        """States of both leaves."""
        positions = np.asarray(stored["positions"], np.float32) / np.float32(self.scale)
        kinds = torch.from_numpy(np.asarray(stored["atoms"]).astype(np.int64))
        return {"positions": torch.from_numpy(positions), "elements": kinds}

    def whole(self, samples: Any) -> Tensor:
        """The same molecules as states of `Molecules`, (n, atoms, 3 + elements)."""
        if isinstance(samples, Tensor):
            return samples
        kinds = samples["elements"].cpu()
        one_hot = torch.nn.functional.one_hot(kinds, len(self.elements) + 1)[..., 1:]
        positions = samples["positions"].float().cpu() * (kinds > 0)[..., None]
        return torch.cat([positions, one_hot * self.weight], 2)

    def molecules(self, samples: Any) -> list[Molecule]:
        """(elements, positions in angstrom) of states."""
        return super().molecules(self.whole(samples))

    # -- what may be asked for -------------------------------------------------------------------------------------
    @property
    def asks(self) -> tuple[str, ...]:
        """The number of atoms, and the leaves."""
        return ("atoms", "positions", "elements")

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """States of what is given: elements as a sum formula, "C2H6O", or a list of them; positions in angstrom,
        (points, 3) or (n, points, 3), or of the first molecule of an .sdf or .xyz file. Raises DataError for others,
        and where both are given and differ in number."""
        count, found = len(noise.indices), {}
        if "elements" in given:
            found["elements"] = self._formulas(given["elements"], count)
        if "positions" in given:
            found["positions"], points = self._places(given["positions"], count)
            if "elements" in found and bool(((found["elements"] > 0).sum(1) != points).any()):
                raise DataError(f"{points} positions are given for elements of another number")
            found["count"] = torch.full((count,), points)
        elif "elements" in found:
            found["count"] = (found["elements"] > 0).sum(1)
        else:
            return super().asked(given, noise)
        if "atoms" in given:
            raise DataError("the number of atoms follows from what else is given: leave atoms out")
        return found

    def _formulas(self, value: Any, count: int) -> Tensor:
        if not isinstance(value, str | list | tuple):
            raise DataError(f"elements are given as sum formulas, such as C2H6O, not {value!r}")
        texts = [value] * count if isinstance(value, str) else list(value)
        if len(texts) != count:
            raise DataError(f"{len(texts)} sum formulas were given for {count} samples")
        rows = torch.zeros(count, super().shape[0], dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            parts = _SYMBOL.findall(str(text))
            if not parts or "".join(a + b for a, b in parts) != text:
                raise DataError(f"a sum formula is like C2H6O, not {text!r}")
            kinds = [
                1 + self.elements.index(choose(element, self.elements, f"element in {text!r}", DataError))
                for element, number in parts
                for _ in range(min(int(number or 1), 1000))
            ]
            if not 1 <= len(kinds) <= len(row):
                raise DataError(f"{text!r} has {len(kinds)} atoms, and the model's molecules 1 to {len(row)}")
            row[: len(kinds)] = torch.tensor(kinds)
        return rows

    def _places(self, value: Any, count: int) -> tuple[Tensor, int]:
        if isinstance(value, str | Path):
            value = open_molecules(Path(value).expanduser(), ()).molecules[0][1]
        try:
            x = torch.as_tensor(np.asarray(value, np.float32))
        except (TypeError, ValueError):
            raise DataError(
                "positions are (points, 3) or (samples, points, 3) numbers, in angstrom"
            ) from None
        most = super().shape[0]
        x = x.expand(count, *x.shape) if x.ndim == 2 else x
        if x.ndim != 3 or x.shape[::2] != (count, 3) or not bool(x.isfinite().all()):
            raise DataError(
                f"positions are (points, 3) or ({count}, points, 3) finite numbers, not {tuple(x.shape)}"
            )
        if not 1 <= x.shape[1] <= most:
            raise DataError(
                f"{x.shape[1]} positions were given, and the model's molecules have 1 to {most} atoms"
            )
        padded = torch.zeros(count, most, 3)
        padded[:, : x.shape[1]] = (x - x.mean(1, keepdim=True)) / self.scale
        return padded, x.shape[1]

    # -- what samples become ---------------------------------------------------------------------------------------
    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """As `Molecules.write`."""
        return super().write(self.whole(samples), folder, labels, start, prompts)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None) -> Any:
        """As `Molecules.strip`."""
        return super().strip([self.whole(batch) for batch in batches], captions)
