"""`sfumato sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image
    from torch import Tensor

    from ..domains.image_data import ImageData
    from ..model import Model, Sampling


def sample(  # noqa: PLR0913 (the options of a command)
    bundle: Path,
    /,
    *,
    count: Annotated[int | None, Parameter(alias="-n")] = None,
    indices: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    label: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    prompt: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    given: list[str] | None = None,
    adapter: list[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    tolerance: float | None = None,
    guidance: str | None = None,
    classifier: Path | None = None,
    classifier_scale: float = 1.0,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    strength: float | None = None,
    canvas: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    film: bool = False,
    inspect: bool = False,
    words: bool = False,
    direction: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    filter_: Annotated[str | None, Parameter(name="--filter")] = None,
    rejected: Literal["blank", "drop"] = "blank",
    out: Annotated[Path, Parameter(alias="-o")] = Path("samples"),
) -> int:
    """Draw samples from a model and write them as files, with one picture of them all.

    Sample i of a seed is always the same, however many are drawn: --indices 7 draws it alone. OUT-grid.png shows them
    all, OUT-film.png how they come about.

    Parameters
    ----------
    bundle
        The model's folder: a bundle, or a pipeline folder of diffusers.
    count
        How many samples (default 16, with --from as many as there are pictures).
    indices
        Which samples of the seed, instead of a count.
    label
        One class for all, or one for each sample; numbers or names. Default: each class in turn, or with a prompt none.
    prompt
        What to draw, in words, of a model that takes text; several take turns. Default: captions that the model was
        trained with, in turn.
    given
        What is known of data that are no pictures, NAME=VALUE as often as needed: a column of a table, a property of a
        molecule. The rest is drawn to go with it. The names are those that `sfumato inspect` lists.
    adapter
        An adapter's folder, or FOLDER:weight, as often as there are adapters: what `sfumato finetune` taught the model.
    seed
        Another seed gives other samples.
    steps
        Steps of the solver; more is better and slower.
    solver
        A solver's name, alone or with values: heun, dpm++2m, unipc, adams:order=4,frame=angle ... A name that does not
        exist lists them all. Default: the one tuned to these steps and this guidance, if there is one and no grid is
        given, else the model's own.
    grid
        One of uniform, quadratic, cosine, flow, log-snr or karras; default: the model's own.
    tolerance
        Error that an adaptive solver may make in a step, in the units of the data, instead of a number of steps.
    guidance
        Classifier-free weight: 1 none, 1.5 to 3 keeps closer to the label at the cost of variety. Also with repairs,
        2.5:interval=0.2..3,rescale=0.7,negative=label:Bag (see the page on guidance).
    classifier
        A classifier of noisy data, the model that a recipe such as fashion-mnist-classifier trains: its derivative
        pulls towards the labels.
    classifier_scale
        How much of its derivative is added; 1 is Bayes' rule.
    from_
        Start from these pictures instead of noise, sample i from the i-th: a folder or a file. Without --label they
        keep their own labels, if the model knows them.
    strength
        With --from: how far back towards noise to go first, a time from 0 (keep the picture) to 1 (forget it); default
        0.4. All the steps are spent from there, so fewer do.
    canvas
        Draw on a larger canvas than the model was trained for, in overlapping windows: FRAMES HEIGHT WIDTH of clips,
        HEIGHT WIDTH of pictures and fields.
    film
        Also write OUT-film.png, which shows how the samples come about.
    inspect
        Also write OUT-steps.png and OUT-steps.json: at each step the size of the state, of the predicted picture, noise
        and score, what the step changed, and which spatial frequencies have their energy already.
    words
        Also write OUT-words.png: for the first prompt, where in the picture each of its words was read.
    direction
        Go along a direction that `sfumato directions` found: FILE:NUMBER:STRENGTH, e.g. fashion.safetensors:2:1.5, the
        strength in standard deviations. Several add up.
    filter
        Check every sample before it is written: nsfw, or nsfw:0.5 with a threshold (default 0.8). The verdicts are in
        OUT-filter.json. Needs the extra "filter".
    rejected
        What becomes of samples that the filter rejects: blank writes a crossed-out picture, drop nothing.
    out
        Where to write them.
    """
    from .. import bundle as bundles
    from ..errors import BundleError, SolverError
    from ..files import check_folder, write_atomically
    from ..film import film as shoot
    from ..film import planned
    from ..solvers import Unfinished, build_solver
    from .directions import steer
    from .screen import guard
    from .show import Bar, console, write_picture

    if count is not None and indices:
        raise BundleError("give --count or --indices, not both")
    if strength is not None and from_ is None:
        raise BundleError("--strength says how far to go back from a picture: give the pictures with --from")
    if words and not prompt:
        raise BundleError("--words shows where the words of a prompt were read: give one with --prompt")
    if canvas and (
        which := [
            name
            for name, value in {
                "--indices": indices, "--solver": solver, "--grid": grid, "--tolerance": tolerance, "--from": from_,
                "--classifier": classifier, "--film": film, "--inspect": inspect, "--words": words,
            }.items()
            if value
        ]
    ):  # fmt: skip
        raise BundleError(f"a canvas is drawn by the model's own solver from noise: leave {which[0]} out")
    check_folder(out)
    screen = guard(filter_, rejected, out, seen_unchecked=film or inspect or words)
    model = bundles.load(bundle)
    for name, asked in (("inspect", inspect), ("filter", screen)):
        if asked and not hasattr(model.domain, "pixels"):
            raise BundleError(
                f"--{name} looks at pictures, and this model makes {model.domain.name}: leave it out"
            )
    if adapter:
        from ..adapter_files import parse_adapter

        model = model.with_adapters([parse_adapter(text) for text in adapter])
    model = steer(model, direction or ())
    begun = None if from_ is None else _pictures(model, from_, labelled=not label)
    number = len(indices) if indices else count if count is not None else 16 if begun is None else len(begun)
    if number < 1:
        raise BundleError(f"at least one sample must be drawn, not {number}")
    chosen = indices or range(number)
    start = own = None
    if begun is not None:
        if max(chosen) >= len(begun):
            raise BundleError(
                f"{from_} holds {len(begun)} pictures, so there is none for sample {max(chosen)}"
            )
        start = begun.tensor(list(chosen)), 0.4 if strength is None else strength
        own = None if begun.targets is None else begun.targets[list(chosen)].tolist()
    condition: dict[str, Any] = {}
    known = _known(given or ())
    for name, option, value in (("label", "--label", label), ("text", "--prompt", prompt)):
        if value and name in known:
            raise BundleError(f"{name} is given twice: by {option}, and by --given {name}={known[name]}")
    said = prompt or "text" in known
    if label:
        condition["label"] = label[0] if len(label) == 1 else label
    elif own is not None:
        condition["label"] = own
    elif model.classes and begun is None and not (said and model.conditions.free):
        condition["label"] = [k % len(model.classes) for k in chosen]
    asked = prompt or (model.conditions.examples if begun is None and not condition else [])
    if asked:
        condition["text"] = [asked[k % len(asked)] for k in chosen]
    texts: list[str] | None = condition.get("text")
    condition |= known
    settings: dict[str, Any] = {
        "condition": condition,
        "seed": seed,
        "steps": steps,
        "solver": solver
        if tolerance is None
        else build_solver(solver or model.sampling.solver.kind, tolerance=tolerance),
        "grid": grid,
        "guidance": guidance,
        "start": start,
        "around": None if classifier is None else _by_classifier(model, classifier, classifier_scale),
    }
    labels = model.conditions.labels(condition["label"], number) if "label" in condition else None

    place_of = {
        index: place for place, index in reversed(list(enumerate(chosen)))
    }  # the first, if one comes twice

    def put(samples: Tensor, names: Sequence[int]) -> tuple[list[Path], Tensor, list[int]]:
        """Write what a filter lets pass of these samples; also its samples, and their places among the chosen."""
        failed = None
        if screen is not None:
            samples, names, failed = screen(model.domain, samples, names)
        places = [place_of[index] for index in names]
        if getattr(model.domain, "together", False):  # one file of all of them
            return model.domain.write(samples, out, labels, names[0]), samples, places
        paths = []
        for sample, index, place in zip(samples, names, places, strict=True):
            one = None if labels is None else labels[place : place + 1]
            said = None if texts is None else texts[place : place + 1]
            paths += model.domain.write(sample[None], out, one, index, said)
        if failed is not None:
            raise SolverError(f"{failed}; those that passed are in {out}") from failed
        return paths, samples, places

    try:
        with Bar("sampling", " steps") as bar:
            if canvas:
                samples = _on_canvas(model, canvas, number, settings, lambda i, n, x, p: bar.update(i, n))
            else:
                samples = model.sample(
                    None if indices else number,
                    indices=indices,
                    callback=lambda i, n, x, p: bar.update(i, n),
                    **settings,
                )
    except Unfinished as error:  # what was finished is kept, and the command fails all the same
        put(error.samples, error.finished)
        raise SolverError(f"{error}; they are in {out}") from error
    paths, samples, kept = put(samples, tuple(chosen))
    if not paths:
        return 0  # the filter has said why
    beside = out.resolve()  # beside the folder and not in it, which can then be read as data
    shown = None if texts is None else [texts[k] for k in kept]
    write_picture(
        _grid(model, samples, shown),
        beside.with_name(f"{beside.name}-grid.png"),
    )
    console.print(f"{len(kept)} samples in {out}, all of them in {out}-grid.png", soft_wrap=True)

    def head(count: int) -> dict[str, Any]:
        """The settings that draw the first few of these samples again."""
        part: dict[str, Any] = {"condition": dict(known)}
        if labels is not None:
            part["condition"]["label"] = labels[:count]
        if texts is not None:
            part["condition"]["text"] = texts[:count]
        part["start"] = None if start is None else (start[0][:count], start[1])
        return settings | part | {"indices": None if indices is None else indices[:count]}

    few = min(number, 10)
    if start is not None:
        pair = model.domain.strip([start[0][kept][:few], samples[:few]], ["given", "drawn"])
        write_picture(pair, beside.with_name(f"{beside.name}-from.png"))
        console.print(f"beside what they were made from: {out}-from.png", soft_wrap=True)
    if film:
        shots, captions = shoot(model, few, **head(few))
        write_picture(model.domain.strip(shots, captions), beside.with_name(f"{beside.name}-film.png"))
        console.print(f"how they come about: {out}-film.png", soft_wrap=True)
    if inspect:
        many = min(number, 64)
        _inspect(model, planned(model, settings), many, head(many), beside)
        console.print(f"what each step does: {out}-steps.png, the numbers: {out}-steps.json", soft_wrap=True)
    if words:
        own = [k for k, text in enumerate(texts or []) if text == (texts or [""])[0]][:4]
        write_atomically(beside.with_name(f"{beside.name}-words.png"), _words(model, own, chosen, settings))
        console.print(f"where each word was read: {out}-words.png", soft_wrap=True)
    return 0


def _known(texts: Sequence[str]) -> dict[str, str]:
    """{name: value} of what is written NAME=VALUE. Raises BundleError for anything else."""
    from ..errors import BundleError

    found = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise BundleError(f"--given takes NAME=VALUE, not {text!r}")
        if name in found:
            raise BundleError(f"{name} is given twice: as {found[name]!r} and as {value!r}")
        found[name] = value
    return found


def _words(model: Model, places: list[int], chosen: Sequence[int], settings: dict[str, Any]) -> bytes:
    """Where each word of a prompt was read, as a PNG, of the samples at these places of the chosen, drawn again."""
    from dataclasses import replace

    from torch.nn import functional as F

    from ..domains.text import text_encoder
    from ..evaluation.attribution import Watched, group_pieces, picture, word_maps

    told = dict(settings["condition"])
    text = told["text"] = told["text"][places[0]]
    if "label" in told:
        told["label"] = model.conditions.labels(told["label"], len(chosen))[places]
    words, groups = group_pieces(text_encoder(int((model.conditions.text or {})["limit"])).pieces(text))
    watched = Watched(model.denoiser, len(places))
    own = settings | {"condition": told, "indices": [chosen[k] for k in places], "start": None}
    samples = replace(model, denoiser=watched).sample(batch=len(places), **own)
    maps = word_maps(watched.maps, groups)
    if maps.shape[2:] != samples.shape[2:]:  # of latents
        maps = F.interpolate(maps, samples.shape[2:], mode="bilinear", align_corners=False)
    return picture(model.domain.pixels(samples), maps, words)


def _on_canvas(
    model: Model, canvas: Sequence[int], count: int, settings: dict[str, Any], callback: Any
) -> Tensor:
    """Samples in overlapping windows."""
    from ..editing import sample_canvas

    taken = {name: settings[name] for name in ("condition", "seed", "steps", "guidance")}
    channels = model.domain.shape[:1] if model.domain.spreads else ()
    return sample_canvas(model, (*channels, *canvas), count, callback=callback, **taken)


def _grid(model: Model, samples: Tensor, texts: list[str] | None) -> Image:
    """All samples on one sheet; with prompts a row for each, with white where one has fewer samples than another."""
    if texts is None:
        return model.domain.picture(samples)
    import torch

    rows = [[k for k, own in enumerate(texts) if own == text] for text in dict.fromkeys(texts)]
    longest = max(len(row) for row in rows)
    white = samples.new_ones(1, *samples.shape[1:])
    tiles = [
        part for row in rows for part in (samples[row], white.expand(longest - len(row), *white.shape[1:]))
    ]
    return model.domain.picture(torch.cat(tiles), longest, list(dict.fromkeys(texts)))


def _inspect(model: Model, plan: Sampling, count: int, settings: dict[str, Any], beside: Path) -> None:
    """Write what each step of sampling does, as a picture and as numbers."""
    from ..evaluation.receipts import versions
    from ..evaluation.trace import picture, record, trace
    from ..files import write_atomically, write_json

    recorder = trace(model, count, **settings)
    title = (
        f"{plan.solver.kind}, {plan.steps} steps on the {plan.grid.kind} grid, guidance {plan.guidance:g}, "
    )
    title += f"{count} samples"
    png = picture(recorder, lambda x: model.domain.pixels(model.codec.decode(x)), title)
    about = {
        "kind": "sfumato-steps",
        "model": model.info.get("sha256"),
        "samples": count,
        "seed": settings["seed"],
        "from": None if settings["start"] is None else settings["start"][1],
        **plan.to_json(),
        "versions": versions(),
    }
    write_json(beside.with_name(f"{beside.name}-steps.json"), about | record(recorder))
    write_atomically(beside.with_name(f"{beside.name}-steps.png"), png)


def _by_classifier(model: Model, folder: Path, scale: float) -> Any:
    """What wraps a denoiser into one that a bundle's classifier guides."""
    from .. import bundle as bundles
    from ..denoisers import Classifier, ScoreGuided
    from ..errors import BundleError

    other = bundles.load(folder)
    judge: Any = other.denoiser
    if not isinstance(judge, Classifier):
        raise BundleError(
            f"{folder} is no classifier of noisy data: train one, sfumato train fashion-mnist-classifier"
        )
    if other.domain.shape != model.domain.shape or other.classes != model.classes:
        raise BundleError(f"{folder} classifies other pictures or classes than this model's")
    return lambda denoiser: ScoreGuided(denoiser, judge.log_probability, scale, of="state")


def _pictures(model: Model, source: Path, labelled: bool) -> ImageData:
    """The pictures to start from, with their labels if they have any and the model can use them."""
    from ..domains.source import Source

    labels = "auto" if labelled and model.classes else "none"
    return model.domain.read(Source(path=source, labels=labels))
