"""`sfumato sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


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
    guidance: float | None = None,
    film: bool = False,
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
        How many samples (default 16).
    indices
        Which samples of the seed, instead of a count.
    label
        One class for all, or one for each sample; numbers or names. Default: each class in turn.
    seed
        Another seed gives other samples.
    steps
        Steps of the solver; more is better and slower.
    solver
        One of ancestral, ddim, euler, heun, dpm++2m, edm or tuned; default: the one tuned to these steps and this
        guidance, if there is one and no grid is given, else the model's own.
    grid
        One of uniform, quadratic, cosine, flow, log-snr or karras; default: the model's own.
    guidance
        Classifier-free weight: 1 none, 1.5 to 3 keeps closer to the label at the cost of variety.
    film
        Also write OUT-film.png, which shows how the samples come about.
    out
        Where to write them.
    """
    from .. import bundle as bundles
    from ..errors import BundleError
    from ..model import film as shoot
    from .show import Bar, console, write_picture

    if count is not None and indices:
        raise BundleError("give --count or --indices, not both")
    number = len(indices) if indices else 16 if count is None else count
    if number < 1:
        raise BundleError(f"at least one sample must be drawn, not {number}")
    model = bundles.load(bundle)
    condition = None
    if label:
        condition = {"label": label[0] if len(label) == 1 else label}
    elif model.classes:
        chosen = indices or range(number)
        condition = {"label": [k % len(model.classes) for k in chosen]}
    settings = {
        "condition": condition,
        "seed": seed,
        "steps": steps,
        "solver": solver,
        "grid": grid,
        "guidance": guidance,
    }
    with Bar("sampling", " steps") as bar:
        samples = model.sample(
            None if indices else number,
            indices=indices,
            callback=lambda i, n, x, p: bar.update(i, n),
            **settings,
        )
    labels = model.labels(condition["label"], number) if condition else None
    start = indices[0] if indices else 0
    if indices and indices != list(range(start, start + number)):
        paths = []
        for k, index in enumerate(indices):
            one = None if labels is None else labels[k : k + 1]
            paths += model.domain.write(samples[k : k + 1], out, one, start=index)
    else:
        paths = model.domain.write(samples, out, labels, start=start)
    beside = out.resolve()  # beside the folder and not in it, which can then be read as data
    write_picture(model.domain.picture(samples), beside.with_name(f"{beside.name}-grid.png"))
    console.print(f"{len(paths)} samples in {out}, all of them in {out}-grid.png", soft_wrap=True)
    if film:
        few = min(number, 10)
        settings["condition"] = None if labels is None else {"label": labels[:few]}
        shots, captions = shoot(model, few, indices=indices[:few] if indices else None, **settings)
        write_picture(model.domain.strip(shots, captions), beside.with_name(f"{beside.name}-film.png"))
        console.print(f"how they come about: {out}-film.png", soft_wrap=True)
    return 0
