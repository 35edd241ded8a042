"""How good sampled sounds are.

Of sounds by class, and of speech from text, over features of their own (none of a pretrained network):

    frechet, log-mel   the Fréchet distance (metrics.py) of what is below; it is not the "FAD" over VGGish features,
                       and its numbers cannot be compared with those
    agreement          share that a logistic regression, trained on real sounds, takes for the class that was asked for
    copying            share as near to a training sound as the nearest hundredth of held-out ones are; see copying.py

The features of a sound are the mean and the deviation over time of each of 24 log mel bands, and the mean size of their
change from frame to frame: 72 numbers. Distances take their first 12 principal components on the training set, in units
of their deviations, so that a few dozen sounds have a covariance.

Of a vocoder's, each beside the recording that it was told the spectrum of:

    spectral distance  root mean square difference of log magnitudes in dB, at three resolutions and within 60 dB of
                       the loudest: one that the mel bands resolve and two that they do not; floor: Griffin-Lim's
    mel distance       the same of the mel bands that it was told, in nepers (natural logarithms): does it listen?
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.domains.spectra import frames, griffin_lim, log_mels
from sfumato.errors import MissingExtra
from sfumato.evaluation.copying import copying
from sfumato.evaluation.measure import Measure, wilson
from sfumato.evaluation.metrics import frechet, frechet_distance

BANDS, COMPONENTS, RESOLUTIONS = 24, 12, (64, 256, 1024)


def features(sounds: Any, rate: int) -> np.ndarray:
    """The features (n, 72) of sounds (n, samples); see the file's docstring."""
    window = 1 << int(np.log2(rate / 30))
    x = log_mels(frames(torch.as_tensor(sounds).float(), window, window // 2), BANDS, rate)
    return torch.cat([x.mean(2), x.std(2), x.diff(dim=2).abs().mean(2)], 1).numpy().astype(np.float64)


def spectral_distances(sounds: Tensor, recordings: Tensor) -> np.ndarray:
    """dB (n,) between sounds and recordings (n, samples) each, a mean over `RESOLUTIONS`."""
    found = []
    for window in RESOLUTIONS:
        real, made = (frames(x, window, window // 4).abs() for x in (recordings, sounds))
        least = (real.amax((1, 2), keepdim=True) * 1e-3).clamp_min(1e-9)
        gap = 20 * (torch.maximum(made, least) / torch.maximum(real, least)).log10()
        found.append(gap.square().mean((1, 2)).sqrt())
    return torch.stack(found).mean(0).numpy()


def _mean(name: str, each: np.ndarray, floor: float | None, note: str) -> Measure:
    half = 1.96 * float(each.std()) / len(each) ** 0.5
    value = float(each.mean())
    return Measure(name, value, max(value - half, 0.0), value + half, len(each), "lower", floor, note)


def sound_measures(domain: Any, samples: Any, asked: Any, train: Any, held: Any) -> list[Measure]:
    """The measures of samples, as states or as sounds; of a vocoder the k-th is of the k-th held-out sound, in turn.

    asked: the label of each, or None. train, held: `Examples` of the domain.
    """
    sounds = torch.as_tensor(samples).float()
    sounds = domain.decode(sounds) if sounds.ndim > 2 else sounds
    if "spectrum" in domain.asks:
        return _of_vocoder(domain, sounds, held)
    known, other, made = (features(x, domain.rate) for x in (_real(train), _real(held), sounds))
    centre = known.mean(0)
    _, size, axes = np.linalg.svd(known - centre, full_matrices=False)
    count = min(COMPONENTS, int((size > 1e-9 * size[0]).sum()))
    turn = axes[:count].T * (len(known) ** 0.5 / size[:count])
    a, b, c = ((x - centre) @ turn for x in (made, known, other))
    # fewer sounds are further away by their number alone, so the floor is of as many where there are
    few = np.sort(np.random.default_rng(0).permutation(len(c))[: len(a)])
    distance = frechet(a, b, floor=frechet_distance(c[few], b))
    note = f"over {count} components of log-mel statistics; {distance.note}; the floor is of n={len(few)}"
    note += ", all that are held out, and so too high" if len(few) < len(a) else ""
    found = [Measure(**{**distance.to_json(), "name": "frechet, log-mel", "note": note})]
    if asked is not None and train.targets is not None:
        found.append(_agreement(known, made, other, asked, train, held))
    # one prompt said twice is no copy of a model's making
    return found if "text" in domain.asks else [*found, copying(a, c, b).measure]


def _real(data: Any) -> Tensor:
    raw = data.raw
    return torch.from_numpy(np.asarray(raw["sound"] if isinstance(raw, Mapping) else raw)).float() / 32768


def _agreement(known: Any, made: Any, other: Any, asked: Any, train: Any, held: Any) -> Measure:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtra("scikit-learn", "sounds") from None
    judge = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
    judge.fit(known, train.targets)
    right, agreed = judge.predict(other) == held.targets, judge.predict(made) == np.asarray(asked)
    low, high = wilson(float(agreed.sum()), len(agreed))
    note = f"a classifier that is right on {right.mean():.1%} of held-out sounds"
    return Measure(
        "agreement", float(agreed.mean()), low, high, len(agreed), "higher", float(right.mean()), note
    )


def _of_vocoder(domain: Any, sounds: Tensor, held: Any) -> list[Measure]:
    some = torch.from_numpy(held.at(np.arange(min(len(sounds), len(held))))).float() / 32768
    rows = torch.arange(len(sounds)) % len(some)
    mels = domain.mel(some)
    simple = griffin_lim(mels, domain.window, domain.hop, domain.rate)
    floor = float(spectral_distances(simple, some).mean())
    heard = 3 * (domain.mel(sounds) - mels[rows]).square().mean((1, 2)).sqrt().numpy()
    told = 3 * float((domain.mel(simple) - mels).square().mean((1, 2)).sqrt().mean())
    return [
        _mean("spectral distance", spectral_distances(sounds, some[rows]), floor, "dB; floor: Griffin-Lim"),
        _mean("mel distance", heard, told, "nepers; floor: Griffin-Lim"),
    ]
