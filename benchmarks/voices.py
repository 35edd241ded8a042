"""How well a model of chorales knows the lower voices, given the soprano of pieces that it never saw.

Bits a position of the lower voices given the soprano, an upper bound on -log2 p: positions are shown in a random order,
so with k of them hidden, k even, it is the mean cross-entropy of a hidden one. Beside it counts of the training set:

    by voice      p(symbol | voice)
    by context    p(symbol | voice, the symbol before, what the soprano sounds), backed off to what was seen oftener

and the share of steps at which what was filled in sounds as Bach has it, beside the lower voices of the training window
whose soprano is most alike.

    python benchmarks/voices.py MODEL [--windows 100] [--json voices.json]
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato import bundle
from sfumato.domains.music import FIRST
from sfumato.editing import fill
from sfumato.noise import Noise
from sfumato.recipes import recipe_from
from sfumato.recipes.run import read_data


@torch.no_grad()
def bits(model: Any, x: torch.Tensor, matched: bool, terms: int = 8) -> np.ndarray:
    """The bound for each of x (n, positions), in bits a position. matched: the time that is told says how many hide."""
    process, voices = model.denoiser.process, len(model.domain.voices)
    free = (torch.arange(x.shape[1]) % voices > 0).expand_as(x)
    found = []
    for term in range(terms):
        u = Noise(7, len(x)).at(term).uniform(torch.empty(x.shape, dtype=torch.float64))
        share = (torch.arange(len(x), dtype=torch.float64) * 0.618 + (term + 0.5) / terms) % 1
        rank = torch.where(free, u, 2.0).argsort(1).argsort(1)
        hidden = free & (rank < (share[:, None] * free.sum(1, keepdim=True)).long() + 1)
        seen = torch.where(hidden, process.mask, x)
        # of the schedule `flow`, in which a position hides with chance t
        t = hidden.double().mean(1) if matched else torch.ones(len(x), dtype=torch.float64)
        value = model.denoiser(seen, t).value.gather(-1, x[..., None])[..., 0]
        found.append(-torch.where(hidden, value, 0.0).sum(1) / hidden.sum(1) / np.log(2))
    return torch.stack(found).mean(0).numpy()


def counted(domain: Any, train: np.ndarray, held: np.ndarray) -> tuple[float, float]:
    """Bits a position of the lower voices by voice alone, and by context."""
    tables: list[Counter] = [Counter() for _ in range(3)]
    wholes: list[Counter] = [Counter() for _ in range(3)]

    def contexts(rolls: np.ndarray) -> Any:
        sounding = domain.sounding(rolls.reshape(len(rolls), -1))
        for roll, high in zip(domain.rolls(rolls), sounding[..., 0], strict=True):
            for k in range(1, roll.shape[1]):
                for step in range(len(roll)):
                    before = int(roll[step - 1, k]) if step else -1
                    yield int(roll[step, k]), ((k,), (k, before), (k, before, int(high[step])))

    for symbol, keys in contexts(train):
        for table, whole, key in zip(tables, wholes, keys, strict=True):
            table[key, symbol] += 1
            whole[key] += 1
    plain, rich = [], []
    for symbol, keys in contexts(held):
        p = 1 / domain.symbols
        for level, key in enumerate(keys):  # each is mixed with the one before as five observations would be
            p = (tables[level][key, symbol] + 5 * p) / (wholes[level][key] + 5)
            if level == 0:
                plain.append(-np.log2(p))
        rich.append(-np.log2(p))
    return float(np.mean(plain)), float(np.mean(rich))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = bundle.load(given.model)
    domain: Any = model.domain
    train, held = read_data(recipe_from(model.info["recipe"]), domain)
    rows = np.linspace(0, len(held) - 1, min(given.windows, len(held))).astype(int)
    x = held.tensor(rows)
    rolls, real = domain.rolls(x), domain.sounding(x)
    known = train.take(np.linspace(0, len(train) - 1, min(8000, len(train))).astype(int))
    plain, rich = counted(domain, np.asarray(known.raw), np.asarray(held.at(rows)))
    state = torch.from_numpy(
        np.where(np.arange(x.shape[1]) % len(domain.voices) > 0, -1, rolls.reshape(len(x), -1))
    )
    drawn = domain.sounding(fill(model, state, seed=1))
    others = domain.sounding(known.raw)
    alike = (others[None, :, :, 0] == real[:, None, :, 0]).mean(-1).argmax(1)
    right = {"filled": drawn, "training window of the likest soprano": others[alike]}
    figures: dict[str, float] = {"by voice, bits": plain, "by context, bits": rich}
    for name, matched in (("the model, bits", True), ("the model, told that all is hidden, bits", False)):
        figures[name] = float(bits(model, x, matched).mean())
    for name, what in right.items():
        figures[f"{name}, sounds as Bach"] = float((what[..., 1:] == real[..., 1:]).mean())
    figures["onsets filled"] = float((domain.rolls(fill(model, state[:20], seed=2))[..., 1:] >= FIRST).mean())
    figures["onsets real"] = float((rolls[..., 1:] >= FIRST).mean())
    for name, value in figures.items():
        print(f"| {name} | {value:.3f} |")
    if given.json:
        given.json.write_text(json.dumps({"windows": len(rows), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
