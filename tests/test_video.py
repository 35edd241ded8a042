"""Clips: what is written is read again, time is told from space, and a measure fails what it is there to fail."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato import bundle
from sfumato.cli import main
from sfumato.denoisers import Denoiser, check_denoiser
from sfumato.domains import Video
from sfumato.domains import video as clips_of
from sfumato.domains.emoji import CAPTIONS, open_animated
from sfumato.domains.examples import Examples
from sfumato.editing import Windows, sample_canvas
from sfumato.errors import DataError, SolverError
from sfumato.evaluation import video as judged
from sfumato.evaluation.video import in_order, turned, video_measures
from sfumato.networks import build
from sfumato.processes import build_process
from sfumato.recipes import recipe_from
from sfumato.recipes.bench import Bench
from sfumato.recipes.run import train

FLOW = build_process("gaussian", schedule={"kind": "flow"}, sigma_data=0.5)


def moving(count: int, frames: int = 8, side: int = 8, seed: int = 0) -> np.ndarray:
    """Clips of a broad bar that runs round, each in colours and with a beginning of its own, uint8."""
    draw = np.random.default_rng(seed)
    clips = np.empty((count, frames, side, side, 3), np.uint8)
    for clip in clips:
        back, bar = draw.integers(0, 120, 3), draw.integers(130, 256, 3)
        begin = draw.integers(side)
        for t, frame in enumerate(clip):
            frame[:] = back
            frame[:, (begin + t * side // frames + np.arange(3)) % side] = bar
    return clips


def save(path: Path, clip: np.ndarray, durations: int | list[int] = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = [Image.fromarray(frame) for frame in clip]
    kind = {} if path.suffix == ".gif" else {"lossless": True}
    first.save(path, save_all=True, append_images=others, duration=durations, loop=0, **kind)
    return path


# --- files ---


@given(still=st.lists(st.integers(0, 7), min_size=8, max_size=8), rate=st.sampled_from([4.0, 10.0, 25.0]))
@settings(max_examples=15)
def test_what_is_written_is_read_again(tmp_path_factory, still: list[int], rate: float):
    clip = moving(1)[:, np.maximum.accumulate(still)]  # frames that stay are stored once, for longer
    if len(set(np.maximum.accumulate(still))) < 2:
        return  # a still
    folder = tmp_path_factory.mktemp("clips")
    domain = Video(size=8, frames=8, rate=rate)
    (path,) = domain.write(domain.encode(clip), folder, start=7, prompts=["A red bar!"])
    assert path.name == "sample-00007-a-red-bar.webp"
    if (np.diff(np.maximum.accumulate(still)) == 0).any():
        return  # how long the shortest stored frame was meant to be is not in the file
    again = Video(size=8, frames=8).read(folder)
    assert np.array_equal(again.raw, clip)
    assert again.domain.rate == pytest.approx(rate, rel=0.02)


def test_states_are_frames_and_back():
    domain, clips = Video(size=8, frames=8), moving(3)
    x = domain.encode(clips)
    assert x.shape == (3, *domain.shape)
    assert torch.equal(x[1, :, 5, 2, 3], torch.from_numpy(clips[1, 5, 2, 3] / np.float32(127.5) - 1))
    assert np.array_equal(domain.clips(x), clips)
    assert Video.from_json(json.loads(json.dumps(domain.to_json()))) == domain
    x[1, 0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match="sample 1 of 3 holds NaN"):
        domain.clips(x)


def test_moments_are_spread_over_the_time_and_not_over_the_frames(tmp_path: Path):
    clip = moving(1, frames=4)[0]
    path = save(tmp_path / "a.webp", clip, [100, 300, 100, 100])
    found = clips_of.read_clip(path, 6, Video(size=8)._fit)
    assert found is not None
    assert np.array_equal(found[0], clip[[0, 1, 1, 1, 2, 3]])
    assert found[1] == pytest.approx(10)
    halved = clips_of.read_clip(path.read_bytes(), 3, Video(size=8)._fit)
    assert halved is not None
    assert np.array_equal(halved[0], clip[[0, 1, 2]])


def test_gifs_and_classes_are_read_and_what_is_too_short_is_counted(tmp_path: Path):
    for k, clip in enumerate(moving(4)):
        save(tmp_path / "ab"[k % 2] / f"{k}.gif", clip)
    save(tmp_path / "a" / "short.gif", moving(1, frames=4)[0])
    Image.fromarray(moving(1)[0, 0]).save(tmp_path / "b" / "still.png")
    data = Video(size=8, frames=8).read(tmp_path)
    assert data.counts() == {"a": 2, "b": 2}
    assert data.card()["left_out"] == 2
    with pytest.raises(DataError, match="no clip of 9 frames: its 6 files are stills or shorter"):
        Video(size=8, frames=9).read(tmp_path)
    (tmp_path / "a" / "bad.gif").write_bytes((tmp_path / "a" / "0.gif").read_bytes()[:60])
    data = Video(size=8, frames=8).read(tmp_path)
    assert len(data) == 4
    assert data.card()["skipped_corrupt"][0].startswith("a/bad.gif: ")


def test_what_would_unpack_to_too_much_is_refused_undecoded(tmp_path: Path, monkeypatch):
    path = save(tmp_path / "a.webp", moving(1)[0])
    monkeypatch.setattr(clips_of, "MOST_BYTES", 8 * 8 * 8 * 4 - 1)
    monkeypatch.setattr(clips_of.Fit, "pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match="declares 8 frames of 8×8 pixels"):
        clips_of.read_clip(path, 4, Video(size=8)._fit)


def test_clips_are_decoded_once_and_a_damaged_cache_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    for k, clip in enumerate(moving(3)):
        save(tmp_path / "data" / f"{k}.webp", clip)
    first = Video(size=8, frames=8).read(tmp_path / "data")
    monkeypatch.setattr(clips_of, "read_clip", lambda *_: pytest.fail("decoded again"))
    assert Video(size=8, frames=8).read(tmp_path / "data").sha256() == first.sha256()
    (kept,) = (tmp_path / "cache").glob("clips-*/clips.npy")
    np.save(kept, np.zeros((3, 8, 8, 8), np.uint8))
    with pytest.raises(DataError, match="delete it"):
        Video(size=8, frames=8).read(tmp_path / "data")
    kept.write_bytes(b"nothing")
    with pytest.raises(DataError, match="is damaged"):
        Video(size=8, frames=8).read(tmp_path / "data")
    monkeypatch.undo()
    os.utime(tmp_path / "data" / "0.webp", (1, 1))  # another file by its time
    assert len(Video(size=8, frames=8).read(tmp_path / "data")) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"frames": 1}, "whole number from 2"),
        ({"frames": 2.5}, "whole number from 2"),
        ({"size": 0}, "size must be"),
        ({"rate": -1}, "frames a second"),
        ({"background": (0, 0)}, "background must be"),
        ({"framse": 3}, "did you mean 'frames'"),
    ],
)
def test_what_is_no_setting_is_refused(values: dict, message: str):
    with pytest.raises(DataError, match=message):
        Video.from_json(values)


def test_captions_beside_clips_are_what_the_model_is_told(tmp_path: Path):
    pytest.importorskip("transformers")
    for k, clip in enumerate(moving(4)):
        save(tmp_path / f"{k}.webp", clip)
        (tmp_path / f"{k}.txt").write_text(f"bar {k}\na bar that runs, {k}\n")
    data = Video(size=8, frames=8).read(tmp_path)
    assert data.prompts([2]) == ["bar 2"]
    assert data.card()["captions"] == 8
    assert "condition" not in data.batch([0])
    told = data.encoded()
    whole = told.batch([3, 1, 0, 2], seed=5, images_seen=40)["condition"]
    assert whole["text"].shape[::2] == (4, 384)
    cut = told.batch([0, 2], seed=5, images_seen=42)["condition"]
    assert torch.equal(whole["text"][2:], cut["text"])
    # over many times each caption is shown
    shown = {tuple(told.batch([0], 0, k)["condition"]["text_mask"][0].tolist()) for k in range(20)}
    assert len(shown) == 2
    other = Examples(data.domain, data.raw, captions=tuple((f"rod {k}",) for k in range(4)))
    assert other.sha256() != Examples(data.domain, data.raw).sha256()
    with pytest.raises(DataError, match="4 examples cannot have 3 captions"):
        Examples(data.domain, data.raw, captions=(("a",),) * 3)
    with pytest.raises(DataError, match="example 1 has no caption"):
        Examples(data.domain, data.raw, captions=(("a",), (), ("c",), ("d",)))


def test_emoji_that_move_are_read_with_their_captions_and_stills_are_counted(tmp_path: Path):
    def tarball(name: str, files: dict[str, bytes]) -> None:
        with tarfile.open(tmp_path / name, "w:gz") as archive:
            for path, content in files.items():
                about = tarfile.TarInfo(path)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))

    names = ["1f44b", "1f44b-1f3fb", "1f40e", "1f3ca"]
    table = [{"label": f"thing {name}", "hexcode": name.upper(), "tags": ["tag"]} for name in names]
    tarball(CAPTIONS, {"package/en/data.json": json.dumps(table).encode()})
    clips, still = moving(3), io.BytesIO()
    Image.fromarray(clips[0, 0]).save(still, "WEBP")
    files = [save(tmp_path / f"{k}.webp", clip).read_bytes() for k, clip in enumerate(clips)]
    inside = {f"package/assets/{n}.webp": f for n, f in zip(names, [*files, still.getvalue()], strict=True)}
    tarball("lobehub-fluent-emoji-anim-1-1.0.0.tgz", inside | {"package/assets/.gitkeep": b""})
    found = [open_animated(tmp_path, split) for split in ("train", "test")]
    assert sum(part.count for part in found) == 4
    kept = [Video(size=8, frames=8)._decoded(part)[1] for part in found]
    said = sorted(part.captions[row][0] for part, rows in zip(found, kept, strict=True) for row in rows)
    assert said == ["thing 1f40e", "thing 1f44b", "thing 1f44b-1f3fb"]


# --- the network ---


def network(loop: bool, **more) -> torch.nn.Module:
    torch.manual_seed(0)
    made = build(
        "video",
        in_channels=3,
        size=[6, 8, 8],
        width=16,
        blocks=[1, 2],
        head=8,
        embedding=32,
        loop=loop,
        **more,
    )
    with torch.no_grad():
        for weight in made.parameters():  # nothing is zero any more
            weight.add_(0.1 * torch.randn_like(weight))
    return made.eval()


def test_a_network_of_loops_turns_with_them_and_another_does_not():
    x, level = torch.randn(2, 3, 6, 8, 8), torch.tensor([-1.0, 0.5])
    for loop in (True, False):
        made = network(loop)
        gap = (made(x.roll(2, 2), level) - made(x, level).roll(2, 2)).abs().max()
        assert (gap < 1e-4) == loop
    # and neighbours are told from others: a shuffle is no turn
    shuffled = [0, 3, 1, 5, 2, 4]
    made = network(True)
    assert (made(x[:, :, shuffled], level) - made(x, level)[:, :, shuffled]).abs().max() > 1e-2


def test_frames_see_each_other_and_only_through_the_blocks_over_time():
    made, level = network(False), torch.zeros(1)
    x = torch.randn(1, 3, 6, 8, 8)
    other = x.clone()
    other[:, :, 0] += 1
    assert (made(x, level) - made(other, level))[:, :, 5].abs().max() > 1e-3
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if ".time." in name and "modulation" in name:
                weight.zero_()
    flat = {key: value for key, value in made.config.items() if key not in ("size", "loop")}
    plain = build("unet", **flat, size=8)
    weights = {name.removeprefix("unet.").replace(".space.", "."): w for name, w in made.state_dict().items()}
    plain.load_state_dict({name: w for name, w in weights.items() if ".time." not in name})
    want = torch.stack([plain(x[:, :, t], level) for t in range(6)], 2)
    torch.testing.assert_close(made(x, level), want, rtol=1e-4, atol=1e-5)


def test_a_network_of_clips_is_a_denoiser_and_is_built_again_from_its_config():
    made = network(False, text_dim=4, classes=2)
    condition = {"text": torch.randn(3, 5, 4), "label": torch.tensor([0, 2, 1])}
    condition["text_mask"] = torch.arange(5) < torch.tensor([[5], [0], [2]])
    check_denoiser(Denoiser(made, FLOW), torch.randn(3, 3, 6, 8, 8), condition)
    again = build("video", **json.loads(json.dumps(made.config)))
    again.load_state_dict(made.state_dict())
    assert again.config == made.config

    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        own = build("video", **made.config | {"checkpointing": checkpointing})
        own.load_state_dict(made.state_dict())
        own(torch.ones(1, 3, 6, 8, 8), torch.zeros(1)).square().sum().backward()
        return [p.grad for p in own.parameters() if p.grad is not None]

    for a, b in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for x, message in ((torch.zeros(1, 3, 5, 8, 8), "built for clips of"), (torch.zeros(1, 3, 8, 8), "got")):
        with pytest.raises(ValueError, match=message):
            made(x, torch.zeros(1))
    with pytest.raises(ValueError, match=r"\(frames, height, width\)"):
        build("video", in_channels=3, size=[8, 8])


# --- long clips ---


class Told(torch.nn.Module):
    """A denoiser whose x0 is `rule(x_t)`, whatever the level."""

    process = FLOW

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x_t, t, condition=None):
        from sfumato.processes import Prediction

        return Prediction(self.rule(x_t), "x0", x_t, FLOW.level(t), FLOW)


def test_windows_over_time_agree_with_what_they_are_made_of():
    long, window = torch.randn(2, 3, 13, 4, 4), (3, 6, 4, 4)
    short = long[:, :, :6]
    running = Told(lambda x: x.cumsum(2))
    assert torch.equal(Windows(running, window, window)(short, 0.5).x0, short.cumsum(2))  # one window
    constant = Windows(Told(lambda x: torch.full_like(x, 0.3)), window, long.shape[1:])
    assert torch.allclose(constant(long, 0.5).x0, torch.full_like(long, 0.3))
    # windows that agree where they overlap are one long denoiser
    pointwise = Windows(Told(torch.tanh), window, long.shape[1:])
    assert torch.allclose(pointwise(long, torch.tensor([0.2, 0.7])).x0, long.tanh())
    # and where they do not, a place gets the mean of its windows': here each says where in it the place lies
    said = Windows(Told(lambda x: x * 0 + torch.arange(6.0)[:, None, None]), window, (3, 9, 4, 4))
    assert said(long[:, :, :9], 0.5).x0[0, 0, :, 0, 0].tolist() == [0, 1, 2, 1.5, 2.5, 3.5, 3, 4, 5]
    with pytest.raises(SolverError, match="at least as large"):
        Windows(running, window, (3, 5, 4, 4))
    with pytest.raises(SolverError, match="at least as large"):
        Windows(running, window, (3, 8, 8))


# --- measures ---


def test_measures_of_clips_find_what_is_wrong_with_them(monkeypatch):
    monkeypatch.setattr(judged, "RESAMPLES", 20)  # the least that an interval takes
    domain = Video(size=8, frames=8)
    data = Examples(domain, moving(160))
    known, held = data.take(range(120)), data.take(range(120, 160))

    def measured(clips: np.ndarray) -> dict:
        return {m.name: m for m in video_measures(domain, domain.encode(clips), known, held)}

    fresh = moving(60, seed=1)
    good = measured(fresh)
    assert measured(np.asarray(held.raw))["frames"].value == pytest.approx(good["frames"].floor)
    assert good["order"].value > 0.95
    assert good["copying"].details["alarm"] is False
    draw = np.random.default_rng(0)
    shuffled = measured(np.stack([clip[draw.permutation(8)] for clip in fresh]))
    assert shuffled["order"].value < 0.3
    assert shuffled["order"].high < good["order"].low
    assert shuffled["frames"].value == pytest.approx(good["frames"].value)  # which cannot know
    still = measured(np.repeat(fresh[:, :1], 8, 1))
    assert still["motion"].low > good["motion"].high
    assert "of 0 of 60" in still["order"].note
    noisy = np.clip(fresh + draw.normal(0, 25, fresh.shape), 0, 255).astype(np.uint8)
    assert measured(noisy)["motion"].value > 3 * good["motion"].value
    grey = measured(np.repeat(fresh.mean(4, keepdims=True).astype(np.uint8), 3, 4))
    assert grey["frames"].low > good["frames"].high
    copied = measured(np.roll(np.asarray(known.raw)[:60], 3, 1))  # begun elsewhere in the loop
    assert copied["copying"].value == 1
    assert copied["copying"].details["alarm"] is True


def test_frames_without_an_order_pass_for_ordered_once_in_twenty():
    clips = np.random.default_rng(0).integers(0, 256, (400, 8, 4, 4, 3), np.uint8)
    shorter, moved = in_order(clips)
    assert moved == 400
    assert shorter < 0.05 * 400 + 4 * (400 * 0.05 * 0.95) ** 0.5  # four deviations of a binomial
    x = torch.arange(6.0).reshape(1, 3, 2)
    assert sorted(turned(x)[:, 0].tolist()) == [0, 2, 4]


# --- a recipe ---


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("video")
    for k, clip in enumerate(moving(80, frames=4)):
        save(out / "data" / "ab"[k % 2] / f"{k}.webp", clip)
    values = {
        "name": "bars",
        "data": {
            "domain": "video", "source": str(out / "data"), "held_out": 0.25,
            "settings": {"size": 8, "frames": 4},
        },
        "network": {"kind": "video", "loop": True, "width": 16, "blocks": 1, "embedding": 32},
        "objective": {"drop": 0.1},
        "training": {"images": 320, "batch": 32, "learning_rate": 3e-3, "warmup": 64, "ema": [0.1]},
        "sampling": {"steps": 4},
        "evaluation": {"bound_images": 0, "samples": 24},
    }  # fmt: skip
    train(recipe_from(values), out / "run")
    return out / "run"


def test_a_model_of_clips_is_trained_sampled_longer_and_judged(run: Path, tmp_path: Path):
    model = bundle.load(run / "model")
    assert isinstance(model.domain, Video)
    samples = model.sample(4, condition={"label": ["a", "b"] * 2}, seed=3)
    assert samples.shape == (4, 3, 4, 8, 8)
    paths = model.domain.write(samples, tmp_path, torch.tensor([0, 1, 0, 1]))
    assert paths[1].name == "sample-00001-label-1.webp"
    with Image.open(paths[0]) as file:
        assert file.format == "WEBP"
        assert file.n_frames > 1  # type: ignore[attr-defined]
        assert file.info["loop"] == 0
    condition = {"label": ["a", "b"]}
    same = sample_canvas(model, (3, 4, 8, 8), 2, condition=condition, seed=3)
    torch.testing.assert_close(same, samples[:2], rtol=0, atol=1e-5)
    long = sample_canvas(model, (3, 9, 8, 8), 2, condition=condition, seed=3)
    assert long.shape == (2, 3, 9, 8, 8)
    assert model.domain.clips(long).shape == (2, 9, 8, 8, 3)
    assert model.domain.picture(long).size[0] > 9 * 32
    assert model.domain.strip([long, long], ["a", "b"]).size[0] > 9 * 32
    bench = Bench(run / "model")
    plan = bench.model.sampling
    asked = {"solver": plan.solver, "grid": plan.grid, "steps": 4, "guidance": 1.0, "seed": 0}
    found = bench.quality(asked | {"batch": 24, "samples": 24, "measures": None})
    assert [m.name for m in found] == ["frames", "motion", "order", "copying"]


def test_the_command_line_draws_clips_and_longer_ones(run: Path, tmp_path: Path, capsys):
    def sfumato(*words: object) -> int:
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return int(left.value.code or 0)

    asked = ["sample", run / "model", "--count", 2, "--label", "a", "--out"]
    assert sfumato(*asked, tmp_path / "short") == 0
    assert sfumato(*asked, tmp_path / "long", "--canvas", 7, 8, 8) == 0
    sizes = [Image.open(tmp_path / f"{name}-grid.png").size for name in ("short", "long")]
    assert sizes[1][0] - sizes[0][0] == 3 * (32 + 2)  # three frames more in a row
    assert len(list((tmp_path / "long").glob("sample-0000?-label-0.webp"))) == 2
    assert sfumato(*asked, tmp_path / "no", "--canvas", 3, 8, 8) == 1
    assert "at least as large" in capsys.readouterr().err
    assert sfumato(*asked, tmp_path / "no", "--canvas", 7, 8, 8, "--film") == 1
    assert "leave --film out" in capsys.readouterr().err
