"""What the subcommands of `sfumato edit` share: reading pictures, writing them, showing them beside what was given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..editing import LinearOperator
    from ..model import Model
    from .edit_options import Drawn, Restored
    from .screen import Guard


def opened(bundle: Path, own: Drawn) -> tuple[Model, Guard | None]:
    """The model with its adapters, and the filter that was asked for. Raises BundleError for one of no pictures."""
    from .. import bundle as bundles
    from ..adapter_files import parse_adapter
    from ..domains.images import Images
    from ..drawing import check_numbers
    from ..errors import BundleError
    from ..files import check_folder
    from .screen import guard

    check_folder(own.out)
    screen = guard(own.filter_, "blank", own.out, seen_unchecked=False)
    model = bundles.load(bundle)
    if not isinstance(model.domain, Images):
        check_numbers(model.denoiser.process, "editing")
        raise BundleError(
            f"this edits pictures, and the model in {bundle} makes {model.domain.name}: see sfumato.editing in Python"
        )
    if own.adapter:
        model = model.with_adapters([parse_adapter(text) for text in own.adapter])
    return model, screen


@contextmanager
def keeping(model: Model, names: list[str], out: Path, screen: Guard | None) -> Iterator[None]:
    """Around work on pictures: what was finished before it failed is written, and BundleError says where."""
    from ..errors import BundleError
    from ..solvers import Unfinished

    try:
        yield
    except Unfinished as error:
        write(model, error.samples, names, out, screen)
        raise BundleError(f"{error}; they are in {out}") from error


def run(
    bundle: Path,
    pictures: list[Path],
    own: Drawn,
    work: Callable[[Model, Tensor], tuple[Tensor, Tensor]],
    count: int = 1,
    shape: Callable[[Model], tuple[int, ...]] | None = None,
) -> int:
    """Read, work, write and show; a picture that cannot be read is told at the end, when the others are finished."""
    import torch

    from ..errors import BundleError, DataError
    from .show import console, write_picture

    if count < 1:
        raise BundleError(f"at least one picture must be drawn of each, not {count}")
    out = own.out
    model, screen = opened(bundle, own)
    size = model.domain.shape if shape is None else shape(model)
    found, stems, wrong = [], [], []
    for path in _files(pictures):
        try:
            found.append(read(path, size))
            stems.append(path.stem)
        except DataError as error:
            wrong.append(str(error))
    names = [name if count == 1 else f"{name}-{k}" for name in _different(stems) for k in range(count)]
    if not found:
        raise DataError(wrong[0] if wrong else "there are no pictures")
    given = {path.resolve() for path in _files(pictures)}
    if lost := [path for path in (out / f"{name}.png" for name in names) if path.resolve() in given]:
        raise BundleError(
            f"{lost[0]} is one of the pictures given, and would be overwritten: give another --out"
        )
    with keeping(model, names, out, screen):
        before, after = work(model, torch.stack(found))
    after = write(model, after, names, out, screen)
    columns = [before, *(after[k::count] for k in range(count))]
    captions = ["given", *(["drawn"] * count)]
    write_picture(model.domain.strip(columns, captions), beside(out))
    console.print(f"{len(after)} pictures in {out}, beside what was given in {out}-sheet.png", soft_wrap=True)
    if wrong:
        raise DataError(
            f"{wrong[0]}{f' (and {len(wrong) - 1} more)' if wrong[1:] else ''}; the {len(found)} others are finished, "
            f"in {out}"
        )
    return 0


def _different(stems: list[str]) -> Iterator[str]:
    """The names, each that was there before with the next free number: 1, 2, 1-2."""
    taken: set[str] = set()
    for stem in stems:
        number, name = 2, stem
        while name in taken or (name != stem and name in stems):
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        yield name


def _files(pictures: list[Path]) -> list[Path]:
    """The files, those of folders in order of their names."""
    from ..errors import DataError

    found: list[Path] = []
    for path in pictures:
        inside = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} holds no pictures")
        found += inside
    return found


def _open(path: Path) -> Any:
    from ..domains.pictures import open_picture
    from ..errors import DataError

    if not path.is_file():
        raise DataError(f"{path}: there is no such picture")
    try:
        return open_picture(path)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """A picture as (channels, height, width) in [-1, 1], cropped to its middle and resized where it is larger."""
    import torch

    from ..domains.pictures import Fit
    from ..errors import DataError

    channels, height, width = shape
    picture = _open(path)
    if picture.width < width or picture.height < height:
        raise DataError(
            f"{path}: is {picture.width}x{picture.height}; this takes pictures of {width}x{height}"
        )
    pixels = Fit((height, width), channels, "center").pixels(picture)
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def mask_of(path: Path, model: Model) -> Tensor:
    """What to fill in, (1, height, width), True where the mask picture is white."""
    import torch

    from ..domains.pictures import Fit
    from ..errors import DataError

    height, width = model.domain.shape[1:]
    picture = _open(path)
    if (picture.width, picture.height) != (width, height):
        raise DataError(
            f"{path}: the mask is {picture.width}x{picture.height}, and the model's pictures are {width}x{height}"
        )
    # where a mask is transparent, nothing is painted white
    pixels = Fit((height, width), 1, background=(0, 0, 0)).pixels(picture)
    white = torch.from_numpy(pixels[None, ..., 0] > 127)
    if not bool(white.any()):
        raise DataError(f"{path}: the mask is empty: nothing in it is white, so nothing is to be filled in")
    if bool(white.all()):
        raise DataError(
            f"{path}: the mask is all white, so nothing is kept: use `sfumato sample` to draw freely"
        )
    return white


def write(model: Model, samples: Tensor, names: list[str], out: Path, screen: Guard | None = None) -> Tensor:
    """Write samples as PNG files of these names, where there are fewer of them the first; return what was written.

    screen: what they have to pass first. Raises SolverError if it could not judge all, with those it did written.
    """
    import io

    from ..domains.pictures import as_picture
    from ..errors import SolverError
    from ..files import write_atomically

    kept, failed = range(len(samples)), None
    if screen is not None:
        samples, kept, failed = screen(model.domain, samples, list(kept))
    out.mkdir(parents=True, exist_ok=True)
    for pixels, k in zip(model.domain.to_uint8(samples), kept, strict=True):
        memory = io.BytesIO()
        as_picture(pixels).save(memory, format="PNG")
        write_atomically(out / f"{names[k]}.png", memory.getvalue())
    if failed is not None:
        raise SolverError(f"{failed}; those that passed are in {out}") from failed
    return samples


def beside(out: Path) -> Path:
    """Where the sheet of a folder goes."""
    whole = out.resolve()  # beside the folder and not in it, which can then be read as pictures
    return whole.with_name(f"{whole.name}-sheet.png")


def restored(
    bundle: Path,
    pictures: list[Path],
    operator: Callable[[Model], LinearOperator],
    sigma: float,
    own: Restored,
    measured: bool = False,
) -> int:
    """Restore pictures; measured: they are measurements already, not pictures to be measured."""

    def work(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        from ..codec import LatentCodec
        from ..editing import build_method, restore

        made, y = operator(model), x
        if not measured:
            canvas = x
            if made.shape != model.domain.shape:  # the picture lies where the mask knows it
                canvas = x.new_zeros(len(x), *made.shape)
                canvas[:, made.mask] = x.flatten(1)  # type: ignore[attr-defined]
            y = made(canvas)
        usual = "dps" if isinstance(model.codec, LatentCodec) else "ddnm" if measured else "repaint"
        method = build_method(own.method or usual)
        done = restore(
            model, made, y.repeat_interleave(own.count, 0), sigma=sigma, method=method,
            condition=own.condition, seed=own.seed, steps=own.steps, guidance=own.guidance,
        )  # fmt: skip
        return y if y.shape[1:] == done.shape[1:] else made.inverse(y), done

    def shape(model: Model) -> tuple[int, ...]:
        return operator(model).measured if measured else model.domain.shape

    return run(bundle, pictures, own, work, own.count, shape)


def redrawn(
    bundle: Path,
    pictures: list[Path],
    strength: float,
    count: int,
    style: Path | None,
    own: Drawn,
) -> int:
    """Draw pictures again from a time back towards noise, `count` of each."""

    def work(model: Model, x: Tensor) -> tuple[Tensor, Tensor]:
        from ..editing import restyle as drawn

        given = x.repeat_interleave(count, 0)
        look = None if style is None else read(style, model.domain.shape)
        return x, drawn(
            model, given, strength=strength, style=look, condition=own.condition, seed=own.seed,
            steps=own.steps, guidance=own.guidance,
        )  # fmt: skip

    return run(bundle, pictures, own, work, count)


def filled(bundle: Path, given: list[str], count: int, solver: str | None, own: Drawn) -> int:
    """Fill the gaps of each given text or file, `count` times."""
    from .. import bundle as bundles
    from ..adapter_files import parse_adapter
    from ..editing import fill
    from ..files import check_folder
    from .show import Bar, console, write_picture

    own.without("fill", "filter_")
    check_folder(own.out)
    model = bundles.load(bundle)
    if own.adapter:
        model = model.with_adapters([parse_adapter(text) for text in own.adapter])
    with Bar("filling", " steps") as bar:
        samples = fill(
            model, given, count=count, condition=own.condition, seed=own.seed, steps=own.steps, solver=solver,
            guidance=own.guidance, callback=lambda i, n, x, p: bar.update(i, n),
        )  # fmt: skip
    domain: Any = model.domain
    domain.write(samples, own.out)
    write_picture(domain.picture(samples), beside(own.out))
    for text in domain.text(samples):
        console.print(text, soft_wrap=True, markup=False, highlight=False)
    console.print(f"{len(samples)} samples in {own.out}, all of them in {own.out}-sheet.png", soft_wrap=True)
    return 0
