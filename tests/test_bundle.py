"""Bundles: what is saved is what is loaded, and anything else is refused in one line."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato.bundle as bundles
from sfumato.errors import BundleError, RunError, SolverError
from sfumato.film import film
from sfumato.solvers import Unfinished


@pytest.fixture
def bundle(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(demo_folder / "runs" / "demo" / "model", tmp_path / "model"))


def refused(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        bundles.load(folder)
    text = str(caught.value)
    assert "\n" not in text
    return text


def reseal(folder: Path, **changes: object) -> None:
    """Edit a record as its own writer would, with a fitting SHA-256."""
    record = json.loads((folder / "bundle.json").read_text()) | changes
    record["sha256"] = bundles._digest(record)
    (folder / "bundle.json").write_text(json.dumps(record))


def test_a_bundle_loads_as_it_was_saved(bundle: Path, tmp_path: Path):
    model = bundles.load(bundle)
    again = tmp_path / "again"
    bundles.save(model, again)
    other = bundles.load(again)
    for name, weight in model.denoiser.state_dict().items():
        assert torch.equal(weight, other.denoiser.state_dict()[name])
    assert other.denoiser.process == model.denoiser.process
    assert (other.domain, other.sampling) == (model.domain, model.sampling)
    drawn = [m.sample(3, condition={"label": 4}, seed=5) for m in (model, other)]
    assert torch.equal(*drawn)


def test_a_changed_record_is_refused(bundle: Path):
    path = bundle / "bundle.json"
    path.write_text(path.read_text().replace('"velocity"', '"eps"'))
    assert "edited or damaged" in refused(bundle)


def test_changed_weights_are_refused(bundle: Path):
    path = bundle / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert "not the file that bundle.json describes" in refused(bundle)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["bundle.json", "weights.safetensors"])
def test_a_truncated_file_is_refused(bundle: Path, name: str, share: float):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[: int(share * len(content))])
    refused(bundle)


def test_a_pickle_under_another_name_is_never_opened(bundle: Path, tmp_path: Path):
    class Harm:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harm",))

    (bundle / "weights.safetensors").write_bytes(pickle.dumps(Harm()))
    assert "pickle" in refused(bundle)
    torch.save({"w": torch.zeros(3)}, bundle / "weights.safetensors")
    assert "pickle" in refused(bundle)
    assert not (tmp_path / "harm").exists()


def test_what_is_not_a_bundle_is_named(tmp_path: Path, bundle: Path):
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no bundle.json" in refused(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copytree(bundle, tmp_path / "run" / "model")
    assert str(tmp_path / "run" / "model") in refused(tmp_path / "run")  # the hint
    (bundle / "bundle.json").write_text("{}")
    assert "not a sfumato bundle" in refused(bundle)
    (bundle / "bundle.json").write_text("[" * 100_000)
    refused(bundle)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 99},
        {"network": {"kind": "os.system", "config": {}}},
        {"network": {"kind": "unet", "config": {"in_channels": 3, "size": 8, "classes": 10}}},
        {"process": {"kind": "gaussian", "schedule": {"kind": "nothing"}}},
        {"process": {}},
        {
            "sampling": {
                "solver": {"kind": "heun", "order": 9},
                "grid": {"kind": "flow"},
                "steps": 1,
                "guidance": 1.0,
            }
        },
        {"domain": {"kind": "smells"}},
    ],
)
def test_a_record_that_describes_no_model_is_refused(bundle: Path, changes: dict):
    """Even with a right SHA-256: a record is data, and nothing in it is looked up as code."""
    reseal(bundle, **changes)
    refused(bundle)


def test_weights_of_another_network_are_refused(bundle: Path):
    weights = load_file(bundle / "weights.safetensors")
    name = next(iter(weights))
    weights[name] = torch.zeros(1)
    save_file(weights, bundle / "weights.safetensors")
    digest = bundles.hashlib.sha256((bundle / "weights.safetensors").read_bytes()).hexdigest()
    reseal(bundle, files={"weights.safetensors": digest})
    refused(bundle)


def test_a_full_disk_leaves_the_old_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    model = bundles.load(bundle)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bundles, "write_safetensors", full)
    with pytest.raises(RunError, match="disk is full"):
        bundles.save(model, bundle)
    monkeypatch.undo()
    assert torch.equal(bundles.load(bundle).sample(1, seed=1), model.sample(1, seed=1))
    assert {path.name for path in bundle.parent.iterdir()} == {"model"}


def test_a_sample_alone_is_the_sample_in_a_batch(bundle: Path):
    model = bundles.load(bundle)
    labels = torch.arange(20) % 10
    together = model.sample(20, condition={"label": labels}, seed=3)
    split = model.sample(20, condition={"label": labels}, seed=3, batch=6)
    alone = model.sample(indices=[17, 2], condition={"label": labels[[17, 2]]}, seed=3)
    assert torch.allclose(together, split, atol=1e-5)
    assert torch.allclose(together[[17, 2]], alone, atol=1e-5)
    assert not torch.allclose(together[0], together[10], atol=1e-2)  # same label, other noise


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"condition": {"label": 10}}, "out of range"),
        ({"condition": {"label": -1}}, "out of range"),
        ({"condition": {"label": "nine"}}, "unknown class"),
        ({"condition": {"label": [1, 2]}}, "2 labels"),
        ({"condition": {"labl": 1}}, "did you mean 'label'"),
        ({"steps": 0}, "steps must be"),
        ({"steps": -3}, "steps must be"),
        ({"solver": "heum"}, "did you mean 'heun'"),
        ({"grid": "flw"}, "did you mean 'flow'"),
        ({"guidance": float("nan"), "condition": {"label": 1}}, "finite"),
        ({"indices": [1]}, "not both"),
        ({"batch": 0}, "batch"),
    ],
)
def test_a_wrong_wish_is_one_clear_line(demo_folder: Path, settings: dict, says: str):
    model = bundles.load(demo_folder / "runs" / "demo" / "model")
    with pytest.raises(Exception, match=says) as caught:
        model.sample(3, **settings)
    assert isinstance(caught.value, bundles.SfumatoError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("steps", [1, 3, 8, 11])
def test_a_film_ends_with_the_sample(demo_folder: Path, steps: int):
    model = bundles.load(demo_folder / "runs" / "demo" / "model")
    condition = {"label": [0, 1]}
    shots, captions = film(model, 2, frames=8, steps=steps, condition=condition, seed=4)
    assert len(shots) == len(captions) == min(8, steps)
    assert captions[-1] == "sample"
    assert torch.equal(shots[-1], model.sample(2, steps=steps, condition=condition, seed=4))


@pytest.mark.parametrize("label", [3.7, [1.5, 2], True, [None, 1]])
def test_a_label_that_is_no_label_is_refused(demo_folder: Path, label: object):
    model = bundles.load(demo_folder / "runs" / "demo" / "model")
    with pytest.raises(BundleError, match="whole number"):
        model.conditions.labels(label, 2)
    assert (
        model.conditions.labels(np.int64(3), 2).tolist()
        == model.conditions.labels(np.array([3, 3]), 2).tolist()
        == [3, 3]
    )


def test_a_model_that_always_saw_labels_is_not_sampled_without(demo_folder: Path):
    model = bundles.load(demo_folder / "runs" / "demo" / "model")
    model.sample(1, steps=1)
    model.info["guidable"] = False
    model.sample(1, steps=1, condition={"label": 3})
    with pytest.raises(BundleError, match="with a label always"):
        model.sample(1, steps=1)


class Fails(torch.nn.Module):
    """A network that says NaN from one of its calls on, as an overflowing one does in the middle of a run."""

    def __init__(self, network, calls):
        super().__init__()
        self.network, self.config, self.left = network, network.config, calls

    def forward(self, *given):
        self.left -= 1
        return self.network(*given) * (float("nan") if self.left < 0 else 1.0)


def test_nan_in_mid_run_names_the_step_and_keeps_what_was_finished(bundle: Path):
    model = bundles.load(bundle)
    settings = {"solver": "euler", "grid": "flow", "steps": 5, "guidance": 1.0, "condition": {"label": 3}}
    whole = model.sample(7, batch=3, **settings)
    model.denoiser.network = Fails(model.denoiser.network, 12)
    with pytest.raises(Unfinished, match=r"after step 3 of 5 .*6 of 7 samples") as caught:
        model.sample(7, batch=3, **settings)
    assert caught.value.finished == (0, 1, 2, 3, 4, 5)
    assert torch.equal(caught.value.samples, whole[:6])
    model.denoiser.network.left = 2
    with pytest.raises(
        SolverError, match="after step 3 of 5"
    ) as early:  # nothing was finished: nothing is kept
        model.sample(7, batch=3, **settings)
    assert not isinstance(early.value, Unfinished)
