"""What a recipe says, and how it is read: a TOML file, checked whole before anything starts.

    [data]        where the data are and what is held out        [objective]   loss, weighting, time distribution
    [process]     schedule                                       [training]    length, optimiser, averages, checkpoints
    [network]     kind and its settings                          [sampling]    solver, grid, steps, guidance
    [denoiser]    parameterisation                               [evaluation]  features, samples, steps to compare
    [codec]       of a model of latents: the autoencoder's bundle
    [cascade]     of a model that enlarges: the bundle of the one that draws small pictures

Any value can be overridden by its dotted name, `training.batch=128`; the value is read as TOML, and as text where it
is not TOML. A name that does not exist is an error that says which was probably meant. Nothing here imports torch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError, model_validator

from ..errors import RecipeError, choose, nearest
from ..training.config import TrainingConfig
from .sections import (
    CascadeConfig,
    CodecConfig,
    DataConfig,
    DenoiserConfig,
    EvaluationConfig,
    FinetuneConfig,
    NetworkConfig,
    ObjectiveConfig,
    ProcessConfig,
    SamplingConfig,
    Section,
)


class Recipe(Section):
    """A whole experiment. Raises pydantic.ValidationError; `read_recipe` turns it into a RecipeError of one line."""

    name: str
    about: str = ""
    data: DataConfig
    process: ProcessConfig = ProcessConfig()
    codec: CodecConfig = CodecConfig()
    cascade: CascadeConfig = CascadeConfig()
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
        if self.cascade.bundle is not None:
            if self.codec.bundle is not None or self.network.kind in ("autoencoder", "classifier"):
                raise ValueError(
                    "what enlarges is a model of pictures: leave codec.bundle or cascade.bundle out"
                )
            if self.evaluation.bound_images or self.evaluation.likelihood_images:
                raise ValueError(
                    "a model that enlarges bounds the likelihood of a picture given its small one only: set "
                    "evaluation.bound_images=0 and evaluation.likelihood_images=0"
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
