"""Judging an autoencoder: how well held-out pictures come back, with a receipt.

Reconstructions of held-out pictures are compared with the training set, and so are the pictures themselves, which is
the floor: a codec that loses nothing scores just that. Both are of the same pictures, so the floor's luck is shared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import bundle
from ..codec import LatentCodec
from ..domains.images import Images
from ..errors import DataError, choose
from ..evaluation.measure import Measure
from ..files import write_atomically
from .bench import Bench, Progress
from .card import add_measures
from .codec import compression, part_of, reconstruction

REFERENCE = 10_000  # training pictures at most that reconstructions are compared with


@dataclass(frozen=True)
class Coded:
    """A codec with what a `Bench` asks of a model."""

    codec: LatentCodec
    domain: Images

    @property
    def info(self) -> dict[str, Any]:
        """The bundle's record."""
        return self.codec.info


class CodecBench(Bench):
    """A codec's bundle with its data and features; its receipts are of the kind "reconstruction"."""

    def _load(self, folder: Path) -> Coded:
        codec = bundle.load_codec(folder)
        return Coded(codec, Images.from_json(codec.info["domain"]))

    def figures(self, settings: dict[str, Any]) -> list[Measure]:
        choose(settings.get("what"), ["reconstruction"], "kind of receipt", DataError)
        held, reference = (
            part_of(data, settings[name])
            for data, name in ((self.held, "samples"), (self.train, "reference"))
        )
        return reconstruction(self.model.codec, held, reference, self.features, self.progress)


def bench_of(folder: str | Path, progress: Progress | None = None) -> Bench:
    """The bench for whatever is in a bundle: a model, or a codec."""
    kind = bundle.read_record(folder).get("kind")
    return (CodecBench if kind == "codec" else Bench)(folder, progress)


def judge_codec(
    folder: str | Path, out: str | Path, *, samples: int | None = None, progress: Progress | None = None
) -> tuple[list[Measure], Path]:
    """Measure a codec, write `out/receipts/reconstruction.json`, and put the figures on the bundle's card.

    samples: held-out pictures at most, instead of the recipe's [evaluation] value. Returns the figures and where the
    receipt is. Raises SfumatoError in one line.
    """
    bench, folder = CodecBench(folder, progress), Path(folder)
    count = min(bench.recipe.evaluation.samples if samples is None else samples, len(bench.held))
    settings = {
        "what": "reconstruction", "samples": count, "reference": min(REFERENCE, len(bench.train)),
        "times fewer numbers": compression(bench.model.codec, bench.model.domain),
    }  # fmt: skip
    began = time.monotonic()
    found = bench.figures(settings)
    path = Path(out) / "receipts" / "reconstruction.json"
    bench.receipt(found, settings, path, time.monotonic() - began)
    card = folder / "README.md"
    if card.is_file():
        heading = (
            f"{count:,} held-out pictures, over features `{bench.features.name}`; receipt beside the codec."
        )
        write_atomically(card, add_measures(card.read_text(encoding="utf-8"), found, heading).encode())
    return found, path
