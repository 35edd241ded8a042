"""From a recipe to a trained bundle: the one place where all the parts of an experiment meet.

run/recipe.toml     the whole recipe, defaults and overrides included: what `--resume` goes on with
run/checkpoints/    what a killed run goes on from            run/log.jsonl     figures of the training
run/previews/       samples along the way                     run/model/        the bundle
run/codec/          of a model of latents: a copy of the autoencoder it is trained on
run/base/           of a model that enlarges: a copy of the one that draws small pictures
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import bundle
from ..cascade import Base
from ..codec import IDENTITY, Codec, LatentCodec
from ..conditions import spread_labels
from ..denoisers import CategoricalDenoiser, Classifier, Denoiser, JointDenoiser, build_guidance
from ..domains import build_domain
from ..domains.augmentation import PARAMETERS
from ..domains.image_data import ImageData
from ..domains.images import Images, as_source
from ..drawing import leaf_solvers
from ..errors import BundleError, DataError, RecipeError, RunError
from ..files import write_atomically
from ..model import Model, Sampling
from ..networks import build
from ..objectives import Objective, build_objective, check_trains
from ..processes import Categorical, Gaussian, Joint
from ..solvers import build_grid, build_solver, check_served
from ..solvers.joint import check_paths
from ..training import Callback, Interrupted, Trainer, TrainingResult
from ..training.ema import profiles_of
from . import card
from .cascade import Pairs, base_of, keep_base
from .codec import (
    codec_of,
    finished_codec,
    keep_codec,
    set_up_codec,
    with_latents,
    write_codec,
)
from .parts import changed, check_features, network_settings, process_of, section, tell_of_means, told_loosely
from .recipe import Recipe, read_recipe, to_toml


@dataclass(frozen=True)
class Experiment:
    """A recipe's parts, built: what `train` trains and `judge` judges."""

    recipe: Recipe
    domain: Images
    data: ImageData
    held_out: ImageData
    denoiser: Denoiser
    objective: Objective
    sampling: Sampling
    codec: Codec = IDENTITY
    shown: Any = None
    """What the trainer is shown: `data`, or their latents, or pairs with small pictures."""
    base: Base | None = None

    def as_shown(self, data: ImageData) -> Any:
        """Other data in the form in which the trainer is shown its own."""
        return replace(self.shown, data=data) if self.base else with_latents(data, self.codec)

    def model(self) -> Model:
        """The model with the denoiser's present weights."""
        info: dict[str, Any] = {"guidable": _guidable(self.recipe)}
        if self.data.texts is not None:
            info["text"] = {**self.data.texts.encoder, "examples": examples(self.data)}
        return Model(self.denoiser, self.domain, self.sampling, info, codec=self.codec, base=self.base)


def read_data(recipe: Recipe, domain: Any = None) -> tuple[Any, Any]:
    """(train, held out) of a recipe's [data] section."""
    config = recipe.data
    if domain is None and config.domain != "images":
        with section("data"):
            domain = build_domain(config.domain, **config.settings)
    domain = domain or Images(
        size=config.size,  # type: ignore[arg-type]  # one number is taken for both
        channels=config.channels,
        flip=config.flip,
        crop=config.crop,
        resample=config.resample,
    )
    if not getattr(domain, "sources", True):  # of one's own, which knows what its source means
        return domain.read(config.source).split(float(config.held_out))
    source = replace(
        as_source(config.source),
        split=config.split,
        labels=config.labels,
        captions=config.captions,
        limit=config.limit,
        skip_corrupt=config.skip_corrupt,
        licence=config.licence,
    )
    data = domain.read(source)
    if isinstance(config.held_out, str):
        return data, data.domain.read(replace(source, split=config.held_out))
    return data.split(config.held_out)


def text_ready(
    data: ImageData, held: ImageData, say: Callable[[str], None] = lambda text: None
) -> tuple[ImageData, ImageData]:
    """Both with the embeddings of their captions, where they have any. Raises MissingExtra without the extra "text"."""
    if not data.captions:
        return data, held
    say("encoding the captions (once: they are kept in the cache)")
    return data.encoded(), held.encoded() if held.captions and len(held) else held


