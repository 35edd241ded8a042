"""The sections of a recipe, with every setting that they have: what `recipe.py` reads them into. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Row = Literal["x0", "eps", "v", "score", "velocity", "edm", "mixed"]


class Section(BaseModel):
    """Base of the sections: frozen, and no name is taken that is not a setting."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """[data]: where the pictures are, how they are read, and which are held out."""

    domain: str = "images"
    """What kind of data they are: images, sequences, fields, or one of your own (`domains.register_domain`)."""
    settings: dict[str, Any] = {}
    """Settings of a domain other than images: of sequences, dialect and length."""
    source: str
    """A named source (`sfumato data list`), a path (folder with a subfolder a class, NPZ, NPY, IDX, parquet), or
    "hub:owner/name"."""
    split: str = "train"
    """Which part of a source that has parts."""
    held_out: float | str = 0.1
    """A fraction of the data, or the name of another split; never trained on."""
    size: int | tuple[int, int] | None = None
    """Pixels, or (height, width); None: that of the data."""
    channels: Literal[1, 3, 4] | None = None
    """None: those of the data."""
    crop: Literal["none", "center", "random"] = "none"
    resample: Literal["lanczos", "bicubic"] = "lanczos"
    flip: bool = False
    """Mirror half of the pictures in training."""
    augment: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The chance of each change of `domains.augmentation` in training, of which the network is told."""
    labels: Literal["auto", "none"] = "auto"
    captions: Literal["auto", "none"] = "auto"
    """Whether captions, where there are any, are what the model is asked by (extra `text`)."""
    loosen: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share shown in training under a caption with words left out, or a neighbour's: see `domains.loosened`."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Only so many pictures."""
    skip_corrupt: bool = False
    """Leave damaged pictures out (and list them in the data card) instead of refusing them all."""
    licence: str | None = None


class CodecConfig(Section):
    """[codec]: of a model of latents, the autoencoder between them and the pictures."""

    bundle: str | None = None
    """Folder of a trained autoencoder; None: the model makes pictures themselves."""
    recipe: str | None = None
    """The recipe that trains it, for a message that says what to do where it is missing."""


class CascadeConfig(Section):
    """[cascade]: of a model that enlarges the pictures of another, that other and the noise between them."""

    bundle: str | None = None
    """Folder of the model that draws small pictures; None: there is none."""
    recipe: str | None = None
    """The recipe that trains it, for a message that says what to do where it is missing."""
    most: Annotated[float, Field(ge=0, le=1)] = 0.5
    """In training small pictures are noised to times up to this one."""
    level: Annotated[float, Field(ge=0, le=1)] = 0.1
    """And in sampling to this one."""


