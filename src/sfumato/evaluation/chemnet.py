"""The Fréchet ChemNet distance of molecules (Preuer et al. 2018), by which the benchmarks of molecules are compared.

ChemNet reads a SMILES and was trained to predict what molecules do in some 6,000 assays. Its last hidden state, 512
numbers, is taken for the molecule, and two sets are compared as Gaussians,

    FCD = |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

The network is in the package `fcd`, as weights with their shapes beside them: symbols (one of 35, scaled by 1/35, zeros
up to 350) -> two convolutions of width 4 and stride 2, SELU -> an LSTM of 128 that reads from the end -> one of 512
that reads from the beginning, whose last state counts. It is built here from those shapes; no code of the package is
run, and its file is read only if it has the SHA-256 that is known, by a reader that builds tensors and nothing else.

Zeros after the molecule are read too, so their number matters: it is the package's, as in all published figures.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.errors import DataError, MissingExtra
from sfumato.evaluation.measure import Measure, interval, resample
from sfumato.evaluation.metrics import frechet_to, gaussian_frechet, moments

WEIGHTS = "c22e977602b30eeabd7f81e6c790dd3234c7d7788c6c3e7979d8720ccc96951a"
SYMBOLS = [*"CNOHF", "Cl", "P", "B", "Br", "S", "I", "Si", *"#()+-12345678=[]@cnosX."]
UNKNOWN, END, LENGTH = SYMBOLS.index("X"), SYMBOLS.index("."), 350
REFERENCE, RESAMPLES = 10_000, 20
_CUT = re.compile("Cl|Br|Si|.")


class ChemNet(nn.Module):
    """Features (n, 512) of SMILES. Raises MissingExtra without the extra "molecules", DataError for other weights."""

    def __init__(self) -> None:
        super().__init__()
        package = importlib.util.find_spec("fcd")
        if package is None or package.origin is None:
            raise MissingExtra("fcd", "molecules")
        path = Path(package.origin).with_name("ChemNet_v0.13_pretrained.pt")
        if hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS:
            raise DataError(f"{path} is not the ChemNet that is known here: install fcd 1.2.2")
        layers: Any = torch.load(path, map_location="cpu", weights_only=True)
        (first, second), (back, forth) = (
            [weights for kind, (weights, *_) in layers if kind == wanted] for wanted in ("Conv1d", "LSTM")
        )
        self.filters = [first["weight"], second["weight"]]
        self.back = nn.LSTM(32, 128, batch_first=True)
        self.forth = nn.LSTM(128, 512, batch_first=True)
        self.back.load_state_dict(back)
        self.forth.load_state_dict(forth)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """The last state (n, 512) of symbols (n, length), -1 after the end."""
        h = F.one_hot(x + 1, len(SYMBOLS) + 1)[..., 1:].float().mT / len(SYMBOLS)
        for weight in self.filters:
            short = h.shape[2] % 2
            h = F.selu(F.conv1d(F.pad(h, (1, 1 + short)), weight, stride=2))
        h = self.back(h.mT.flip(1))[0].flip(1)
        return self.forth(h)[0][:, -1]

    @torch.no_grad()
    def features(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """Features of SMILES, (n, 512) in float64; canonical ones are what published figures are of."""
        number = {symbol: k for k, symbol in enumerate(SYMBOLS)}
        found = []
        for start in range(0, len(texts), batch):
            x = torch.full((len(texts[start : start + batch]), LENGTH), -1)
            for row, text in zip(x, texts[start : start + batch], strict=True):
                symbols = [number.get(symbol, UNKNOWN) for symbol in _CUT.findall(text)] + [END]
                if len(symbols) > LENGTH:
                    raise DataError(f"a SMILES of {len(symbols) - 1} symbols is longer than ChemNet reads")
                row[: len(symbols)] = torch.tensor(symbols)
            found.append(self(x))
        return torch.cat(found).double()


@lru_cache(maxsize=4)
def _moments(texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    return moments(ChemNet().features(texts))


def frechet_chemnet(valid: Sequence[str], known: Sequence[str], held: Sequence[str]) -> Measure:
    """FCD of valid canonical SMILES to held-out ones; the floor is that of as many training molecules.

    The reference are 10,000 held-out molecules, or as many as there are samples if these are more, spread over all.
    Raises DataError for fewer than two samples.
    """
    if len(valid) < 2:
        raise DataError(f"FCD needs at least 2 valid molecules, not {len(valid)}")

    def some(texts: Sequence[str], count: int) -> tuple[str, ...]:
        count = min(count, len(texts))
        return tuple(texts[k * len(texts) // count] for k in range(count))

    mean, cov = _moments(some(held, max(REFERENCE, len(valid))))
    x = ChemNet().features(valid)

    def distance(w: Tensor | None = None) -> float:
        few = len(x) < x.shape[1]
        return frechet_to(x, mean, cov, w) if few else gaussian_frechet(*moments(x, w), mean, cov)

    value = distance()
    floor = gaussian_frechet(*_moments(some(known, len(valid))), mean, cov)
    draws = [distance(w) for w in resample(len(x), RESAMPLES, 0)]
    low, high = interval(value, draws, (0.0, np.inf))
    size = min(len(held), max(REFERENCE, len(valid)))
    note = f"{len(valid):,} valid samples to {size:,} held-out molecules: falls with their number, compare at one only"
    return Measure("FCD", value, low, high, len(valid), "lower", floor, note)
