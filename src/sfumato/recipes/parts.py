"""What of a recipe follows from its data: the process, and whether what is asked of the data can be had."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..domains.augmentation import Augmented
from ..domains.image_data import spread_rows
from ..domains.images import Images
from ..domains.loosened import loosened
from ..errors import RecipeError
from ..networks import KINDS
from ..processes import Categorical, Gaussian, Joint, Level, build_process
from .recipe import Recipe

LEAST_SHARE = 0.95
"""Of the variance of examples' means: if sampling draws less of it, training says so at its beginning."""


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """What a part of the recipe cannot be built from, as a RecipeError that names its section."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise RecipeError(f"[{name}]: {error}") from None


def check_features(recipe: Recipe, classes: int) -> None:
    """Raise RecipeError for features that need labels, of data without."""
    if recipe.data.domain == "images" and recipe.evaluation.features == "classifier" and classes < 2:
        raise RecipeError(
            f"evaluation.features = 'classifier' needs data with labels, and {recipe.data.source} has none: "
            "set evaluation.features=pixels or efficientnet-lite0"
        )


def process_of(recipe: Recipe, domain: Any, shown: Any) -> Any:
    """The process of a recipe: its kind, its schedule, and what follows from the data."""
    config, schedule = recipe.process, dict(recipe.process.schedule)
    with section("process"):
        symbols: Any = getattr(domain, "symbols", None)
        leaves = isinstance(domain.shape, Mapping)
        if (config.kind == "joint") != leaves:
            are = "several leaves" if leaves else "one leaf"
            raise ValueError(f"{domain.name} have {are}, and a process of kind {config.kind!r} is for others")
        if leaves:
            sizes = {} if config.sigma_data else _sizes(shown)
            processes: dict[str, dict[str, Any]] = {}
            for name in domain.shape:
                if name in symbols:
                    own: dict[str, Any] = {"kind": "categorical", "law": config.law, "symbols": symbols[name]}
                else:
                    own = {"kind": "gaussian", "sigma_data": config.sigma_data or sizes[name]}
                processes[name] = {**own, "schedule": schedule}
            return build_process("joint", processes=processes)
        if (config.kind == "categorical") != (symbols is not None):
            are = "numbers" if symbols is None else "symbols"
            raise ValueError(f"{domain.name} are {are}, and a process of kind {config.kind!r} is for others")
        if config.kind == "categorical":
            return build_process(config.kind, schedule=schedule, law=config.law, symbols=symbols)
        sigma_data = config.sigma_data or root_mean_square(shown)
        return build_process(config.kind, schedule=schedule, sigma_data=sigma_data)


def network_settings(
    recipe: Recipe, domain: Any, process: Any, state: Sequence[int], classes: int
) -> dict[str, Any]:
    """What of a network follows from its data: the shape of a state, in the words of its kind, and what it is asked by.

    Networks of a `length` take positions of symbols or of numbers, those of a `size` channels of a picture.
    """
    takes = inspect.signature(KINDS[recipe.network.kind]).parameters
    if isinstance(process, Joint) != ("leaves" in takes):
        raise RecipeError(
            "network.kind = 'joint' or 'joint-egnn' is for data of several leaves, and no other network is"
        )
    if isinstance(process, Joint):
        shapes = process.state_shape(domain.shape)
        leaves: dict[str, dict[str, Any]] = {name: {"shape": list(shape)} for name, shape in shapes.items()}
        for name, leaf in process.processes.items():
            if isinstance(leaf, Categorical):
                leaves[name] |= {"symbols": leaf.states, "outputs": leaf.symbols}
        for name, own in dict(getattr(domain, "network", {})).items():
            leaves[name] |= own
        return {"leaves": leaves, "classes": classes}
    shape = process.state_shape(tuple(state))
    settings: dict[str, Any] = {"classes": classes} if "classes" in takes else {}
    if isinstance(process, Categorical):
        settings |= {"length": shape[0], "symbols": process.states, "outputs": process.symbols}
    elif "length" in takes:
        settings |= {"length": shape[0], "in_channels": shape[1] if len(shape) > 1 else 1}
    else:
        settings |= {"in_channels": shape[0], "size": list(shape[1:])}
        outputs = state[0] * (2 if recipe.denoiser.learned_variance else 1)
        if outputs != shape[0]:
            settings["out_channels"] = outputs
    return settings | dict(getattr(domain, "network", {}))


def changed(recipe: Recipe, data: Any, plain: bool) -> Augmented:
    """The data of `data.augment`. plain: whether the model is of pictures alone. Raises RecipeError where it is not."""
    if not plain or not isinstance(data.domain, Images):
        raise RecipeError(
            "data.augment changes pictures: not latents, not the two of a cascade, not other data"
        )
    with section("data"):
        return Augmented(data, recipe.data.augment)


def told_loosely(recipe: Recipe, data: Any, say: Callable[[str], None]) -> Any:
    """The data with their captions as `data.loosen` has them told in training. Raises RecipeError without captions."""
    if not recipe.data.loosen:
        return data
    say("encoding captions with words left out (once: they are kept in the cache)")
    with section("data"):
        return loosened(data, recipe.data.loosen)


def tell_of_means(shown: Any, process: Any, start: Level, say: Callable[[str], None]) -> None:
    """Say so where sampling starts from noise that does not hide by how much whole examples differ.

    The mean of n numbers that varies by d from example to example is D = sqrt(n) d beside noise of 1 a number, and of
    D^2 a start at s = sigma / alpha draws s^2 / (s^2 + D^2): pictures are all as bright, fields all as high.
    """
    if not isinstance(process, Gaussian) or not start.alpha > 0:
        return
    x = shown.tensor(spread_rows(shown, 1000)).float().flatten(1)
    wide = float(x.nanmean(1).nan_to_num().std(correction=0)) * x.shape[1] ** 0.5
    hidden = start.sigma / start.alpha
    share = 1 / (1 + (wide / hidden) ** 2)
    if share < LEAST_SHARE:
        grid = f'sampling.grid={{kind="log-snr",sigma_max={5 * wide:.0f}}}'
        say(
            f"whole examples differ so much that {share:.0%} of the variance of their means is drawn: let sampling "
            f"begin at more noise, {grid}, and let objective.times reach it"
        )


def _sizes(data: Any) -> dict[str, float]:
    """The size of each leaf that is numbers, over at most 10,000 examples and what of them was recorded."""
    found = {}
    for name, x in data.tensor(spread_rows(data, 10_000)).items():
        known = x[x.isfinite()] if x.is_floating_point() else x[:0]
        found[name] = max(round(float(known.square().mean().sqrt()), 3), 1e-3) if len(known) else 1.0
    return found


def root_mean_square(data: Any) -> float:
    """The size of the data in [-1, 1], over at most 10,000 pictures, to three digits."""
    return round(float(data.tensor(spread_rows(data, 10_000)).square().mean().sqrt()), 3)
