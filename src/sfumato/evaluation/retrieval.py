"""Does a picture show what was asked for? A judge of text and picture, trained on real ones, that says how good it is.

Nothing that was trained on captioned photographs of the world is at hand, so the judge is of our own making. Words are
embedded by the frozen sentence encoder, t = (mean over tokens − its mean over the training captions), of length 1.
A small convolutional network g maps pictures to the same space and is trained so that, within a batch of B pictures,
each finds its own caption and each caption its picture (Radford et al. 2021, arXiv:2103.00020):

    L = − 1/2 mean_i [ log softmax_j(s g_i·t_j)_i + log softmax_j(s g_j·t_i)_i ],     g_i = g(x_i) / |g(x_i)|

A batch holds one picture of each of B groups, for among variants of one picture no caption is wrong. In training
pictures are shifted, dimmed and made noisy, and not mirrored, for words tell left from right; each is shown with one of
its captions.

The score is *retrieval*: the share of pictures whose own caption is among the `k` likeliest of `among` captions, all of
other groups. Blind guessing gives k / among. What real held-out pictures score under the same rules is the judge's own
held-out accuracy, and stands beside every score made with it, as the floor does beside a distance. On captions that the
judge was trained with it knows the very pictures, so a high score there says that the model has learned its training
set, not that it understands new words.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from sfumato.domains.image_data import ImageData
from sfumato.errors import DataError
from sfumato.evaluation.classifier import ClassifierConfig, SmallNet
from sfumato.evaluation.features import BATCH, to_unit
from sfumato.evaluation.measure import Measure, wilson
from sfumato.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class RetrievalConfig:
    """How the judge is built and trained; with the data's hashes, the key under which it is kept."""

    width: int = 32
    dim: int = 256
    steps: int = 2000
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    scale: float = 14.0
    shift: int = 3
    among: int = 200
    k: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.dim) < 1 or self.batch < 2 or self.shift < 0 or self.learning_rate <= 0:
            raise DataError(
                f"the retrieval judge needs steps and dim >= 1, batch >= 2, shift >= 0, got {self}"
            )
        if not 1 <= self.k < self.among:
            raise DataError(
                f"retrieval looks for the first k of so many captions, 1 <= k < among, got {self}"
            )


def families(data: ImageData) -> np.ndarray:
    """The group of each picture as a whole number (n,); without groups, pictures of one caption are one."""
    rows = data.rows if data.rows is not None else range(len(data))
    names = [data.groups[row] for row in rows] if data.groups else data.prompts()
    return np.unique(np.array(names), return_inverse=True)[1]


def one_each(data: ImageData) -> np.ndarray:
    """Positions of one picture of each group: the first."""
    return np.unique(families(data), return_index=True)[1]


