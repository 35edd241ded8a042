"""`sfumato sample`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from ..domains.image_data import ImageData
    from ..model import Model, Sampling


def sample(  # noqa: PLR0913 (the options of a command)
    bundle: Path,
    /,
    *,
    count: Annotated[int | None, Parameter(alias="-n")] = None,
    indices: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    label: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    seed: int = 0,
    steps: int | None = None,
    solver: str | None = None,
    grid: str | None = None,
    tolerance: float | None = None,
    guidance: float | None = None,
    from_: Annotated[Path | None, Parameter(name="--from")] = None,
    strength: float | None = None,
    film: bool = False,
    inspect: bool = False,
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
        One class for all, or one for each sample; numbers or names. Default: each class in turn.
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
        Classifier-free weight: 1 none, 1.5 to 3 keeps closer to the label at the cost of variety.
    from_
        Start from these pictures instead of noise, sample i from the i-th: a folder or a file. Without --label they
        keep their own labels, if the model knows them.
    strength
        With --from: how far back towards noise to go first, a time from 0 (keep the picture) to 1 (forget it); default
        0.4. All the steps are spent from there, so fewer do.
    film
        Also write OUT-film.png, which shows how the samples come about.
    inspect
        Also write OUT-steps.png and OUT-steps.json: at each step the size of the state, of the predicted picture, noise
        and score, what the step changed, and which spatial frequencies have their energy already.
    out
        Where to write them.
    """
    from .. import bundle as bundles
    from ..errors import BundleError, SolverError
    from ..film import film as shoot
    from ..film import planned
    from ..solvers import Unfinished, build_solver
    from .show import Bar, console, write_picture

    if count is not None and indices:
        raise BundleError("give --count or --indices, not both")
    if strength is not None and from_ is None:
        raise BundleError("--strength says how far to go back from a picture: give the pictures with --from")
    model = bundles.load(bundle)
    given = None if from_ is None else _pictures(model, from_, labelled=not label)
    number = len(indices) if indices else count if count is not None else 16 if given is None else len(given)
    if number < 1:
        raise BundleError(f"at least one sample must be drawn, not {number}")
    chosen = indices or range(number)
    start = own = None
    if given is not None:
        if max(chosen) >= len(given):
            raise BundleError(
                f"{from_} holds {len(given)} pictures, so there is none for sample {max(chosen)}"
            )
        start = given.tensor(list(chosen)), 0.4 if strength is None else strength
        own = None if given.targets is None else given.targets[list(chosen)].tolist()
    condition = None
    if label:
        condition = {"label": label[0] if len(label) == 1 else label}
    elif own is not None:
        condition = {"label": own}
    elif model.classes and given is None:
        condition = {"label": [k % len(model.classes) for k in chosen]}
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
    }
    labels = model.conditions.labels(condition["label"], number) if condition else None
    try:
        with Bar("sampling", " steps") as bar:
            samples = model.sample(
                None if indices else number,
                indices=indices,
                callback=lambda i, n, x, p: bar.update(i, n),
                **settings,
            )
    except Unfinished as error:  # what was finished is kept, and the command fails all the same
        for sample, index in zip(error.samples, error.finished, strict=True):
            place = list(chosen).index(index)
            model.domain.write(
                sample[None], out, None if labels is None else labels[place : place + 1], start=index
            )
        raise SolverError(f"{error}; they are in {out}") from error
    first = chosen[0]
    if indices and indices != list(range(first, first + number)):
        paths = []
        for k, index in enumerate(indices):
            one = None if labels is None else labels[k : k + 1]
            paths += model.domain.write(samples[k : k + 1], out, one, start=index)
    else:
        paths = model.domain.write(samples, out, labels, start=first)
    beside = out.resolve()  # beside the folder and not in it, which can then be read as data
    write_picture(model.domain.picture(samples), beside.with_name(f"{beside.name}-grid.png"))
    console.print(f"{len(paths)} samples in {out}, all of them in {out}-grid.png", soft_wrap=True)

    def head(count: int) -> dict[str, Any]:
        """The settings that draw the first few of these samples again."""
        part: dict[str, Any] = {"condition": None if labels is None else {"label": labels[:count]}}
        part["start"] = None if start is None else (start[0][:count], start[1])
        return settings | part | {"indices": None if indices is None else indices[:count]}

    few = min(number, 10)
    if start is not None:
        pair = model.domain.strip([start[0][:few], samples[:few]], ["given", "drawn"])
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
    return 0


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


def _pictures(model: Model, source: Path, labelled: bool) -> ImageData:
    """The pictures to start from, with their labels if they have any and the model can use them."""
    from ..domains.source import Source

    labels = "auto" if labelled and model.classes else "none"
    return model.domain.read(Source(path=source, labels=labels))
