"""How good sampled rows of a table are: columns, pairs of columns, what can be learned from them, whose they are.

    columns      mean over columns of 1 - KS (numbers) or 1 - TV (categories), to the training rows
    pairs        mean over pairs of columns of 1 - TV of their joint histogram, numbers cut at its deciles
    utility      how well trees that were boosted on samples predict the target of held-out rows: area under the ROC
                 curve, mean over classes, or R^2; beside it, of trees boosted on as many real rows
    closest      median distance of samples to the nearest training row over that of held-out rows: below 1 copies
    copies       share of samples that a training row equals in every column

Rows are compared in ranks: numbers by their place in the training set's distribution, categories by 0 or 1 each. The
first two are what SDMetrics calls column shapes and, but for the statistic of numbers, column pair trends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.sequences import share

MOST = 20_000  # rows that anything is compared over
Columns = Mapping[str, np.ndarray]


def table_measures(domain: Any, samples: Any, asked: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of sampled states. train, held: `Examples` of the domain."""
    known = _some(train.raw, MOST)
    other = _some(held.raw, MOST)
    made: Columns = domain.decode(samples)
    count = _rows(made)
    found = [
        Measure("columns", columns(domain, made, known), None, None, count, "higher", columns(domain, other, known),
                "1 - KS or 1 - TV, mean over columns"),
        Measure("pairs", pairs(domain, made, known), None, None, count, "higher", pairs(domain, other, known),
                "1 - TV of two columns, mean over pairs"),
    ]  # fmt: skip
    if domain.target is not None:
        found.append(_utility(domain, made, train, held))
    return [*found, *_closest(domain, made, known, other)]


