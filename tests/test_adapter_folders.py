"""Folders that diffusers wrote, as models: read whole, refused in one line, sampled, tuned and measured."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sfumato
from diffusers_networks import BETAS, dit, state, unet
from sfumato.adapters import Borrowed, from_diffusers, load_diffusers
from sfumato.errors import BundleError, MissingExtra
from sfumato.noise import Noise
from sfumato.solvers import (
    Tuned,
    adams,
    integrate,
    noisiest,
)
from sfumato.solvers.tuning import Effort

diffusers = pytest.importorskip("diffusers", reason="needs sfumato[diffusers]")


# --- folders ---


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **BETAS["zero terminal"])
    diffusers.DDIMPipeline(unet=unet(classes=11), scheduler=scheduler).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_folder_a_pipeline_and_its_parts_are_one_denoiser(pipeline: Path):
    whole = diffusers.DDIMPipeline.from_pretrained(pipeline)
    label, x = {"label": torch.tensor([1, 2, 3])}, state()
    sources = [(pipeline,), (str(pipeline),), (whole,), (whole.unet, whole.scheduler),
               (whole.unet, pipeline / "scheduler"), (whole.unet, dict(whole.scheduler.config))]  # fmt: skip
    values = [from_diffusers(*source)(x, 0.6, label).x0 for source in sources]
    assert all(torch.equal(value, values[0]) for value in values)


def test_a_folder_is_a_model_for_everything_that_takes_one(pipeline: Path, tmp_path: Path):
    model = sfumato.load(pipeline)
    assert model.domain.shape == (1, 8, 8)
    assert len(model.classes) == 11
    drawn = model.sample(4, condition={"label": [1, 2, 3, 4]}, seed=3, steps=5)
    alone = model.sample(indices=[2], condition={"label": 3}, seed=3, steps=5)
    assert torch.allclose(drawn[2:3], alone, atol=1e-5)
    with pytest.raises(BundleError, match="guidance 1"):
        model.sample(1, condition={"label": 1}, guidance=2.0)
    guidable = load_diffusers(pipeline, null_label=10)
    assert len(guidable.classes) == 10
    guided = guidable.sample(2, condition={"label": 1}, guidance=2.0, steps=5)
    sfumato.save(guidable, tmp_path / "bundle")  # and so a pipeline becomes a bundle
    again = sfumato.load(tmp_path / "bundle").sample(2, condition={"label": 1}, guidance=2.0, steps=5)
    assert torch.equal(guided, again)


def test_a_network_of_eps_starts_where_it_says_something(tmp_path: Path):
    scheduler = diffusers.DDPMScheduler(**BETAS["cosine"])
    diffusers.DDPMPipeline(unet=unet(), scheduler=scheduler).save_pretrained(tmp_path / "p")
    model = sfumato.load(tmp_path / "p")
    first = model.sampling.grid.levels(model.denoiser.process, 4)[0]
    assert first.sigma / first.alpha == pytest.approx(160)
    assert bool(model.sample(2, steps=4).isfinite().all())


def test_the_command_line_samples_and_inspects_a_folder(pipeline: Path, tmp_path: Path, capsys):
    from sfumato.cli import main

    for arguments in (
        ["sample", str(pipeline), "-n", "3", "--steps", "3", "--out", str(tmp_path / "out")],
        ["inspect", str(pipeline)],
        ["inspect", str(pipeline), "--json"],
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        out = capsys.readouterr().out
        if arguments[0] == "inspect" and len(arguments) == 2:
            assert "UNet2DModel" in out
            assert "Table(1000 entries" in out
    assert json.loads(out)["format"] == "diffusers"
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_names_of_labels_come_from_the_pipeline_and_differ(tmp_path: Path):
    names = {str(k): "crane" if k in (2, 7) else f"thing {k}" for k in range(10)}
    scheduler = diffusers.DDIMScheduler()
    diffusers.DiTPipeline(dit(), None, scheduler).save_pretrained(tmp_path / "p")
    edit(tmp_path / "p" / "model_index.json", id2label=names)
    model = sfumato.load(tmp_path / "p")
    assert model.classes[0] == "thing 0"
    assert {model.classes[2], model.classes[7]} == {"crane (2)", "crane (7)"}
    assert model.sample(1, condition={"label": "thing 4"}, guidance=1.5, steps=2).shape == (1, 1, 8, 8)


def test_shards_are_read_and_must_lie_beside_their_index(pipeline: Path, tmp_path: Path):
    folder = pipeline / "unet"
    whole = sfumato.load(pipeline).sample(2, condition={"label": 1}, steps=2)
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    names = {
        key: f"diffusion_pytorch_model-0000{1 + k % 2}-of-00002.safetensors" for k, key in enumerate(weights)
    }
    for name in set(names.values()):
        save_file(
            {key: weights[key] for key in weights if names[key] == name}, folder / name, {"format": "pt"}
        )
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    assert torch.equal(sfumato.load(pipeline).sample(2, condition={"label": 1}, steps=2), whole)
    shutil.copy(folder / next(iter(names.values())), tmp_path / "stray.safetensors")
    index.write_text(json.dumps({"weight_map": names | {next(iter(names)): "../../stray.safetensors"}}))
    assert "beside it" in refused(pipeline)
    index.write_text(json.dumps({"weight_map": names | {next(iter(names)): "missing.safetensors"}}))
    assert "lacks missing.safetensors" in refused(pipeline)


def refused(folder: Path, **settings: Any) -> str:
    with pytest.raises(BundleError) as caught:
        load_diffusers(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def no_scheduler(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=[None, None])


def no_scheduler_file(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")


def unknown_prediction(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilom")


def unknown_scheduler(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="ScoreSdeVeScheduler")


def bad_betas(folder: Path) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, trained_betas=[0.5, -0.5, 0.1], rescale_betas_zero_snr=False)


def wild_betas(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", beta_schedule="of my own")


def huge(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", num_train_timesteps="many")


def pickled(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    )


def corrupt_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def other_weights(folder: Path) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("conv_in.weight")
    save_file(weights, path, {"format": "pt"})


def other_shapes(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels=[12, 24])


def nonsense_config(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels="wide")


def corrupt_json(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text("{" * 100_000)


def cut_json(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"unet": [')


def list_json(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text("[]")


def endless_json(folder: Path) -> None:
    with open(folder / "unet" / "config.json", "ab") as file:
        file.truncate(2**25)


def own_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["pipeline_of_mine", "Mine"])
    (folder / "pipeline_of_mine.py").write_text("raise SystemExit('ran')")


def own_network(folder: Path) -> None:
    edit(folder / "model_index.json", unet=["unet_of_mine", "UNet2DModel"])
    (folder / "unet" / "unet_of_mine.py").write_text("raise SystemExit('ran')")


def own_class(folder: Path) -> None:
    edit(folder / "unet" / "config.json", _class_name="../../os.system")


def auto_map(folder: Path) -> None:
    edit(folder / "unet" / "config.json", auto_map={"AutoModel": "mine.Mine"})


def other_network(folder: Path) -> None:
    edit(folder / "unet" / "config.json", _class_name="UNet1DModel")


def two_networks(folder: Path) -> None:
    edit(folder / "model_index.json", transformer=["diffusers", "DiTTransformer2DModel"])


def with_vae(folder: Path) -> None:
    edit(folder / "model_index.json", vae=["diffusers", "AutoencoderKL"])


REFUSALS = {
    no_scheduler: "no scheduler",
    no_scheduler_file: "scheduler_config.json",
    unknown_prediction: "did you mean 'epsilon'",
    unknown_scheduler: "unknown scheduler",
    bad_betas: "describes no noise schedule",
    wild_betas: "refuses its config",
    huge: "num_train_timesteps",
    pickled: "pickle",
    corrupt_weights: "does not hold",
    other_weights: "conv_in.weight",
    other_shapes: "does not hold",
    nonsense_config: "does not hold",
    corrupt_json: "not whole JSON",
    cut_json: "not whole JSON",
    list_json: "JSON object",
    endless_json: "bytes long",
    own_pipeline: "code of its own",
    own_network: "not run",
    own_class: "unknown class",
    auto_map: "code of its own",
    other_network: "unknown class",
    two_networks: "one network",
    with_vae: "from_diffusers",
}


@pytest.mark.parametrize("damage", REFUSALS, ids=lambda f: f.__name__)
def test_a_folder_that_cannot_be_trusted_is_refused_in_one_line(pipeline: Path, damage):
    damage(pipeline)
    assert REFUSALS[damage] in refused(pipeline)


def test_folders_that_are_none_and_weights_of_another_variant(pipeline: Path, tmp_path: Path):
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "model_index.json" in refused(tmp_path)
    path = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert "name its variant" in refused(pipeline)
    assert load_diffusers(pipeline, variant="fp16").domain.channels == 1


def test_without_diffusers_the_extra_is_named(monkeypatch, pipeline: Path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[diffusers\]"):
        from_diffusers(pipeline)


def test_many_threads_share_one_denoiser(pipeline: Path):
    model = load_diffusers(pipeline, null_label=10)

    def draw(seed: int) -> torch.Tensor:
        return model.sample(2, condition={"label": seed}, seed=seed, steps=4, guidance=1.5)

    apart = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(draw, range(8)))
    assert all(torch.equal(*pair) for pair in zip(apart, together, strict=True))


def test_a_network_in_half_precision_is_asked_in_its_own():
    network = unet().to(torch.bfloat16)
    denoiser = from_diffusers(network, diffusers.DDIMScheduler())
    assert denoiser(state(), 0.3).x0.dtype == torch.float32
    assert isinstance(denoiser.network, Borrowed)


# --- tuned, and its likelihood ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> sfumato.Model:
    """A pipeline's model of 4 x 4 pixels: few enough for an exact trace."""
    folder = tmp_path_factory.mktemp("small") / "pipeline"
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", **BETAS["zero terminal"])
    network = unet(sample_size=4)
    with torch.no_grad():  # a new network answers little but 0
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    diffusers.DDIMPipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return sfumato.load(folder)


