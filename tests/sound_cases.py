"""Tones and files of them, which tests of sounds share."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfumato.domains.waves import to_wav

SMALL = {"rate": 2000, "length": 512, "window": 64, "hop": 16}


def tone(hertz: float, rate: int = 2000, samples: int = 512, size: float = 0.5) -> np.ndarray:
    return (size * np.sin(2 * np.pi * hertz * np.arange(samples) / rate)).astype(np.float32)


def file(path: Path, sound: np.ndarray, rate: int = 2000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_wav(sound, rate))
    return path
