"""What a recipe says, and how it is read: a TOML file, checked whole before anything starts.

    [data]        where the data are and what is held out        [objective]   loss, weighting, time distribution
    [process]     schedule                                       [training]    length, optimiser, averages, checkpoints
    [network]     kind and its settings                          [sampling]    solver, grid, steps, guidance
    [denoiser]    parameterisation                               [evaluation]  features, samples, steps to compare
    [codec]       of a model of latents: the autoencoder's bundle

Any value can be overridden by its dotted name, `training.batch=128`; the value is read as TOML, and as text where it
is not TOML. A name that does not exist is an error that says which was probably meant. Nothing here imports torch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import RecipeError, choose, nearest
from ..training.config import TrainingConfig

Row = Literal["x0", "eps", "v", "score", "velocity", "edm", "mixed"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """[data]: where the pictures are, how they are read, and which are held out."""

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
    labels: Literal["auto", "none"] = "auto"
    captions: Literal["auto", "none"] = "auto"
    """Whether captions, where there are any, are what the model is asked by (extra `text`)."""
    limit: Annotated[int, Field(gt=0)] | None = None
    """Only so many pictures."""
    skip_corrupt: bool = False
    """Leave damaged pictures out (and list them in the data card) instead of refusing them all."""
    licence: str | None = None


class CodecConfig(_Section):
    """[codec]: of a model of latents, the autoencoder between them and the pictures."""

    bundle: str | None = None
    """Folder of a trained autoencoder; None: the model makes pictures themselves."""
    recipe: str | None = None
    """The recipe that trains it, for a message that says what to do where it is missing."""


class ProcessConfig(_Section):
    """[process]: its kind and schedule, and the standard deviation of the data (None: measured on the training set)."""

    kind: Literal["gaussian", "cld"] = "gaussian"
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
    kind: Literal["unet", "dit", "classifier", "autoencoder"] = "unet"


class DenoiserConfig(_Section):
    """[denoiser]: what the network predicts."""

    parameterisation: Row = "velocity"
    learned_variance: bool = False


class LossesConfig(_Section):
    """[objective] losses, of kind "autoencoder": what counts besides the absolute error."""

    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Weight of the KL from the latents to a standard normal, in nats a number of the picture."""
    perceptual: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Weight of the distance in features."""
    features: Literal["efficientnet-lite0", "random"] = "random"
    """Which features: early ones of EfficientNet-Lite0 (extra "efficientnet"), or fixed random filters."""
    adversarial: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    """Length of the critic's part of the gradient, as a share of all others'; 0: no critic."""


class ObjectiveConfig(_Section):
    """[objective]: what is minimised."""

    kind: Literal[
        "denoising", "hybrid", "bound", "sliced", "implicit", "hsm", "dsm", "classifier", "autoencoder"
    ] = "denoising"
    weighting: dict[str, Any] = {"kind": "plain", "space": "velocity"}
    times: dict[str, Any] = {"kind": "uniform"}
    drop: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of examples whose label is dropped, for classifier-free guidance."""
    steps: Annotated[int, Field(ge=2)] = 1000
    """Steps of the chain that the bound is about."""
    projections: Annotated[int, Field(ge=1)] = 1
    """Random directions an example that sliced score matching looks along."""
    losses: LossesConfig = LossesConfig()


class SamplingConfig(_Section):
    """[sampling]: how the model is sampled unless told otherwise."""

    solver: dict[str, Any] = {"kind": "adams-moulton"}
    grid: dict[str, Any] = {"kind": "angle"}
    steps: Annotated[int, Field(ge=1, le=100_000)] = 20
    guidance: Annotated[float, Field(allow_inf_nan=False)] | str = 1.0
    """A weight, 1 being none, or one with repairs: "2.5:interval=0.2..3,rescale=0.7"."""


class EvaluationConfig(_Section):
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


class FinetuneConfig(_Section):
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
    label: str | None = None
    """The class that the pictures are of, an old or a new one; None: as the data say."""
    prior: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of what is shown that is old: pictures of what the model knew before."""
    prior_from: Literal["samples", "data"] = "samples"
    """Whether old pictures are the model's own samples or its training data, where they are at hand."""
    prior_count: Annotated[int, Field(ge=2)] = 200
    """How many samples are drawn for it."""


class Recipe(_Section):
    """A whole experiment. Raises pydantic.ValidationError; `read_recipe` turns it into a RecipeError of one line."""

    name: str
    about: str = ""
    data: DataConfig
    process: ProcessConfig = ProcessConfig()
    codec: CodecConfig = CodecConfig()
    network: NetworkConfig = NetworkConfig()
    denoiser: DenoiserConfig = DenoiserConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    finetune: FinetuneConfig | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Recipe:
        if (self.network.kind == "autoencoder") != (self.objective.kind == "autoencoder"):
            raise ValueError("network.kind and objective.kind are 'autoencoder' both or neither")
        if self.network.kind == "autoencoder" and self.codec.bundle is not None:
            raise ValueError("an autoencoder is trained on pictures: leave codec.bundle out")
        if self.codec.bundle is not None and (
            self.evaluation.bound_images or self.evaluation.likelihood_images
        ):
            raise ValueError(
                "a model of latents bounds no likelihood of pictures: set evaluation.bound_images=0 and "
                "evaluation.likelihood_images=0"
            )
        return self