class RetrievalJudge:
    """A trained image tower beside the frozen text encoder; `record` says how good it is on real pictures."""

    def __init__(self, net: SmallNet, centre: Tensor, config: RetrievalConfig, record: dict[str, Any]):
        self.net = net.eval().requires_grad_(False)
        self.centre, self.config, self.record = centre, config, record

    @torch.no_grad()
    def pictures(self, images: Any) -> Tensor:
        """Vectors of length 1 (n, 384) of images: uint8 (n, h, w, c), or floats in [0, 1] (n, c, h, w)."""
        parts = [
            self.net(to_unit(images[start : start + BATCH]))[1] for start in range(0, len(images), BATCH)
        ]
        return F.normalize(torch.cat(parts), dim=1)

    def likeness(self, text: str, weight: float = 1.0) -> Callable[..., Tensor]:
        """A score to guide by (`ScoreGuided`): weight times the cosine of each picture x_0, in [-1, 1], to a text."""
        wanted = self.words([text])

        def score(x0: Tensor, level: Any = None, condition: Any = None) -> Tensor:
            found = self.net(((x0.float() + 1) / 2).clamp(0, 1))[1]
            return weight * (F.normalize(found, dim=1) * wanted.to(found)).sum(1)

        return score

    def words(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length 1 (n, 384) of texts."""
        return _words(texts, self.centre)

    def hits(self, images: Any, captions: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """Whether each picture's own caption is among the `k` likeliest of `among`, bool (n,).

        The rest are `among` - 1 of `others`, drawn anew for each picture and the same for the same number of pictures.
        Raises DataError if there are fewer others than that.
        """
        pool = list(dict.fromkeys([*captions, *others]))
        if len(pool) < self.config.among:
            raise DataError(
                f"{len(pool)} different captions are too few for {self.config.among} to choose from"
            )
        place = {text: k for k, text in enumerate(pool)}
        own = np.array([place[text] for text in captions])
        near = (self.pictures(images) @ self.words(pool).T).numpy()
        rng = np.random.Generator(np.random.Philox(key=[self.config.seed, 6]))
        found = np.empty(len(captions), dtype=bool)
        for i, mine in enumerate(own):
            rivals = rng.choice(len(pool) - 1, self.config.among - 1, replace=False)
            rivals += rivals >= mine
            found[i] = (near[i, rivals] >= near[i, mine]).sum() < self.config.k
        return found

    def measure(
        self, images: Any, captions: Sequence[str], others: Sequence[str], real: Any = None, note: str = ""
    ) -> Measure:
        """The share of hits with its interval; the floor is what `real` pictures of these captions score."""
        n = len(captions)
        hits = int(self.hits(images, captions, others).sum())
        floor = None if real is None else float(self.hits(real, captions, others).mean())
        chance = self.config.k / self.config.among
        low, high = wilson(hits, n)
        said = f"own caption among the first {self.config.k} of {self.config.among}, chance {chance:.3g}"
        details = {"chance": chance, "times_chance": round(hits / n / chance, 3)}
        return Measure(
            "retrieval",
            hits / n,
            low,
            high,
            n,
            "higher",
            floor,
            "; ".join(filter(None, (said, note))),
            details,
        )


def _words(texts: Sequence[str], centre: Tensor) -> Tensor:
    from sfumato.domains.text import embed  # what it needs is an extra

    return F.normalize(embed(texts).sentences(texts) - centre, dim=1)


def _fit(
    net: nn.Module, data: ImageData, centre: Tensor, config: RetrievalConfig,
    progress: Callable[[int, int], None] | None,
) -> None:  # fmt: skip
    """AdamW with a one-cycle rate on the two-sided contrastive loss; everything random is keyed on the seed."""
    texts = sorted({text for own in data.captions for text in own})
    place = {text: k for k, text in enumerate(texts)}
    words = _words(texts, centre)
    rows = data.rows if data.rows is not None else np.arange(len(data))
    choices = [[place[text] for text in data.captions[row]] for row in rows]
    group = families(data)
    members = [np.flatnonzero(group == g) for g in range(group.max() + 1)]
    images, size = to_unit(data.images), min(config.batch, len(members))
    optimiser = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, config.learning_rate, total_steps=config.steps + 1, pct_start=0.2
    )
    rng = np.random.Generator(np.random.Philox(key=[config.seed, 7]))
    net.train()
    for step in range(config.steps):
        chosen = [int(rng.choice(members[g])) for g in rng.choice(len(members), size, replace=False)]
        target = words[[int(rng.choice(choices[i])) for i in chosen]]
        logits = (
            config.scale * F.normalize(net(_varied(images[chosen], config.shift, rng))[1], dim=1) @ target.T
        )
        right = torch.arange(size)
        loss = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
        if progress is not None:
            progress(step + 1, config.steps)


def _varied(x: Tensor, shift: int, rng: np.random.Generator) -> Tensor:
    """Each picture moved by up to `shift` pixels over its edge's colours, dimmed and made noisy."""
    n, _, h, w = x.shape
    wide = F.pad(x, (shift,) * 4, mode="replicate")
    down, across = torch.from_numpy(rng.integers(0, 2 * shift + 1, (2, n)))
    rows, columns = down[:, None] + torch.arange(h), across[:, None] + torch.arange(w)
    x = wide[torch.arange(n)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    gain = torch.from_numpy(rng.uniform(0.7, 1.0, (n, 1, 1, 1))).float()
    noise = torch.from_numpy(rng.normal(0, 0.04, x.shape)).float()
    return (1 - gain * (1 - x) + noise).clamp(0, 1)


def train_judge(
    train: ImageData,
    held: ImageData,
    config: RetrievalConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalJudge:
    """Train on `train`, measure on one picture of each group of `held`. Raises DataError for data without captions."""
    config = config or RetrievalConfig()
    if not (train.captions and held.captions):
        raise DataError("the retrieval judge needs captions, of the training data and of the held-out data")
    from sfumato.domains.text import embed  # what it needs is an extra

    began = time.perf_counter()
    texts = embed([text for own in train.captions for text in own])
    centre = texts.sentences(sorted(set(train.prompts()))).mean(0)
    c, h, w = train.domain.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = SmallNet((c, h, w), int(texts.encoder["dim"]), ClassifierConfig(config.width, config.dim))
    with torch.enable_grad():
        _fit(net, train, centre, config, progress)
    judge = RetrievalJudge(net, centre, config, {})
    record: dict[str, Any] = {
        "format": FORMAT,
        "hash": hashlib.sha256(judge_weights(judge)).hexdigest(),
        "encoder": dict(texts.encoder),
        "shape": [c, h, w],
        "config": asdict(config),
        "trained_on": len(train),
        "seconds": round(time.perf_counter() - began, 2),
        "torch": torch.__version__,
    }
    fill = others_of(train, held, config.among)
    for name, data, rest in (("held_out", held, fill), ("training", train, [])):
        chosen = one_each(data)
        hits = judge.hits(data.images[chosen], data.prompts(chosen), rest)
        record[f"{name}_accuracy"] = float(hits.mean())
        record[f"{name}_interval"] = list(wilson(int(hits.sum()), len(hits)))
        record[f"{name}_pictures"] = len(hits)
    judge.record = record
    return judge


def others_of(train: ImageData, held: ImageData, among: int = 200) -> list[str]:
    """Captions of one picture of each held-out group, and as many of the training set as are needed to choose among:
    what a held-out picture's own caption has to stand out from."""
    rest = train.prompts(one_each(train))
    order = np.random.default_rng(0).permutation(len(rest))
    own = held.prompts(one_each(held))
    return [*own, *(rest[k] for k in order[: max(0, among - len(own))])]


def judge_weights(judge: RetrievalJudge) -> bytes:
    """Its weights as a safetensors file."""
    state = {name: value.contiguous() for name, value in judge.net.state_dict().items()}
    return save({**state, "centre": judge.centre})


def retrieval_judge(
    train: ImageData,
    held: ImageData,
    config: RetrievalConfig | None = None,
    folder: Path | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RetrievalJudge:
    """The judge for these data: from `folder` if it is kept there, else trained and kept.

    Files `retrieval-<key>.safetensors` and `.json`; the key is a hash of both data sets, the configuration and the
    format. A file that is damaged or does not belong raises `DataError`; it is never silently trained anew.
    """
    config = config or RetrievalConfig()
    if folder is None:
        return train_judge(train, held, config, progress)
    identity = {
        "format": FORMAT,
        "train": train.sha256(),
        "held": held.sha256(),
        "config": asdict(config),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    path = Path(folder) / f"retrieval-{key}.safetensors"
    if path.exists() and path.with_suffix(".json").exists():
        return _read(path, config)
    judge = train_judge(train, held, config, progress)
    write_atomically(path, judge_weights(judge))
    write_atomically(path.with_suffix(".json"), json.dumps(judge.record | {"key": key}, indent=2).encode())
    return judge


def _read(path: Path, config: RetrievalConfig) -> RetrievalJudge:
    remedy = f"delete {path.name} to train it anew"
    try:
        record = json.loads(path.with_suffix(".json").read_text())
        raw = path.read_bytes()
        if hashlib.sha256(raw).hexdigest() != record["hash"]:
            raise DataError(f"{path}: the weights are not the ones its record describes; {remedy}")
        weights = load(raw)
        centre = weights.pop("centre")
        net = SmallNet(tuple(record["shape"]), len(centre), ClassifierConfig(config.width, config.dim))
        net.load_state_dict(weights)
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, RuntimeError) as error:
        raise DataError(f"{path}: a damaged judge ({type(error).__name__}); {remedy}") from error
    return RetrievalJudge(net, centre, config, record)
