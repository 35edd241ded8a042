"""`sfumato finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def finetune(  # noqa: PLR0913 (the options of a command)
    bundle: str = "",
    /,
    *overrides: str,
    data: str | None = None,
    out: Annotated[Path, Parameter(alias="-o")],
    label: str | None = None,
    prompt: str | None = None,
    word: str | None = None,
    rank: int | None = None,
    images: int | None = None,
    full: bool = False,
    prior: float | None = None,
    merge: bool = False,
    resume: bool = False,
) -> int:
    """Teach a model a few pictures; what it learned is left in OUT/adapter, or with --full in OUT/model.

    Any value can be overridden by its name, as in train: training.learning_rate=1e-3 finetune.alpha=16
    'finetune.layers=["middle.*"]' finetune.prior_from=data. Ctrl-C saves and leaves, and --resume --out OUT goes on.

    Parameters
    ----------
    bundle
        The model's folder. With --resume it may be left out.
    overrides
        Section.name=value, as often as needed.
    data
        The pictures: a folder, or whatever else a recipe's data.source may be.
    out
        The run's folder.
    label
        What class they are of: a name that the model has, or a new one. Default: the data's own labels.
    prompt
        What all of them show, for a model that is asked by text. Default: the captions beside them.
    word
        Learn a word for them instead, and nothing else: a name that prompts then have in angle brackets, <NAME>.
    rank
        Rank of the adapter (default 8).
    images
        How many pictures to show, with repetition (default 4,800).
    full
        Train all weights instead of an adapter.
    prior
        Share of old pictures (samples of the model as it was) among those shown, so that it remembers; default 0.
    merge
        Also write the whole model with what it learned, to OUT/model.
    resume
        Go on with the run in OUT.
    """
    from ..errors import RecipeError, RunError
    from ..recipes import read_recipe
    from ..recipes.finetune import allowed, finetune_recipe
    from ..recipes.finetune import finetune as run

    if word is not None:
        given = {"label": label, "prompt": prompt, "rank": rank, "full": full, "prior": prior, "merge": merge}
        if useless := [f"--{name}" for name, value in given.items() if value]:
            raise RecipeError(f"with --word nothing but the word is trained: leave {useless[0]} out")
        if overrides or not bundle or not data:
            raise RecipeError(
                "sfumato finetune MODEL --data FOLDER --word NAME --out RUN, and no other values"
            )
        return _word(bundle, data, word, out, images, resume)
    if resume and (not bundle or "=" in bundle):
        if not (out / "recipe.toml").is_file():
            raise RunError(f"there is no run to resume in {out}: it has no recipe.toml")
        if data or label or prompt or rank or images or full or prior is not None:
            raise RecipeError(
                "with --resume and no model the run goes on as it was begun: leave the options out"
            )
        changes = [text for text in (bundle, *overrides) if text]
        recipe = read_recipe(str(out / "recipe.toml"), allowed(changes))
    elif not bundle or not data:
        raise RecipeError("which model, and which pictures? sfumato finetune MODEL --data FOLDER --out RUN")
    else:
        given = {"label": label, "prompt": prompt, "rank": rank, "full": full or None, "prior": prior}
        more = () if images is None else (f"training.images={images}",)
        recipe = finetune_recipe(
            bundle,
            data,
            overrides=(*more, *overrides),
            **{name: value for name, value in given.items() if value is not None},
        )
    from ..training import Interrupted
    from .show import Bar, Training, console, duration, say

    with Bar("fine-tuning", " images") as bar:
        _, result = run(recipe, out, merged=merge, resume=resume, callbacks=[Training(bar)], say=say)
    if isinstance(result, Interrupted):
        console.print(
            f"Interrupted at {result.images:,} images; saved. Go on with: sfumato finetune --resume --out {out}"
        )
        return 130
    asked = recipe.finetune
    assert asked is not None
    console.print(f"Fine-tuned on {result.images:,} images in {duration(result.seconds)}.")
    named = (
        f" --label {asked.label!r}" if asked.label else f" --prompt {asked.prompt!r}" if asked.prompt else ""
    )
    if asked.full:
        where = str(out / "model")
    else:
        where = f"{asked.bundle} --adapter {out / 'adapter'}"
    console.print(f"Draw with it: sfumato sample {where}{named} --out {out / 'samples'}", soft_wrap=True)
    return 0


def _word(bundle: str, data: str, word: str, out: Path, images: int | None, resume: bool) -> int:
    """Learn a word for pictures, and say how to use it."""
    import shlex
    from dataclasses import replace

    from .. import bundle as bundles
    from ..domains.images import as_source
    from ..errors import RecipeError
    from ..recipes.finetune import check_pictures
    from ..recipes.inversion import DEFAULT, learn_word
    from ..training import Interrupted, TrainingConfig
    from .show import Bar, Training, console, duration, say

    model = bundles.load(bundle)
    check_pictures(model)
    config = DEFAULT
    if images is not None:
        if images < 1:
            raise RecipeError(f"at least one picture must be shown, not {images}")
        config = TrainingConfig(
            **{**DEFAULT.model_dump(), "images": images, "warmup": min(160, images // 10)}
        )
    domain = model.domain
    domain = replace(domain, crop="center") if domain.crop == "none" else domain  # pictures of any shape
    pictures = domain.read(replace(as_source(data), labels="none", captions="none"))
    with Bar("learning a word", " images") as bar:
        _, result = learn_word(
            model, pictures, word, out, training=config, resume=resume, callbacks=[Training(bar)], say=say
        )
    if isinstance(result, Interrupted):
        parts = ["sfumato", "finetune", bundle, "--data", data, "--word", word, "--resume", "--out", str(out)]
        again = shlex.join([*parts, *([] if images is None else ["--images", str(images)])])
        console.print(f"Interrupted at {result.images:,} images; saved. Go on with: {again}", soft_wrap=True)
        return 130
    console.print(f"Learned <{word}> from {result.images:,} images in {duration(result.seconds)}.")
    asked = f"--adapter {out / 'adapter'} --prompt 'a drawing of <{word}>'"
    console.print(f"Draw with it: sfumato sample {bundle} {asked} --out {out / 'samples'}", soft_wrap=True)
    return 0