class ProcessConfig(Section):
    """[process]: its kind and schedule, and the standard deviation of the data (None: measured on the training set)."""

    kind: Literal["gaussian", "cld", "categorical", "joint"] = "gaussian"
    """"joint" gives each leaf of the data its own: categorical for symbols, gaussian for numbers."""
    law: Literal["masked", "uniform"] = "masked"
    """Of "categorical", and of the symbols of "joint": by what they are replaced."""
    schedule: dict[str, Any] = {"kind": "flow"}
    """For "cld": its beta, mass and gamma."""
    sigma_data: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _own_schedule(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "cld":
            return {"schedule": {"kind": "cld"}, **values}
        return values


class NetworkConfig(BaseModel):
    """[network]: its kind, and whatever settings that kind has."""

    model_config = ConfigDict(frozen=True, extra="allow")
    kind: Literal[
        "unet", "dit", "transformer", "joint", "joint-egnn", "egnn", "video", "wave", "classifier", "autoencoder"
    ] = "unet"  # fmt: skip


class DenoiserConfig(Section):
    """[denoiser]: what the network predicts."""

    parameterisation: Row = "velocity"
    learned_variance: bool = False


class LossesConfig(Section):
    """[objective] losses, of kind "autoencoder": what counts besides the absolute error."""

    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Weight of the KL from the latents to a standard normal, in nats a number of the picture."""
    perceptual: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the distance in features."""
    features: Literal["efficientnet-lite0", "random"] = "random"
    """Which features: early ones of EfficientNet-Lite0 (extra "efficientnet"), or fixed random filters."""
    adversarial: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Length of the critic's part of the gradient, as a share of all others'; 0: no critic."""


class ObjectiveConfig(Section):
    """[objective]: what is minimised."""

    kind: Literal[
        "denoising",
        "hybrid",
        "bound",
        "sliced",
        "implicit",
        "hsm",
        "dsm",
        "classifier",
        "autoencoder",
        "categorical",
        "categorical-steps",
        "joint",
    ] = "denoising"
    weighting: dict[str, Any] = {"kind": "plain", "space": "velocity"}
    times: dict[str, Any] = {"kind": "uniform"}
    drop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of examples whose label is dropped, for classifier-free guidance."""
    steps: Annotated[int, Field(ge=2)] = 1000
    """Steps of the chain that the bound is about."""
    projections: Annotated[int, Field(ge=1)] = 1
    """Random directions an example that sliced score matching looks along."""
    given: tuple[str, ...] = ()
    """Of "joint": leaves that are clean in every example, of a model that only ever draws the others."""
    losses: LossesConfig = LossesConfig()


class SamplingConfig(Section):
    """[sampling]: how the model is sampled unless told otherwise."""

    solver: dict[str, Any] = {"kind": "adams-moulton"}
    grid: dict[str, Any] = {"kind": "angle"}
    steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    guidance: Annotated[float, Field(allow_inf_nan=False)] | str = 1.0
    """A weight, 1 being none, or one with repairs: "2.5:interval=0.2..3,rescale=0.7"."""


class EvaluationConfig(Section):
    """[evaluation]: how the model is judged."""

    features: Literal["pixels", "classifier", "efficientnet-lite0"] = "classifier"
    samples: Annotated[int, Field(ge=20)] = 5000
    steps: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of steps to compare quality at, besides that of [sampling]."""
    curve_samples: Annotated[int, Field(ge=20)] = 1000
    """Samples for each point of that comparison."""
    bound_images: Annotated[int, Field(ge=0)] = 0
    """Held-out images whose variational bound (bits per dimension) is computed; 0: none."""
    bound_terms: Annotated[int, Field(ge=1)] = 50
    """Strata of the bound's sum that are evaluated for each image."""
    likelihood_images: Annotated[int, Field(ge=0)] = 0
    """Held-out images whose exact log-probability under the flow (bits per dimension) is computed; 0: none."""
    likelihood_probes: Annotated[int, Field(ge=0)] = 4
    """Random probes of the divergence for each image, at least 4; 0: the exact trace, for small pictures."""
    likelihood_steps: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Steps of the flow, an even number, of six evaluations each."""
    seed: Annotated[int, Field(ge=0)] = 1


class FinetuneConfig(Section):
    """[finetune]: which model goes on learning, and what of it. Only `sfumato finetune` writes and reads it."""

    bundle: str
    """The model's folder."""
    weights: str
    """The fingerprint of the weights that it had."""
    full: bool = False
    """Train all weights instead of an adapter beside them."""
    rank: Annotated[int, Field(ge=1)] = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """The update is added times alpha / rank; None: times 1."""
    layers: tuple[str, ...] = ()
    """Patterns of layers' names, as "middle.*"; none: all that have room for the rank."""
    label: Annotated[str, Field(pattern=r"\S")] | None = None
    """The class that the pictures are of, an old or a new one; None: as the data say."""
    prompt: Annotated[str, Field(pattern=r"\S")] | None = None
    """What is said of all pictures, to a model that is asked by text; None: their captions."""
    prior: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of what is shown that is old: pictures of what the model knew before."""
    prior_from: Literal["samples", "data"] = "samples"
    """Whether old pictures are the model's own samples or its training data, where they are at hand."""
    prior_count: Annotated[int, Field(ge=2)] = 200
    """How many samples are drawn for it."""
