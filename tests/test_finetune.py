"""Laws of fine-tuning: the base stays as it is, a stopped run goes on, what cannot be taught is refused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sfumato
from sfumato.cli import main
from sfumato.denoisers import Denoiser
from sfumato.domains.images import Images
from sfumato.errors import BundleError, DataError, RecipeError, RunError
from sfumato.model import Model, Sampling
from sfumato.networks import build
from sfumato.processes import Flow, Gaussian
from sfumato.recipes.finetune import finetune, finetune_recipe, set_up
from sfumato.recipes.inversion import Prompted, learn_word
from sfumato.recipes.remembering import Mixed
from sfumato.solvers import DPMpp2M, FlowGrid
from sfumato.training import Callback, Interrupted, TrainingConfig, load_checkpoint

SHORT = ["training.images=192", "training.checkpoint_every=96", "sampling.steps=2"]


def crosses(folder: Path, count: int = 6, size: int = 8) -> Path:
    """Pictures of bright crosses, of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        pixels = np.zeros((size + k, size + k), np.uint8)
        pixels[(size + k) // 2] = pixels[:, (size + k) // 2] = 200 + k
        Image.fromarray(pixels).save(folder / f"cross-{k}.png")
    return folder


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Path:
    return demo_folder / "runs" / "demo" / "model"


@pytest.fixture(scope="module")
def base(demo: Path) -> Model:
    return sfumato.load(demo)


class Stop(Callback):
    """Asks the run to stop, as Ctrl-C does, once it has shown so many images."""

    def __init__(self, images: int):
        self.images = images

    def on_step(self, images, total, loss, images_per_second, seconds_left):
        if images == self.images:
            os.kill(os.getpid(), signal.SIGINT)


def test_training_an_adapter_leaves_the_base_as_it_is_and_learns(demo: Path, base: Model, tmp_path: Path):
    pictures, before = crosses(tmp_path / "pictures"), base.fingerprint
    recipe = finetune_recipe(demo, pictures, label="cross", rank=4, overrides=SHORT)
    model, result = finetune(recipe, tmp_path / "run", model=base)
    assert base.fingerprint == before
    kept = load_checkpoint(result.checkpoint).part("weights")
    for name, value in base.denoiser.state_dict().items():
        assert torch.equal(kept[name], value), name
    adapter = sfumato.load_adapter(tmp_path / "run" / "adapter")
    assert (adapter.base, adapter.rank, list(adapter.classes)) == (before, 4, ["cross"])
    again = sfumato.load(demo).with_adapters([adapter])
    assert again.fingerprint == model.fingerprint
    assert again.classes == (*base.classes, "cross")
    parts = set_up(recipe, base)
    # label 10 is the new class of the one, and "none" of the other, which is where training started
    batch = {"x": parts.data.tensor(), "condition": {"label": torch.full((6,), 10)}}
    after, start = (parts.objective(m.denoiser, batch, sfumato.Noise(0, 6))[0] for m in (model, base))
    assert bool((after < start).all())  # by 2 to 6 % after these twelve steps, on each picture
    text = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert before in text
    assert "Forgotten" in text
    assert adapter.about["training"]["forgetting"]["samples"] == 64


def test_a_stopped_run_goes_on_to_the_same_bits(demo: Path, base: Model, tmp_path: Path):
    pictures = crosses(tmp_path / "pictures")
    recipe = finetune_recipe(
        demo, pictures, label="cross", rank=2, prior=0.5, prior_count=12, overrides=[*SHORT, "data.flip=true"]
    )
    whole, _ = finetune(recipe, tmp_path / "whole", model=base)
    _, result = finetune(recipe, tmp_path / "cut", model=base, callbacks=[Stop(112)])
    assert isinstance(result, Interrupted)
    assert not (tmp_path / "cut" / "adapter").exists()
    with pytest.raises(RunError, match="already holds a run"):
        finetune(recipe, tmp_path / "cut", model=base)
    recipe = sfumato.read_recipe(tmp_path / "cut" / "recipe.toml")
    resumed, result = finetune(recipe, tmp_path / "cut", model=base, resume=True)
    assert not isinstance(result, Interrupted)
    assert resumed.fingerprint == whole.fingerprint
    assert len(list((tmp_path / "cut" / "prior").iterdir())) == 12


def test_full_fine_tuning_leaves_a_whole_model(demo: Path, base: Model, tmp_path: Path):
    pictures, before = crosses(tmp_path / "pictures"), base.fingerprint
    recipe = finetune_recipe(demo, pictures, label="cross", full=True, overrides=SHORT)
    model, _ = finetune(recipe, tmp_path / "run", model=base)
    again = sfumato.load(tmp_path / "run" / "model")
    assert base.fingerprint == before
    assert again.fingerprint == model.fingerprint != before
    assert again.classes == (*base.classes, "cross")
    assert not (tmp_path / "run" / "adapter").exists()
    one, other = (m.sample(2, condition={"label": "cross"}, seed=0) for m in (model, again))
    assert torch.equal(one, other)
    with pytest.raises(BundleError, match="made for another model"):
        again.with_adapters([sfumato.Adapter(before, classes={"x": torch.zeros(32)})])


def test_labels_are_the_datas_own_or_the_one_that_is_said(demo: Path, base: Model, tmp_path: Path):
    pictures = crosses(tmp_path / "pictures")

    def labels_of(where: Path, **more):
        parts = set_up(finetune_recipe(demo, where, model=base, rank=2, **more), base)
        return set(parts.data.targets.tolist()), parts.new

    assert labels_of(pictures, label="7") == ({7}, ())
    assert labels_of(pictures, label="cross") == ({10}, ("cross",))
    for name in ("3", "cross", "ring"):
        crosses(tmp_path / "sorted" / name, 2)
    assert labels_of(tmp_path / "sorted") == ({3, 10, 11}, ("cross", "ring"))
    with pytest.raises(DataError, match="have none: say what they are of"):
        labels_of(pictures)
    parts = set_up(finetune_recipe(demo, pictures, model=base, label="cross"), base)
    assert parts.data.images.shape == (6, 8, 8, 1)  # all in the model's size, though no two files have one


def test_what_cannot_be_taught_is_refused_in_a_line(demo: Path, base: Model, tmp_path: Path):
    pictures, one = crosses(tmp_path / "pictures"), crosses(tmp_path / "one", 1)
    cases = [
        (DataError, "at least 2 pictures", one, {"label": "cross"}),
        (RecipeError, "rank 4096 is larger than every layer", pictures, {"label": "cross", "rank": 4096}),
        (RecipeError, "no layer matches 'nothing'", pictures, {"label": "cross", "layers": ["nothing"]}),
        (DataError, "does not exist", tmp_path / "nowhere", {"label": "cross"}),
    ]
    for error, said, where, settings in cases:
        with pytest.raises(error, match=said) as refused:
            set_up(finetune_recipe(demo, where, model=base, **settings), base)
        assert "\n" not in str(refused.value)
    for name in (
        "network.width=8",
        "data.size=16",
        "denoiser.parameterisation=eps",
        "finetune.weights=x",
        "objective.kind=classifier",
    ):
        with pytest.raises(RecipeError, match="follows from the model"):
            finetune_recipe(demo, pictures, model=base, overrides=[name])
    with pytest.raises(RecipeError, match="did you mean 'rank'"):
        finetune_recipe(demo, pictures, model=base, overrides=["finetune.rang=2"])
    with pytest.raises(RecipeError, match="prior"):
        finetune_recipe(demo, pictures, model=base, prior=1.0)
    recipe = finetune_recipe(demo, pictures, model=base, label="cross")
    changed = base.with_adapters([set_up(recipe, base).adapter])
    with pytest.raises(BundleError, match="not the one this run began with"):
        set_up(recipe, changed)
    with pytest.raises(RecipeError, match="use sfumato finetune"):
        sfumato.train(recipe, tmp_path / "run")
    with pytest.raises(RecipeError, match="no section"):
        set_up(sfumato.read_recipe("digits"), base)


def test_a_model_without_labels_is_taught_without_one(base: Model, tmp_path: Path):
    torch.manual_seed(0)
    network = build("unet", in_channels=1, size=8, width=16, multipliers=[1], blocks=[1], embedding=32)
    denoiser = Denoiser(network, Gaussian(Flow(), 0.5), "velocity")
    plain = Model(denoiser, Images(size=8, channels=1), Sampling(DPMpp2M(), FlowGrid(), steps=2))
    pictures = crosses(tmp_path / "pictures")
    with pytest.raises(DataError, match="knows no labels"):
        set_up(finetune_recipe("m", pictures, model=plain, label="cross"), plain)
    recipe = finetune_recipe(
        "m", pictures, model=plain, rank=2, prior=0.3, prior_count=4, overrides=[*SHORT, "training.images=32"]
    )
    model, _ = finetune(recipe, tmp_path / "run", model=plain)
    assert model.classes == ()
    assert model.fingerprint != plain.fingerprint


def test_old_pictures_are_mixed_in_by_keys():
    domain = Images(size=4, channels=1, classes=("old", "new"))
    own = domain.of(np.full((3, 4, 4), 255, np.uint8), np.ones(3, np.int64))
    old = domain.of(np.zeros((5, 4, 4), np.uint8), np.zeros(5, np.int64))
    data, rows = Mixed(own, old, 0.3), np.arange(2000) % 3
    batch = data.batch(rows, 7, 0)
    is_old = batch["condition"]["label"] == 0
    assert torch.equal(is_old, (batch["x"] < 0).flatten(1).all(1))
    share = float(is_old.double().mean())
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 2000) ** 0.5  # four standard errors
    first, second = data.batch(rows[:800], 7, 0), data.batch(rows[800:], 7, 800)
    assert torch.equal(torch.cat([first["x"], second["x"]]), batch["x"])
    assert not torch.equal(data.batch(rows, 8, 0)["x"], batch["x"])
    assert bool((Mixed(own, old, 0.0).batch(rows, 7, 0)["condition"]["label"] == 1).all())
    assert bool((own.batch(rows, 7, 0)["condition"]["label"] == 1).all())