def _rows(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _some(columns: Columns, most: int, seed: int = 0) -> dict[str, np.ndarray]:
    chosen = np.sort(np.random.default_rng(seed).permutation(_rows(columns))[:most])
    return {name: np.asarray(column)[chosen] for name, column in columns.items()}


def _there(column: np.ndarray) -> np.ndarray:
    return column[np.isfinite(column)] if column.dtype.kind == "f" else column[column >= 0]


def _histogram(codes: np.ndarray, size: int) -> np.ndarray:
    found = np.bincount(codes, minlength=size).astype(float)
    return found / max(found.sum(), 1)


def columns(domain: Any, a: Columns, b: Columns) -> float:
    """Mean over columns of one less the largest difference of distribution functions, or of all chances."""
    found = []
    for name, column in domain.leaves.items():
        p, q = _there(a[name]), _there(b[name])
        if column["kind"] == "category":
            size = len(column["values"])
            found.append(1 - np.abs(_histogram(p, size) - _histogram(q, size)).sum() / 2)
        else:
            every = np.sort(np.concatenate([p, q]))
            places = [np.searchsorted(np.sort(part), every, "right") / max(len(part), 1) for part in (p, q)]
            found.append(1 - np.abs(places[0] - places[1]).max())
    return float(np.mean(found))


def _coded(domain: Any, columns: Columns) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Every column as codes, 0 for missing: numbers by the tenth of the training set that they fall in."""
    codes, sizes = {}, {}
    for name, column in domain.leaves.items():
        x = columns[name]
        if column["kind"] == "category":
            codes[name], sizes[name] = x + 1, len(column["values"]) + 1
        else:
            marks = np.quantile(column["quantiles"], np.linspace(0.1, 0.9, 9))
            codes[name] = np.where(np.isfinite(x), np.searchsorted(marks, np.nan_to_num(x), "right") + 1, 0)
            sizes[name] = 11
    return codes, sizes


def pairs(domain: Any, a: Columns, b: Columns) -> float:
    """Mean over pairs of columns of one less the total variation of their joint histograms."""
    (p, sizes), (q, _) = _coded(domain, a), _coded(domain, b)
    names, found = list(domain.leaves), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            size = sizes[first] * sizes[second]
            one, other = (_histogram(x[first] * sizes[second] + x[second], size) for x in (p, q))
            found.append(1 - np.abs(one - other).sum() / 2)
    return float(np.mean(found)) if found else 1.0


def places(domain: Any, columns: Columns) -> np.ndarray:
    """Rows as numbers: the place of a number in its column's distribution, and one of a category's values as 1/2."""
    found = []
    for name, column in domain.leaves.items():
        x = columns[name]
        if column["kind"] == "category":
            found.append(0.5 * (x[:, None] == np.arange(len(column["values"]))))
        else:
            marks = np.asarray(column["quantiles"])
            found.append(
                np.interp(
                    np.nan_to_num(x, nan=float(np.median(marks))), marks, np.linspace(0, 1, len(marks))
                )[:, None]
            )
    return np.concatenate(found, 1)


def _closest(domain: Any, made: Columns, known: Columns, other: Columns) -> list[Measure]:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise MissingExtra("scikit-learn", "tables") from None
    index = NearestNeighbors(n_neighbors=1).fit(places(domain, known))
    ours, real = (index.kneighbors(places(domain, _some(part, 5000)))[0][:, 0] for part in (made, other))
    scale = float(np.median(real)) or 1.0
    draw = np.random.default_rng(0)
    spread = [np.median(draw.choice(ours, len(ours))) / scale for _ in range(200)]
    low, high = np.quantile(spread, [0.025, 0.975])
    note = "median distance to the nearest training row, over that of held-out rows"
    value = float(np.median(ours)) / scale
    return [
        Measure(
            "closest", value, min(float(low), value), max(float(high), value), len(ours), "higher", 1.0, note
        ),
        share(
            "copies",
            int((ours < 1e-9).sum()),
            len(ours),
            float((real < 1e-9).mean()),
            "equal to a training row",
        ),
    ]


def utility(domain: Any, learned: Columns, held: Columns) -> float:
    """How well the target of held-out rows is predicted by trees that were boosted on `learned`: AUC, or R^2."""
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
        from sklearn.metrics import r2_score, roc_auc_score
    except ImportError:
        raise MissingExtra("scikit-learn", "tables") from None
    target = domain.target
    names = [name for name in domain.leaves if name != target]
    kinds = [domain.leaves[name]["kind"] == "category" for name in names]
    is_class = domain.leaves[target]["kind"] == "category"

    def features(columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        x = np.stack(
            [
                np.where(columns[n] < 0, np.nan, columns[n]) if k else columns[n]
                for n, k in zip(names, kinds, strict=True)
            ],
            1,
        )
        y = columns[target]
        there = y >= 0 if is_class else np.isfinite(y)
        return x[there].astype(float), y[there]

    # categories of more values than the trees take are given as numbers
    many = [k and len(domain.leaves[n]["values"]) <= 250 for n, k in zip(names, kinds, strict=True)]
    settings: dict[str, Any] = {"categorical_features": many, "random_state": 0, "max_iter": 100}
    (x, y), (z, true) = features(learned), features(held)
    if not is_class:
        return float(r2_score(true, HistGradientBoostingRegressor(**settings).fit(x, y).predict(z)))
    if len(np.unique(y)) < 2:
        return 0.5
    model = HistGradientBoostingClassifier(**settings).fit(x, y)
    chances, aucs = model.predict_proba(z), []
    for value in np.unique(true):
        own = list(model.classes_).index(value) if value in model.classes_ else None
        if len(np.unique(true == value)) == 2:
            aucs.append(0.5 if own is None else roc_auc_score(true == value, chances[:, own]))
    return float(np.mean(aucs))


def _utility(domain: Any, made: Columns, train: Any, held: Any) -> Measure:
    count = min(_rows(made), len(train), MOST)
    real = utility(domain, _some(train.raw, count), held.raw)
    values = [utility(domain, _some(made, count), held.raw)]
    # the spread of a bootstrap of what is learned from: three are dear enough, and say the size of it
    draw = np.random.default_rng(0)
    for _ in range(3):
        rows = draw.integers(0, _rows(made), count)
        values.append(utility(domain, {name: column[rows] for name, column in made.items()}, held.raw))
    half = 1.96 * float(np.std(values[1:]))
    kind = "AUC" if domain.leaves[domain.target]["kind"] == "category" else "R^2"
    note = f"{kind} of {domain.target} on held-out rows, learned from {count} samples; floor: from as many real rows"
    return Measure("utility", values[0], values[0] - half, values[0] + half, count, "higher", real, note)
