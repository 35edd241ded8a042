"""How well the leaves of pictures with captions and labels go together, and how real the pictures are.

    label of caption   share whose drawn label a judge of captions' vectors would give too
    label of picture   share whose drawn label a judge of pictures would give too
    pictures           Fréchet distance of pictures in 8 x 8 pixels to the training set's

The judges are logistic regressions trained on real pairs; what they make of held-out pairs is the floor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sfumato.errors import MissingExtra
from sfumato.evaluation.measure import Measure
from sfumato.evaluation.metrics import frechet_distance
from sfumato.evaluation.sequences import share


def small(pictures: torch.Tensor, side: int = 8) -> torch.Tensor:
    """Pictures (n, c, h, w) as (n, c side^2) numbers, by the mean over areas."""
    return F.adaptive_avg_pool2d(pictures.float(), side).flatten(1)


def captioned_measures(domain: Any, samples: Any, asked: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of sampled states. train, held: `Examples` of the domain."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtra("scikit-learn", "tables") from None
    made, known, other = (domain.decode(x) for x in (samples, train.tensor(), held.tensor()))
    found, count = [], len(made["label"])
    for name, view in (
        ("label of caption", lambda x: x["caption"].numpy()),
        ("label of picture", lambda x: small(x["picture"]).numpy()),
    ):
        judge = LogisticRegression(C=10.0, max_iter=300).fit(view(known), known["label"].numpy())
        right, real = (np.asarray(judge.predict(view(x)) == x["label"].numpy()) for x in (made, other))
        note = f"a judge that is right on {real.mean():.1%} of held-out pairs"
        found.append(share(name, int(right.sum()), count, float(real.mean()), note))
    features = [small(x["picture"]).double() for x in (made, known, other)]
    value, floor = (frechet_distance(features[k], features[1]) for k in (0, 2))
    note = "Fréchet distance over 8 x 8 pixels; floor: held-out pictures"
    found.append(Measure("pictures", value, None, None, count, "lower", floor, note))
    return found
