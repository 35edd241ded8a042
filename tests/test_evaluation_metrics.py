"""Laws of the metrics: known limits, invariances, agreement with other implementations, honest intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import DataError
from sfumato.evaluation import manifold as manifold_module
from sfumato.evaluation import metrics as metrics_module
from sfumato.evaluation.copying import copying, tail
from sfumato.evaluation.manifold import manifold, nearest, radii
from sfumato.evaluation.measure import Measure, interval, resample, wilson
from sfumato.evaluation.metrics import (
    agreement,
    crps,
    frechet,
    frechet_distance,
    gaussian_frechet,
    inception_score,
    kernel,
    kernel_distance,
    kernel_subsets,
)


def draw(n, d, seed, shift=0.0, scale=1.0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64) * scale + shift


# Fréchet


def test_frechet_of_a_set_with_itself_is_zero():
    x = draw(200, 12, 0)
    assert frechet_distance(x, x) < 1e-10
    assert frechet_distance(x[:, [0, 0, 1]], x[:, [0, 0, 1]]) < 1e-10  # a singular covariance


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, 4.0, 0.0]).double(), torch.tensor([9.0, 1.0, 2.0]).double()
    mean = torch.tensor([1.0, 2.0, 2.0]).double()
    expected = 9 + (a.sqrt() - b.sqrt()).square().sum()
    found = gaussian_frechet(torch.zeros(3).double(), torch.diag(a), mean, torch.diag(b))
    assert found == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12)])
def test_the_distance_from_a_gaussian_is_the_same_by_samples_as_by_moments(n, d):
    torch.manual_seed(0)
    x, y = torch.randn(n, d).double(), 1 + 2 * torch.randn(90, d).double()
    law = metrics_module.moments(y)
    for weights in (None, torch.from_numpy(np.random.default_rng(1).multinomial(n, [1 / n] * n)).double()):
        slow = gaussian_frechet(*metrics_module.moments(x, weights), *law)
        assert metrics_module.frechet_to(x, *law, weights) == pytest.approx(slow, rel=1e-7)


def test_frechet_converges_to_the_closed_form_as_one_over_n():
    exact = 4 * 0.5**2 + 4 * (1.5 - 1) ** 2
    errors = []
    for n in (500, 8000):
        values = [frechet_distance(draw(n, 4, i, 0.5, 1.5), draw(n, 4, 100 + i)) for i in range(30)]
        errors.append(abs(np.mean(values) - exact))
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_frechet_and_manifold_do_not_change_under_rotation_and_shift(seed):
    x, y = draw(60, 5, seed), draw(50, 5, seed + 1, 0.3, 1.2)
    q, _ = torch.linalg.qr(draw(5, 5, seed + 2))
    shift = draw(1, 5, seed + 3)
    assert frechet_distance(x @ q + shift, y @ q + shift) == pytest.approx(frechet_distance(x, y), rel=1e-9)
    before, after = manifold(x, y, resamples=0), manifold(x @ q + shift, y @ q + shift, resamples=0)
    assert [m.value for m in before.values()] == [m.value for m in after.values()]


def test_frechet_agrees_with_a_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = draw(400, 24, 1, 0.2, 1.3) @ draw(24, 24, 3), draw(300, 24, 2) @ draw(24, 24, 4)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    root = linalg.sqrtm(a @ b).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(a + b - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(float(expected), rel=1e-6)


def test_frechet_and_kernel_agree_with_torchmetrics():
    pytest.importorskip("torchmetrics")
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class Given(torch.nn.Module):
        num_features = 16

        def forward(self, features):
            return features

    x, y = draw(150, 16, 5, 0.3, 1.1), draw(150, 16, 6)
    fid = FrechetInceptionDistance(feature=Given(), normalize=True).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=Given(), normalize=True, subsets=1, subset_size=150)
    for metric in (fid, kid):
        metric.update(y, real=True)
        metric.update(x, real=False)
    assert frechet_distance(x, y) == pytest.approx(float(fid.compute()), rel=1e-6)
    assert kernel_distance(x, y) == pytest.approx(float(kid.compute()[0]), rel=1e-6)


# Kernel


def test_kernel_distance_is_unbiased_and_so_are_its_resamples():
    values = np.array([kernel_distance(draw(40, 6, 2 * i), draw(30, 6, 2 * i + 1)) for i in range(400)])
    assert abs(values.mean()) < 3 * values.std() / 20
    x, y = draw(80, 6, 0, 0.4), draw(80, 6, 1)
    weights = torch.stack(list(resample(80, 300, 0, 0))), torch.stack(list(resample(80, 300, 0, 1)))
    resampled = metrics_module._mmd(x, y, *weights)
    # Had copies of one sample counted as a pair, the mean would lie far above.
    assert abs(resampled.mean() - kernel_distance(x, y)) < 0.25 * resampled.std()


def test_kernel_subsets_of_full_size_are_the_full_estimate():
    x, y = draw(30, 3, 0), draw(30, 3, 1)
    mean, spread = kernel_subsets(x, y, subsets=3, size=30)
    assert mean == pytest.approx(kernel_distance(x, y), rel=1e-9)
    assert spread < 1e-12
    with pytest.raises(DataError, match="subsets of 31"):
        kernel_subsets(x, y, size=31)


# Intervals


def test_intervals_cover_the_expectation_at_their_n():
    draws, hits_f, hits_k = 40, 0, 0
    pairs = [(draw(150, 5, 2 * i, 0.8, 0.7), draw(150, 5, 2 * i + 1)) for i in range(300)]
    at_n = np.mean([frechet_distance(x, y) for x, y in pairs])
    mmd = np.mean([kernel_distance(x, y) for x, y in pairs[:200]])
    for i, (x, y) in enumerate(pairs[:draws]):
        f, k = frechet(x, y, resamples=60, seed=i), kernel(x, y, resamples=60, seed=i)
        hits_f += f.low <= at_n <= f.high
        hits_k += k.low <= mmd <= k.high
    assert min(hits_f, hits_k) >= 34  # 95 % of 40 is 38; below 34 with probability 1 %


def test_the_interval_contains_its_value_where_a_percentile_interval_would_not():
    x, y = draw(60, 30, 0), draw(60, 30, 1)
    m = frechet(x, y, resamples=40)
    weights = zip(resample(60, 40, 0, 0), resample(60, 40, 0, 1), strict=True)
    again = [
        gaussian_frechet(*metrics_module.moments(x, v), *metrics_module.moments(y, w)) for v, w in weights
    ]
    assert np.quantile(again, 0.025) > m.value  # the trap: the whole percentile interval lies above
    assert m.low < m.value < m.high


def test_interval_and_wilson_against_known_numbers():
    normal = np.random.default_rng(0).normal(7, 2, 200_000)  # the mean of the draws is of no account
    assert interval(1.0, normal) == pytest.approx((1 - 3.92, 1 + 3.92), abs=0.05)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10)[1] == 1.0


def test_the_same_seed_gives_the_same_interval():
    x, y = draw(50, 3, 0), draw(50, 3, 1)
    assert frechet(x, y, seed=3, resamples=30) == frechet(x, y, seed=3, resamples=30)
    assert frechet(x, y, seed=3, resamples=30) != frechet(x, y, seed=4, resamples=30)


# Score and agreement


def test_inception_score_runs_from_one_to_the_number_of_classes():
    sure = torch.eye(5).double().repeat(8, 1)
    assert inception_score(sure).value == pytest.approx(5)
    assert inception_score(sure[:1].repeat(9, 1)).value == pytest.approx(1)
    assert inception_score(torch.full((9, 5), 0.2)).value == pytest.approx(1)
    with pytest.raises(DataError, match="softmax"):
        inception_score(torch.randn(9, 5))


def test_agreement_counts():
    m = agreement(torch.eye(4), [0, 1, 2, 0])
    assert m.value == 0.75
    assert m.details["by_class"] == {"0": 0.5, "1": 1.0, "2": 1.0}
    with pytest.raises(DataError, match="asked labels"):
        agreement(torch.eye(4), [0, 1, 2, 4])


# Manifolds


def brute(x, y, k):
    """Straight from the definitions, one distance at a time."""
    dist = lambda a, b: math.dist(a.tolist(), b.tolist())  # noqa: E731
    radius = lambda s, i: sorted(dist(s[i], s[j]) for j in range(len(s)) if j != i)[k - 1]  # noqa: E731
    real, fake = [radius(y, j) for j in range(len(y))], [radius(x, i) for i in range(len(x))]
    inside = [[dist(g, r) <= real[j] for j, r in enumerate(y)] for g in x]
    return {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean([any(dist(r, g) <= fake[i] for i, g in enumerate(x)) for r in y]),
        "density": np.sum(inside) / (k * len(x)),
        "coverage": np.mean([any(row[j] for row in inside) for j in range(len(y))]),
    }


@pytest.mark.parametrize("chunk", [2**23, 100])
def test_manifold_against_brute_force(chunk, monkeypatch):
    monkeypatch.setattr(manifold_module, "CHUNK", chunk)  # 100: blocks of two rows
    x, y = draw(40, 3, 0, 0.5), draw(45, 3, 1)
    found = {name: m.value for name, m in manifold(x, y, k=3, resamples=0).items()}
    assert found == pytest.approx(brute(x, y, 3))


def test_manifold_of_identical_sets_and_of_constructed_ones():
    x = draw(150, 4, 0)
    same = {name: m.value for name, m in manifold(x, x).items()}
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    middle = manifold(x * 0.2, draw(150, 4, 1))  # all inside, little reached
    assert middle["precision"].value > 0.95
    assert middle["recall"].value < 0.3
    wide = manifold(x * 4, draw(150, 4, 1))  # the other way round
    assert wide["precision"].value < 0.3
    assert wide["recall"].value > 0.9
    with pytest.raises(DataError, match="neighbours"):
        radii(x[:5], 5)


# Copying


def test_the_copying_interval_covers_what_fresh_data_show():
    train, hits, alarms = draw(300, 3, 0), 0, 0
    for i in range(100):
        m = copying(draw(200, 3, 2 * i + 1), draw(199, 3, 2 * i + 2), train)
        hits += m.measure.low <= m.measure.floor <= m.measure.high
        alarms += m.alarm
    assert hits >= 90
    assert alarms <= 4  # 1 % expected


def test_nearest_is_exact_even_far_from_the_origin():
    t = draw(50, 6, 0) + 1e5
    distance, index = nearest(t[[3, 7]], t)
    assert distance.tolist() == [0, 0]
    assert index.tolist() == [3, 7]


def test_copying_flags_planted_copies_and_passes_fresh_data():
    train, held, fresh = draw(2000, 8, 0), draw(500, 8, 1), draw(500, 8, 2)
    passed = copying(fresh, held, train)
    assert not passed.alarm
    assert passed.verdict.startswith("no more copying")
    fresh[:25] = train[:25] + 1e-3
    caught = copying(fresh, held, train)
    assert caught.alarm
    assert caught.p_value < 1e-3
    assert {pair[0] for pair in caught.pairs} <= set(range(25))
    assert all(i == j for i, j, _ in caught.pairs)
    with pytest.raises(DataError, match="split them anew"):
        copying(fresh, train[:200], train)


def test_copies_are_told_of_data_that_come_twice():
    def some(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(n, 4))
        often = rng.random(n) < 0.15
        x[often] = rng.integers(0, 5, (int(often.sum()), 1))  # of five values
        return x

    train, held = some(400, 0), some(100, 1)
    passed = copying(some(1000, 2), held, train)
    assert not passed.alarm
    assert passed.measure.value == pytest.approx(0.15, abs=0.05)
    assert passed.measure.floor == pytest.approx(0.15, abs=0.1)
    made = some(200, 4)
    made[:60] = train[:60]
    assert copying(made, held, train).alarm
    assert "equal a training sample" in copying(made, held, train).verdict
    p = np.array(
        [copying(some(60, 3 * k), some(60, 3 * k + 1), some(200, 3 * k + 2)).p_value for k in range(100)]
    )
    assert np.mean(p < 0.05) < 0.12


def test_the_p_value_is_exact_for_exchangeable_samples():
    assert tail(0, 10, 1, 99) == pytest.approx(1)
    assert tail(1, 1, 5, 499) == pytest.approx(5 / 500)  # one sample: k/(m + 1)
    rng = np.random.default_rng(0)
    counts = np.array([(rng.random(60) < np.sort(rng.random(99))[1]).sum() for _ in range(20_000)])
    for c in (1, 3, 6):
        assert tail(c, 60, 2, 99) == pytest.approx((counts >= c).mean(), abs=0.015)


# Refusals


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(5), "must be"),
        (torch.zeros(1, 3), "at least 2"),
        (torch.tensor([[1.0, 2.0], [math.nan, 0.0]]), "NaN"),
        (torch.zeros(4, 2), "dimension 2"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(bad, message):
    with pytest.raises(DataError, match=message):
        frechet_distance(bad, torch.zeros(4, 3) if "dimension" in message else torch.zeros(4, 2))


def test_a_measure_checks_itself():
    with pytest.raises(DataError, match="misses"):
        Measure("x", 1.0, 2.0, 3.0, 5)
    with pytest.raises(DataError, match="did you mean 'lower'"):
        Measure("x", 1.0, 0.0, 3.0, 5, better="lowe")
    with pytest.raises(DataError, match="no measurement"):
        Measure("x", math.nan, None, None, 5)
    m = Measure("x", 0.1, 0.0, 3.0, 5, floor=0.3, details={"a": [1]})
    assert Measure.from_json(m.to_json()) == m
    with pytest.raises(DataError, match="did you mean 'value'"):
        Measure.from_json({"valu": 1})


def test_crps_is_that_of_a_gaussian_and_the_true_law_scores_best():
    """CRPS(N(m, s), y) = s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)), z = (y - m) / s; unbiased in the draws."""
    draw = torch.Generator().manual_seed(0)
    normal = torch.distributions.Normal(0.0, 1.0)
    for mean, spread, y in ((0.0, 1.0, 0.3), (1.0, 0.5, -0.2)):
        z = torch.tensor((y - mean) / spread)
        known = spread * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - torch.pi**-0.5)
        for count in (3, 50):
            draws = mean + spread * torch.randn(count, 40_000, generator=draw)
            assert abs(float(crps(draws, torch.full((40_000,), y)).mean() - known)) < 0.01
    truth = torch.randn(40_000, generator=draw)
    scores = {
        (m, s): float(crps(m + s * torch.randn(8, 40_000, generator=draw), truth).mean())
        for m, s in ((0, 1.0), (0.3, 1.0), (0, 0.7), (0, 1.4))
    }
    assert min(scores, key=scores.__getitem__) == (0, 1.0)
    assert torch.equal(crps(truth[None] + 1, truth), (truth + 1 - truth).abs())
    with pytest.raises(DataError, match="are needed"):
        crps(torch.zeros(3, 4), torch.zeros(5))
