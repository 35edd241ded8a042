"""A model of MOSES at the benchmark's own size: `python benchmarks/moses.py BUNDLE [--count 30000] [--out FOLDER]`.

Validity, uniqueness of the first 1,000 and 10,000 valid molecules, novelty, and the Fréchet ChemNet distance of the
valid ones to the test split, as Polykovskiy et al. 2020 (arXiv:1811.12823) measure 30,000 samples. Samples are kept in
FOLDER/samples.smi as they come, and a run that was ended goes on from there; a smaller --count is judged as it is.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from sfumato.evaluation.chemnet import frechet_chemnet
from sfumato.evaluation.measure import share
from sfumato.evaluation.receipts import versions
from sfumato.evaluation.sequences import canonical
from sfumato.files import write_json
from sfumato.recipes.bench import Bench

CHUNK = 500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--out", type=Path, default=Path("moses"))
    options = parser.parse_args()
    bench = Bench(options.bundle)
    model, train, held = bench.model, bench.train, bench.held
    options.out.mkdir(parents=True, exist_ok=True)
    place, began = options.out / "samples.smi", time.monotonic()
    texts = place.read_text().splitlines() if place.is_file() else []
    while len(texts) < options.count:
        x = model.sample(
            indices=range(len(texts), min(len(texts) + CHUNK, options.count)), seed=0, batch=CHUNK
        )
        new = model.domain.text(x)
        with place.open("a") as file:
            file.writelines(f"{text}\n" for text in new)
        texts += new
        print(f"{len(texts):,} of {options.count:,}, {time.monotonic() - began:.0f} s", flush=True)
    texts = texts[: options.count]
    valid = [text for text in map(canonical, texts) if text]
    real, different = model.domain.text(train.raw), set(valid)
    measures = [share("validity", len(valid), len(texts), note="RDKit reads it")]
    measures += [
        share(f"unique@{first:,}", len(set(valid[:first])), first)
        for first in (1_000, 10_000)
        if len(valid) >= first
    ]
    measures.append(
        share("novelty", len(different - set(real)), len(different), note="of the different ones")
    )
    measures.append(frechet_chemnet(valid, real, model.domain.text(held.raw)))
    for measure in measures:
        print(f"{measure.name}: {measure.value:.4g} [{measure.low:.4g}, {measure.high:.4g}]. {measure.note}")
    record = {
        "kind": "sfumato-moses",
        "model": model.info["sha256"],
        "sampling": model.sampling.to_json(),
        "count": len(texts),
        "measures": {measure.name: measure.to_json() for measure in measures},
        "versions": versions(),
    }
    write_json(options.out / "moses.json", record)


if __name__ == "__main__":
    main()
