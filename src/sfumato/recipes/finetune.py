"""Fine-tuning: a few pictures taught to a model that exists, by the trainer that trains models.

run/recipe.toml     what was asked, as for a training, with a section [finetune]
run/checkpoints/    what a killed run goes on from            run/log.jsonl     figures of the training
run/prior/          samples of the model as it was, if they are mixed in
run/adapter/        what was learned, apart                   run/model/        the whole model, with `full`

*What is trained.* A low-rank adapter beside frozen weights (`personal.layers`), or with `full` all weights. In a model
that is asked by label, pictures of a class that it has go on teaching that class, others a new one.

Pictures shown to a model that is asked by text have captions, their own or one that is said of all of them.

What is done against forgetting, and how it is measured: `remembering`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import bundle
from ..adapter_files import save_adapter
from ..denoisers import Denoiser
from ..domains.image_data import ImageData
from ..domains.images import Images
from ..errors import BundleError, DataError, RecipeError, RunError
from ..files import write_atomically
from ..model import Model
from ..objectives import Objective, build_objective
from ..personal import Adapter, attach, fresh, grow, read, settle, text_width
from ..training import Callback, Interrupted, Trainer, TrainingResult
from . import card
from .codec import with_latents
from .recipe import Recipe, overridden, parse_overrides, recipe_from, to_toml
from .remembering import Mixed, forgetting, prior_data
from .run import read_data, sample_sheet

FIXED = (
    "process",
    "network",
    "denoiser",
    "objective.kind",
    "data.size",
    "data.channels",
    "finetune.bundle",
    "finetune.weights",
)


def allowed(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides by name. Raises RecipeError for one that the model decides."""
    changes = parse_overrides(overrides)
    for name in changes:
        if name in FIXED or name.split(".")[0] in FIXED:
            raise RecipeError(f"{name} follows from the model that is fine-tuned and cannot be set")
    return changes


def check_pictures(model: Model) -> None:
    """Raise BundleError for a model of anything but pictures, which is not fine-tuned."""
    if not isinstance(model.domain, Images):
        raise BundleError(f"only models of pictures are fine-tuned, and this one makes {model.domain.name}")


