"""`sfumato sample --filter`: what is written has passed a filter, and what it said is written beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..safeguards import CheckFailed

    # (domain, samples, indices) -> what may be written, its indices, and what went wrong
    Guard = Callable[[Any, Tensor, Sequence[int]], tuple[Tensor, tuple[int, ...], CheckFailed | None]]


def guard(text: str | None, action: str, out: Path, *, seen_unchecked: bool) -> Guard | None:
    """The filter that a user asked for, None for none; it records its verdicts in OUT-filter.json and says so.

    seen_unchecked: whether something else that was asked for would show samples that were not checked.
    """
    from ..errors import BundleError
    from ..files import write_json
    from ..safeguards import CheckFailed, build_filter
    from .show import console

    if text is None:
        if action != "blank":
            raise BundleError("--rejected says what becomes of rejected samples: give a filter with --filter")
        return None
    if seen_unchecked:
        raise BundleError(
            "--film and --inspect show samples before they are checked: leave them out with --filter"
        )
    chosen = build_filter(text, action)
    place = out.resolve()
    record = place.with_name(f"{place.name}-filter.json")

    def screen(
        domain: Any, samples: Tensor, indices: Sequence[int]
    ) -> tuple[Tensor, tuple[int, ...], CheckFailed | None]:
        failed = None
        try:
            screened = chosen(samples, domain, indices)
        except CheckFailed as error:
            failed, screened = error, error.screened
        write_json(record, chosen.record(screened, len(samples)))
        done = "left out" if action == "drop" else "replaced by crossed-out pictures"
        bad = screened.rejected
        which = f" (samples {', '.join(map(str, bad[:8]))}{', ...' if len(bad) > 8 else ''})" if bad else ""
        said = f"the filter {chosen.name} rejected {len(bad)} of {len(samples)} samples{which}"
        said += f", {done}" if bad else ""
        console.print(f"{said}; its verdicts are in {out}-filter.json", soft_wrap=True)
        return screened.samples, screened.indices, failed

    return screen
