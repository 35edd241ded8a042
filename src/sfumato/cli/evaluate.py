"""`sfumato evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..errors import BundleError

if TYPE_CHECKING:
    from ..evaluation.measure import Measure
    from ..recipes.judge import Judgement


def evaluate(
    bundle: Path | None = None,
    /,
    *,
    samples: int | None = None,
    steps: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    seed: int | None = None,
    receipt: Path | None = None,
    out: Annotated[Path | None, Parameter(alias="-o")] = None,
) -> int:
    """Measure a model against its data; every figure gets an interval and a receipt.

    Writes OUT/receipts/*.json and OUT/report.html, and puts the figures on the model's card.
    With --receipt, computes the figures of that receipt again and says whether they agree (code 1 if not).

    Parameters
    ----------
    bundle
        The model's folder. With --receipt it may be left out: the receipt says which it is about.
    samples
        How many samples are judged, instead of the recipe's number.
    steps
        Numbers of steps to compare, instead of the recipe's.
    seed
        Seed of the samples, instead of the recipe's.
    receipt
        A receipt to be checked.
    out
        Where to write; default: the folder that the model is in.
    """
    if receipt is not None:
        return _check(bundle, receipt)
    if bundle is None:
        raise BundleError("which model? for example: sfumato evaluate runs/demo/model")
    from ..bundle import read_record
    from ..files import check_folder
    from ..recipes.judge import judge
    from ..recipes.judge_codec import judge_codec
    from ..recipes.report import write_report
    from .show import Bar, console, say

    bundle = bundle if bundle.name not in ("", "..") else bundle.resolve()  # "." is its own parent
    out = out or bundle.parent
    check_folder(out)
    coded = read_record(bundle).get("kind") == "codec"
    if coded and (steps or seed is not None):
        raise BundleError("a codec is judged by its reconstructions, which take no steps and no seed")
    with Bar("evaluating") as bar:

        def told(what: str, done: int, total: int) -> None:
            bar.what = what
            bar.update(done, total, what)

        if coded:
            figures, receipt = judge_codec(bundle, out, samples=samples, progress=told)
            return _show_codec(figures, receipt)
        found = judge(bundle, out, samples=samples, steps=steps, seed=seed, progress=told, say=say)
    show(found)
    first = found.receipts["quality"][1]
    commands = [
        ("compute the figures again and compare", f"sfumato evaluate --receipt {first}"),
        ("draw samples", f"sfumato sample {bundle} --count 16 --out {out / 'drawn'}"),
        ("see what is in the model", f"sfumato inspect {bundle}"),
    ]
    page = write_report(found, bundle.parent, out, commands)
    console.print(f"report: {page}", soft_wrap=True)
    console.print(f"receipts: {first.parent}", soft_wrap=True)
    return 0


def number(value: float | None) -> str:
    """A figure, or a dash for none."""
    return "–" if value is None else f"{value:.4g}"


def show_measures(measures: Sequence[Measure]) -> None:
    """Print the measures with their intervals."""
    from .show import table

    def between(low: float | None, high: float | None) -> str:
        return "–" if low == high else f"{number(low)} … {number(high)}"

    rows = [[m.name, number(m.value), between(m.low, m.high), number(m.floor), f"{m.n:,}"] for m in measures]
    table("", ["figure", "value", "95 % interval", "held-out real data", "samples"], rows)


def _show_codec(measures: Sequence[Measure], receipt: Path) -> int:
    from .show import console

    show_measures(measures)
    console.print(f"receipt: {receipt}; check it with: sfumato evaluate --receipt {receipt}", soft_wrap=True)
    return 0


def show(found: Judgement) -> None:
    """Print the measures, and the comparison of numbers of steps."""
    from .show import console, table

    show_measures(found.measures)
    if found.curve:
        heads = ["steps", "solver", found.curve[0]["name"], "95 % interval", "held-out real data"]
        points = [
            [
                row["steps"],
                row["solver"],
                number(row["value"]),
                f"{number(row['low'])} … {number(row['high'])}",
                number(row["floor"]),
            ]
            for row in found.curve
        ]
        console.print()
        table("", heads, points)


def _check(bundle: Path | None, path: Path) -> int:
    from ..evaluation.receipts import Receipt
    from ..recipes.judge_codec import bench_of
    from .show import Bar, console, table

    receipt = Receipt.read(path)
    if bundle is None:  # where it says, or beside the folder of receipts that it lies in
        places = [Path(str(receipt.model.get("folder", ""))), path.resolve().parent.parent / "model"]
        bundle = next((place for place in places if (place / "bundle.json").is_file()), places[0])
    with Bar("computing again") as bar:
        bench = bench_of(bundle, lambda what, done, total: bar.update(done, total, what))
        rows = bench.recompute(receipt)
    shown = [
        [row.name, f"{row.stated:.6g}", "–" if row.found is None else f"{row.found:.6g}", row.verdict]
        for row in rows
    ]
    table("", ["figure", "stated", "computed again", "verdict"], shown)
    agrees = all(row.agrees for row in rows)
    console.print("The receipt agrees." if agrees else "[red]The receipt does not agree.[/red]")
    return 0 if agrees else 1