def finetune_recipe(
    source: str | Path,
    data: str | Path,
    *,
    overrides: Sequence[str] = (),
    model: Model | None = None,
    **finetune: Any,
) -> Recipe:
    """The recipe of a fine-tuning: the bundle's own, with short training, its data, and a section [finetune].

    source: the bundle's folder; model: what is in it, if it is loaded already. data: whatever a recipe's [data] can
    read. finetune: values of that section (rank, label, full, prior ...). overrides: as for `train`.
    Raises BundleError for the bundle, RecipeError in one line for values that are not possible.
    """
    model = model or bundle.load(source)
    check_pictures(model)
    base = model.info.get("recipe") or {}
    full, label = finetune.get("full", False), finetune.get("label")
    training = {
        "images": 4_800, "batch": 16, "optimizer": "adamw", "learning_rate": 2e-4 if full else 2e-3, "warmup": 320,
        "decay": "cosine", "ema": [0.05], "checkpoint_every": 1_600, "validate_every": 0, "log_every": 160,
        "channels_last": base.get("training", {}).get("channels_last", False),
    }  # fmt: skip
    domain = model.domain
    values: dict[str, Any] = {
        **{name: base[name] for name in ("process", "network", "denoiser", "evaluation") if name in base},
        "name": f"{base.get('name', Path(source).name)}-finetuned",
        "about": f"{base.get('name', source)}, fine-tuned on {data}",
        "data": {
            "source": str(data),
            "held_out": 0.0,
            "labels": "auto" if model.classes and label is None else "none",
            "captions": "auto" if "text" in model.conditions.names and not finetune.get("prompt") else "none",
            "flip": domain.flip,
            "crop": "center" if domain.crop == "none" else domain.crop,  # of any shape, as `edit` takes them
            "resample": domain.resample,
        },
        "objective": {**base.get("objective", {}), "drop": 0.0},
        "training": training,
        "sampling": model.sampling.to_json(),
        "finetune": {"bundle": str(source), "weights": model.fingerprint, **finetune},
    }
    changes = allowed(overrides)
    if isinstance(images := changes.get("training.images"), int):
        training["warmup"] = min(320, max(images, 0) // 10)
    return recipe_from(overridden(values, changes), "the fine-tuning")


@dataclass(frozen=True)
class Finetuning:
    """The parts of a fine-tuning, built. new: names of the classes it teaches; adapter: None if all weights train."""

    recipe: Recipe
    model: Model
    data: ImageData
    held_out: ImageData
    denoiser: Denoiser
    objective: Objective
    new: tuple[str, ...]
    adapter: Adapter | None


def set_up(recipe: Recipe, model: Model | None = None) -> Finetuning:
    """Load the model, read the pictures and make what is to be trained.

    Raises BundleError for another model than the recipe's, DataError for the pictures, RecipeError for the rest.
    """
    if recipe.finetune is None:
        raise RecipeError("this recipe has no section [finetune]: it trains a model, see sfumato train")
    asked = recipe.finetune
    model = model or bundle.load(asked.bundle)
    if model.fingerprint != asked.weights:
        raise BundleError(
            f"the model in {asked.bundle} is not the one this run began with: its weights have the SHA-256 "
            f"{model.fingerprint[:12]}, not {asked.weights[:12]}"
        )
    if text_width(model.denoiser.network) and "text" not in model.conditions.names:
        raise BundleError(
            "this model takes a text's tensors and does not say of which encoder: teach it a word with learn_word"
        )
    if model.base is not None:
        raise BundleError(
            "this model enlarges another's pictures, which is not fine-tuned: fine-tune the one that it enlarges, in "
            f"{Path(asked.bundle) / 'base'}"
        )
    names = model.conditions.names
    if "text" in names and model.classes:
        raise BundleError(
            "this model is asked by label and by text at once, which is not fine-tuned: learn a word"
        )
    if asked.prompt is not None and "text" not in names:
        raise DataError(
            "this model takes no text, so nothing can be said of the pictures: leave the prompt out"
        )
    if asked.label is not None and "text" in names:
        raise DataError("this model is asked by text: say what the pictures show by a prompt, not by a label")
    if asked.prior and asked.prior_from == "samples" and "text" in names and not model.conditions.examples:
        raise DataError("the model names no captions to draw old pictures of: take finetune.prior_from=data")
    data, held, new = pictures(recipe, model)
    denoiser = copy.deepcopy(model.denoiser).train()
    network, adapter = denoiser.network, None
    if asked.full:
        denoiser.requires_grad_(True)
        if new:
            grow(network, network.conditioning.labels.weight[-1].expand(len(new), -1))  # type: ignore[union-attr,index]
    else:
        adapter = fresh(
            network,
            asked.weights,
            rank=asked.rank,
            alpha=asked.alpha,
            layers=asked.layers,
            classes=new,
            seed=recipe.training.seed,
        )
        attach(network, adapter)
    objective = build_objective(
        **recipe.objective.model_dump(exclude={"losses"}),
        classes=len(data.domain.classes) if model.classes else 0,
    )
    return Finetuning(recipe, model, data, held, denoiser, objective, new, adapter)


def pictures(recipe: Recipe, model: Model) -> tuple[ImageData, ImageData, tuple[str, ...]]:
    """(train, held out, names of new classes): the pictures in the model's size, with labels as it will number them.

    Raises DataError for fewer than two pictures, and where it is not known of what class they are, or what they show.
    """
    assert recipe.finetune is not None
    asked, config, known = recipe.finetune.label, recipe.data, list(model.classes)
    domain = replace(model.domain, classes=(), flip=config.flip, crop=config.crop, resample=config.resample)
    data, held = read_data(recipe, domain)
    if len(data) < 2:
        raise DataError(
            f"at least 2 pictures are needed to fine-tune on, and {config.source} gives {len(data)}"
        )
    if "text" in model.conditions.names:
        return captioned(data, recipe, model), captioned(held, recipe, model), ()
    if not known:
        if asked is not None:
            raise DataError(f"this model knows no labels, so it cannot learn {asked!r} as one: leave it out")
        return replace(data, labels=None), replace(held, labels=None), ()
    if asked is not None:
        if asked not in known and asked.isdecimal() and int(asked) < len(known):
            asked = known[int(asked)]
        names, labels = [asked], np.zeros(len(data.stored), np.int64)
    elif data.labels is None:
        raise DataError(
            f"the model is asked by label, and the pictures in {config.source} have none: say what they are of, as "
            f"--label {known[0]!r} or a new name"
        )
    else:
        names, labels = list(data.domain.classes), data.labels
    used = [names[k] for k in np.unique(labels)]
    new = tuple(name for name in used if name not in known)
    numbers = np.array([[*known, *new].index(name) if name in used else -1 for name in names])
    whole = replace(data.domain, classes=(*known, *new))

    def renumbered(part: ImageData) -> ImageData:
        own = np.zeros(len(part.stored), np.int64) if asked is not None else part.labels
        return replace(part, domain=whole, labels=numbers[own])

    return renumbered(data), renumbered(held), new


def captioned(data: ImageData, recipe: Recipe, model: Model) -> ImageData:
    """The pictures with the embeddings of what is said of them, by the encoder that the model was trained with."""
    assert recipe.finetune is not None
    said = recipe.finetune.prompt
    if not len(data):
        return replace(data, labels=None)
    if said is not None:
        data = replace(data, captions=((said,),) * len(data.stored))
    elif not data.captions:
        raise DataError(
            f"the model is asked by text, and the pictures in {recipe.data.source} have no captions: write some beside "
            "them, say what all show (--prompt), or teach the model a word for them (--word)"
        )
    model.conditions.texts("", 1)  # refuses another encoder than the model's
    return replace(data, labels=None, domain=replace(data.domain, classes=())).encoded()


def finetune(
    recipe: Recipe,
    out: str | Path,
    *,
    model: Model | None = None,
    merged: bool = False,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Model, TrainingResult]:
    """Fine-tune in a run folder; leaves `out/adapter`, and `out/model` if all weights were trained or `merged`.

    recipe: of `finetune_recipe`. resume: go on from the newest whole checkpoint in `out`. Returns the model with what
    it learned, and the result (an `Interrupted` if a signal ended it; then nothing is written).
    """
    out = Path(out)
    if not resume and (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise RunError(f"{out} already holds a run: go on with it by --resume, or choose another folder")
    parts = set_up(recipe, model)
    own = Path(recipe.finetune.bundle) if recipe.finetune else None
    if (merged or parts.adapter is None) and own and own.resolve() == (out / "model").resolve():
        raise RunError(f"{own} is the model that is fine-tuned: choose another folder for the run")
    trained = sum(p.numel() for p in parts.denoiser.parameters() if p.requires_grad)
    say(f"{len(parts.data):,} pictures; {trained / 1e3:,.0f} k numbers are trained")
    shown, prior = with_latents(parts.data, parts.model.codec), prior_data(parts, out, say)
    share = recipe.finetune.prior if recipe.finetune else 0.0
    trainer = Trainer(
        parts.denoiser,
        parts.objective,
        shown if prior is None else Mixed(shown, with_latents(prior, parts.model.codec), share),
        recipe.training,
        out,
        held_out=with_latents(parts.held_out, parts.model.codec) if len(parts.held_out) else None,
        callbacks=callbacks,
    )
    text = to_toml(recipe).encode()
    result = trainer.fit(resume, lambda: write_atomically(out / "recipe.toml", text))
    taught, adapter = learned(parts, result)
    if not isinstance(result, Interrupted):
        say("measuring what was forgotten")
        write(parts, taught, adapter, result, out, merged)
    return taught, result


def learned(parts: Finetuning, result: TrainingResult) -> tuple[Model, Adapter | None]:
    """The model with the averaged weights of a training's end, and the adapter that makes it, if one was trained."""
    if parts.adapter is not None:
        adapter = read(result.weights, parts.adapter, "network.")
        return parts.model.with_adapters([adapter]), adapter
    denoiser = parts.denoiser
    denoiser.load_state_dict(result.weights)
    if parts.new:
        settle(denoiser.network)
    model = parts.model
    classes = (*model.domain.classes, *parts.new)
    info = {key: model.info[key] for key in ("guidable", "text") if key in model.info}
    denoiser.eval().requires_grad_(False)
    domain = replace(model.domain, classes=classes)
    return Model(
        denoiser, domain, model.sampling, info, words=model.words, codec=model.codec, base=model.base
    ), None


def write(
    parts: Finetuning,
    taught: Model,
    adapter: Adapter | None,
    result: TrainingResult,
    out: Path,
    merged: bool,
) -> None:
    """Write what was learned, with a card that says what it was taught and what it forgot."""
    recipe, seed = parts.recipe, parts.recipe.training.seed
    # nothing is dropped here: "no label" has another number in a model that was taught a class
    asked: dict[str, Any] = {**recipe.objective.model_dump(exclude={"losses"}), "drop": 0.0}
    lost = forgetting(parts.model, taught, build_objective(**asked), seed)
    plain = recipe.model_dump(mode="json")
    data = {"train": parts.data.card(), "held_out": {"count": len(parts.held_out)}}
    training = {
        "images": result.images,
        "seconds": round(result.seconds, 1),
        "held_out_loss": result.held_out,
        "average": f"power-{recipe.training.ema[0]:g}" if recipe.training.ema else "none",
        "forgetting": lost,
    }
    figures = {"samples.png": sample_sheet(taught, 5)}
    if adapter is not None:
        about = {"recipe": plain, "data": data, "training": training}
        adapter = replace(adapter, about=about)
        text = card.adapter_card(adapter, taught, about)
        record = save_adapter(adapter, out / "adapter", card=text, figures=figures)
        taught.info["adapters"][0]["sha256"] = record["sha256"]
    if adapter is None or merged:
        text = card.model_card(taught, plain, data, training) + card.forgotten(lost)
        taught.info = bundle.save(
            taught,
            out / "model",
            recipe=plain,
            data=data,
            training=training,
            card=text,
            figures=figures,
        )
