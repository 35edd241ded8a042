"""Directions in the bottleneck, and the views that reach into a network: what they find, and what they leave alone."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import sfumato
from sfumato.cli import main
from sfumato.denoisers import ClassifierFree, Denoiser, check_denoiser
from sfumato.errors import BundleError, SolverError
from sfumato.evaluation.direction_effects import attributes, effects, sweep
from sfumato.evaluation.directions import (
    Directions,
    Steered,
    features,
    find_directions,
    singular_vectors,
    tapped,
)
from sfumato.networks import bottleneck, build, rewired
from sfumato.noise import Noise
from sfumato.processes import EDM, Cosine, Flow, Gaussian

SMALL = {
    "unet": {"size": 8, "width": 8, "multipliers": [1, 2], "blocks": [1, 1], "embedding": 16, "patch": 1, "head": 8},
    "dit": {"size": 8, "width": 16, "depth": 3, "embedding": 16, "head": 8},
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", SMALL)


def lively(kind, **more):
    """A denoiser whose network, unlike a new one, does something."""
    torch.manual_seed(0)
    network = build(kind, in_channels=1, classes=3, **SMALL[kind], **more)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return Denoiser(network, Gaussian(Flow()), "velocity").eval().requires_grad_(False)


class Known(nn.Module):
    """A network that makes the exact answer for Gaussian data, linear in its features, which are its input."""

    def __init__(self, process, covariance):
        super().__init__()
        self.middle, self.process, self.covariance = nn.Identity(), process, covariance

    def forward(self, x, noise_level, condition=None):
        level = self.process.level(self.process.schedule.time(-8 * noise_level.double()))
        alpha, sigma = level.alpha[:, None, None], level.sigma[:, None, None]
        size = (alpha**2 * self.process.sigma_data**2 + sigma**2).sqrt()  # undoes the scaling of the input
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance))
        gain = alpha * self.covariance @ torch.linalg.inv(noisy) * size
        return torch.einsum("nij,nj->ni", gain, self.middle(x).double()).to(x.dtype)


@pytest.mark.parametrize("method", ["jacobian", "pca"])
@pytest.mark.parametrize("schedule", [Flow(), Cosine(), EDM()], ids=lambda s: s.kind)
def test_of_gaussian_data_the_directions_are_the_eigenvectors_of_the_covariance(method, schedule):
    axes = torch.linalg.qr(Noise(5, 6).normal(torch.empty(6, 6, dtype=torch.float64)))[0]
    variances = torch.tensor([4.0, 2.0, 1.0, 0.3, 0.1, 0.02], dtype=torch.float64)
    covariance = axes @ variances.diag() @ axes.mT
    process = Gaussian(schedule)
    denoiser = Denoiser(Known(process, covariance), process, "x0")
    # whitened data have the covariance exactly; the noise they get does not
    raw = Noise(0, 4000).normal(torch.empty(4000, 6, dtype=torch.float64))
    raw = raw - raw.mean(0)
    white = raw @ torch.linalg.inv(torch.linalg.cholesky(raw.mT @ raw / 3999)).mT
    x0 = white @ (variances.sqrt()[:, None] * axes.mT)
    t = float(process.schedule.time(torch.tensor(2.0, dtype=torch.float64)))
    x0 = x0 if method == "pca" else x0[:5]
    found = find_directions(
        denoiser, x0, 3, times=(t,), method=method, path="network.middle", rounds=200, seed=3
    )
    cosines = (found.vectors @ axes[:, :3]).diagonal().abs()
    # pca: eigenvectors of 4,000 draws of the noise are off by about (gap)^-1 / sqrt(4000)
    assert bool((cosines > (1 - 1e-6 if method == "jacobian" else 0.995)).all())


@given(inputs=st.integers(2, 7), outputs=st.integers(2, 7), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_singular_triples_are_those_of_the_explicit_jacobian(inputs, outputs, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs, 9), nn.Tanh(), nn.Linear(9, outputs)).double()
    point = torch.randn(inputs, dtype=torch.float64)
    k = min(2, inputs, outputs)
    found = singular_vectors(net, point, k, rounds=3000, tolerance=1e-9)
    jacobian = torch.func.jacrev(net)(point)
    torch.testing.assert_close(found.values, torch.linalg.svdvals(jacobian)[:k], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.right @ jacobian.mT, found.values[:, None] * found.left)
    torch.testing.assert_close(found.left @ jacobian, found.values[:, None] * found.right, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.right @ found.right.mT, torch.eye(k, dtype=torch.float64))


@each_kind
def test_a_networks_own_triples_satisfy_the_definition(kind):
    denoiser = lively(kind)
    x_t = Noise(1, 2).normal(torch.empty(2, 1, 8, 8))
    path = bottleneck(denoiser)
    shape = features(denoiser, x_t, 0.5).shape[1:]

    def predicted(step):
        return tapped(denoiser, path, lambda h: h + step, x_t, 0.5, None).x0

    found = singular_vectors(predicted, torch.zeros(shape), 2, rounds=60)
    jacobian = torch.func.jacfwd(predicted)(torch.zeros(shape)).flatten(0, 3).flatten(1)
    values = torch.linalg.svdvals(jacobian)
    torch.testing.assert_close(found.values.float(), values[:2], rtol=1e-3, atol=0)
    pushed = found.right.flatten(1) @ jacobian.mT
    torch.testing.assert_close(
        pushed, found.values.float()[:, None] * found.left.flatten(1), rtol=0, atol=1e-4
    )


@each_kind
@pytest.mark.parametrize("method", ["jacobian", "pca"])
def test_directions_are_orthonormal_and_survive_being_saved(kind, method, tmp_path):
    denoiser = lively(kind)
    found = find_directions(denoiser, Noise(2, 6).normal(torch.empty(6, 1, 8, 8)), 3, method=method, rounds=3)
    flat = found.vectors.flatten(1)
    torch.testing.assert_close(flat @ flat.mT, torch.eye(3), rtol=0, atol=1e-6)
    assert list(found.values) == sorted(found.values, reverse=True)
    replace(found, weights="abc").save(tmp_path / "d.safetensors")
    again = Directions.load(tmp_path / "d.safetensors", "abc")
    torch.testing.assert_close(again.vectors, found.vectors, rtol=0, atol=0)
    assert (again.path, again.about) == (found.path, found.about)
    with pytest.raises(BundleError, match="another network"):
        Directions.load(tmp_path / "d.safetensors", "def")


@each_kind
@pytest.mark.parametrize("solver", ["dpm++2m", "heun", "ancestral", "adaptive"])
def test_no_strength_is_the_plain_sample_to_the_bit_and_some_strength_is_not(kind, solver, demo_folder):
    model = sfumato.load(demo_folder / "runs/demo/model")
    model = replace(model, denoiser=lively(kind), info={}, sampling=replace(model.sampling, steps=3))
    model = replace(model, domain=replace(model.domain, classes=("a", "b", "c")))
    found = find_directions(model.denoiser, Noise(2, 6).normal(torch.empty(6, 1, 8, 8)), 2, method="pca")
    asked = {"count": 2, "solver": solver, "condition": {"label": [0, 2]}, "guidance": 2.0}
    plain = model.sample(**asked)
    still = replace(model, denoiser=Steered(model.denoiser, found.step({0: 0.0}), found.path))
    moved = replace(model, denoiser=Steered(model.denoiser, found.step({0: 2.0}), found.path))
    assert torch.equal(still.sample(**asked), plain)
    assert not torch.allclose(moved.sample(**asked), plain, atol=1e-3)


@each_kind
def test_steering_is_a_denoiser_and_composes_in_either_order(kind):
    denoiser = lively(kind)
    x = Noise(0, 3).normal(torch.empty(3, 1, 8, 8))
    condition = {"label": torch.tensor([0, 1, 2])}
    step = 0.3 * Noise(9, 1).normal(features(denoiser, x[:1], 0.5))[0]
    steered = Steered(denoiser, step)
    check_denoiser(steered, x, condition)
    outside = Steered(ClassifierFree(denoiser, 2.0, 3), step)
    inside = ClassifierFree(steered, 2.0, 3)
    torch.testing.assert_close(outside(x, 0.5, condition).x0, inside(x, 0.5, condition).x0, rtol=0, atol=0)
    times = torch.tensor([0.2, 0.5, 0.9])  # each at its own time, of which one lies within the window
    for windowed in (
        Steered(ClassifierFree(denoiser, 2.0, 3), step, window=(0.4, 0.6)),
        ClassifierFree(Steered(denoiser, step, window=(0.4, 0.6)), 2.0, 3),
    ):
        got = windowed(x, times, condition).x0
        plain = ClassifierFree(denoiser, 2.0, 3)(x, times, condition).x0
        torch.testing.assert_close(got[[0, 2]], plain[[0, 2]], rtol=0, atol=1e-6)
        assert float((got[1] - plain[1]).abs().max()) > 1e-3
    twice = Steered(Steered(denoiser, step), step)
    torch.testing.assert_close(
        twice(x, 0.5, condition).x0, Steered(denoiser, 2 * step)(x, 0.5, condition).x0, rtol=1e-4, atol=1e-5
    )


def test_steering_leaves_the_network_and_other_threads_alone():
    denoiser = lively("unet")
    x = Noise(0, 2).normal(torch.empty(2, 1, 8, 8))
    plain = denoiser(x, 0.5).x0
    steered = Steered(denoiser, torch.ones(16, 4, 4))
    stop = threading.Event()

    def steer():
        while not stop.is_set():
            steered(x, 0.5)

    thread = threading.Thread(target=steer)
    thread.start()
    answers = [denoiser(x, 0.5).x0 for _ in range(50)]
    stop.set()
    thread.join()
    assert all(torch.equal(answer, plain) for answer in answers)
    assert not denoiser.network.middle._forward_hooks
    assert [p.data_ptr() for p in steered.parameters()] == [p.data_ptr() for p in denoiser.parameters()]


def test_a_view_shares_all_but_the_way_down():
    network = lively("unet").network
    view = rewired(network, "middle.residual.0", lambda m: nn.Identity())
    assert isinstance(view.middle.residual[0], nn.Identity)
    assert not isinstance(network.middle.residual[0], nn.Identity)
    assert view.stem is network.stem
    assert view.middle is not network.middle
    with pytest.raises(AttributeError):
        rewired(network, "nowhere", lambda m: m)


def test_moving_along_a_planted_direction_moves_its_attribute_one_way(demo_folder):
    model = sfumato.load(demo_folder / "runs/demo/model")
    process = Gaussian(Flow())
    axes = torch.linalg.qr(torch.cat([torch.ones(64, 1), torch.randn(64, 63)], 1).double())[0]
    covariance = axes @ torch.diag(torch.tensor([8.0] + [0.02] * 63).double()) @ axes.mT

    class Brightness(Known):
        def forward(self, x, noise_level, condition=None):
            return super().forward(x.flatten(1), noise_level).reshape(x.shape)

    network = Brightness(process, covariance)
    network.config, network.scale = {}, nn.Parameter(torch.ones(1))
    own = replace(
        model, denoiser=Denoiser(network, process, "x0"), info={}, domain=replace(model.domain, classes=())
    )
    x0 = (0.3 * torch.randn(40, 1)).expand(40, 64).reshape(40, 1, 8, 8) + 0.05 * torch.randn(40, 1, 8, 8)
    found = find_directions(own.denoiser, x0, 1, method="pca", path="network.middle")
    strengths = (-0.5, 0.0, 0.5)
    told = effects(sweep(own, found, strengths, 6, steps=4), strengths)[0]
    brightness = next(e for e in told if e.attribute == "brightness")
    assert brightness.monotone == 1.0
    assert abs(brightness.change) > 0.3


@given(shift=st.integers(0, 3))
def test_attributes_say_where_the_light_is(shift):
    picture = torch.full((1, 1, 8, 8), -1.0)
    picture[0, 0, 2 + shift, 5] = 1.0
    bright, contrast, _, across, down = attributes(picture)[0]
    assert float(bright) == pytest.approx(1 / 64)
    assert float(contrast) > 0
    assert (float(across), float(down)) == pytest.approx((5 / 7, (2 + shift) / 7))


def test_what_cannot_be_is_refused_in_one_line(tmp_path):
    denoiser = lively("unet")
    x0 = torch.zeros(3, 1, 8, 8)
    with pytest.raises(SolverError, match="vary along 4 axes at most, not 9"):
        find_directions(denoiser, x0, 9, method="pca")
    with pytest.raises(SolverError, match="did you mean 'pca'"):
        find_directions(denoiser, x0, 1, method="pac")
    with pytest.raises(SolverError, match="times must be"):
        find_directions(denoiser, x0, 1, times=(0.0,))
    with pytest.raises(SolverError, match=r"no module 'network\.nowhere'"):
        Steered(denoiser, torch.zeros(3), "network.nowhere")
    with pytest.raises(SolverError, match="belongs to another network"):
        Steered(denoiser, torch.zeros(3))(x0, 0.5)
    with pytest.raises(SolverError, match="never reached"):
        tapped(Unreached(denoiser), "spare", lambda h: h, x0, 0.5, None)
    with pytest.raises(BundleError, match="no such file of directions"):
        Directions.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not one")
    with pytest.raises(BundleError, match="no whole directions"):
        Directions.load(tmp_path / "bad.safetensors")


class Unreached(nn.Module):
    """A denoiser with a module that its answer does not go through."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, self.spare, self.process = denoiser, nn.Identity(), denoiser.process

    def forward(self, x_t, t, condition=None):
        return self.denoiser(x_t, t, condition)


