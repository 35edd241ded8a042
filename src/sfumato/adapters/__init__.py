"""Models of others: pipelines of diffusers and ONNX files, as denoisers and models of ours.

    denoiser = sfumato.adapters.from_diffusers("pipeline")
    denoiser = sfumato.adapters.from_onnx("denoiser.onnx", predicts="v", schedule=..., told="index", ...)
    model = sfumato.adapters.load_diffusers("pipeline")        as sfumato.load does

Whatever takes a denoiser takes these. diffusers, onnx and onnxruntime are imported when they are used.
"""

from .adapted import CLOCKS, PREDICTIONS, Adapted, Reading
from .networks import CONVENTIONS, Borrowed
from .onnx_file import from_onnx
from .pipelines import from_diffusers, load_diffusers, rebuild
from .schedulers import SCHEDULERS, read_scheduler

__all__ = [
    "CLOCKS",
    "CONVENTIONS",
    "PREDICTIONS",
    "SCHEDULERS",
    "Adapted",
    "Borrowed",
    "Reading",
    "from_diffusers",
    "from_onnx",
    "load_diffusers",
    "read_scheduler",
    "rebuild",
]
