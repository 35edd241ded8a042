"""Motion: how a body's joints turn, frame by frame, in the files that pybullet's humanoid plays.

A clip is JSON, {"Loop": ..., "Frames": [[seconds, 43 numbers], ...]}: how long a frame lasts, where the hips are (3, in
metres, y upwards), and in the order of `JOINTS` a unit quaternion (w, x, y, z) for joints that turn every way, an angle
for knees and elbows. Clips are of different rates. Each is brought to `rate` frames a second by straight lines between
its frames, q and -q being one rotation and the nearer of both taken, and cut into all windows of `frames` frames, each
a frame after the one before. A window begins at x = z = 0: where on the floor a motion happens is not learned.

A model sees (value - mean) / std of each number. It knows nothing of unit length: quaternions are divided by theirs on
the way out. All windows of a clip are held out together, since neighbours are nearly the same.

A clip that is shorter than a window is left out and counted, as is a file that is no such clip, or of over an hour.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.drawn import COLOURS, FAINT, FINE, Drawn, canvas, reduced
from sfumato.domains.examples import Examples
from sfumato.domains.meshes import PYBULLET
from sfumato.domains.records import Texts, labelled_files, numbered
from sfumato.domains.source import Source
from sfumato.errors import DataError

# name: (parent, how many numbers, offset from the parent in quarters of a metre): pybullet_data/humanoid/humanoid.urdf
JOINTS: dict[str, tuple[str | None, int, tuple[float, float, float]]] = {
    "root": (None, 4, (0, 0, 0)),
    "chest": ("root", 4, (0, 0.944604, 0)),
    "neck": ("chest", 4, (0, 0.895576, 0)),
    "right hip": ("root", 4, (0, 0, 0.339548)),
    "right knee": ("right hip", 1, (0, -1.686184, 0)),
    "right ankle": ("right knee", 4, (0, -1.63948, 0)),
    "right shoulder": ("chest", 4, (-0.0962, 0.974, 0.73244)),
    "right elbow": ("right shoulder", 1, (0, -1.099152, 0)),
    "left hip": ("root", 4, (0, 0, -0.339548)),
    "left knee": ("left hip", 1, (0, -1.686184, 0)),
    "left ankle": ("left knee", 4, (0, -1.63948, 0)),
    "left shoulder": ("chest", 4, (-0.0962, 0.974, -0.73244)),
    "left elbow": ("left shoulder", 1, (0, -1.099152, 0)),
    # ends, which do not turn
    "head": ("neck", 0, (0, 0.7, 0)),
    "right wrist": ("right elbow", 0, (0, -1.035788, 0)),
    "left wrist": ("left elbow", 0, (0, -1.035788, 0)),
    "right toes": ("right ankle", 0, (0.534, -0.09, 0)),
    "left toes": ("left ankle", 0, (0.534, -0.09, 0)),
}
NUMBERS = 3 + sum(size for _, size, _ in JOINTS.values())
_METRES = 0.25
_STARTS = np.cumsum([3, *(size for _, size, _ in JOINTS.values())])
QUATERNIONS = tuple(
    int(start) for start, (_, size, _) in zip(_STARTS, JOINTS.values(), strict=False) if size == 4
)
LONGEST = 3600.0  # seconds of a clip
_LARGEST = 1e6  # of its numbers, in metres and radians
_LEAST = 0.05  # of a deviation, in radians or metres: what hardly moves is not blown up
_WAYS = {
    "walk": "ground", "run": "ground", "crawl": "ground",
    "punch": "fight", "kick": "fight", "spinkick": "fight",
    "dance_a": "dance", "dance_b": "dance", "spin": "dance",
    "backflip": "acrobatics", "cartwheel": "acrobatics", "roll": "acrobatics", "jump": "acrobatics",
    "getup_facedown": "getting up", "getup_faceup": "getting up",
}  # fmt: skip


@dataclass(frozen=True)
class Motion(Drawn):
    """Motions of `frames` frames, `rate` a second, states float32 (n, frames, 43).

    mean, std: of each number; () takes those of the data. Raises DataError for values that are none of these.
    """

    name: ClassVar[str] = "motion"
    suffix: ClassVar[str] = "txt"
    sources: ClassVar[bool] = True
    frames: int = 32
    rate: float = 30.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for key in ("mean", "std", "classes"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        if isinstance(self.frames, bool) or not 4 <= self.frames <= 4096 or not 1 <= self.rate <= 1000:
            raise DataError(
                f"frames must be 4 to 4096 and rate 1 to 1000, not {self.frames!r}, {self.rate!r}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """(frames, 43)."""
        return (self.frames, NUMBERS)

    def read(self, source: Source | str | Path) -> Examples:
        """The windows of the clips of a named source, a folder or a file. Raises DataError if there are none."""
        from sfumato.domains.images import as_source

        place = as_source(source)
        texts, about = labelled_files(place, "motion", (".txt", ".json"))
        parts: list[np.ndarray] = []
        names: list[str] = []
        labels: list[str | None] = []
        problem: DataError | None = None
        for name, text, label in texts:
            try:
                found = windows(at_rate(read_clip(name, text), self.rate), self.frames)
            except DataError as error:
                problem, found = problem or error, np.empty((0,))
            if len(found):
                parts.append(found)
                names += [name] * len(found)
                labels += [label] * len(found)
        if not parts:
            raise problem or DataError(f"no clip of {place.name or place.path} lasts {self.frames} frames")
        stored = np.concatenate(parts).astype(np.float32)
        classes, targets = (), None
        if None not in labels:
            classes, targets = numbered(labels, self.classes)
        about |= {"left_out": len(texts) - len(parts), "clips": len(parts)}
        mean = tuple(stored.mean((0, 1), dtype=np.float64).tolist())
        std = stored.std((0, 1), dtype=np.float64).tolist()
        domain = replace(
            self,
            mean=self.mean or mean,
            std=self.std or tuple(max(s, _LEAST) for s in std),
            classes=classes,
        )
        return Examples(domain, stored, targets, tuple(names), name=about["sources"][0], about=about)

    def encode(self, stored: Any) -> Tensor:
        """States (value - mean) / std."""
        x = torch.from_numpy(np.asarray(stored, np.float32).copy())
        return (x - torch.tensor(self.mean)) / torch.tensor(self.std)

    def decode(self, samples: Any) -> Tensor:
        """Values (n, frames, 43), quaternions of unit length."""
        x = samples.float().cpu() * torch.tensor(self.std) + torch.tensor(self.mean)
        for k in QUATERNIONS:
            q = x[..., k : k + 4]
            x[..., k : k + 4] = q / q.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        return x

    def text(self, samples: Any) -> list[str]:
        """Each sample as a clip that pybullet plays."""
        return [
            '{\n"Loop": "none",\n"Frames":\n[\n'
            + ",\n".join(json.dumps([round(v, 6) for v in (1 / self.rate, *frame)]) for frame in clip)
            + "\n]\n}"
            for clip in self.decode(samples).tolist()
        ]

    def pixels(self, samples: Any) -> np.ndarray:
        """Eight poses of each sample in their order, half from the side; the right arm and leg in brown."""
        at = np.linspace(0, self.frames - 1, 8).round().astype(int)
        width, height, step = 256, 76, 30
        where = positions(self.decode(samples).numpy()[:, at])
        where[..., ::2] -= where[:, :, :1, ::2]  # each pose above its own place
        across = 0.8 * where[..., 0] + 0.6 * where[..., 2]
        u = FINE * (22 + step * np.arange(8)[:, None] + 34 * across)
        v = FINE * (height - 6 - 34 * where[..., 1])
        names = list(JOINTS)
        found = np.empty((len(u), height, width, 3), np.uint8)
        for k in range(len(u)):
            paper, pen = canvas(width, height)
            pen.rectangle((0, 0, FINE * width - 1, FINE * height - 1), outline=FAINT, width=FINE)
            for pose in range(8):
                for j, (name, (parent, _, _)) in enumerate(JOINTS.items()):
                    if parent is not None:
                        i = names.index(parent)
                        ends = [(float(u[k, pose, m]), float(v[k, pose, m])) for m in (i, j)]
                        pen.line(ends, fill=COLOURS[0 if "right" in name else 1], width=FINE * 3 // 2)
            found[k] = reduced(paper)
        return found


def _turned(q: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Vectors v (.., 3) turned by unit quaternions q (.., 4): v + 2 w (u x v) + 2 u x (u x v)."""
    w, u = q[..., :1], q[..., 1:]
    once = np.cross(u, v)
    return v + 2 * (w * once + np.cross(u, once))


