"""Pictures of noise, which tests of reading share."""

from pathlib import Path

import numpy as np
import pytest

from sfumato.domains import Images
from sfumato.domains.pictures import as_picture
from sfumato.errors import DataError


def pixels(count: int = 6, height: int = 5, width: int = 4, channels: int = 1) -> np.ndarray:
    shape = (count, height, width, channels)
    return np.random.default_rng(shape).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, u: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    as_picture(u).save(path, **options)
    return path


def refuses(place: object, message: str, domain: Images | None = None) -> None:
    with pytest.raises(DataError, match=message) as caught:
        (domain or Images()).read(place)
    assert "\n" not in str(caught.value)