def speaking() -> Model:
    torch.manual_seed(0)
    network = build(
        "unet",
        in_channels=1,
        size=8,
        width=16,
        multipliers=[1],
        blocks=[1],
        embedding=32,
        text_dim=6,
        head=16,
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    denoiser = Denoiser(network, Gaussian(Flow(), 0.5), "velocity").eval().requires_grad_(False)
    return Model(denoiser, Images(size=8, channels=1), Sampling(DPMpp2M(), FlowGrid(), steps=2))


def test_a_word_is_learned_and_nothing_else(tmp_path: Path):
    model = speaking()
    before = model.fingerprint
    data = model.domain.read(crosses(tmp_path / "pictures"))
    text = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    config = TrainingConfig(
        images=192, batch=16, learning_rate=3e-2, warmup=16, ema=(0.1,), checkpoint_every=96, validate_every=0
    )
    settings = {"text": text, "tokens": 2, "training": config}
    adapter, result = learn_word(model, data, "cross", tmp_path / "whole", **settings)
    assert model.fingerprint == before
    word = adapter.words["cross"]
    assert word.shape == (2, 6)
    assert not torch.allclose(word[0], word[1])
    kept = load_checkpoint(result.checkpoint).part("weights")
    for name, value in model.denoiser.network.state_dict().items():
        assert torch.equal(kept[f"network.network.{name}"], value)
    _, cut = learn_word(model, data, "cross", tmp_path / "cut", callbacks=[Stop(112)], **settings)
    assert isinstance(cut, Interrupted)
    again, _ = learn_word(model, data, "cross", tmp_path / "cut", resume=True, **settings)
    assert torch.equal(again.words["cross"], word)
    saved = sfumato.load_adapter(tmp_path / "cut" / "adapter")
    new = model.with_adapters([saved])
    assert torch.equal(new.words["cross"], word)
    assert new.fingerprint == before  # a word changes no weight
    # what was minimised is lower with the word than with the start it had
    start, _ = learn_word(
        model, data, "cross", tmp_path / "start", text=text, tokens=2,
        training=config.model_copy(update={"images": 16, "learning_rate": 1e-9}),
    )  # fmt: skip
    losses = [said_loss(model, data, text, a.words["cross"]) for a in (start, adapter)]
    assert losses[1] < losses[0]


def said_loss(model: Model, data, text, word) -> float:
    from sfumato.objectives import Denoising
    from sfumato.personal import place

    batch = Prompted(data, text, torch.ones(text.shape[:2], dtype=torch.bool)).batch(np.arange(60) % 6, 5, 0)
    said, mask = place(batch["condition"]["text"], batch["condition"]["text_mask"], word)
    batch["condition"] = {"text": said, "text_mask": mask}
    return float(Denoising()(model.denoiser, batch, sfumato.Noise(3, 60))[0].mean())


def test_words_that_cannot_be_learned_are_refused(base: Model, tmp_path: Path):
    model, data = speaking(), speaking().domain.read(crosses(tmp_path / "pictures"))
    text = torch.zeros(1, 2, 6)
    with pytest.raises(BundleError, match="takes no text"):
        learn_word(base, data, "w", tmp_path / "run", text=text)
    for name in ("", "two words", "<w>"):
        with pytest.raises(DataError, match="word's name"):
            learn_word(model, data, name, tmp_path / "run", text=text)
    with pytest.raises(DataError, match="at least 2 pictures"):
        learn_word(model, data.take([0]), "w", tmp_path / "run", text=text)
    with pytest.raises(DataError, match=r"prompts are \(prompts, tokens, 6\)"):
        learn_word(model, data, "w", tmp_path / "run", text=torch.zeros(1, 2, 5))
    with pytest.raises(DataError, match="at least one token"):
        learn_word(model, data, "w", tmp_path / "run", text=text, tokens=0)
    with pytest.raises(BundleError, match=r"is \(tokens, 6\)"):
        learn_word(model, data, "w", tmp_path / "run", text=text, start=torch.zeros(1, 5))
    with pytest.raises(BundleError, match="teach it a word"):
        set_up(finetune_recipe("m", tmp_path / "pictures", model=model), model)


def run(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    seen = capsys.readouterr()
    return int(left.value.code or 0), seen.out, seen.err


def test_the_commands(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo, tmp_path / "base")
    crosses(tmp_path / "pictures")
    more = ["--rank", 2, "--images", 32, "--out", "run", "sampling.steps=2"]
    code, out, err = run(
        capsys, "finetune", "base", "--data", "pictures", "--label", "cross", "--merge", *more
    )
    assert code == 0, err
    assert "--adapter run/adapter" in out
    draw = ["sample", "base", "--steps", 2, "--count", 2, "--label", "cross"]
    code, out, err = run(capsys, *draw, "--adapter", "run/adapter:0.5", "--out", "half")
    assert code == 0, err
    assert (tmp_path / "half" / "sample-00001-label-10.png").is_file()
    code, out, err = run(capsys, *draw, "--out", "none")
    assert (code, "unknown class 'cross'" in err) == (1, True)
    merged = ["sample", "run/model", "--steps", 2, "--count", 2, "--label", "cross"]
    assert run(capsys, *merged, "--out", "merged")[0] == 0
    code, out, err = run(capsys, *merged, "--adapter", "run/adapter", "--out", "twice")
    assert (code, err.count("\n")) == (1, 1)
    assert "made for another model" in err
    code, out, err = run(capsys, "finetune", "base", "--out", "run2")
    assert (code, "which model, and which pictures?" in err) == (1, True)
    code, out, err = run(capsys, "finetune", "--resume", "--out", "run")
    assert code == 0, err


@pytest.mark.slow
def test_a_fine_tuning_killed_four_times_is_the_one_that_was_not(demo: Path, tmp_path: Path):
    pictures = crosses(tmp_path / "pictures")
    command = [sys.executable, "-m", "sfumato", "finetune"]
    asked = [str(demo), "--data", str(pictures), "--label", "cross", "training.images=960"]
    asked += ["training.checkpoint_every=48", "training.log_every=48", "sampling.steps=2"]
    subprocess.run([*command, *asked, "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    out, happened, lucky = tmp_path / "killed", 0, random.Random(0)
    for _ in range(4):
        again = ["--resume"] if (out / "recipe.toml").is_file() else asked
        process = subprocess.Popen([*command, *again, "--out", str(out)], stdout=subprocess.DEVNULL)
        # the newest, not how many: old checkpoints are removed
        before, deadline = max(out.glob("checkpoints/0*"), default=None), time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if max(out.glob("checkpoints/0*"), default=None) != before:
                break
            time.sleep(0.02)
        time.sleep(lucky.uniform(0, 0.3))
        process.kill()
        happened += process.wait() == -signal.SIGKILL
    assert happened >= 2
    subprocess.run([*command, "--resume", "--out", str(out)], check=True, capture_output=True)
    one, other = (sfumato.load_adapter(tmp_path / name / "adapter") for name in ("whole", "killed"))
    assert one.updates.keys() == other.updates.keys()
    for name, pair in one.updates.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, other.updates[name], strict=True)), name
    assert all(torch.equal(one.classes[name], other.classes[name]) for name in one.classes)


# --- what users did that ended badly ---


def test_dropped_labels_do_not_end_the_measure_of_forgetting(demo: Path, base: Model, tmp_path: Path):
    more = ["training.images=32", "training.batch=8", "objective.drop=0.5"]
    recipe = finetune_recipe(demo, crosses(tmp_path / "p"), label="mine", rank=2, overrides=more, model=base)
    finetune(recipe, tmp_path / "run", model=base)
    assert (tmp_path / "run" / "adapter" / "adapter.json").is_file()


def test_a_model_that_enlarges_is_refused_before_it_is_trained(tmp_path: Path):
    from test_cascade import cascade

    sfumato.save(cascade(), tmp_path / "two")
    recipe = finetune_recipe(
        tmp_path / "two", crosses(tmp_path / "p"), label="a", overrides=["training.images=32"]
    )
    with pytest.raises(BundleError, match=r"fine-tune the one that it enlarges, in .*base"):
        set_up(recipe)


def test_the_model_itself_is_not_overwritten(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    shutil.copytree(demo, tmp_path / "model")
    before = sfumato.load(tmp_path / "model").fingerprint
    words = ["--data", crosses(tmp_path / "p"), "--label", "mine", "--images", 32, "--out", tmp_path]
    code, _, err = run(capsys, "finetune", tmp_path / "model", *words, "--full")
    assert (code, "is the model that is fine-tuned" in err) == (1, True)
    assert sfumato.load(tmp_path / "model").fingerprint == before


def test_pictures_of_any_shape_are_made_the_models_size(demo: Path, base: Model, tmp_path: Path):
    (folder := tmp_path / "p").mkdir()
    for k in range(2):
        Image.fromarray(np.full((9 + k, 20), 90, np.uint8)).save(folder / f"{k}.png")
    recipe = finetune_recipe(demo, folder, label="mine", overrides=["training.images=32"], model=base)
    assert len(set_up(recipe, base).data) == 2


def test_names_and_prompts_that_say_nothing_are_refused(demo: Path, base: Model, tmp_path: Path):
    for what in ("label", "prompt"):
        with pytest.raises(RecipeError, match=what):
            finetune_recipe(demo, crosses(tmp_path / "p"), model=base, **{what: " "})


def test_a_word_of_no_pictures_is_refused_in_a_line(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    words = ["--data", crosses(tmp_path / "p"), "--word", "mine", "--images", 0, "--out", tmp_path / "run"]
    code, _, err = run(capsys, "finetune", demo, *words)
    assert (code, err.count("\n"), "at least one picture" in err) == (1, 1, True)