def _after(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The rotation q, then p: their product."""
    w = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdims=True)
    return np.concatenate(
        [w, p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])], -1
    )


def positions(values: np.ndarray) -> np.ndarray:
    """Where the joints of `JOINTS` are, in metres, (.., joints, 3), of values (.., 43)."""
    places: dict[str, np.ndarray] = {}
    turns: dict[str, np.ndarray] = {}
    for start, (name, (parent, size, offset)) in zip(_STARTS, JOINTS.items(), strict=False):
        part = values[..., start : start + size]
        if size == 1:  # about z
            zero = np.zeros_like(part)
            part = np.concatenate([np.cos(part / 2), zero, zero, np.sin(part / 2)], -1)
        if parent is None:
            places[name], turns[name] = values[..., :3], part
            continue
        turn = turns[parent]
        places[name] = places[parent] + _turned(
            turn, np.broadcast_to(np.array(offset) * _METRES, (*turn.shape[:-1], 3))
        )
        turns[name] = _after(turn, part) if size else turn
    return np.stack(list(places.values()), -2)


def read_clip(name: str, text: str) -> np.ndarray:
    """Frames float64 (n, 44) of a clip's text. Raises DataError for what is none."""
    try:
        found = np.array(json.loads(text)["Frames"], np.float64)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as problem:
        raise DataError(f"{name} is no clip, which is JSON with frames: {problem!r}") from None
    if found.ndim != 2 or found.shape[1] != NUMBERS + 1 or not (np.abs(found) < _LARGEST).all():
        raise DataError(
            f"{name} has frames of shape {found.shape}: a frame is {NUMBERS + 1} finite numbers below {_LARGEST:.0e}"
        )
    if (found[:-1, 0] <= 0).any() or found[:-1, 0].sum() > LONGEST:
        raise DataError(f"{name} has a frame that lasts no time, or lasts more than {LONGEST:.0f} seconds")
    return found


def at_rate(clip: np.ndarray, rate: float) -> np.ndarray:
    """A clip (n, 44) as values (m, 43) at equal times, `rate` a second."""
    values, times = clip[:, 1:].copy(), np.cumsum([0.0, *clip[:-1, 0]])
    _same_side(values)
    at = np.arange(int(times[-1] * rate + 1e-3) + 1) / rate
    found = np.stack([np.interp(at, times, column) for column in values.T], 1)
    for k in QUATERNIONS:
        found[:, k : k + 4] /= np.maximum(np.linalg.norm(found[:, k : k + 4], axis=1, keepdims=True), 1e-9)
    return found


def windows(values: np.ndarray, frames: int) -> np.ndarray:
    """All stretches of so many frames, (n, frames, 43), each from x = z = 0 and with w >= 0 at first."""
    starts = range(len(values) - frames + 1)
    found = np.stack([values[k : k + frames] for k in starts]) if starts else np.empty((0, frames, NUMBERS))
    found[..., [0, 2]] -= found[:, :1, [0, 2]]
    for k in QUATERNIONS:
        found[..., k : k + 4] *= np.where(found[:, :1, k : k + 1] < 0, -1.0, 1.0)
    return found


def _same_side(values: np.ndarray) -> None:
    """Of q and -q take the one that is nearer to the frame before, in place."""
    for k in QUATERNIONS:
        q = values[:, k : k + 4]
        flips = np.where((q[1:] * q[:-1]).sum(1) < 0, -1.0, 1.0)
        q[1:] *= np.cumprod(flips)[:, None]


def wheel_clips(folder: Path, split: str) -> Texts:
    """(name, text, kind of motion) of the humanoid's clips in pybullet's wheel."""
    with zipfile.ZipFile(folder / PYBULLET) as archive:
        return [
            (name, archive.read(f"pybullet_data/data/motions/humanoid3d_{name}.txt").decode(), label)
            for name, label in sorted(_WAYS.items())
        ]
