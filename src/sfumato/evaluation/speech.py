"""How good speech is, by two stranger's networks: how it sounds, and whether its words are understood.

**DNSMOS P.835** (Reddy et al. 2022, arXiv:2110.01763) predicts what a panel of listeners would say of the whole
impression, from 1 to 5, of pieces of 9.01 s at 16 kHz; what is shorter is repeated, what is longer is the mean of
pieces a second apart. The network is the one that the package `speechmos` holds, "sig_bak_ovr.onnx", whose third
number o becomes -.06766 o^2 + 1.1155 o + .04603; the package itself is not imported. It was made of wide-band
recordings, so what counts is the difference to recordings of the same rate.

**Word error** is the edit distance in words, over the number of words of the reference,

    WER = (substitutions + deletions + insertions) / words,

as Whisper tiny.en hears them; see `domains.hearing`.

Both need the extra "speech"; sounds are resampled by SciPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from sfumato.domains.hearing import at_16k, package_folder
from sfumato.errors import MissingExtra

_RATE, _PIECE = 16_000, int(9.01 * 16_000)


@cache
def _dnsmos() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtra("onnxruntime", "speech") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = package_folder("speechmos") / "dnsmos_models" / "sig_bak_ovr.onnx"
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


def word_errors(reference: Sequence[str], other: Sequence[str]) -> int:
    """The least number of words to put in, take out or exchange to make one list of words of the other."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(reference, 1):
        before, row[0] = row[0], i
        for j, found in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != found))
    return row[-1]
