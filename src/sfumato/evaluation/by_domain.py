"""Judging samples of any domain: its own measures, or those that sfumato has for its kind.

It stands where `evaluate.Judge` stands for pictures, and its card where theirs has features: what was judged by is the
code of a domain's measures, named by its kind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from sfumato.errors import DataError, choose
from sfumato.evaluation.captioned import captioned_measures
from sfumato.evaluation.fields import field_measures
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.molecules import molecule_measures
from sfumato.evaluation.motion import motion_measures
from sfumato.evaluation.music import music_measures
from sfumato.evaluation.sequences import sequence_measures
from sfumato.evaluation.series import series_measures
from sfumato.evaluation.shapes import shape_measures
from sfumato.evaluation.sounds import sound_measures
from sfumato.evaluation.table import table_measures
from sfumato.evaluation.video import video_measures

# (domain, states, labels that were asked for or None, training and held-out examples) -> measures
MEASURES: dict[str, Callable[..., list[Measure]]] = {
    "captioned": captioned_measures,
    "fields": lambda domain, x, asked, train, held: field_measures(domain, x, train, held),
    **dict.fromkeys(
        ("molecules", "molecule-leaves"),
        lambda domain, x, asked, train, held: molecule_measures(domain, domain.molecules(x), train, held),
    ),
    "motion": motion_measures,
    "music": lambda domain, x, asked, train, held: music_measures(domain, x, train, held),
    "sequences": lambda domain, x, asked, train, held: sequence_measures(
        domain, domain.text(x), asked, train, held
    ),
    "series": series_measures,
    "shapes": shape_measures,
    "sounds": sound_measures,
    "speech": sound_measures,
    "table": table_measures,
    "video": lambda domain, x, asked, train, held: video_measures(domain, x, train, held),
}


class DomainJudge:
    """Measures of samples against training and held-out `Examples`. Raises DataError for a domain that has none."""

    classes = 0

    def __init__(self, domain: Any, train: Any, held: Any):
        self.domain, self.train, self.held = domain, train, held
        self.name = domain.name
        self.hash = hashlib.sha256(f"measures of {domain.name}".encode()).hexdigest()

    def card(self) -> dict[str, Any]:
        """What a receipt says of what was judged by."""
        return {"name": self.name, "hash": self.hash}

    def __call__(
        self, draw: Callable[[int], tuple[Any, Any]], measures: Sequence[str] | None = None, n: int = 1000
    ) -> list[Measure]:
        """Draw n samples and measure them, by all measures or those named."""
        samples, labels = draw(n)
        asked = None if labels is None else labels.cpu().numpy()
        found = self.domain.measures(samples, asked, self.train, self.held)
        if found is None:
            ours = MEASURES[choose(self.name, MEASURES, "kind of data that sfumato can judge", DataError)]
            found = ours(self.domain, samples, asked, self.train, self.held)
        by_name = {measure.name: measure for measure in found}
        wanted = list(by_name) if measures is None else measures
        return [by_name[choose(name, by_name, "measure", DataError)] for name in wanted]