def set_up(
    recipe: Recipe, out: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Experiment:
    """Read the data and build every part of a recipe; the initial weights are keyed by `training.seed`.

    out: the run folder, which may keep a codec already.
    Raises DataError, RecipeError or SolverError in one line for what does not fit.
    """
    data, held = text_ready(*read_data(recipe), say)
    domain = data.domain
    if recipe.training.batch > 4 * len(data):
        raise DataError(f"{len(data)} examples are too few for batches of {recipe.training.batch}")
    labelled = data.targets is not None
    classes = len(domain.classes) if labelled else 0
    check_features(recipe, classes)
    codec = codec_of(recipe, out)
    state = codec.shape(domain.shape)
    shown = with_latents(told_loosely(recipe, data, say), codec)
    process = process_of(recipe, domain, shown)
    base = base_of(recipe, out)
    if base is not None:
        if not isinstance(process, Gaussian):
            raise RecipeError("a model that enlarges has a gaussian process: leave process.kind out")
        shown = Pairs(data, base.shape[1:], process, recipe.cascade.most)
    settings = network_settings(recipe, domain, process, state, classes)
    if recipe.data.augment:
        shown = changed(recipe, data, base is None and codec is IDENTITY)
        settings["augmented"] = PARAMETERS
    if data.texts is not None:
        settings["text_dim"] = data.texts.encoder["dim"]
    if base is not None:
        settings["image_channels"] = domain.shape[0] + 1
    classifies = recipe.objective.kind == "classifier"
    if classifies != (recipe.network.kind == "classifier") or (classifies and classes < 2):
        raise RecipeError(
            "objective.kind and network.kind are 'classifier' both or neither, and a classifier needs data with labels"
        )
    given = recipe.network.model_dump()
    kind = given.pop("kind")
    if fixed := sorted(set(given) & set(settings)):
        raise RecipeError(f"network.{fixed[0]} follows from the data and cannot be set")
    with torch.random.fork_rng(), section("network"):
        torch.manual_seed(recipe.training.seed)
        network = build(kind, **settings, **given)
    with section("denoiser"):
        denoiser: Any = (
            Classifier(network, process)
            if classifies
            else CategoricalDenoiser(network, process)
            if isinstance(process, Categorical)
            else JointDenoiser(network, process, _rows(recipe, process))
            if isinstance(process, Joint)
            else Denoiser(network, process, **recipe.denoiser.model_dump())
        )
    with section("objective"):
        objective = build_objective(**recipe.objective.model_dump(exclude={"losses"}), classes=classes)
        check_trains(objective, process)
    if recipe.training.compile and recipe.objective.kind in ("sliced", "implicit"):
        raise RecipeError(
            f"objective.kind = {recipe.objective.kind!r} differentiates the network twice, which a compiled one "
            "cannot: set training.compile=false"
        )
    plan = recipe.sampling
    with section("sampling"):
        sampling = Sampling(
            build_solver(**plan.solver),
            build_grid(**plan.grid),
            plan.steps,
            build_guidance(plan.guidance),
        )
        # what cannot serve fails now, not after the training
        if isinstance(process, Joint):
            leaves: dict[str, Any] = dict(process.processes)
            paths = {name: sampling.grid.levels(own, sampling.steps) for name, own in leaves.items()}
            check_paths(process, leaf_solvers(process, sampling), paths)
        else:
            check_served(sampling.solver, process)
            path = sampling.grid.levels(process, sampling.steps)  # type: ignore[arg-type]
            tell_of_means(shown, process, path[0], say)
        parts = Experiment(recipe, domain, data, held, denoiser, objective, sampling, codec, shown, base)
        if not classifies:
            parts.model().guided(sampling.guidance)
    return parts


def train(
    recipe: Recipe | str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Model | LatentCodec, TrainingResult]:
    """Train a recipe in a run folder and write its bundle to `out/model`; a codec, if its network is an autoencoder.

    resume: go on from the newest whole checkpoint in `out`, if there is one. say: told what is being done.
    Returns the model with the averaged weights, and the result (an `Interrupted` if a signal ended it; then no
    bundle is written). Raises SfumatoError in one line for whatever cannot be done, before anything is written.
    """
    out = Path(out)
    if not isinstance(recipe, Recipe):
        recipe = read_recipe(recipe, overrides)
    if recipe.finetune is not None:
        raise RecipeError(f"{recipe.name} fine-tunes a model that exists: use sfumato finetune")
    if not resume and (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise RunError(f"{out} already holds a run: go on with it by --resume, or choose another folder")
    say(f"reading {recipe.data.source}")
    if recipe.network.kind == "autoencoder":
        return _train_codec(recipe, out, resume, callbacks, say)
    parts = set_up(recipe, out, say)
    count = sum(p.numel() for p in parts.denoiser.parameters())
    what = "pictures" if isinstance(parts.domain, Images) else parts.domain.name
    say(f"{len(parts.data):,} {what} of {_size(parts.domain)}; {count / 1e6:.2f} M parameters")
    trainer = Trainer(
        parts.denoiser,
        parts.objective,
        parts.shown,
        recipe.training,
        out,
        held_out=parts.as_shown(parts.held_out) if len(parts.held_out) else None,
        preview=None
        if isinstance(parts.denoiser, Classifier)
        else lambda denoiser, images: _preview(parts, denoiser, out, images),
        callbacks=callbacks,
    )

    # only once the run is known to be ours: a refused one must not leave another run with this recipe
    def accepted() -> None:
        write_atomically(out / "recipe.toml", to_toml(recipe).encode())
        keep_codec(parts.codec, parts.domain, out)
        keep_base(parts.base, out)

    result = trainer.fit(resume, accepted)
    model = averaged(parts, result)
    if kept := _same(model, out / "model"):
        return kept, result  # a finished run's bundle stays as it is, and so do the receipts about it
    if not isinstance(result, Interrupted):
        say("writing the bundle")
        write_bundle(parts, model, result, out)
    return model, result


def _train_codec(
    recipe: Recipe, out: Path, resume: bool, callbacks: Sequence[Callback], say: Callable[[str], None]
) -> tuple[LatentCodec, TrainingResult]:
    """`train` for an autoencoder."""
    data, held = read_data(recipe)
    if recipe.training.batch > 4 * len(data):
        raise DataError(f"{len(data)} examples are too few for batches of {recipe.training.batch}")
    check_features(recipe, len(data.domain.classes) if data.targets is not None else 0)
    apprentice, objective = set_up_codec(recipe, data.domain)
    count = sum(p.numel() for p in apprentice.network.parameters())
    latent = "×".join(map(str, apprentice.network.latent_shape()))
    say(
        f"{len(data):,} pictures of {_size(data.domain)} to latents of {latent}; {count / 1e6:.2f} M parameters"
    )
    held_out = held if len(held) else None
    trainer = Trainer(
        apprentice, objective, data, recipe.training, out, held_out=held_out, callbacks=callbacks
    )
    result = trainer.fit(resume, lambda: write_atomically(out / "recipe.toml", to_toml(recipe).encode()))
    codec = finished_codec(apprentice, result, data, recipe.name)
    with contextlib.suppress(BundleError):
        kept = bundle.load_codec(out / "model")
        if kept.fingerprint == codec.fingerprint:
            return kept, result  # as in `train`
    if not isinstance(result, Interrupted):
        say("writing the bundle")
        write_codec(codec, recipe, _about(recipe, data, held, result), held if len(held) else data, out)
    return codec, result


def _same(model: Model, folder: Path) -> Model | None:
    """The bundle in a folder, if it holds just these weights."""
    try:
        kept = bundle.load(folder)
    except BundleError:
        return None
    ours, theirs = model.denoiser.state_dict(), kept.denoiser.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return kept if same and kept.sampling == model.sampling else None


def averaged(parts: Experiment, result: TrainingResult) -> Model:
    """The model with the averaged weights of a training's end."""
    parts.denoiser.load_state_dict(result.weights)
    parts.denoiser.eval().requires_grad_(False)
    return parts.model()


def write_bundle(parts: Experiment, model: Model, result: TrainingResult, out: Path) -> None:
    """Write `out/model` with its card and a picture of samples, and give the model the bundle's record."""
    recipe = parts.recipe
    draws = not isinstance(model.denoiser, Classifier)  # there is nothing to show of a classifier
    figures = {"samples.png": sample_sheet(model)} if draws else {}
    about = _about(recipe, parts.data, parts.held_out, result)
    data, training = about["data"], about["training"]
    guidable = _guidable(recipe)
    plain = recipe.model_dump(mode="json")
    text = card.model_card(model, plain, data, training) if draws else None
    model.info = bundle.save(
        model,
        out / "model",
        recipe=plain,
        data=data,
        training=training,
        card=text,
        figures=figures,
        guidable=guidable,
        text=model.info.get("text"),
    )


def _about(recipe: Recipe, data: ImageData, held: ImageData, result: TrainingResult) -> dict[str, Any]:
    """What a bundle's record says of the data and the training."""
    averages = profiles_of(recipe.training)
    training = {
        "images": result.images,
        "seconds": round(result.seconds, 1),
        "held_out_loss": result.held_out,
        "average": averages[0].name if averages else "none",
    }
    return {"data": {"train": data.card(), "held_out": {"count": len(held)}}, "training": training}


def sample_sheet(model: Model, columns: int = 10) -> bytes:
    """A PNG of samples: a row for each class (the first 20 of them) or each example of a caption, else five rows."""
    asked = list(model.classes[:20]) or model.conditions.examples
    rows = len(asked) or 5
    condition: dict[str, Any] | None = None
    if model.classes:
        condition = {"label": spread_labels(rows, rows).repeat_interleave(columns)}
    elif asked:
        condition = {"text": [text for text in asked for _ in range(columns)]}
    samples = model.sample(rows * columns, condition=condition, seed=0)
    return png(model.domain.picture(samples, columns, asked or None))


def examples(data: ImageData, count: int = 8) -> list[str]:
    """Captions to show a model by: of pictures spread over the data, each of another group where there are groups."""
    rows = [data.rows[i] for i in range(len(data))] if data.rows is not None else range(len(data))
    first = {data.groups[row] if data.groups else row: data.captions[row][0] for row in reversed(rows)}
    texts = sorted(set(first.values()), key=lambda text: hashlib.sha256(text.encode()).digest())
    return texts[:count]


def png(picture: Any) -> bytes:
    """The bytes of a PIL picture as PNG."""
    memory = io.BytesIO()
    picture.save(memory, format="PNG")
    return memory.getvalue()


def _preview(parts: Experiment, denoiser: nn.Module, out: Path, images: int) -> None:
    model = replace(parts.model(), denoiser=denoiser)  # type: ignore[arg-type]
    content = sample_sheet(model, 6)
    write_atomically(out / "previews" / f"{images:09d}.png", content)


def _size(domain: Images) -> str:
    if isinstance(domain.shape, Mapping):
        return f"{len(domain.shape)} leaves"
    return "×".join(map(str, (*domain.shape[1:], domain.shape[0])))


def _guidable(recipe: Recipe) -> bool:
    """Whether the model can also be asked for nothing: leaves can always be left out."""
    return recipe.objective.drop > 0 or recipe.objective.kind == "joint"


def _rows(recipe: Recipe, process: Joint) -> dict[str, str]:
    """The row that is predicted of each leaf that is numbers."""
    numbers = [name for name, leaf in process.processes.items() if isinstance(leaf, Gaussian)]
    return dict.fromkeys(numbers, recipe.denoiser.parameterisation)
