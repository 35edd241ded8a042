"""`sfumato edit`: what is given filled in, sharpened, coloured or changed by a model trained for none of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from .edit_files import beside, filled, keeping, mask_of, opened, read, redrawn, restored, run, write
from .edit_options import Drawn, Restored

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing import LinearOperator
    from ..model import Model

app = App(
    name="edit",
    help="Change pictures: fill in, enlarge, colour, sharpen, restyle, interpolate. Fill gaps in symbols.",
)
Pictures = Annotated[list[Path], Parameter(negative="")]


@app.command
def inpaint(
    bundle: Path, pictures: Pictures, /, *, mask: Path, sigma: float = 0.0, options: Restored | None = None
) -> int:
    """Fill in what a mask covers.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    mask
        A picture of the model's size: white is filled in, black is kept.
    sigma
        Standard deviation of the noise in the kept part, in [-1, 1]; at 0 it is kept exactly.
    """

    def operator(model: Model) -> LinearOperator:
        from ..editing import Mask

        return Mask(~mask_of(mask, model), model.domain.shape)

    return restored(bundle, pictures, operator, sigma, options or Restored())


@app.command
def outpaint(
    bundle: Path,
    pictures: Pictures,
    /,
    *,
    left: int = 0,
    right: int = 0,
    top: int = 0,
    bottom: int = 0,
    options: Restored | None = None,
) -> int:
    """Go on beyond a picture's borders, by so many pixels of the model's size on each side.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    left
        Pixels to add at the left.
    right
        Pixels to add at the right.
    top
        Pixels to add above.
    bottom
        Pixels to add below.
    """

    def operator(model: Model) -> LinearOperator:
        import torch

        from ..editing import Mask
        from ..errors import BundleError

        if min(left, right, top, bottom) < 0 or left + right + top + bottom == 0:
            raise BundleError("say by how many pixels to go on: --left, --right, --top, --bottom, 0 or more")
        channels, height, width = model.domain.shape
        known = torch.zeros(1, height + top + bottom, width + left + right, dtype=torch.bool)
        known[:, top : top + height, left : left + width] = True
        return Mask(known, (channels, *known.shape[1:]))

    return restored(bundle, pictures, operator, 0.0, options or Restored())


@app.command(name="super-resolve")
def super_resolve(
    bundle: Path,
    pictures: Pictures,
    /,
    *,
    factor: int = 4,
    kernel: str = "mean",
    sigma: float = 0.0,
    options: Restored | None = None,
) -> int:
    """Enlarge pictures that are `factor` times smaller than the model's.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them, of the model's size divided by the factor.
    factor
        A whole number that divides the model's sides.
    kernel
        How the small pictures came about: mean (of blocks) or bicubic.
    sigma
        Standard deviation of the noise in them, in [-1, 1].
    """

    def operator(model: Model) -> LinearOperator:
        from ..editing import downsample

        return downsample(model.domain.shape, factor, kernel)

    return restored(bundle, pictures, operator, sigma, options or Restored(), measured=True)


@app.command
def colourise(bundle: Path, pictures: Pictures, /, *, options: Restored | None = None) -> int:
    """Colour grey pictures, keeping their brightness.

    Parameters
    ----------
    bundle
        The model's folder; its pictures have 3 channels.
    pictures
        Picture files, or folders of them.
    """

    def operator(model: Model) -> LinearOperator:
        from ..editing import grey

        return grey(model.domain.shape)

    return restored(bundle, pictures, operator, 0.0, options or Restored(), measured=True)


@app.command
def deblur(
    bundle: Path,
    pictures: Pictures,
    /,
    *,
    width: float = 1.5,
    sigma: float = 0.02,
    options: Restored | None = None,
) -> int:
    """Sharpen blurred pictures.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    width
        Standard deviation of the Gaussian blur, in pixels of the model's size.
    sigma
        Standard deviation of the noise in them, in [-1, 1]; eight bits alone are 0.002.
    """

    def operator(model: Model) -> LinearOperator:
        from ..editing import blur

        return blur(model.domain.shape, width)

    return restored(bundle, pictures, operator, sigma, options or Restored(), measured=True)


@app.command
def denoise(
    bundle: Path, pictures: Pictures, /, *, sigma: float = 0.2, options: Restored | None = None
) -> int:
    """Take noise away.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    sigma
        Standard deviation of the noise, in [-1, 1].
    """

    def operator(model: Model) -> LinearOperator:
        from ..editing import Identity

        return Identity(model.domain.shape)

    return restored(bundle, pictures, operator, sigma, options or Restored(), measured=True)


@app.command
def restyle(
    bundle: Path,
    pictures: Pictures,
    /,
    *,
    strength: float = 0.5,
    style: Path | None = None,
    options: Drawn | None = None,
) -> int:
    """Draw pictures again, from their coarse shapes.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    strength
        How far back towards noise to go first, a time from 0 (keep the picture) to 1 (forget it).
    style
        A picture whose look to take on: the statistics of its detail.
    """
    return redrawn(bundle, pictures, strength, 1, style, options or Drawn())


@app.command
def variations(
    bundle: Path,
    pictures: Pictures,
    /,
    *,
    strength: float = 0.6,
    count: int = 4,
    options: Drawn | None = None,
) -> int:
    """Draw several pictures like each one given.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    strength
        How different, a time from 0 to 1.
    count
        How many of each.
    """
    return redrawn(bundle, pictures, strength, count, None, options or Drawn())


@app.command
def interpolate(
    bundle: Path, first: Path, second: Path, /, *, frames: int = 8, options: Drawn | None = None
) -> int:
    """Draw the way from one picture to another, through the noise that the model makes into each.

    Parameters
    ----------
    bundle
        The model's folder.
    first
        Where it starts.
    second
        Where it ends.
    frames
        How many pictures, the two ends included.
    """
    import torch

    from ..editing import interpolate as between
    from .show import console, write_picture

    own = options or Drawn()
    own.without("interpolate", "seed", "guidance")
    model, screen = opened(bundle, own)
    ends = [read(path, model.domain.shape) for path in (first, second)]
    steps = 20 if own.steps is None else own.steps
    names = [f"frame-{k:02d}" for k in range(frames)]
    with keeping(model, names, own.out, screen):
        found = between(model, *ends, frames=frames, condition=own.condition, steps=steps)
    found = write(model, found, names, own.out, screen)
    sheet = model.domain.picture(torch.cat([ends[0][None], found, ends[1][None]]), columns=frames + 2)
    write_picture(sheet, beside(own.out))
    console.print(
        f"{frames} pictures in {own.out}, between the two given in {own.out}-sheet.png", soft_wrap=True
    )
    return 0


@app.command
def change(
    bundle: Path,
    pictures: Pictures,
    /,
    *,
    old: str,
    new: str,
    strength: float = 0.7,
    options: Drawn | None = None,
) -> int:
    """Change what a picture shows: inverted under its old label or prompt, drawn under the new one.

    Parameters
    ----------
    bundle
        The model's folder.
    pictures
        Picture files, or folders of them.
    old
        The label that it has, by name or number; of a model that takes text, what it shows in words.
    new
        The label that it is to have, or what it is to show.
    strength
        How far back to go, a time from 0 to 1; less keeps more.
    """
    own = options or Drawn()
    own.without("change", "seed", "label", "prompt")

    def work(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        from ..editing import change as changed

        kind = "text" if "text" in model.conditions.names else "label"
        done = changed(
            model, x, {kind: old}, {kind: new}, steps=20 if own.steps is None else own.steps,
            guidance=own.guidance or 1.0, strength=strength,
        )  # fmt: skip
        return x, done

    return run(bundle, pictures, own, work)


@app.command
def fill(
    bundle: Path,
    given: list[str],
    /,
    *,
    count: int = 1,
    solver: str | None = None,
    options: Drawn | None = None,
) -> int:
    """Fill the gaps in sequences, or the voices that a piece of music leaves out.

    Parameters
    ----------
    bundle
        The model's folder; a model of symbols behind a mask.
    given
        Sequences with ? for each unknown symbol ("CC?c1ccccc1"), and ... at the end where they may go on; or files.
    count
        How many answers for each.
    solver
        How they are drawn: ancestral, tau-leaping, unmasking or remasking; default: the model's own.
    """
    return filled(bundle, given, count, solver, options or Drawn())
