"""A filter on the way out: every picture is scored, and those at or over a threshold are not handed over.

A checker is anything that gives a picture a score from 0 (nothing found) to 1 (certain), and a filter is a checker with
a threshold r:

    rejected  <=>  score >= r.

So what a lower threshold lets pass, a higher one does too. Pictures are shown to the checker one at a time, whatever
else was drawn with them: a verdict, like a sample, depends on nothing but the sample. Nothing is removed in silence:
a rejected sample becomes a blank that no model would draw (mid-grey, crossed out), or is left out if the user says so,
and every verdict is recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import SfumatoError, SolverError, choose

ACTIONS = ("blank", "drop")


@runtime_checkable
class Checker(Protocol):
    """Anything that scores one picture, uint8 (height, width, 1, 3 or 4): 0 nothing found, 1 certain.

    It may have a `name`, which records carry. A plain function will do.
    """

    def __call__(self, picture: np.ndarray, /) -> float: ...


@dataclass(frozen=True)
class Verdict:
    """What a filter says of one sample."""

    index: int
    score: float
    rejected: bool

    def to_json(self) -> dict[str, Any]:
        """Plain values for a record."""
        return {
            "index": self.index,
            "score": self.score,
            "verdict": "rejected" if self.rejected else "passed",
        }


class CheckFailed(SfumatoError, RuntimeError):
    """A checker that raised, or gave no score from 0 to 1. index: of which sample; screened: those before it."""

    def __init__(self, message: str, index: int, screened: Screened):
        super().__init__(message)
        self.index, self.screened = index, screened


@dataclass(frozen=True)
class Screened:
    """Samples that went through a filter, (n, c, h, w), what they are, and every verdict, of those left out too."""

    samples: Tensor
    indices: tuple[int, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def rejected(self) -> tuple[int, ...]:
        """The indices of the samples that were rejected."""
        return tuple(verdict.index for verdict in self.verdicts if verdict.rejected)


@dataclass(frozen=True)
class Filter:
    """A checker with a threshold. action: "blank" replaces what is rejected, "drop" leaves it out.

    Raises SolverError for a threshold that is not from 0 to 1, or an unknown action.
    """

    checker: Checker
    threshold: float = 0.8
    action: str = "blank"

    def __post_init__(self) -> None:
        if not callable(self.checker):
            raise SolverError(f"a checker is a function of a picture, not {self.checker!r}")
        if not 0 <= self.threshold <= 1:
            raise SolverError(f"the threshold of a filter lies from 0 to 1, not {self.threshold!r}")
        choose(self.action, ACTIONS, "action for rejected samples", SolverError)

    @property
    def name(self) -> str:
        """The checker's name."""
        name = getattr(self.checker, "name", None) or getattr(self.checker, "__name__", None)
        return str(name or type(self.checker).__name__)

    def __call__(self, samples: Tensor, domain: Any, indices: Sequence[int] | None = None) -> Screened:
        """Pass samples (n, c, h, w) of a domain, whose `pixels` makes pictures of them.

        indices: what the samples are called, 0 to n - 1 by default. Raises `CheckFailed` if the checker fails: it names
        the sample, and holds what was screened before; the samples after it are not let out.
        """
        names = tuple(range(len(samples))) if indices is None else tuple(indices)
        verdicts: list[Verdict] = []
        for k, index in enumerate(names):
            try:
                score = float(self.checker(domain.pixels(samples[k : k + 1])[0]))
                reason = None if 0 <= score <= 1 else f"it gave {score}, which is no score from 0 to 1"
            except Exception as error:  # whatever a foreign checker raises
                score, line = math.nan, (str(error).splitlines() or [""])[0]
                reason = f"{type(error).__name__}: {line}"
            if reason is not None:
                said = f"the filter {self.name} failed on sample {index} ({reason}); {k} of {len(names)} were checked"
                raise CheckFailed(said, index, self._screened(samples[:k], names[:k], verdicts))
            verdicts.append(Verdict(index, score, score >= self.threshold))
        return self._screened(samples, names, verdicts)

    def _screened(self, samples: Tensor, names: Sequence[int], verdicts: list[Verdict]) -> Screened:
        bad = torch.tensor(
            [verdict.rejected for verdict in verdicts], dtype=torch.bool, device=samples.device
        )
        if self.action == "drop":
            kept = tuple(v.index for v in verdicts if not v.rejected)
            return Screened(samples[~bad], kept, tuple(verdicts))
        covered = samples.clone()
        if bool(bad.any()):
            covered[bad] = blank(samples.shape[1:]).to(samples)
        return Screened(covered, tuple(names), tuple(verdicts))

    def record(self, screened: Screened, total: int) -> dict[str, Any]:
        """What was decided, as plain values. total: how many samples were to be checked."""
        return {
            "kind": "sfumato-filter",
            "checker": self.name,
            **({"checker_sha256": self.checker.hash} if hasattr(self.checker, "hash") else {}),  # type: ignore[attr-defined]
            "threshold": self.threshold,
            "action": self.action,
            "samples": total,
            "checked": len(screened.verdicts),
            "rejected": len(screened.rejected),
            "verdicts": [verdict.to_json() for verdict in screened.verdicts],
        }


def blank(shape: Sequence[int]) -> Tensor:
    """The picture that stands for a rejected one, (channels, height, width) in [-1, 1]: mid-grey, crossed out."""
    channels, height, width = shape
    i, j = torch.arange(height)[:, None] / max(height - 1, 1), torch.arange(width) / max(width - 1, 1)
    near = 0.75 / max(min(height, width) - 1, 1) + 0.01
    cross = ((i - j).abs() <= near) | ((i + j - 1).abs() <= near)
    picture = torch.where(cross, 0.9, 0.0).expand(channels, height, width).clone()
    if channels == 4:
        picture[3] = 1.0  # opaque
    return picture
