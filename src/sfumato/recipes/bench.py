"""A bundle with its data, ready to be measured: the figures of a receipt, from the settings that it states.

What can be measured, by the receipt's "what":

    quality    the measures of `evaluation.evaluate`, of samples drawn with a solver, grid, steps and guidance
    bound      the variational bound on held-out data, in bits per dimension
    likelihood the same of the probability flow, whose log-probability is known, not bounded
    study      where the error of a sample comes from: the model, the steps, the ends of the schedule
    cost       evaluations and FLOPs of a sample, which are exact; its seconds and memory are noted beside them

A receipt is a function of the bundle (by hash), the data (by hash), the features (by hash) and the settings written
in it, so `recompute` needs nothing else; on the same machine it gives the same bits. A tuned solver is named by its
steps and by the SHA-256 of its table, which the bundle holds: once it has been tuned anew the receipt is about
something else, and is refused. Labels are asked for in the proportions of the training set: those at positions
(i + 1/2) / n of its sorted labels, in a fixed random order.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import bundle
from ..codec import Codec, LatentCodec
from ..denoisers import Condition
from ..domains.cache import cache_folder
from ..domains.image_data import ImageData
from ..domains.images import Images
from ..errors import BundleError, DataError, choose
from ..evaluation.by_domain import DomainJudge
from ..evaluation.cost import CallCounter, Cost, count_flops, measure_cost
from ..evaluation.evaluate import Judge, Settings
from ..evaluation.features import Features, build_features
from ..evaluation.measure import Measure
from ..evaluation.receipts import Agreement, Receipt, compare
from ..model import Model
from ..noise import Noise
from ..objectives import Bound, CategoricalBound
from ..processes import Categorical, Gaussian
from ..sampling import Sampling
from ..solvers import Driver, Tuned, build_grid, build_solver
from ..solvers.likelihood import bits_per_dimension
from .recipe import recipe_from
from .run import read_data

FEATURED = ("quality", "reconstruction")  # kinds of receipts whose figures are over features
Progress = Callable[[str, int, int], None]


class Bench:
    """A bundle with its data and features, ready to be measured at any settings."""

    def __init__(self, folder: str | Path, progress: Progress | None = None):
        self.folder = Path(folder)
        self.model: Any = self._load(self.folder)
        record = self.model.info
        if not record.get("recipe"):
            raise BundleError(f"{folder} holds no recipe, so it is not known which data it was trained on")
        self.recipe = recipe_from(record["recipe"], f"the recipe in {folder}")
        self.train, self.held = read_data(self.recipe, self.model.domain)
        stated = record["data"].get("train", {}).get("sha256")
        self.data_hash = self.train.sha256()
        if stated != self.data_hash:
            raise DataError(
                f"{self.recipe.data.source} is not what {folder} was trained on: its SHA-256 is {self.data_hash[:12]}, "
                f"not {str(stated)[:12]}"
            )
        if len(self.held) < 20:
            raise DataError(f"judging needs held-out data: {len(self.held)} examples are too few")
        self.progress = progress
        self._judge: Any = None
        self._features: Any = None

    def _load(self, folder: Path) -> Any:
        return bundle.load(folder)

    @property
    def features(self) -> Features:
        """The recipe's features; a classifier is trained once and kept in the cache."""
        if self._features is None and not isinstance(self.model.domain, Images):
            self._features = self._judge = DomainJudge(self.model.domain, self.train, self.held)
        if self._features is None:

            def told(done: int, total: int) -> None:
                self._tell("training the classifier that judges", done, total)

            self._features = build_features(
                self.recipe.evaluation.features,
                train=_Labelled(self.train),
                held=_Labelled(self.held),
                folder=cache_folder() / "features",
                progress=told,
            )
        return self._features

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def quality(self, settings: dict[str, Any]) -> list[Measure]:
        """The measures at the settings of a receipt's "sampling"."""
        if self._judge is None and isinstance(self.model.domain, Images):
            self._judge = Judge(
                _Labelled(self.train), _Labelled(self.held), self.features, Settings(), self.progress
            )

        def draw(n: int) -> tuple[Any, Any]:
            labels = labels_like(self.train, n) if self.model.classes else None
            condition: dict[str, Any] | None = None if labels is None else {"label": labels}
            if labels is None and self.model.info.get("text"):
                condition = {"text": prompts_like(self.train, n)}
            if condition is None and not isinstance(self.model.domain, Images):
                condition = self.model.domain.questions(self.held, n) or None
            samples = self.model.sample(
                n,
                condition=condition,
                seed=settings["seed"],
                steps=None if isinstance(settings["solver"], Driver) else settings["steps"],
                guidance=settings["guidance"],
                solver=settings["solver"],
                grid=settings["grid"],
                batch=settings["batch"],
                callback=lambda i, total, x, p: self._tell("sampling", i, total),
            )
            pictures = isinstance(self.model.domain, Images)  # measures of other kinds are of states
            return self.model.domain.decode(samples) if pictures else samples, labels

        judge: Any = self._judge or self.features
        return judge(draw, settings["measures"], settings["samples"])

    def bound(self, settings: dict[str, Any]) -> list[Measure]:
        """The variational bound in bits per dimension over held-out images, with the interval of its mean."""
        if isinstance(self.model.denoiser.process, Categorical):
            return self._symbol_bound(settings)
        if not isinstance(self.model.denoiser.process, Gaussian):
            raise DataError(
                "the variational bound is that of a gaussian process: set evaluation.bound_images=0"
            )
        objective, terms = Bound(settings["steps"]), settings["terms"]
        note = f"upper bound on -log2 p(x), {settings['steps']}-step chain, {terms} evaluations an image"

        def bits(x: Tensor, noise: Noise, condition: Condition) -> Tensor:
            return objective.bits_per_dimension(self.model.denoiser, x, noise, condition, terms)

        return [self._mean_bits("bits per dimension", bits, settings, note)]

    def _symbol_bound(self, settings: dict[str, Any]) -> list[Measure]:
        """The same of symbols: bits a symbol, in continuous time."""
        objective, terms = CategoricalBound(), settings["terms"]
        note = f"upper bound on -log2 p(x), continuous time, {terms} evaluations an example"

        def bits(x: Tensor, noise: Noise, condition: Condition) -> Tensor:
            return objective.bits_per_symbol(self.model.denoiser, x, noise, condition, terms)

        return [self._mean_bits("bits per symbol", bits, settings, note)]

    def likelihood(self, settings: dict[str, Any]) -> list[Measure]:
        """Bits per dimension of the unguided probability flow over held-out images, with the interval of its mean."""
        steps, probes = settings["steps"], settings["probes"]
        trace = f"{probes} probes" if probes else "exact trace"
        note = f"-log2 P(x) of the probability flow, unguided, uniformly dequantised, {steps} steps, {trace}"

        def bits(x: Tensor, noise: Noise, condition: Condition) -> Tensor:
            denoiser = self.model.denoiser
            return bits_per_dimension(denoiser, x, noise, condition, steps=steps, probes=probes)

        return [self._mean_bits("bits per dimension (flow)", bits, settings, note)]

    def _mean_bits(
        self,
        name: str,
        bits: Callable[[Tensor, Noise, Condition], Tensor],
        settings: dict[str, Any],
        note: str,
    ) -> Measure:
        """The mean of bits(x, noise, condition) over evenly spread held-out images."""
        count = settings["images"]
        rows = np.linspace(0, len(self.held) - 1, count).astype(np.int64)
        labels, found = self.held.targets, []
        for start in range(0, count, settings["batch"]):
            part = rows[start : start + settings["batch"]]
            condition = None
            if self.model.classes and labels is not None:
                condition = {"label": torch.from_numpy(labels[part])}
            elif self.model.info.get("text"):
                condition = self.model.conditions.texts(self.held.prompts(part), len(part))
            found.append(bits(self.held.tensor(part), Noise(settings["seed"], part.tolist()), condition))
            self._tell(name, start + len(part), count)
        each = torch.cat(found)
        mean, half = float(each.mean()), 1.96 * float(each.std()) / count**0.5
        return Measure(name, mean, mean - half, mean + half, count, "lower", note=note)

    def cost(self, settings: dict[str, Any]) -> list[Measure]:
        """Evaluations of the denoiser and GFLOP for one sample: counted, so without an interval."""
        plan = Sampling(*(settings[name] for name in ("solver", "grid", "steps", "guidance")))
        counted = sampling_cost(self.model, 4, 1, plan)
        nfe, flops, codec = counted.nfe, counted.flops_per_sample or 0, self.model.codec
        if isinstance(codec, LatentCodec):
            flops += count_flops(codec.network.decode, torch.zeros(1, *self.model.latent_shape))
        return [
            Measure("evaluations", nfe, nfe, nfe, 4),
            Measure("GFLOP", flops / 1e9, flops / 1e9, flops / 1e9, 4),
        ]

    def study(self, settings: dict[str, Any]) -> list[Measure]:
        """The parts of a sample's error, at guidance 1: a guided flow leads to no law that an error could be of."""
        from ..evaluation.study import Plan, study

        if self.model.base is not None:
            raise DataError(
                "the parts of an error are measured of a model that draws by itself, not of a cascade"
            )
        made = self._built(settings)
        names = ("fine", "starts", "levels", "seed")
        plan = Plan(made["solver"], made["grid"], tuple(made["steps"]), *(made[name] for name in names))
        held, train = (
            _examples(data, settings["examples"], bool(self.model.classes), self.model.codec)
            for data in (self.held, self.train)
        )
        return study(self.model.denoiser, plan, held, train, progress=self.progress)

    def figures(self, settings: dict[str, Any]) -> list[Measure]:
        """The measures that a receipt's "sampling" describes. Raises DataError for a kind there is none of."""
        kinds = {
            "quality": lambda: self.quality(self._built(settings)),
            "bound": lambda: self.bound(settings),
        }
        kinds |= {
            "likelihood": lambda: self.likelihood(settings),
            "cost": lambda: self.cost(self._built(settings)),
        }
        kinds["study"] = lambda: self.study(settings)
        return kinds[choose(settings.get("what"), kinds, "kind of receipt", DataError)]()

    def _built(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings with the solver and grid that they state, tuned ones from the bundle."""
        solver, grid = settings["solver"], settings["grid"]
        if solver["kind"] != Tuned.kind:
            return settings | {"solver": build_solver(**solver), "grid": build_grid(**grid)}
        for own in self.model.tuned:
            if own.sha256 == solver["sha256"]:
                return settings | {"solver": own, "grid": own.grid}
        raise DataError(
            f"the receipt is about a solver tuned to {solver['steps']} steps (SHA-256 {solver['sha256'][:12]}) which "
            f"{self.folder} does not hold: it has been tuned anew, or its tuned.json is missing"
        )

    def recompute(self, receipt: Receipt, tolerance: float = 1e-6) -> list[Agreement]:
        """Compute a receipt's figures again. Raises DataError if it is about another model, data or features."""
        for what, own in (
            ("model", self.model.info["sha256"]),
            ("data", self.data_hash),
            (
                "features",
                self.features.hash if receipt.sampling.get("what") in FEATURED else receipt.features["hash"],
            ),
        ):
            stated = getattr(receipt, what)["hash"]
            if stated != own:
                raise DataError(
                    f"the receipt is about another {what}: it states {stated[:12]}, here it is {own[:12]}"
                )
        return compare(receipt, self.figures(dict(receipt.sampling)), tolerance)

    def receipt(
        self, measures: Sequence[Measure], settings: dict[str, Any], path: Path, seconds: float
    ) -> Receipt:
        """Write the receipt of some measures."""
        uses = settings["what"] in FEATURED
        receipt = Receipt(
            measures=tuple(measures),
            model={
                "name": self.recipe.name,
                "folder": str(self.folder),
                "hash": self.model.info["sha256"],
                "weights": self.model.info["files"]["weights.safetensors"],
            },
            data={
                "name": self.recipe.data.source,
                "hash": self.data_hash,
                "count": len(self.train),
                "held_out": len(self.held),
            },
            features=self.features.card() if uses else {"name": "none", "hash": "none"},
            sampling=settings,
            command=shlex.join(["sfumato", "evaluate", "--receipt", str(path)]),
            seconds=round(seconds, 2),
        )
        receipt.write(path)
        return receipt


def stated(plan: Sampling) -> dict[str, Any]:
    """The settings of a plan as receipts state them: a tuned solver by its steps and the SHA-256 of its table."""
    values = plan.to_json()
    if isinstance(plan.solver, Tuned):
        values["solver"] = {"kind": Tuned.kind, "steps": plan.solver.steps, "sha256": plan.solver.sha256}
        values["grid"] = {"kind": plan.grid.kind}
    return values


def _examples(data: ImageData, count: int, labelled: bool, codec: Codec) -> tuple[torch.Tensor, Any]:
    """At most `count` pictures, encoded, in a fixed random order (folders come class by class), and their labels."""
    rows = np.random.default_rng(0).permutation(len(data))[:count]
    targets = data.targets
    labels = {"label": torch.from_numpy(targets[rows])} if labelled and targets is not None else None
    return codec.encode(data.tensor(rows)), labels


class _Labelled:
    """Data as the evaluation wants them: `.images` and `.labels` of equal length."""

    def __init__(self, data: ImageData):
        self.images, self.labels = data.images, data.targets
        self.classes = data.classes

    def __len__(self) -> int:
        return len(self.images)


def labels_like(data: ImageData, count: int) -> torch.Tensor:
    """Labels (count,) in the proportions of the data, spread so that any prefix has all classes."""
    targets = data.targets
    assert targets is not None
    ordered = np.sort(targets)[((np.arange(count) + 0.5) / count * len(targets)).astype(np.int64)]
    return torch.from_numpy(ordered[np.random.default_rng(0).permutation(count)].astype(np.int64))


def prompts_like(data: ImageData, count: int) -> list[str]:
    """The plainest captions of `count` pictures of the data in a fixed random order, repeated if need be."""
    order = np.random.default_rng(0).permutation(len(data))
    return data.prompts(order[np.arange(count) % len(order)])


def sampling_cost(model: Model, count: int = 64, repeats: int = 3, plan: Sampling | None = None) -> Cost:
    """What drawing `count` samples costs: evaluations (of both branches, if guided), FLOPs, seconds, memory.

    plan: how they are drawn; without one, as `Model.sample` draws them with what the model may be asked for.
    """
    condition = model.conditions.in_turn(count)
    plan = plan or model.plan(conditional=bool(condition))
    process = model.denoiser.process
    x = torch.zeros(1, *process.state_shape(model.latent_shape))
    x = x.long() if isinstance(process, Categorical) else x
    one = model.completed(model.conditions.in_turn(1), [0])
    flops = count_flops(model.denoiser, x, 0.5, model.conditions.tensors(one, 1))
    counter = CallCounter(model.denoiser)
    steps = None if isinstance(plan.solver, Driver) else plan.steps
    counted = Model(counter, model.domain, model.sampling, model.info, codec=model.codec, base=model.base)  # type: ignore[arg-type]
    return measure_cost(
        lambda: counted.sample(
            count,
            condition=condition,
            solver=plan.solver,
            grid=plan.grid,
            steps=steps,
            guidance=plan.guidance,
        ),
        counter,
        network=model.denoiser.network,
        flops_per_call=flops,
        repeats=repeats,
    )
