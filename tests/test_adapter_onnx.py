"""Denoisers out of ONNX files: the one that torch makes, and a stranger's."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sfumato
from sfumato.denoisers import ClassifierFree, check_denoiser
from sfumato.errors import BundleError, SfumatoError, SolverError
from sfumato.noise import Noise
from sfumato.processes import CLEAN, EDM, Gaussian
from sfumato.solvers import (
    DDIM,
    UniformGrid,
    build_solver,
    sample,
)

diffusers = pytest.importorskip("diffusers", reason="needs sfumato[diffusers]")


# --- ONNX ---


ONNX = importlib.util.find_spec("onnx") and importlib.util.find_spec("onnxruntime")

needs_onnx = pytest.mark.skipif(not ONNX, reason="needs sfumato[onnx]")


class Small(torch.nn.Module):
    """y = W x + u noise + E[label], for states (batch, 2): the graph below, in torch."""

    kind, config = "small", {"classes": 3}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.loud = torch.nn.Linear(2, 2), torch.nn.Linear(1, 2)
        self.table = torch.nn.Embedding(4, 2)

    def forward(self, x, told, condition=None):
        label = condition["label"] if condition else torch.full((len(x),), 3)
        return self.mix(x) + self.loud(told[:, None].to(x.dtype)) + self.table(label)


def write_onnx(path: Path, small: Small, *, batch: Any = "batch", outer: str | None = None) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    arrays = {"W": small.mix.weight.T, "b": small.mix.bias, "u": small.loud.weight.T, "c": small.loud.bias}
    arrays |= {"E": small.table.weight}
    weights = [numpy_helper.from_array(a.detach().numpy().copy(), name) for name, a in arrays.items()]
    weights.append(numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"))
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["mixed"]),
        helper.make_node("Unsqueeze", ["sigma", "axis"], ["column"]),
        helper.make_node("Gemm", ["column", "u", "c"], ["loud"]),
        helper.make_node("Gather", ["E", "digit"], ["said"]),
        helper.make_node("Sum", ["mixed", "loud", "said"], ["answer"]),
        helper.make_node("Identity", ["mixed"], ["aside"]),
    ]
    entry = helper.make_tensor_value_info
    inputs = [entry("x", TensorProto.FLOAT, [batch, 2]), entry("sigma", TensorProto.FLOAT, [batch]),
              entry("digit", TensorProto.INT64, [batch])]  # fmt: skip
    outputs = [entry(name, TensorProto.FLOAT, [batch, 2]) for name in ("answer", "aside")]
    graph = helper.make_graph(nodes, "small", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    if outer:
        onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
        if outer != "weights.data":
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                for word in tensor.external_data:
                    if word.key == "location":
                        word.value = outer
            path.write_bytes(model.SerializeToString())
    else:
        path.write_bytes(model.SerializeToString())
    return path


SAID = {
    "inputs": {"x": "x", "noise": "sigma", "label": "digit"}, "output": "answer", "schedule": {"kind": "edm"},
    "predicts": "edm", "clock": "edm", "scaled": True, "sigma_data": 0.5, "classes": 3,
}  # fmt: skip


@needs_onnx
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_an_onnx_graph_is_the_denoiser_that_torch_makes(tmp_path: Path, batch):
    small = Small()
    path = write_onnx(tmp_path / "small.onnx", small, batch=batch)
    theirs = sfumato.adapters.from_onnx(path, **SAID)
    ours = sfumato.Denoiser(small, Gaussian(EDM(), 0.5), "edm")
    x, label = Noise(0, 4).normal(torch.empty(4, 2)), {"label": torch.tensor([0, 1, 2, 3])}
    with torch.no_grad():
        for t in (0.0, 0.37, 1.0, torch.tensor([0.1, 0.2, 0.3, 0.4])):
            assert torch.allclose(theirs(x, t, label).x0, ours(x, t, label).x0, atol=1e-6)
        assert torch.allclose(theirs(x, 0.5).x0, ours(x, 0.5).x0, atol=1e-6), (
            "no label is the label `classes`"
        )
        if batch == "batch":
            check_denoiser(theirs, x, label)
            guided = [ClassifierFree(d, 2.0, 3)(x, 0.5, label).x0 for d in (theirs, ours)]
            assert torch.allclose(*guided, atol=1e-5)
            levels = UniformGrid().levels(theirs.process, 5)
            drawn = [
                sample(d, Noise(0, 4), (2,), solver=DDIM(), levels=levels, condition=label)
                for d in (theirs, ours)
            ]
            assert torch.allclose(*drawn, atol=1e-4)
        if batch == 4:
            with pytest.raises(SolverError, match="4 samples at a time, not 3"):
                theirs(x[:3], 0.5)


@needs_onnx
def test_what_is_said_may_lie_beside_the_file(tmp_path: Path):
    path = write_onnx(tmp_path / "small.onnx", Small())
    (tmp_path / "small.json").write_text(json.dumps(SAID))
    x = Noise(0, 4).normal(torch.empty(4, 2))
    beside, given = sfumato.adapters.from_onnx(path), sfumato.adapters.from_onnx(path, **SAID)
    assert torch.equal(beside(x, 0.5).x0, given(x, 0.5).x0)
    assert sfumato.adapters.from_onnx(path, predicts="x0", endpoint=True).endpoint
    assert not beside.endpoint


@needs_onnx
def test_outer_weights_are_read_from_the_folder_only(tmp_path: Path, monkeypatch):
    (tmp_path / "in").mkdir()
    small, x = Small(), Noise(0, 4).normal(torch.empty(4, 2))
    plain = sfumato.adapters.from_onnx(write_onnx(tmp_path / "plain.onnx", small), **SAID)(x, 0.5).x0
    path = write_onnx(tmp_path / "in" / "small.onnx", small, outer="weights.data")
    assert torch.equal(sfumato.adapters.from_onnx(path, **SAID)(x, 0.5).x0, plain)
    secret = tmp_path / "secret.data"
    shutil.copy(tmp_path / "in" / "weights.data", secret)
    for place in ("../secret.data", str(secret), "missing.data"):
        for name in ("small.onnx", "weights.data"):
            (tmp_path / "in" / name).unlink(missing_ok=True)
        write_onnx(path, small, outer=place)
        with pytest.raises(BundleError, match=r"outside its own folder|missing"):
            sfumato.adapters.from_onnx(path, **SAID)
    (tmp_path / "in" / "link.data").symlink_to(secret)
    for name in ("small.onnx", "weights.data"):
        (tmp_path / "in" / name).unlink()
    write_onnx(path, small, outer="link.data")
    with pytest.raises(BundleError, match="outside its own folder"):
        sfumato.adapters.from_onnx(path, **SAID)
    monkeypatch.setattr("sfumato.adapters.onnx_file.LARGEST", 100)
    with pytest.raises(BundleError, match="at most 100"):
        sfumato.adapters.from_onnx(tmp_path / "plain.onnx", **SAID)


@needs_onnx
def test_what_does_not_fit_an_onnx_graph_is_said_in_one_line(tmp_path: Path):
    path, read = write_onnx(tmp_path / "small.onnx", Small()), sfumato.adapters.from_onnx
    good = read(path, **SAID)
    (tmp_path / "noise.onnx").write_bytes(os.urandom(300))
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-40])
    (tmp_path / "empty.onnx").write_bytes(b"")
    x, said = torch.zeros(4, 2), SAID["inputs"]
    cases = {
        "there is no": lambda: read(tmp_path / "none.onnx", **SAID),
        "not a whole ONNX model": lambda: read(tmp_path / "noise.onnx", **SAID),
        "cut.onnx": lambda: read(tmp_path / "cut.onnx", **SAID),
        "graph is empty": lambda: read(tmp_path / "empty.onnx", **SAID),
        "does not say its inputs": lambda: read(path),
        "did you mean 'predicts'": lambda: read(path, **SAID, predict="x0"),
        "did you mean 'sigma'": lambda: read(path, **SAID | {"inputs": said | {"noise": "sigmas"}}),
        "which one is 'noise'": lambda: read(path, **SAID | {"inputs": {"x": "x", "label": "digit"}}),
        "must be said once": lambda: read(path, **SAID | {"inputs": {"x": "x", "noise": "sigma"}}),
        "unknown output": lambda: read(path, **SAID | {"output": "answers"}),
        "say which one": lambda: read(path, **{k: v for k, v in SAID.items() if k != "output"}),
        "unknown prediction": lambda: read(path, **SAID | {"predicts": "noise"}),
        "unknown clock": lambda: read(path, **SAID | {"clock": "sun"}),
        "unknown schedule": lambda: read(path, **SAID | {"schedule": {"kind": "edn"}}),
        "cannot be": lambda: read(path, **SAID | {"classes": "three"}),
        "takes (any, 2)": lambda: good(torch.zeros(4, 3), 0.5),
        "unknown condition": lambda: good(x, 0.5, {"text": x}),
        "'label' must be a tensor": lambda: good(x, 0.5, {"label": torch.zeros(3, dtype=torch.long)}),
        "onnxruntime refused": lambda: good(x, 0.5, {"label": torch.full((4,), 99)}),
    }
    for text_of_error, act in cases.items():
        with pytest.raises(SfumatoError) as caught:
            act()
        assert text_of_error in str(caught.value)
        assert "\n" not in str(caught.value)


@needs_onnx
def test_many_threads_share_one_onnx_graph(tmp_path: Path):
    denoiser = sfumato.adapters.from_onnx(write_onnx(tmp_path / "small.onnx", Small()), **SAID)
    levels = UniformGrid().levels(denoiser.process, 8)

    def draw(seed: int) -> torch.Tensor:
        return sample(denoiser, Noise(seed, 5), (2,), solver=build_solver("heun"), levels=levels)

    apart = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert all(torch.equal(*pair) for pair in zip(apart, pool.map(draw, range(8)), strict=True))


TERRAIN = (
    os.environ.get("SFUMATO_TERRAIN")
    or getattr(importlib.util.find_spec("terrain_diffusion"), "submodule_search_locations", [None])[0]
)


@needs_onnx
@pytest.mark.slow
@pytest.mark.skipif(
    not TERRAIN, reason="needs adaptive-terrain-diffusion, or its unpacked folder in SFUMATO_TERRAIN"
)
def test_a_stranger_s_one_step_model_is_the_map_that_its_own_code_calls():
    import onnxruntime

    path = Path(str(TERRAIN)) / "weights" / "terrain_consistency_unet_difficulty100.onnx"
    denoiser = sfumato.adapters.from_onnx(
        path,
        inputs={"x": "noisy", "noise": "sigma", "difficulty": "difficulty"},
        schedule=EDM(0.002, 80.0), sigma_data=0.5, predicts="x0", clock="sigma", endpoint=True,
    )  # fmt: skip
    assert denoiser.endpoint
    condition = {"difficulty": torch.tensor([0.0, 1.0])}
    levels = [denoiser.process.level(1.0), CLEAN]
    drawn = sample(denoiser, Noise(0, 2), (1, 128, 128), solver=DDIM(), levels=levels, condition=condition)
    x = denoiser.process.prior(torch.empty(2, 1, 128, 128), Noise(0, 2).at(0), levels[0])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {"noisy": x.numpy(), "sigma": np.full(2, 80.0, np.float32), "difficulty": np.float32([0, 1])}
    theirs = torch.from_numpy(session.run(["denoised"], feed)[0])
    assert torch.allclose(drawn, theirs, atol=1e-5)
    assert float(drawn[1].std()) > float(drawn[0].std()), "harder terrain is rougher"
    quiet = denoiser.process.level(0.0)
    assert float((denoiser(drawn, quiet, condition).x0 - drawn).abs().max()) < 0.05, "f(x, sigma_min) is x"
