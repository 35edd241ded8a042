"""check_domain: every kind of data obeys it, and for each law a domain that breaks it is found out by that law."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import netcdf_file

from sfumato.domains import Domain, Examples, Fields, Images, LawBroken, Sequences, Video, check_domain
from sfumato.errors import DataError


@dataclass(frozen=True)
class Steps(Domain):
    """Four numbers an example, of which the network is told the sum; in order."""

    name: ClassVar[str] = "steps"
    length: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    def read(self, source: Any) -> Examples:
        draw = np.random.default_rng(int(source))
        stored = draw.normal(size=(12, self.length)).astype(np.float32)
        groups = tuple(f"g{k // 2}" for k in range(12))
        return Examples(replace(self, classes=("a", "b")), stored, np.arange(12) % 2, groups)

    @property
    def asks(self) -> tuple[str, ...]:
        return ("sum",)

    def told(self, stored: Any) -> dict[str, torch.Tensor]:
        return {"numbers": torch.from_numpy(stored.sum(1, keepdims=True))}

    def asked(self, given: Any, noise: Any) -> dict[str, torch.Tensor]:
        return {"numbers": torch.full((len(noise.indices), 1), float("nan"))}

    def text(self, samples: Any) -> list[str]:
        return [" ".join(f"{v:.3f}" for v in row) for row in samples.tolist()]


def test_a_sound_domain_obeys_all():
    check_domain(Steps(), source=3)
    check_domain(Steps(), Steps().read(3))
    check_domain(Needy(), source=3)
    check_domain(Pairs(), source=3)
    with pytest.raises(TypeError, match="give some, or a source"):
        check_domain(Steps())


class Unseeded(Steps):
    def read(self, source):
        return super().read(np.random.default_rng().integers(1 << 30))


class Unreadable(Steps):
    def read(self, source):
        raise DataError("nothing is there")


class Forgetful(Steps):
    def to_json(self):
        return {**super().to_json(), "length": 5}


class Nameless(Steps):
    def to_json(self):
        return {k: v for k, v in super().to_json().items() if k != "kind"}


class Short(Steps):
    def encode(self, stored):
        return super().encode(stored)[:, :3]


class Numpy(Steps):
    def encode(self, stored):
        return stored


class Gaps(Steps):
    def encode(self, stored):
        return super().encode(stored).clone().index_fill_(1, torch.tensor([2]), float("nan"))


class Normed(Steps):
    """By the mean of whoever is there."""

    def encode(self, stored):
        x = super().encode(stored)
        return x - x.mean(0)


class Few(Steps):
    def told(self, stored):
        return {"numbers": super().told(stored)["numbers"][:1]}


class Ranked(Steps):
    """By its rank among whoever is there."""

    def told(self, stored):
        return {"numbers": super().told(stored)["numbers"].argsort(0).float()}


class Loud(Steps):
    def asked(self, given, noise):
        return {"image": torch.zeros(len(noise.indices), 1)}


class Alone(Steps):
    def asked(self, given, noise):
        return {"numbers": torch.zeros(1, 1)}


class Needy(Steps):  # which breaks no law
    def asked(self, given, noise):
        raise DataError("say a sum")


class Silent(Steps):
    def text(self, samples):
        raise NotImplementedError


class Wordy(Steps):
    def text(self, samples):
        return " ".join(super().text(samples))


class Undecodable(Steps):
    def decode(self, samples):
        return samples.pixels


class Unwritten(Steps):
    def write(self, samples, folder, labels=None, start=0, prompts=None):
        paths = super().write(samples, folder, labels, start)
        paths[-1].unlink()
        return paths


class Littering(Steps):
    def write(self, samples, folder, labels=None, start=0, prompts=None):
        paths = super().write(samples, folder, labels, start)
        (Path(folder) / "log.txt").write_text("done")
        return paths


class FromNought(Steps):
    def write(self, samples, folder, labels=None, start=0, prompts=None):
        return super().write(samples, folder, labels)


class Counting(Steps):
    def text(self, samples):
        return [f"{k + 1} of {len(samples)}: {text}" for k, text in enumerate(super().text(samples))]


class Unpainted(Steps):
    def picture(self, samples, columns=None, rows=None):
        return np.zeros((3, 3))


class Stripped(Steps):
    def strip(self, batches, captions=None):
        raise ValueError("no strips")


class Touching(Steps):
    def encode(self, stored):
        return super().encode(stored)

    def picture(self, samples, columns=None, rows=None):
        KEPT[0][:] = 0
        return super().picture(samples, columns, rows)


KEPT: list[np.ndarray] = []


class Pairs(Steps):
    """Of two leaves, of which one may be missing; all samples in one file."""

    @property
    def shape(self):
        return {"first": (1,), "rest": (3,)}

    def encode(self, stored):
        x = super().encode(stored).clone()
        first = torch.where(x[:, :1] > 0, x[:, :1], torch.nan)
        return {"first": first, "rest": x[:, 1:]}

    def text(self, samples):
        return super().text(torch.cat([samples["first"], samples["rest"]], 1))

    def write(self, samples, folder, labels=None, start=0, prompts=None):
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder, "samples.txt")
        path.write_text("\n".join(self.text(samples)))
        return [path]


class Endless(Pairs):
    def encode(self, stored):
        return super().encode(stored) | {"rest": torch.full((len(stored), 3), torch.inf)}


class Uneven(Pairs):
    def encode(self, stored):
        return super().encode(stored) | {"first": super().encode(stored)["rest"]}


class Merged(Steps):
    def write(self, samples, folder, labels=None, start=0, prompts=None):
        return super().write(samples, folder, labels, start)[:1]


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Endless, "states are finite: NaN or infinity in rest"),
        (Uneven, r"encode gives states \(n, \*shape\): \(6, 3\), not n = 6, \(1,\)"),
        (Merged, "write makes one file a sample, or samples.txt of all, with something in it: 1 paths for 6"),
        (Unseeded, "reading twice gives the same examples"),
        (Unreadable, "read gives examples: DataError: nothing is there"),
        (Forgetful, r"from_json\(to_json\(\)\) is the same domain"),
        (Nameless, r"to_json\(\) says the kind"),
        (Short, r"encode gives states \(n, \*shape\): \(6, 3\)"),
        (Numpy, "a batch has a row for each example"),
        (Gaps, "states are finite"),
        (Normed, "a batch cut in two is the same batch"),
        (Few, "a batch has a row for each example: 1 of numbers"),
        (Ranked, "a batch cut in two is the same batch"),
        (Loud, "was told of in training: 'image'"),
        (Alone, "what is asked has a row for each sample: 1"),
        (Silent, "text takes states: NotImplementedError"),
        (Wordy, "text gives a text for each sample"),
        (Undecodable, "decode takes states: AttributeError"),
        (Unwritten, "write makes one file a sample"),
        (Littering, "write leaves no other files: found log.txt"),
        (FromNought, "by their numbers: sample-00000"),
        (Counting, "written the same alone and with others"),
        (Unpainted, "picture is a picture"),
        (Stripped, "strip takes states: ValueError: no strips"),
    ],
)
def test_each_law_finds_who_breaks_it(broken: type[Steps], law: str):
    with pytest.raises(LawBroken, match=law) as told:
        check_domain(broken(), source=3)
    assert "\n" not in str(told.value)


def test_what_is_kept_is_not_changed():
    data = Touching().read(3)
    KEPT[:] = [data.stored]
    with pytest.raises(LawBroken, match="nothing changes the examples that are kept"):
        check_domain(data.domain, data)


@dataclass(frozen=True)
class Leaky(Examples):
    def split(self, fraction, seed=0):
        kept = np.arange(0, len(self), 2)
        return self.take(kept), self.take(kept + 1)


@dataclass(frozen=True)
class Losing(Examples):
    def split(self, fraction, seed=0):
        train, held = super().split(fraction, seed)
        return train, held.take(range(len(held) - 1))


@dataclass(frozen=True)
class Deaf(Examples):
    def sha256(self):
        return "0" * 64


@dataclass(frozen=True)
class Mislabelled(Examples):
    def batch(self, indices, seed=0, images_seen=0):
        found = super().batch(indices, seed, images_seen)
        found["condition"]["label"] = 1 - found["condition"]["label"]
        return found


@dataclass(frozen=True)
class Consuming(Examples):
    def batch(self, indices, seed=0, images_seen=0):
        found = super().batch(indices, seed, images_seen)
        return found | {"x": found["x"] + 1e-3 * torch.randn_like(found["x"])}


@pytest.mark.parametrize(
    ("broken", "law"),
    [
        (Leaky, "no group is on both sides"),
        (Losing, "split shares the examples out, each once"),
        (Deaf, "fewer examples have another hash"),
        (Mislabelled, "a batch tells the labels"),
        (Consuming, "a batch asked for twice is the same"),
    ],
)
def test_sets_of_examples_obey_too(broken: type[Examples], law: str):
    data = Steps().read(3)
    with pytest.raises(LawBroken, match=law):
        check_domain(data.domain, broken(data.domain, data.stored, data.labels, data.groups))


# --- the kinds that sfumato has ---


def test_sequences_obey(tmp_path: Path):
    (tmp_path / "a.csv").write_text("sequence,label\n" + "ACDE,x\nCA,y\nDDA,x\nEE,y\n" * 3)
    check_domain(Sequences(dialect="peptide"), source=tmp_path / "a.csv")


def test_fields_obey(tmp_path: Path):
    with netcdf_file(str(tmp_path / "a.nc"), "w") as file:
        for axis in "yx":
            file.createDimension(axis, 32)
        made = file.createVariable("height", "f4", ("y", "x"))
        made[:] = np.random.default_rng(0).normal(size=(32, 32))
    check_domain(Fields(size=8, block=2), source=tmp_path / "a.nc")


def test_clips_obey(tmp_path: Path):
    draw = np.random.default_rng(0)
    for k in range(8):
        first, *others = [Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(4)]
        path = tmp_path / "ab"[k % 2] / f"{k}.webp"
        path.parent.mkdir(exist_ok=True)
        first.save(path, save_all=True, append_images=others, duration=50, lossless=True)
    check_domain(Video(size=8, frames=4), source=tmp_path)


def test_pictures_obey_with_and_without_examples_of_their_own(tmp_path: Path):
    u = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)
    domain = Images((6, 6), 3, classes=("a", "b"), flip=True)
    check_domain(domain, domain.of(u, np.arange(12) % 2))
    check_domain(domain)
    domain.write(domain.encode(u), tmp_path, np.arange(12) % 2)
    check_domain(Images(crop="random", size=4), source=tmp_path)