def test_an_adapted_model_is_tuned_to_its_own_trajectories(small: sfumato.Model):
    """On starts that no tuning has seen the solver is closer to a fine one than the table that it was fitted from."""
    found = small.tune(3, trajectories=48, effort=Effort(seconds=20, rounds=6))
    assert found.errors["tuned"].mean <= found.errors["untuned Adams"].mean
    assert (found.solver.steps, found.solver.conditional) == (3, False)
    assert found.solver.weights == small.fingerprint
    process, noise = small.denoiser.process, Noise(99, 32)
    first = noisiest(process)
    x = process.prior(torch.empty(32, *small.domain.shape), noise.at(0), first)

    def end(solver: Tuned) -> torch.Tensor:
        with torch.no_grad():
            return integrate(small.denoiser, solver, solver.grid.levels(process, solver.steps), x, noise)

    fine = end(adams(process, 80, 3))
    gaps = [
        (end(solver) - fine).square().flatten(1).mean(1).sqrt() for solver in (found.solver, found.untuned)
    ]
    assert float(gaps[0].mean()) <= float(gaps[1].mean())
    assert float(gaps[0].mean()) < 0.5 * float((fine - x).square().mean().sqrt())
    drawn = dataclasses.replace(small, tuned=(found.solver,)).sample(2, steps=3)
    assert torch.equal(drawn, small.sample(2, solver=found.solver))


def test_the_probes_of_an_adapted_model_agree_with_its_exact_trace(small: sfumato.Model):
    x = small.sample(12, steps=6, seed=1).clamp(-1, 1)
    exact = small.log_likelihood(x, steps=4)
    found = small.log_likelihood(x, steps=4, probes=8, seed=2)
    # the same steps on both sides, so that probes alone differ: t of 7 degrees of freedom, 12 pictures at 99.9 %
    assert bool(((found.nats - exact.nats).abs() <= 5.4 * found.deviation).all())
    assert bool((found.deviation > 0).all())
    assert bool((exact.deviation == 0).all())
    low, high = found.interval()
    inside = (low <= exact.nats) & (exact.nats <= high)
    assert int(inside.sum()) >= 9  # of 12 at 95 %: fewer happens once in five thousand
    other = small.log_likelihood(x + 0.5, steps=4)
    assert float((other.nats - exact.nats).abs().min()) > 1e-3
