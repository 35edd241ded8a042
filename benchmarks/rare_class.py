"""Does adding sampled rows of a rare class help? `python benchmarks/rare_class.py [--repeats 5] [--out rare.json]`.

Diamonds of the worst clarity, I1, are 1.4 % of all. A classifier (boosted trees) is trained on `--rows` rows to find
them among 20,000 others, and judged by average precision:

    real           those rows as they are
    copied         rows of the rare class repeated until they are as many as `--share` of the others
    SMOTENC        as many more made by interpolation between neighbours (package imbalanced-learn)
    sfumato        as many more drawn by a table model that was trained on the same rows, the class given
    one more real  as many more real rows of the class: what could be reached

Each repeat draws other rows and trains another model; intervals are Student's, of the mean over repeats, and of the
paired differences to "real". What is done is written after each: `--resume` goes on with an earlier --out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from sfumato import bundle
from sfumato.domains.table import Table
from sfumato.evaluation.receipts import versions
from sfumato.files import write_json
from sfumato.recipes.recipe import read_recipe
from sfumato.recipes.run import train

TARGET, RARE = "clarity", "I1"


def joined(*parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def precision(domain: Table, learned: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> float:
    """Average precision on test rows of trees that learned whether a row is of the rare class."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import average_precision_score

    code = list(domain.leaves[TARGET]["values"]).index(RARE)
    names = [name for name in domain.leaves if name != TARGET]
    kinds = [domain.leaves[name]["kind"] == "category" for name in names]
    x, z = (np.stack([part[name] for name in names], 1).astype(float) for part in (learned, test))
    model = HistGradientBoostingClassifier(categorical_features=kinds, random_state=0)
    model.fit(x, learned[TARGET] == code)
    return float(average_precision_score(test[TARGET] == code, model.predict_proba(z)[:, 1]))


def smote(domain: Table, rows: dict[str, np.ndarray], more: int, seed: int) -> dict[str, np.ndarray]:
    """`more` rows of the rare class by SMOTENC."""
    from imblearn.over_sampling import SMOTENC  # pyright: ignore[reportMissingImports]

    code = list(domain.leaves[TARGET]["values"]).index(RARE)
    names = [name for name in domain.leaves if name != TARGET]
    kinds = [domain.leaves[name]["kind"] == "category" for name in names]
    y = (rows[TARGET] == code).astype(int)
    x = np.stack([rows[name] for name in names], 1).astype(float)
    wanted = {1: int(y.sum()) + more}
    x, y = SMOTENC(kinds, sampling_strategy=wanted, random_state=seed).fit_resample(x, y)[:2]
    made = x[-more:]
    found = {name: made[:, k].astype(rows[name].dtype) for k, name in enumerate(names)}
    return found | {TARGET: np.full(more, code, rows[TARGET].dtype)}


def diffused(
    domain: Table, rows: dict[str, np.ndarray], more: int, images: int, folder: Path
) -> dict[str, np.ndarray]:
    """`more` rows of the rare class by a model that was trained on these rows."""
    source = folder / "rows.csv"
    domain.write(domain.encode(rows), folder)
    (folder / "samples.csv").rename(source)
    # what its columns are, the model learns from these rows alone: those of the test are none of its business
    words = [
        f"data.source={source}",
        f"data.settings={{target='{TARGET}'}}",
        f"training.images={images}",
        "data.held_out=0.05",
        "training.preview_every=0",
    ]
    train(read_recipe("table", words), folder / "run")
    model = bundle.load(folder / "run" / "model")
    made = model.sample(more, condition={TARGET: RARE}, seed=0, batch=1000)
    (written,) = model.domain.write(made, folder / "made")
    return domain.read(written).raw


def done(options: argparse.Namespace) -> dict[str, list[float]]:
    """The scores of an earlier record. Raises SystemExit if it was of other rows, images or share."""
    record = json.loads(options.resume.read_text())
    for key in ("rows", "images", "share"):
        if record["arguments"][key] != str(getattr(options, key)):
            raise SystemExit(f"{options.resume} was made with --{key} {record['arguments'][key]}")
    return {
        name: found["each"] for name, found in record.items() if isinstance(found, dict) and "each" in found
    }


def summary(options: argparse.Namespace, scores: dict[str, list[float]]) -> dict[str, Any]:
    """The record: each score, means, gains over "real", and half the width of their intervals."""
    record: dict[str, Any] = {"kind": "sfumato-rare-class", "versions": versions()}
    record["arguments"] = {k: str(v) for k, v in vars(options).items() if k != "resume"}
    for name, values in scores.items():
        gain, count = np.array(values) - np.array(scores["real"]), len(values)

        def half(x: Any, count: int = count) -> float | None:
            return (
                float(student.ppf(0.975, count - 1) * np.std(x, ddof=1) / count**0.5) if count > 1 else None
            )

        record[name] = {
            "each": values, "mean": float(np.mean(values)), "half": half(values),
            "gain": float(gain.mean()), "gain_half": half(gain),
        }  # fmt: skip
    return record


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--rows", type=int, default=3_000)
    parser.add_argument(
        "--share", type=float, default=0.1, help="rows of the class that are added, of all rows"
    )
    parser.add_argument("--out", type=Path, default=Path("rare.json"))
    parser.add_argument("--resume", type=Path, help="a record whose repeats are taken as they are")
    options = parser.parse_args()
    data = Table(target=TARGET).read("diamonds")
    domain, code = data.domain, list(data.domain.leaves[TARGET]["values"]).index(RARE)
    scores = {} if options.resume is None else done(options)
    for repeat in range(len(scores.get("real", ())), options.repeats):
        order = np.random.default_rng(repeat).permutation(len(data))
        rows, test = data.at(order[: options.rows]), data.at(order[options.rows : options.rows + 20_000])
        rest = order[options.rows + 20_000 :]
        more = round(options.share * options.rows)
        rare = np.flatnonzero(rows[TARGET] == code)
        spare = rest[data.at(rest)[TARGET] == code]
        copies = np.random.default_rng(repeat).choice(rare, more)
        with tempfile.TemporaryDirectory() as folder:
            added: dict[str, Any] = {
                "copied": {name: column[copies] for name, column in rows.items()},
                "SMOTENC": smote(domain, rows, more, repeat),
                "sfumato": diffused(domain, rows, more, options.images, Path(folder)),
                "more real rows": data.at(spare[:more]),
            }
        found = {"real": precision(domain, rows, test)}
        found |= {name: precision(domain, joined(rows, part), test) for name, part in added.items()}
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
        print(
            f"{repeat}: {len(rare)} rare rows, " + ", ".join(f"{n} {v:.3f}" for n, v in found.items()),
            flush=True,
        )
        write_json(options.out, summary(options, scores))
    for name, found in summary(options, scores).items():
        if isinstance(found, dict) and "gain" in found:
            print(f"{name}: {found['mean']:.3f}, {found['gain']:+.3f} to real, 95 % ± {found['gain_half']}")


if __name__ == "__main__":
    main()
