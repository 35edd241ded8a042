"""Denoisers: what solvers, guidance, quantisers and exporters see of a model."""

from .denoiser import Condition, Denoiser, Denoises, check_denoiser
from .guidance import ClassifierFree, nothing
from .mixture import GaussianMixture
from .phase import InPhase

__all__ = [
    "ClassifierFree",
    "Condition",
    "Denoiser",
    "Denoises",
    "GaussianMixture",
    "InPhase",
    "check_denoiser",
    "nothing",
]