def packaged() -> list[str]:
    """Names of the recipes that come with sfumato."""
    return sorted(
        entry.name[:-5] for entry in files("sfumato.recipes").iterdir() if entry.name.endswith(".toml")
    )


def packaged_path(name: str) -> Path:
    """The file of a packaged recipe."""
    choose(name, packaged(), "recipe (and no such file)")
    with as_file(files("sfumato.recipes") / f"{name}.toml") as path:
        return path


def read_recipe(recipe: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """A recipe by packaged name or file, with overrides such as "training.batch=128".

    Raises RecipeError in one line: no such recipe, not TOML, an unknown name, a value of the wrong kind.
    """
    text = str(recipe)
    path = Path(text) if text.endswith(".toml") or "/" in text else packaged_path(text)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not TOML: {error}") from None
    changes = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
    return recipe_from(overridden(values, changes), str(recipe))


def overridden(values: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values, changed in place by dotted names."""
    # kinds first: another kind forgets the settings of the old one, and must not forget those given with it
    for name in sorted(changes, key=lambda name: not name.endswith(".kind")):
        _put(values, name, changes[name])
    return values


def recipe_from(values: Mapping[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain values. Raises RecipeError in one line."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first(error)}") from None


def to_toml(recipe: Recipe) -> str:
    """A recipe as TOML, every value written out. None has no TOML form: such values are left to their defaults."""
    lines = []
    for name, value in recipe.model_dump(mode="json").items():
        if isinstance(value, dict):
            lines += ["", f"[{name}]", *(f"{key} = {_toml(v)}" for key, v in value.items() if v is not None)]
        elif value is not None:
            lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {_toml(v)}" for key, v in value.items() if v is not None)
        return f"{{ {inner} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return json.dumps(value, ensure_ascii=False)  # strings, numbers and booleans look the same in both


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """{"training.batch": 128} from ["training.batch=128"]. Raises RecipeError for text without a name and "="."""
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not all(name.split(".")):
            raise RecipeError(f"an override is written section.name=value, not {text!r}")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = _none(name.strip()) if value == "none" else value
    return found


def _none(name: str) -> str | None:
    """What an override "none" means: that word where it is one of the field's values (data.labels), else no value."""
    section, _, last = name.rpartition(".")
    kind = Recipe.model_fields.get(section)
    field = getattr(kind.annotation, "model_fields", {}).get(last) if kind else None
    return "none" if field and "none" in get_args(field.annotation) else None


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    here = values
    for depth, section in enumerate(sections):
        inner = here.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                f"{'.'.join(sections[: depth + 1])} is a value, not a section: {name!r} cannot be set"
            )
        here = inner
    # the settings of [objective] are the same for all its kinds
    if last == "kind" and sections != ["objective"] and here.get("kind") != value:
        here.clear()  # the other settings belonged to the old kind
    if value is None:
        here.pop(last, None)
    else:
        here[last] = value


def _fields(path: tuple[Any, ...]) -> list[str]:
    """Names allowed in the section that a validation error points into."""
    model: Any = Recipe
    for part in path:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
        if model is None:
            return []
    return list(model.model_fields)


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    where = first["loc"]
    name = ".".join(str(part) for part in where)
    if first["type"] == "extra_forbidden":
        allowed = _fields(tuple(where[:-1]))
        close = nearest(where[-1], allowed) or next(
            (n for n in _everywhere() if n.endswith(f".{where[-1]}")), None
        )
        hint = f"; did you mean {close!r}?" if close else ""
        text = f"unknown name {name!r}: allowed here are {', '.join(allowed)}{hint}"
    elif first["type"] == "missing":
        text = f"{name!r} is missing"
    elif first["type"] == "literal_error":
        expected = first.get("ctx", {})["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        close = nearest(first["input"], expected)
        hint = f"; did you mean {close!r}?" if close else ""
        text = f"{name} = {first['input']!r} is not allowed: it may be {', '.join(expected)}{hint}"
    else:
        said = first["msg"].removeprefix("Value error, ")
        said = said[0].lower() + said[1:]
        text = (
            f"{name or 'a value'} = {first['input']!r}: {said}"
            if not isinstance(first["input"], dict)
            else f"{name}: {said}".removeprefix(": ")
        )
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return text + more


def _everywhere() -> list[str]:
    """Every dotted name that a recipe may have, so that a name in the wrong section finds its place."""
    names = []
    for section, field in Recipe.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += [f"{section}.{name}" for name in kind.model_fields]
    return names
