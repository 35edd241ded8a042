"""Denoisers: what solvers, guidance, quantisers and exporters see of a model."""

from .agreeing import Agreeing
from .categorical import CategoricalDenoiser, SequenceTable
from .classifier import Classifier
from .classifier_free import ClassifierFree
from .denoiser import Condition, Denoiser, Denoises, check_denoiser
from .guidance import Guidance, build_guidance, nothing
from .joint import JointDenoiser, LabelledMixture, LeafGuided
from .mixture import GaussianMixture
from .phase import InPhase
from .score_guidance import ScoreGuided

__all__ = [
    "Agreeing",
    "CategoricalDenoiser",
    "Classifier",
    "ClassifierFree",
    "Condition",
    "Denoiser",
    "Denoises",
    "GaussianMixture",
    "Guidance",
    "InPhase",
    "JointDenoiser",
    "LabelledMixture",
    "LeafGuided",
    "ScoreGuided",
    "SequenceTable",
    "build_guidance",
    "check_denoiser",
    "nothing",
]
