"""The filter on the way out: what passes, what does not, and that neither happens in silence."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sfumato.cli import main
from sfumato.domains.images import Images
from sfumato.errors import BundleError, MissingExtra, SolverError
from sfumato.safeguards import CHECKERS, NSFW, CheckFailed, Filter, blank, build_filter
from sfumato.safeguards import nsfw as nsfw_module

GREY = Images(size=8, channels=1)


def brightness(picture):
    return float(picture.mean()) / 255


def levels(*values):
    return torch.stack([torch.full((1, 8, 8), 2 * v - 1) for v in values])


@given(
    scores=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    thresholds=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
)
def test_what_a_lower_threshold_lets_pass_a_higher_one_does_too(scores, thresholds):
    low, high = (set(Filter(brightness, t)(levels(*scores), GREY).rejected) for t in thresholds)
    assert high <= low
    assert set(Filter(brightness, 0.0)(levels(*scores), GREY).rejected) == set(range(len(scores)))


@given(scores=st.lists(st.floats(0, 1), min_size=2, max_size=6), data=st.data())
def test_a_sample_alone_has_the_verdict_that_it_has_in_a_batch(scores, data):
    k = data.draw(st.integers(0, len(scores) - 1))
    shown = []

    def nosy(picture):
        shown.append(picture.shape)
        return brightness(picture)

    together = Filter(nosy, 0.5)(levels(*scores), GREY)
    alone = Filter(nosy, 0.5)(levels(scores[k]), GREY, [k])
    assert alone.verdicts[0] == together.verdicts[k]
    assert set(shown) == {(8, 8, 1)}  # a checker never sees a batch


def test_the_rejected_become_blanks_or_are_left_out_and_the_others_are_untouched():
    samples = levels(0.1, 0.9, 0.2, 0.8)
    covered = Filter(brightness, 0.5)(samples, GREY, [10, 11, 12, 13])
    assert covered.indices == (10, 11, 12, 13)
    assert covered.rejected == (11, 13)
    for k in (0, 2):
        assert torch.equal(covered.samples[k], samples[k])
    for k in (1, 3):
        assert torch.equal(covered.samples[k], blank((1, 8, 8)))
    assert float(samples[1].mean()) == pytest.approx(0.8)  # what was given is not written into
    dropped = Filter(brightness, 0.5, "drop")(samples, GREY, [10, 11, 12, 13])
    assert dropped.indices == (10, 12)
    assert torch.equal(dropped.samples, samples[[0, 2]])
    assert [v.index for v in dropped.verdicts] == [
        10,
        11,
        12,
        13,
    ]  # those left out are on record all the same


@given(channels=st.sampled_from([1, 3, 4]), height=st.integers(1, 40), width=st.integers(1, 40))
def test_a_blank_is_a_marked_picture_of_the_right_shape(channels, height, width):
    picture = blank((channels, height, width))
    assert picture.shape == (channels, height, width)
    assert float(picture.abs().max()) <= 1
    if min(height, width) >= 8:
        assert len(picture[0].unique()) == 2  # the ground and the cross


@pytest.mark.parametrize("fault", ["raises", "nan", "too large"])
def test_a_checker_that_fails_names_the_sample_and_lets_nothing_unchecked_out(fault):
    def faulty(picture):
        if brightness(picture) > 0.5:
            if fault == "raises":
                raise RuntimeError("no such layer")
            return float("nan") if fault == "nan" else 1.5
        return brightness(picture)

    with pytest.raises(CheckFailed, match=r"faulty failed on sample 12 .*; 2 of 4 were checked") as caught:
        Filter(faulty, 0.15)(levels(0.1, 0.2, 0.9, 0.1), GREY, [10, 11, 12, 13])
    kept = caught.value.screened
    assert caught.value.index == 12
    assert kept.indices == (10, 11)
    assert kept.rejected == (11,)
    assert torch.equal(kept.samples[1], blank((1, 8, 8)))


def test_what_is_no_filter_is_refused_in_one_line():
    with pytest.raises(SolverError, match=r"lies from 0 to 1, not 1\.5"):
        Filter(brightness, 1.5)
    with pytest.raises(SolverError, match="did you mean 'drop'"):
        Filter(brightness, 0.5, "dropp")
    with pytest.raises(SolverError, match="a checker is a function"):
        Filter("nsfw")  # type: ignore[arg-type]
    with pytest.raises(SolverError, match=r"unknown filter 'nsfv'.*did you mean 'nsfw'"):
        build_filter("nsfv")


def run(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    seen = capsys.readouterr()
    return int(left.value.code or 0), seen.out, seen.err


class Bright:
    """A named checker for the command line: how bright a picture is, without its scale."""

    name, threshold = "bright", 0.5

    def __init__(self):
        self.seen = 0

    def __call__(self, picture):
        self.seen += 1
        if self.seen == 4:
            raise ValueError("tired")
        return 1.0 if self.seen == 2 else 0.1


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setitem(CHECKERS, "bright", Bright)


def test_the_command_covers_or_drops_counts_and_records(bright, demo_folder, tmp_path, capsys):
    words = ["sample", demo_folder / "runs/demo/model", "-n", 3, "--steps", 2, "--filter", "bright"]
    code, out, err = run(capsys, *words, "--out", tmp_path / "a")
    assert code == 0, err
    assert "rejected 1 of 3 samples (samples 1)" in out.replace("\n", " ")
    record = json.loads((tmp_path / "a-filter.json").read_text())
    assert (record["checker"], record["threshold"], record["rejected"]) == ("bright", 0.5, 1)
    assert [v["verdict"] for v in record["verdicts"]] == ["passed", "rejected", "passed"]
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 3
    covered = np.asarray(Image.open(files[1]))
    assert np.array_equal(covered, Images(size=8, channels=1).pixels(blank((1, 8, 8))[None])[0, ..., 0])
    code, out, err = run(capsys, *words, "--rejected", "drop", "--out", tmp_path / "b")
    assert code == 0, err
    assert [p.name[:12] for p in sorted((tmp_path / "b").iterdir())] == ["sample-00000", "sample-00002"]


def test_the_command_keeps_what_passed_when_the_checker_fails(bright, demo_folder, tmp_path, capsys):
    words = ["sample", demo_folder / "runs/demo/model", "-n", 6, "--steps", 2, "--out", tmp_path / "s"]
    code, _, err = run(capsys, *words, "--filter", "bright")
    assert code == 1
    assert "failed on sample 3 (ValueError: tired); 3 of 6 were checked" in err
    assert len(list((tmp_path / "s").iterdir())) == 3
    assert json.loads((tmp_path / "s-filter.json").read_text())["checked"] == 3


def test_the_command_refuses_what_would_show_the_unchecked(bright, demo_folder, tmp_path, capsys):
    words = ["sample", demo_folder / "runs/demo/model", "-n", 2, "--out", tmp_path / "s"]
    for more, said in (
        (["--filter", "bright", "--film"], "before they are checked"),
        (["--filter", "bright", "--inspect"], "before they are checked"),
        (["--rejected", "drop"], "give a filter"),
        (["--filter", "bright:high"], "NAME:THRESHOLD"),
        (["--filter", "bright:7"], "from 0 to 1"),
    ):
        code, _, err = run(capsys, *words, *more)
        assert code == 1
        assert said in err
    assert not (tmp_path / "s").exists()


# -- the classifier from a package ---------------------------------------------------------------------------------


def test_without_its_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(nsfw_module, "PACKAGE", "no_such_package_of_ours")
    with pytest.raises(MissingExtra, match=r"pip install 'sfumato\[filter\]'"):
        build_filter("nsfw")


@pytest.fixture(scope="module")
def nsfw():
    pytest.importorskip("onnxruntime")
    try:
        return NSFW()
    except MissingExtra as error:
        pytest.skip(str(error))


def test_the_classifier_runs_none_of_its_packages_code(nsfw):
    assert nsfw_module.PACKAGE not in sys.modules


def test_a_file_with_other_bytes_is_refused(nsfw, tmp_path, monkeypatch):
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "open_nsfw.onnx").write_bytes(b"something else")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(nsfw_module, "PACKAGE", "another")
    with pytest.raises(BundleError, match="another version, or damaged"):
        NSFW()


def test_photographs_pass_whatever_their_channels(nsfw):
    pytest.importorskip("sklearn")
    from sklearn.datasets import load_sample_images

    for photo in load_sample_images().images:
        score = nsfw(photo)
        assert 0 <= score < 0.2
        opaque = np.concatenate([photo, np.full_like(photo[..., :1], 255)], 2)
        assert nsfw(opaque) == score
        grey = photo.mean(2).astype(np.uint8)
        assert nsfw(grey[..., None]) == nsfw(np.stack([grey] * 3, 2))


def test_the_network_gets_what_it_was_trained_on():
    colour = np.zeros((50, 40, 3), np.uint8)
    colour[...] = (200, 100, 50)
    x = nsfw_module.prepared(Image.fromarray(colour))
    assert (x.shape, x.dtype) == ((224, 224, 3), np.float32)
    # a flat colour goes through JPEG within a few units: blue first, the means taken off
    assert np.abs(x - np.array([50 - 104, 100 - 117, 200 - 123])).max() < 4
