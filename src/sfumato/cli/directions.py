"""`sfumato directions`, and `sfumato sample --direction`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from ..model import Model


def directions(  # noqa: PLR0913 (the options of a command)
    bundle: Path,
    /,
    *,
    count: Annotated[int, Parameter(alias="-n")] = 4,
    method: Literal["pca", "jacobian"] = "pca",
    samples: int = 64,
    times: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    strengths: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    shown: int = 8,
    label: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    out: Annotated[Path, Parameter(alias="-o")] = Path("directions"),
) -> int:
    """Find directions of meaning in a model's bottleneck, without labels, and show what each does.

    OUT.safetensors holds them, for `sfumato sample --direction OUT.safetensors:2:1.5`; OUT.png shows a few samples
    along each; OUT.json says what changes, and in how many samples it moves one way at every step of strength.

    Parameters
    ----------
    bundle
        The model's folder.
    count
        How many directions.
    method
        pca: the axes along which the features vary most; jacobian: the steps that move the prediction most, which is
        slower and in small networks finds fine texture.
    samples
        How many samples of the model's own they are found from.
    times
        Noise levels at which the features are looked at, from 0 (data) to 1 (noise); default 0.7 0.5.
    strengths
        Where samples are drawn, in standard deviations, 0 among them; default -1 -0.5 0 0.5 1.
    shown
        How many samples each direction is tried on; the sheet shows the first two.
    label
        Find them within these classes, one for all samples or in turn; default: each class in turn.
    seed
        Another seed gives other samples.
    steps
        Steps of the solver.
    guidance
        Classifier-free weight; default: the model's own.
    out
        The beginning of the names of what is written.
    """
    from dataclasses import asdict, replace

    from .. import bundle as bundles
    from ..errors import BundleError
    from ..evaluation.direction_effects import effects, sweep
    from ..evaluation.directions import find_directions
    from ..evaluation.receipts import versions
    from ..files import check_folder, write_json
    from .show import console, say, table, write_picture

    if count < 1 or samples < 2 or shown < 2:
        raise BundleError("give at least one direction, and two samples to find and to try it on")
    check_folder(out.parent)
    model = bundles.load(bundle)
    along = strengths or [-1.0, -0.5, 0.0, 0.5, 1.0]

    def condition(number: int) -> dict[str, Any] | None:
        if not (label or model.classes):
            return None
        names = label or [str(k) for k in range(len(model.classes))]
        return {"label": [names[k % len(names)] for k in range(number)]}

    settings: dict[str, Any] = {"seed": seed, "steps": steps, "guidance": guidance}
    say(f"drawing {samples} samples")
    own = model.sample(samples, condition=condition(samples), **settings)
    given = model.conditions.tensors(condition(samples), samples)
    given = given and {name: value.to(own.device) for name, value in given.items()}
    say("finding directions")
    found = find_directions(
        model.denoiser, own, count, times=times or (0.7, 0.5), method=method, condition=given, seed=seed
    )
    found = replace(found, weights=model.fingerprint)
    found.save(out.with_name(f"{out.name}.safetensors"))
    say(f"trying them on {shown} samples")
    swept = sweep(model, found, along, shown, condition=condition(shown), **settings)
    told = effects(swept, along)
    rows = swept[:, :, :2].transpose(1, 2).flatten(0, 2)
    captions = [f"{number}" for number in range(count) for _ in range(2)]
    sheet = model.domain.picture(rows, columns=len(along), rows=captions)
    write_picture(sheet, out.with_name(f"{out.name}.png"))
    record = {
        "kind": "sfumato-directions",
        "model": model.info.get("sha256"),
        "about": found.about,
        "path": found.path,
        "seed": seed,
        "samples": shown,
        "strengths": along,
        "deviations": found.deviations.tolist(),
        "values": found.values.tolist(),
        "effects": [asdict(effect) for row in told for effect in row],
        "versions": versions(),
    }
    write_json(out.with_name(f"{out.name}.json"), record)
    lines = [
        (f"{row[0].direction}", e.attribute, f"{e.change:+.2f}", f"{e.monotone:.0%}")
        for row in told
        for e in row[:2]
    ]
    table(
        f"What changes from strength {along[0]:g} to {along[-1]:g}, over {shown} samples",
        ["direction", "attribute", "change in deviations", "moves one way in"],
        lines,
    )
    console.print(
        f"{found.about}: {out}.safetensors, shown in {out}.png, figures in {out}.json", soft_wrap=True
    )
    return 0


def steer(model: Model, asked: Sequence[str]) -> Model:
    """The model that goes along directions, each FILE:NUMBER:STRENGTH; the model itself for none."""
    from dataclasses import replace

    from ..errors import BundleError
    from ..evaluation.directions import Directions, Steered

    weights = model.fingerprint if asked else ""
    for depth, text in enumerate(asked):  # each stands around those before it
        file, *numbers = text.rsplit(":", 2)
        try:
            number, strength = int(numbers[0]), float(numbers[1])
        except (ValueError, IndexError):
            raise BundleError(
                f"a direction is written FILE:NUMBER:STRENGTH, as directions.safetensors:2:1.5, not {text!r}"
            ) from None
        found = Directions.load(file, weights)
        step = found.step({number: strength})
        steered: Any = Steered(model.denoiser, step, "denoiser." * depth + found.path)
        model = replace(model, denoiser=steered)
    return model
