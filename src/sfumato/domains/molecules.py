"""Molecules in space: each atom an element and a position, all hydrogens among them.

A state is (atoms, 3 + elements): the positions about their mean, in units of `scale` angstrom, and `weight` at the
place of the element; places beyond a molecule's number of atoms hold zeros. Weighing elements low lets sampling settle
where atoms are before what they are (Hoogeboom et al. 2022, arXiv:2203.17003, section 3.3).

How many atoms there are is told to the network, in training and in sampling, as the slot "count"; nobody needs to ask
for it. Left open, it is drawn from how often each number is among the data, p(n), and where a property a is asked for,
from p(n | a) ~ p(n) N(a; mean_n, std_n): large molecules have large polarizabilities.

What is read are SDF and XYZ files and QM9. Conformations of one molecule in a file are held out together, unless it
holds fewer than 20 molecules, as a trajectory does. A record that is no molecule, has too many atoms or an element
that the model does not know is left out and counted. A property that a record lacks, or that is no finite number, is
NaN: the network is not told it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.bonds import Molecule, bond_orders, formula, smiles
from sfumato.domains.examples import Domain, Examples, alike
from sfumato.domains.molecule_files import Found, open_molecules, open_qm9, to_sdf
from sfumato.domains.source import Source
from sfumato.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

_COUNT = 1 << 42  # the stream of a sample's draws that its number of atoms is from


@dataclass(frozen=True)
class Molecules(Domain):
    """Molecules of at most `atoms` atoms, states float32 (n, atoms, 3 + elements).

    elements: symbols that are known; () takes those of the data. atoms: None takes the most of the data. properties:
    what the model may be asked for, by name. scale: angstrom in a unit. weight: of an element in the state.
    counts, mean, std, means, stds: of the data, see the file's head: molecules with 1 .. atoms atoms, and mean and
    deviation of each property, over all and (one property after another) of those with 1 .. atoms atoms.
    Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "molecules"
    suffix: ClassVar[str] = "sdf"
    sources: ClassVar[bool] = True
    elements: tuple[str, ...] = ()
    atoms: int | None = None
    properties: tuple[str, ...] = ()
    scale: float = 1.5
    weight: float = 0.3
    counts: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    stds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for key in ("elements", "properties", "counts", "mean", "std", "means", "stds", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if self.atoms is not None and (isinstance(self.atoms, bool) or not 1 <= self.atoms <= 999):
            raise DataError(f"atoms must be a whole number from 1 to 999, not {self.atoms!r}")
        if not self.scale > 0 or not self.weight > 0 or any(not s > 0 for s in (*self.std, *self.stds)):
            raise DataError(f"scale, weight and deviations are above 0, not {self.scale}, {self.weight}")
        if len(set(self.elements)) < len(self.elements) or "atoms" in self.properties:
            raise DataError("elements are different symbols, and no property is called 'atoms'")

    @property
    def shape(self) -> tuple[int, ...]:
        """(atoms, 3 + elements). Raises DataError while they are left to data not yet read."""
        if self.atoms is None or not self.elements or not self.counts:
            raise DataError("elements, atoms and counts are taken from the data: read them first")
        return (self.atoms, 3 + len(self.elements))

    @property
    def network(self) -> dict[str, Any]:
        """How many numbers a network is told."""
        return {"numbers": len(self.properties)} if self.properties else {}

    def read(self, source: Source | str | Path) -> Examples:
        """The molecules of a named source, an .sdf or an .xyz file."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        found, about = _open(place, self.properties)
        elements = self.elements or tuple(sorted({e for one, _ in found.molecules for e in one}))
        most = self.atoms or min(max(len(one) for one, _ in found.molecules), 999)
        number = {e: k for k, e in enumerate(elements, 1)}
        kept = [k for k, (m, _) in enumerate(found.molecules) if len(m) <= most and {*m} <= number.keys()]
        if not kept:
            strange = next((e for one, _ in found.molecules for e in one if e not in number), None)
            raise DataError(
                f"no molecule of {place.name or place.path} has at most {most} atoms, all of {', '.join(elements)}"
                + (f": {strange!r} is not known" if strange else "")
            )
        stored = {
            "positions": np.zeros((len(kept), most, 3), np.float32),
            "atoms": np.zeros((len(kept), most), np.uint8),
            "properties": np.array([found.properties[k] for k in kept], np.float32).reshape(len(kept), -1),
        }
        for row, k in enumerate(kept):
            one, positions = found.molecules[k]
            stored["atoms"][row, : len(one)] = [number[e] for e in one]
            stored["positions"][row, : len(one)] = positions - positions.mean(0)
        stored["properties"][~np.isfinite(stored["properties"])] = np.nan
        about["left_out"] = found.bad + len(found.molecules) - len(kept)
        domain = replace(self, elements=elements, atoms=most)
        if not self.counts:
            for name, values in zip(self.properties, stored["properties"].T, strict=True):
                if np.isnan(values).all():
                    has = ", ".join(sorted(found.names - {name})) or "none"
                    raise DataError(f"{place.path}: no record has the property {name!r}; it has: {has}")
            domain = replace(domain, **_figures(stored))
        groups = () if place.name is not None else alike([_bonded(found.molecules[k]) for k in kept])
        data = Examples(domain, stored, groups=groups, name=about["sources"][0], about=about)
        return data.spread(place.limit)

    # -- states ----------------------------------------------------------------------------------------------------
    def encode(self, stored: Any) -> Tensor:
        """States, float32 (n, atoms, 3 + elements)."""
        kinds = torch.from_numpy(np.asarray(stored["atoms"]).astype(np.int64))
        one_hot = torch.nn.functional.one_hot(kinds, len(self.elements) + 1)[..., 1:]
        positions = torch.from_numpy(np.asarray(stored["positions"], np.float32) / np.float32(self.scale))
        return torch.cat([positions, one_hot * self.weight], 2)

    def molecules(self, samples: Any) -> list[Molecule]:
        """(elements, positions in angstrom) of states: each atom is the element whose number is largest."""
        found = []
        for one in samples.float().cpu().numpy():
            held = np.abs(one).max(1) > 0.1 * self.weight  # what is no atom is zero but for rounding
            elements = tuple(self.elements[k] for k in one[held, 3:].argmax(1))
            found.append((elements, one[held, :3].astype(np.float64) * self.scale))
        return found

    # -- what may be asked for --------------------------------------------------------------------------------------
    @property
    def asks(self) -> tuple[str, ...]:
        """The number of atoms, and the properties."""
        return ("atoms", *self.properties)

    def told(self, stored: Any) -> dict[str, Tensor]:
        """{"count": (n,), "numbers": properties less their mean over their deviation (n, properties)}."""
        told = {"count": torch.from_numpy((np.asarray(stored["atoms"]) > 0).sum(1))}
        if self.properties:
            told["numbers"] = self._standard(torch.from_numpy(np.asarray(stored["properties"])))
        return told

    def _standard(self, values: Tensor) -> Tensor:
        return ((values - torch.tensor(self.mean)) / torch.tensor(self.std)).float()

    def asked(self, given: Mapping[str, Any], noise: Any) -> dict[str, Tensor]:
        """The same of what a user asks for; see the file's head for a number of atoms that is left open."""
        count = len(noise.indices)
        wanted = {name: _each(value, name, count) for name, value in given.items()}
        table = torch.tensor(self.counts, dtype=torch.float64).log()[None]
        for k, name in enumerate(self.properties):
            if name in wanted:
                part = slice(k * len(self.counts), (k + 1) * len(self.counts))
                mean, std = (torch.tensor(v[part], dtype=torch.float64) for v in (self.means, self.stds))
                table = table - ((wanted[name][:, None] - mean) / std) ** 2 / 2 - std.log()
        chance = table.softmax(1).expand(count, -1)
        u = noise.uniform(torch.empty(count), 0, _COUNT).double()
        atoms = 1 + (chance.cumsum(1) <= u[:, None]).sum(1).clamp(max=len(self.counts) - 1)
        if "atoms" in wanted:
            atoms = wanted["atoms"].long()
            if (atoms != wanted["atoms"]).any() or not 1 <= atoms.min() <= atoms.max() <= len(self.counts):
                raise DataError(f"atoms must be whole numbers from 1 to {len(self.counts)}")
        told = {"count": atoms}
        if any(name in wanted for name in self.properties):
            silent = torch.full((count,), float("nan"), dtype=torch.float64)
            values = torch.stack([wanted.get(name, silent) for name in self.properties], 1)
            told["numbers"] = self._standard(values)
        return told

    # -- what samples become ----------------------------------------------------------------------------------------
    def text(self, samples: Any) -> list[str]:
        """SMILES by RDKit where it reads the molecule, else the sum formula."""
        said = []
        for one in self.molecules(samples):
            try:
                read = smiles(one)
            except MissingExtra:
                read = None
            said.append(read[0] if read else formula(one[0]))
        return said

    def write(
        self,
        samples: Any,
        folder: str | Path,
        labels: Any = None,
        start: int = 0,
        prompts: Sequence[str] | None = None,
    ) -> list[Path]:
        """Write an SDF file a sample, with the bonds that its distances tell of. Raises DataError for NaN."""
        if not bool(torch.isfinite(samples).all()):
            raise DataError("a sample is not finite: it cannot be a molecule")
        texts = [to_sdf(one, f"sample-{start + k}") for k, one in enumerate(self.molecules(samples))]
        return self._files(texts, folder, labels, start)

    def picture(self, samples: Any, columns: int | None = None, rows: Sequence[str] | None = None) -> Image:
        """Drawings without hydrogens in a grid, the formula alone of what RDKit refuses, or without it."""
        try:
            from rdkit.Chem import Draw, MolFromSmiles  # pyright: ignore[reportMissingImports]
        except ImportError:
            return super().picture(samples, columns, rows)  # the sum formulas, a line each
        found, drawn, said = self.molecules(samples), [], []
        if not found:
            raise DataError("there are no samples to show")
        for one in found:
            read = smiles(one)
            drawn.append(MolFromSmiles(read[0]) if read and read[1] == 1 else None)
            refused = f"{formula(one[0])}, {'in parts' if read else 'no molecule'}"
            said.append(refused if drawn[-1] is None else "")
        across = min(columns or 8, len(found))
        return Draw.MolsToGridImage(drawn, molsPerRow=across, subImgSize=(_TILE, _TILE), legends=said)

    def strip(self, batches: Sequence[Any], captions: Sequence[str] | None = None) -> Image:
        """The first samples of each batch, a row each."""
        return self.picture(torch.cat([batch[:8] for batch in batches]), min(8, len(batches[0])))


_TILE = 160  # pixels of a drawing


def _bonded(molecule: Molecule) -> str:
    """What conformations of a molecule have in common: its atoms in their order, and their bonds."""
    return f"{molecule[0]} {bond_orders(molecule).tobytes().hex()}"


def _each(value: Any, name: str, count: int) -> Tensor:
    """One number for each of `count` samples. Raises DataError."""
    try:
        values = torch.as_tensor(np.asarray(value, np.float64)).reshape(-1)
    except (TypeError, ValueError):
        raise DataError(f"{name} is a number, or a list of them, not {value!r}") from None
    if len(values) not in (1, count) or not bool(values.isfinite().all()):
        raise DataError(f"{name} is one finite number, or one for each of {count} samples")
    return values.expand(count)


def _figures(stored: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, ...]]:
    """counts, mean, std, means and stds of data, deviations a little widened; of a size without values those of all."""
    number, values = (stored["atoms"] > 0).sum(1), stored["properties"].astype(np.float64)
    sizes = np.arange(1, stored["atoms"].shape[1] + 1)
    mean, std = np.nanmean(values, 0), np.maximum(np.nanstd(values, 0), 1e-6)
    means, stds = np.tile(mean, (len(sizes), 1)), np.tile(std, (len(sizes), 1))
    for k, size in enumerate(sizes):
        for j, column in enumerate(values[number == size].T):
            if len(part := column[np.isfinite(column)]):
                means[k, j], stds[k, j] = part.mean(), part.std() + 0.02 * std[j]
    return {
        "counts": tuple(int((number == size).sum()) for size in sizes),
        "mean": tuple(mean.tolist()), "std": tuple(std.tolist()),
        "means": tuple(means.T.ravel().tolist()), "stds": tuple(stds.T.ravel().tolist()),
    }  # fmt: skip


def _open(place: Source, properties: Sequence[str]) -> tuple[Found, dict[str, Any]]:
    if place.name is not None:
        from sfumato.domains.sources import named_file

        path, _, about = named_file(place, "molecules")
        return open_qm9(path, properties, place.limit), about
    path = Path(str(place.path)).expanduser()
    about = {"sources": [path.name]} | ({"licence": place.licence} if place.licence else {})
    return open_molecules(path, properties), about
