"""How good sampled rows of a table are: columns, pairs of columns, what can be learned from them, whose they are.

    columns      mean over columns of 1 - KS (numbers) or 1 - TV (categories), to the training rows
    pairs        mean over pairs of columns of 1 - TV of their joint histogram, numbers cut at its deciles
    utility      how well trees that were boosted on samples predict the target of held-out rows: area under the ROC
                 curve, mean over classes, or R^2; beside it, of trees boosted on as many real rows
    closest      median distance of samples to the nearest training row over that of held-out rows: below 1 copies
    copies       share of samples that a training row equals in every column

Rows are compared in ranks: numbers by their place in the training set's distribution, categories by 0 or 1 each. The
first two are what SDMetrics calls column shapes and, but for the statistic of numbers, column pair trends.

A missing cell is no value, and no model draws it. A column is compared over the rows that have it, a pair over those
that have both. Distances are between rows without gaps, and others are left out. If they are fewer than a tenth of the
training rows, the column with most gaps is passed over, then the next, until they are as many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sfumato.errors import MissingExtra
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.sequences import share

MOST = 20_000  # rows that anything is compared over
DRAWS = 200  # of a bootstrap
LEAST_WHOLE = 0.1  # of the training rows, that distances are taken to
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
        found += _utility(domain, made, train, held)
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
    """Every column as codes, -1 for missing: numbers by the tenth of the training set that they fall in."""
    codes, sizes = {}, {}
    for name, column in domain.leaves.items():
        x = columns[name]
        if column["kind"] == "category":
            codes[name], sizes[name] = x, len(column["values"])
        else:
            marks = np.quantile(column["quantiles"], np.linspace(0.1, 0.9, 9))
            codes[name] = np.where(np.isfinite(x), np.searchsorted(marks, np.nan_to_num(x), "right"), -1)
            sizes[name] = 10
    return codes, sizes


def pairs(domain: Any, a: Columns, b: Columns) -> float:
    """Mean over pairs of columns of one less the total variation of their joint histograms.

    A pair that no row of one of the two tables has is left out.
    """
    (p, sizes), (q, _) = _coded(domain, a), _coded(domain, b)
    names, found = list(domain.leaves), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            size = sizes[first] * sizes[second]
            both = [(x[first] >= 0) & (x[second] >= 0) for x in (p, q)]
            if all(there.any() for there in both):
                one, other = (
                    _histogram((x[first] * sizes[second] + x[second])[there], size)
                    for x, there in zip((p, q), both, strict=True)
                )
                found.append(1 - np.abs(one - other).sum() / 2)
    return float(np.mean(found)) if found else 1.0


def places(domain: Any, columns: Columns) -> np.ndarray:
    """Rows without gaps as numbers: a number's place in its column's distribution, one of a category's values as 1/2.

    columns: all of the domain's, or some.
    """
    found = []
    for name, x in columns.items():
        column = domain.leaves[name]
        if column["kind"] == "category":
            found.append(0.5 * (x[:, None] == np.arange(len(column["values"]))))
        else:
            marks = np.asarray(column["quantiles"])
            found.append(np.interp(x, marks, np.linspace(0, 1, len(marks)))[:, None])
    return np.concatenate(found, 1)


def _is_there(columns: Columns) -> dict[str, np.ndarray]:
    return {name: np.isfinite(x) if x.dtype.kind == "f" else x >= 0 for name, x in columns.items()}


def compared(columns: Columns) -> list[str]:
    """The columns that distances are taken over: all but those with most gaps, so that enough rows have none."""
    there = _is_there(columns)
    names = sorted(there, key=lambda name: -there[name].sum())
    while len(names) > 1 and np.all([there[name] for name in names], 0).mean() < LEAST_WHOLE:
        names.pop()
    return names


def whole(columns: Columns, names: list[str]) -> dict[str, np.ndarray]:
    """These columns of the rows that have no gaps in them."""
    there = _is_there({name: columns[name] for name in names})
    rows = np.all(list(there.values()), 0)
    return {name: columns[name][rows] for name in names}


def _closest(domain: Any, made: Columns, known: Columns, other: Columns) -> list[Measure]:
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise MissingExtra("scikit-learn", "tables") from None
    names = compared(known)
    known, made, other = (whole(part, names) for part in (known, made, other))
    if min(map(_rows, (known, made, other))) == 0:
        return []  # no two rows can be compared
    index = NearestNeighbors(n_neighbors=1).fit(places(domain, known))
    ours, real = (index.kneighbors(places(domain, _some(part, 5000)))[0][:, 0] for part in (made, other))
    note = "median distance to the nearest training row, over that of held-out rows"
    among = "" if len(names) == len(domain.leaves) else f", in {len(names)} of {len(domain.leaves)} columns"
    scale = float(np.median(real))
    if scale == 0:
        note += ": 1, since most of these equal a training row, and nothing is closer"
        value = low = high = 1.0
    else:
        draw = np.random.default_rng(0)
        value = float(np.median(ours)) / scale
        spread = [np.median(draw.choice(ours, len(ours))) / scale for _ in range(DRAWS)]
        low, high = _percentiles(spread, value)
    return [
        Measure("closest", value, low, high, len(ours), "higher", 1.0, note + among),
        share(
            "copies",
            int((ours < 1e-9).sum()),
            len(ours),
            float((real < 1e-9).mean()),
            "equal to a training row" + among,
        ),
    ]


def _percentiles(spread: Sequence[float], value: float) -> tuple[float, float]:
    """The middle 95 % of a bootstrap, with the value in it."""
    low, high = np.quantile(spread, [0.025, 0.975])
    return min(float(low), value), max(float(high), value)


def auc(true: np.ndarray, score: np.ndarray, times: np.ndarray) -> float:
    """Area under the ROC curve: P(score of a true row > of a false one), half of ties; NaN without both kinds.

    times: how often each row counts.
    """
    rank = np.unique(score, return_inverse=True)[1]
    own, others = (np.bincount(rank, np.where(kind, times, 0.0)) for kind in (true, ~true))
    below = np.cumsum(others) - others / 2
    both = own.sum() * others.sum()
    return float((own * below).sum() / both) if both else math.nan


def predicted(domain: Any, learned: Columns, held: Columns) -> tuple[int, Callable[[np.ndarray], float]]:
    """How many held-out rows have the target, and how well trees boosted on `learned` predict it.

    That is a function of how often each of those rows counts, (rows,): the mean AUC of the classes, or R^2.
    """
    try:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
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
    if not len(x) or not len(z):  # no row has the target
        return len(z), lambda times: math.nan
    if not is_class:
        missed = (true - HistGradientBoostingRegressor(**settings).fit(x, y).predict(z)) ** 2

        def explained(times: np.ndarray) -> float:
            total = (times * (true - np.average(true, weights=times)) ** 2).sum()
            return float(1 - (times * missed).sum() / total) if total else math.nan

        return len(true), explained
    chances = np.zeros((len(z), len(domain.leaves[target]["values"])))  # of a class that was never seen, 0
    if len(np.unique(y)) > 1:
        model = HistGradientBoostingClassifier(**settings).fit(x, y)
        chances[:, model.classes_] = model.predict_proba(z)

    def area(times: np.ndarray) -> float:
        aucs = [auc(true == value, chances[:, value], times) for value in np.unique(true)]
        known = [one for one in aucs if not math.isnan(one)]
        return float(np.mean(known)) if known else math.nan

    return len(true), area


def utility(domain: Any, learned: Columns, held: Columns) -> float:
    """How well the target of held-out rows is predicted by trees that were boosted on `learned`: AUC, or R^2."""
    count, score = predicted(domain, learned, held)
    return score(np.ones(count))


def bootstrapped(score: Callable[[np.ndarray], float], count: int) -> tuple[float, float, float]:
    """(value, low, high): a score of `count` rows, and its 95 % percentile interval over draws of them."""
    draw, value = np.random.default_rng(0), score(np.ones(count))
    spread = [score(np.bincount(draw.integers(0, count, count), minlength=count)) for _ in range(DRAWS)]
    return value, *_percentiles([one for one in spread if not math.isnan(one)] or [value], value)


def _utility(domain: Any, made: Columns, train: Any, held: Any) -> list[Measure]:
    """None where no row has the target. The interval is of other held-out rows, for these samples and their trees."""
    count = min(_rows(made), len(train), MOST)
    real = utility(domain, _some(train.raw, count), held.raw)
    rows, score = predicted(domain, _some(made, count), held.raw)
    if not rows or math.isnan(score(np.ones(rows))):
        return []
    value, low, high = bootstrapped(score, rows)
    kind = "AUC" if domain.leaves[domain.target]["kind"] == "category" else "R^2"
    note = f"{kind} of {domain.target} on held-out rows, learned from {count} samples; floor: from as many real rows"
    return [Measure("utility", value, low, high, count, "higher", real, note)]