def test_a_view_of_a_compiled_network_runs_what_was_put_into_it():
    denoiser = lively("unet")
    x = Noise(0, 2).normal(torch.empty(2, 1, 8, 8))
    step = torch.ones(16, 4, 4)
    expected = Steered(denoiser, step)(x, 0.5).x0

    def compiled(*_):
        raise AssertionError("a view must not run what was compiled of the network it is a view of")

    denoiser.network._compiled_call_impl = compiled
    assert torch.equal(Steered(denoiser, step)(x, 0.5).x0, expected)


def run(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    seen = capsys.readouterr()
    return int(left.value.code or 0), seen.out, seen.err


def test_the_command_finds_shows_and_goes_along_directions(demo_folder, tmp_path, capsys):
    model = demo_folder / "runs/demo/model"
    out = tmp_path / "d"
    words = ["--count", 2, "--samples", 6, "--shown", 2, "--steps", 2, "--strengths", -1, 0, 1, "--out", out]
    code, said, err = run(capsys, "directions", model, *words)
    assert code == 0, err
    assert "moves one way in" in said
    record = json.loads((tmp_path / "d.json").read_text())
    assert len(record["effects"]) == 2 * 5
    assert (tmp_path / "d.png").is_file()

    def drawn(name, *more):
        code, _, err = run(capsys, "sample", model, "-n", 2, "--steps", 2, *more, "--out", tmp_path / name)
        assert code == 0, err
        return b"".join(path.read_bytes() for path in sorted((tmp_path / name).iterdir()))

    file = tmp_path / "d.safetensors"
    plain = drawn("plain")
    assert drawn("still", "--direction", f"{file}:0:0") == plain
    assert drawn("moved", "--direction", f"{file}:0:3") != plain
    there = drawn("there", "--direction", f"{file}:0:3", f"{file}:1:-2")
    assert drawn("order", "--direction", f"{file}:1:-2", f"{file}:0:3") == there

    for wrong, reason in (
        (f"{file}:0", "FILE:NUMBER:STRENGTH"),
        (f"{file}:5:1", "there is no direction 5"),
        (f"{tmp_path / 'no.safetensors'}:0:1", "no such file of directions"),
    ):
        code, _, err = run(capsys, "sample", model, "-n", 1, "--direction", wrong, "--out", tmp_path / "x")
        assert code == 1
        assert reason in err
    replace(Directions.load(file), weights="0" * 64).save(file)
    code, _, err = run(capsys, "sample", model, "--direction", f"{file}:0:1", "--out", tmp_path / "x")
    assert code == 1
    assert "another network" in err
    assert not (tmp_path / "x").exists()
