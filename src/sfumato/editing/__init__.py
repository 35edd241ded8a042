"""Editing: data that fit a measurement, an instruction or each other, from a model trained for none of it."""

from .bridged import Replacing
from .decoded import Decoded
from .exact import exact_posterior
from .filling import fill, fill_gaps
from .guided import Look, Posterior
from .inversion import change, interpolate, invert, levels_for_inversion, slerp
from .linear import (
    Channels,
    Convolution,
    FourierLines,
    Identity,
    Linear,
    Mask,
    Separable,
    blur,
    downsample,
    grey,
    radon,
)
from .nonlinear import Clip, Function, Jpeg, Magnitude, Quantise, Statistics
from .operator import (
    LinearOperator,
    MatrixFree,
    Measurement,
    Operator,
    check_operator,
    conjugate_gradients,
    measure,
)
from .restore import (
    DDNM,
    DPS,
    METHODS,
    Guided,
    Method,
    Moments,
    PiGDM,
    RePaint,
    Replacement,
    Twisted,
    build_method,
    restore,
    sample_posterior,
)
from .restyle import restyle
from .twisted import twisted
from .windows import Windows, sample_canvas

__all__ = [
    "DDNM",
    "DPS",
    "METHODS",
    "Channels",
    "Clip",
    "Convolution",
    "Decoded",
    "FourierLines",
    "Function",
    "Guided",
    "Identity",
    "Jpeg",
    "Linear",
    "LinearOperator",
    "Look",
    "Magnitude",
    "Mask",
    "MatrixFree",
    "Measurement",
    "Method",
    "Moments",
    "Operator",
    "PiGDM",
    "Posterior",
    "Quantise",
    "RePaint",
    "Replacement",
    "Replacing",
    "Separable",
    "Statistics",
    "Twisted",
    "Windows",
    "blur",
    "build_method",
    "change",
    "check_operator",
    "conjugate_gradients",
    "downsample",
    "exact_posterior",
    "fill",
    "fill_gaps",
    "grey",
    "interpolate",
    "invert",
    "levels_for_inversion",
    "measure",
    "radon",
    "restore",
    "restyle",
    "sample_canvas",
    "sample_posterior",
    "slerp",
    "twisted",
]
