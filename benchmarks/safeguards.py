"""How often the filter rejects pictures that nobody would object to.

    python benchmarks/safeguards.py                            the few photographs that scikit-learn carries
    python benchmarks/safeguards.py FOLDER ...                 pictures of your own, too
    python benchmarks/safeguards.py --digits 200               and pictures from the data set of digits

For each source: how many pictures, their median and greatest score, the share that is rejected at three thresholds with
a 95 % interval (Wilson), and milliseconds a picture. All pictures are taken to be harmless: these are rates of false
alarm. How much of what should be rejected is found cannot be measured without such pictures, and is not.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from sfumato.domains.pictures import Fit, open_picture
from sfumato.errors import DataError
from sfumato.evaluation.measure import wilson
from sfumato.safeguards import NSFW

THRESHOLDS = (0.2, 0.5, 0.8)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"}


def photographs():
    from sklearn.datasets import load_sample_images

    return list(load_sample_images().images)


def digits(count):
    from sfumato.domains.images import Images

    data = Images().read("digits")
    return list(data.domain.pixels(data.tensor(list(range(min(count, len(data)))))))


def pictures(folder: Path, limit: int):
    """The pictures of a folder, at most `limit`, evenly spread over its names; what cannot be read is left out."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    found = []
    for path in paths[:: -(-len(paths) // limit)] if paths else ():
        try:
            opened = open_picture(path)
            found.append(Fit((opened.height, opened.width), 3).pixels(opened))
        except DataError as error:
            print(f"{path}: {error}")
    return found


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("folders", nargs="*", type=Path)
    words.add_argument("--digits", type=int, default=100)
    words.add_argument("--limit", type=int, default=500, help="of pictures from a folder")
    given = words.parse_args()
    sources = {"photographs of scikit-learn": photographs(), "digits": digits(given.digits)}
    sources |= {folder.name: pictures(folder, given.limit) for folder in given.folders}
    checker = NSFW()
    print("| source | pictures | median | greatest | " + " | ".join(f"≥ {t}" for t in THRESHOLDS) + " | ms |")
    print("| --- " + "| ---: " * (4 + len(THRESHOLDS)) + "|")
    for name, shown in sources.items():
        if not shown:
            print(f"| {name} | 0 |")
            continue
        start = time.perf_counter()
        scores = np.array([checker(picture) for picture in shown])
        each = 1000 * (time.perf_counter() - start) / len(scores)
        cells = []
        for threshold in THRESHOLDS:
            alarms = int((scores >= threshold).sum())
            low, high = wilson(alarms, len(scores))
            cells.append(f"{alarms / len(scores):.1%} ({low:.1%} to {high:.1%})")
        print(f"| {name} | {len(scores)} | {np.median(scores):.4f} | {scores.max():.3f} | " + " | ".join(cells)
              + f" | {each:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
