"""Laws of the parts of training: averages, their reconstruction, learning rates, order, files."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open

from sfumato.errors import RunError
from sfumato.files import folder_atomically, remove_leftovers
from sfumato.noise import BatchNoise
from sfumato.training import Averages, Exponential, PostHoc, Power, TrainingConfig, build_optimizer
from sfumato.training.ema import gamma_of, sigma_rel_of
from sfumato.training.optimizers import flatten, register_optimizer, restore
from sfumato.training.order import Order, Rows, Stratified
from sfumato.training.posthoc import coefficients, distance, inner, save_snapshot
from sfumato.training.rates import rate_at, rate_of_step
from sfumato.training.tensors import write_safetensors

widths = st.floats(0.01, 0.28)


@given(widths)
def test_gamma_is_the_inverse_of_the_width(width):
    assert sigma_rel_of(gamma_of(width)) == pytest.approx(width, rel=1e-9)


def test_the_width_is_the_standard_deviation_of_the_profile():
    for width in (0.05, 0.1, 0.25):
        gamma, tau = gamma_of(width), np.linspace(0, 1, 200_001)
        weight = (gamma + 1) * tau**gamma
        mean = np.trapezoid(weight * tau, tau)
        assert math.sqrt(np.trapezoid(weight * (tau - mean) ** 2, tau)) == pytest.approx(width, rel=1e-4)
    assert gamma_of(12**-0.5) == pytest.approx(0, abs=1e-9)  # the plain mean
    assert gamma_of(0.10) == pytest.approx(
        6.94, abs=0.01
    )  # the paper's own example (Karras et al. 2024, section 3.1)
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.01)


def walk(steps=200, size=5, dtype=torch.float64):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((steps, size))).cumsum(0).to(dtype)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.25])
def test_the_streaming_average_is_the_weighted_sum_of_all_weights(width):
    history, parameter = walk(), torch.zeros(5, dtype=torch.float64)
    times = np.concatenate([[0], np.cumsum(np.random.default_rng(1).integers(1, 90, len(history)))])
    averages = Averages({"p": parameter}, [Power(width), Exponential(700, 0.1)])
    for weights, a, b in zip(history, times, times[1:], strict=False):
        parameter.copy_(weights)
        averages.update(int(a), int(b))
    gamma = gamma_of(width)
    share = np.diff((times / times[-1]) ** (gamma + 1))
    assert share.sum() == pytest.approx(1)
    torch.testing.assert_close(averages.track(Power(width).name)["p"], torch.from_numpy(share) @ history)
    keep = [0.0] + [2 ** (-(b - a) / min(700, 0.1 * b)) for a, b in itertools.pairwise(times[1:])]
    share = [(1 - keep[i]) * math.prod(keep[i + 1 :]) for i in range(len(keep))]
    expected = torch.tensor(share, dtype=torch.float64) @ history
    torch.testing.assert_close(averages.track("exponential-700")["p"], expected)


def test_weights_that_stand_still_are_their_own_average():
    parameter = torch.full((3,), 0.7)
    averages = Averages({"p": parameter}, [Power(0.1)])
    parameter.fill_(-1.3)  # the start has no part in the average
    for n in range(50):
        averages.update(64 * n, 64 * n + 64)
    torch.testing.assert_close(averages.track("power-0.1")["p"], parameter, rtol=0, atol=1e-6)


@given(widths, widths, st.floats(0.05, 20), st.floats(0.05, 20))
def test_inner_products_are_integrals(width_a, width_b, time_a, time_b):
    ga, gb = gamma_of(width_a), gamma_of(width_b)
    nodes, weights = np.polynomial.legendre.leggauss(200)
    m = min(time_a, time_b)
    tau = (nodes + 1) / 2 * m
    integral = (
        np.sum(weights * (ga + 1) * (tau / time_a) ** ga / time_a * (gb + 1) * (tau / time_b) ** gb / time_b)
        * m
        / 2
    )
    own = inner(np.float64(ga), np.float64(time_a), np.float64(gb), np.float64(time_b))
    assert own == pytest.approx(integral, rel=1e-6, abs=1e-12)


def test_reconstruction_of_what_was_saved_is_exact():
    saved = [(w, t) for t in (250.0, 500.0, 750.0, 1000.0) for w in (0.05, 0.1)]
    x = coefficients(saved, 0.1, 1000.0)
    np.testing.assert_allclose(x, [0] * 7 + [1], atol=1e-6)
    assert distance(saved, 0.1, 1000.0) < 1e-6
    assert distance(saved, 0.07, 1000.0) < 0.05
    more = [(w, t) for t in np.linspace(50, 1000, 20) for w in (0.05, 0.1)]
    assert distance(more, 0.07, 1000.0) < distance(saved, 0.07, 1000.0)  # more snapshots never hurt


def test_a_third_width_is_had_from_the_snapshots_of_two(tmp_path):
    history, parameter = walk(800, 30, torch.float32), torch.zeros(30)
    averages = Averages({"a": parameter[:20], "b": parameter[20:]}, [Power(0.05), Power(0.10)])
    direct = Averages({"p": parameter}, [Power(0.07), Power(0.2)])
    for n, weights in enumerate(history):
        parameter.copy_(weights)
        averages.update(16 * n, 16 * n + 16)
        direct.update(16 * n, 16 * n + 16)
        if (n + 1) % 40 == 0:
            save_snapshot(tmp_path, averages, 16 * n + 16)
    post = PostHoc.of(tmp_path)
    assert len(post.snapshots) == 40
    for width, bound in ((0.07, 2e-3), (0.2, 2e-2)):
        made = post.weights(width)
        made = torch.cat([made["a"], made["b"]])
        exact = direct.track(Power(width).name)["p"]
        between = (averages.state()["power-0.05/a"] - averages.state()["power-0.1/a"]).norm()
        assert (made - exact).norm() < bound * exact.norm()
        assert (made - exact).norm() < 0.1 * between
    with pytest.raises(RunError, match="lies beyond the last snapshot"):
        post.weights(0.07, images=10**6)
    with pytest.raises(RunError, match="no snapshots"):
        PostHoc.of(tmp_path / "nothing")


def test_reconstruction_agrees_with_another_implementation():
    theirs = pytest.importorskip("ema_pytorch.post_hoc_ema", reason="compares with the package ema-pytorch")
    saved = [(w, t) for t in (100.0, 400.0, 700.0, 1000.0) for w in (0.05, 0.1)]
    gammas, times = torch.tensor([[gamma_of(w), t] for w, t in saved], dtype=torch.float64).T
    target = torch.tensor([[gamma_of(0.08)], [1000.0]], dtype=torch.float64)
    x = theirs.solve_weights(times, gammas, target[1], target[0]).flatten()
    assert gamma_of(0.08) == pytest.approx(theirs.sigma_rel_to_gamma(0.08), rel=1e-9)
    ours = coefficients(saved, 0.08, 1000.0)
    # Theirs is not bound to sum to one: the profiles agree to what that leaves.
    assert float(x.sum()) == pytest.approx(1, abs=2e-2)
    grid = np.linspace(1, 1000, 5000)
    profiles = np.stack(
        [(gamma_of(w) + 1) * grid ** gamma_of(w) / t ** (gamma_of(w) + 1) * (grid <= t) for w, t in saved]
    )
    gap = (ours - x.numpy()) @ profiles
    assert np.linalg.norm(gap) < 0.02 * np.linalg.norm(ours @ profiles)


def config(**changes):
    return TrainingConfig(**({"images": 1000, "batch": 10, "warmup": 100, "learning_rate": 3.0} | changes))


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "inverse-sqrt", "wsd"])
def test_learning_rates(decay):
    c = config(decay=decay)
    rates = np.array([rate_at(c, n) for n in range(1001)])
    assert rates[0] == 0
    assert rates[50] == pytest.approx(1.5)
    assert rates.max() == pytest.approx(rates[100]) == pytest.approx(3)
    assert (np.diff(rates[100:]) <= 1e-12).all()
    assert np.abs(np.diff(rates)).max() < 0.04  # no jumps
    end = {"constant": 3, "inverse-sqrt": 3 / math.sqrt(10)}.get(decay, 0)
    assert rates[-1] == pytest.approx(end)
    steps = [rate_of_step(c, n) for n in range(0, 1000, 10)]
    assert min(steps) > 0
    if decay in ("linear", "constant"):  # the middle of a step is the mean over it
        assert np.mean(steps) == pytest.approx(np.trapezoid(rates) / 1000)
    finer = config(decay=decay, batch=5)
    assert np.mean([rate_of_step(finer, n) for n in range(0, 1000, 5)]) == pytest.approx(
        np.mean(steps), rel=1e-3
    )


def test_rates_fall_when_told():
    assert rate_at(config(decay="wsd", decay_fraction=0.5), 500) == 3
    assert rate_at(config(decay="wsd", decay_fraction=0.5), 750) == pytest.approx(1.5)
    assert rate_at(config(decay="inverse-sqrt", decay_reference=400), 400) == 3
    assert rate_at(config(decay="cosine", warmup=0), 500) == pytest.approx(1.5)
    assert rate_of_step(config(images=15, warmup=0, decay="linear"), 10) == pytest.approx(3 * 2.5 / 15)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_every_example_is_shown_once_an_epoch(count, batch, seed):
    order = Order(count, seed)
    shown = np.concatenate([order.indices(n, batch) for n in range(0, 3 * count + 2 * batch, batch)])
    for epoch in range(3):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == list(range(count))
    again = Order(count, seed).indices(batch, batch)  # from the middle, without what came before
    np.testing.assert_array_equal(again, shown[batch : 2 * batch])


def test_order_depends_on_seed_and_epoch_and_is_shared_by_ranks():
    order = Order(100, 0)
    assert (order.permutation(0) != order.permutation(1)).any()
    assert (order.permutation(0) != Order(100, 1).permutation(0)).any()
    parts = [Order(100, 0, rank, 4).indices(96, 8) for rank in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), order.indices(96, 8))
    with pytest.raises(ValueError, match="cannot be shared equally by 3"):
        Order(100, 0, 1, 3).indices(0, 8)


def test_rows_of_noise_are_the_rows_of_the_whole():
    whole, x = BatchNoise(1, 64), torch.zeros(12, 2, 3)
    for draw in ("normal", "uniform"):
        parts = [getattr(Rows(whole, start, 12), draw)(x[:4], stream=3) for start in (0, 4, 8)]
        assert torch.equal(torch.cat(parts), getattr(whole, draw)(x, stream=3))
    strata = torch.cat([Rows(whole, start, 12).strata(x[:4, 0, 0], stream=1) for start in (0, 4, 8)])
    assert sorted((strata * 12).floor().tolist()) == list(range(12))


def test_held_out_noise_is_spread_evenly():
    x = torch.zeros(64, 3, dtype=torch.float64)
    parts = [Stratified(7, start, 64) for start in (0, 16, 32, 48)]
    u = torch.cat([part.uniform(x[:16, 0]) for part in parts])
    assert torch.equal(u.sort().values, (torch.arange(64) + 0.5) / 64)
    z = torch.cat([part.normal(x[:16, 0], stream=1) for part in parts])
    assert z.sum().abs() < 1e-9
    assert z.var() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(u, z)[0, 1]) < 0.3  # streams are shuffled apart
    whole = Stratified(7, 0, 64).normal(x)
    assert torch.equal(torch.cat([part.normal(x[:16]) for part in parts]), whole)


def test_our_safetensors_are_safetensors(tmp_path):
    made = torch.randn(3, 4, 5, 6).to(memory_format=torch.channels_last)
    tensors = {"a": made, "b": made.to(torch.bfloat16), "c": torch.tensor(3.0), "d": torch.arange(7),
               "e": torch.zeros(0, 2), "f": torch.tensor([True, False]), "g": made[:, 1:3].transpose(0, 2)}  # fmt: skip
    with open(tmp_path / "t", "wb") as file:
        write_safetensors(file, tensors, {"who": "me"})
    with safe_open(tmp_path / "t", "pt") as file:
        assert file.metadata() == {"who": "me"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "000000010"
    with folder_atomically(path) as aside:
        (aside / "x").write_text("old")

    def broken():
        with folder_atomically(path) as aside:
            (aside / "x").write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken()
    assert [p.name for p in tmp_path.iterdir()] == ["000000010"]
    assert (path / "x").read_text() == "old"
    with folder_atomically(path) as aside:
        (aside / "x").write_text("new")
    assert (path / "x").read_text() == "new"
    # What two kinds of kill leave behind: a folder half written, and one moved away for a newer that never came.
    (tmp_path / ".000000020.9.part").mkdir()
    path.rename(tmp_path / ".000000010.9.old")
    remove_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["000000010"]


def stepped(optimizer, parameters, seed, steps=3):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in parameters.values():
            p.grad = torch.empty_like(p, memory_format=torch.preserve_format).copy_(
                torch.randn(p.shape, generator=generator)
            )
        optimizer.step()


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd", "muon"])
def test_optimiser_state_goes_through_a_file_unchanged(tmp_path, kind):
    def fresh():
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8)).to(
            memory_format=torch.channels_last
        )
        parameters = dict(network.named_parameters())
        return build_optimizer(kind, parameters, learning_rate=1e-2, weight_decay=0.1), parameters

    one, a = fresh()
    stepped(one, a, 1)
    tensors, rest = flatten(one)
    with open(tmp_path / "t", "wb") as file:
        write_safetensors(file, tensors)
    import json

    from safetensors.torch import load_file

    other, b = fresh()
    for p, q in zip(a.values(), b.values(), strict=True):
        q.data.copy_(p.data)
    restore(other, load_file(tmp_path / "t"), json.loads(json.dumps(rest)))
    stepped(one, a, 2)
    stepped(other, b, 2)
    assert all(torch.equal(a[k], b[k]) for k in a)
    mine, theirs = flatten(one), flatten(other)
    assert all(torch.equal(mine[0][k], theirs[0][k]) for k in mine[0])
    assert mine[1] == theirs[1]


def test_only_matrices_decay_and_others_can_be_registered():
    network = torch.nn.Linear(4, 4)
    groups = build_optimizer(
        "adamw", dict(network.named_parameters()), learning_rate=1.0, weight_decay=0.3
    ).param_groups
    assert [(g["weight_decay"], g["params"][0].ndim) for g in groups] == [(0.3, 2), (0.0, 1)]
    with pytest.raises(RunError, match="did you mean 'adamw'"):
        build_optimizer("adamww", dict(network.named_parameters()), learning_rate=1.0)

    @register_optimizer("rprop-for-a-test")
    def rprop(parameters, *, learning_rate, **rest):
        return torch.optim.Rprop(parameters.values(), lr=learning_rate)

    made = build_optimizer("rprop-for-a-test", dict(network.named_parameters()), learning_rate=1.0)
    assert isinstance(made, torch.optim.Rprop)
    with pytest.raises(RunError, match=r"sgd cannot be built: .*momentun"):
        build_optimizer("sgd", dict(network.named_parameters()), learning_rate=1.0, momentun=3)


def test_muon_makes_matrices_orthogonal_and_leaves_the_ends_to_adamw():
    from sfumato.training.muon import orthogonal

    for shape in ((3, 24, 60), (2, 60, 24)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.6
        assert values.max() < 1.3
    x = torch.randn(2, 8, 30)
    turned = torch.linalg.qr(torch.randn(8, 8)).Q
    torch.testing.assert_close(orthogonal(turned @ x), turned @ orthogonal(x), atol=1e-4, rtol=1e-3)
    names = {"network.stem.weight": (8, 4), "network.body.0.weight": (8, 8, 3, 3), "network.body.0.bias": (8,),
             "network.body.0.modulation.weight": (16, 8), "network.conditioning.labels.weight": (3, 8)}  # fmt: skip
    parameters = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in names.items()}
    made = build_optimizer("muon", parameters, learning_rate=1e-3, matrix_rate=20.0)
    assert [(len(g["params"]), g["lr"]) for g in made.param_groups] == [(1, 0.02), (3, 0.001), (1, 0.001)]
    for p in parameters.values():
        p.grad = torch.randn_like(p)
    made.step()
    # The first step of AdamW moves every number by the rate; Muon's moves the matrix by a nearly orthogonal one.
    torch.testing.assert_close(parameters["network.stem.weight"].abs(), torch.full((8, 4), 1e-3))
    values = torch.linalg.svdvals(parameters["network.body.0.weight"].flatten(1))
    assert 0.6 < (values / 0.02).min() < (values / 0.02).max() < 1.3


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"micro_batch": 48}, "does not divide batch 64; 32 does"),
        ({"batch_size": 3}, "Extra inputs"),
        ({"ema": [0.3]}, "less than or equal"),
        ({"ema": [0.1, 0.1]}, "twice"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"images": 10}, "longer than the run"),
        ({"decay": "exp"}, "Input should be 'constant'"),
    ],
)
def test_impossible_configurations_say_why(changes, reason):
    with pytest.raises(ValidationError, match=reason):
        TrainingConfig(**changes)


def test_the_configuration_is_read_without_torch():
    code = "import sys; from sfumato.training import TrainingConfig; TrainingConfig(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
