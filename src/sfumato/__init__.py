"""sfumato: data of any kind into a diffusion model you can trust.

    model = sfumato.load("runs/demo/model")
    samples = model.sample(16, steps=10, condition={"label": 3}, seed=0)
    model.domain.picture(samples).save("threes.png")

Everything here is loaded when first used, so that importing sfumato costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .adapter_files import load_adapter, save_adapter
    from .bundle import load, save
    from .denoisers import ClassifierFree, Denoiser, GaussianMixture
    from .domains.images import Images
    from .errors import SfumatoError
    from .model import Model, Sampling
    from .noise import Noise
    from .objectives import Bound, Denoising, Hybrid
    from .personal import Adapter
    from .processes import Gaussian, Prediction, build_schedule, check_process
    from .recipes import Recipe, read_recipe
    from .recipes.finetune import finetune, finetune_recipe
    from .recipes.inversion import learn_word
    from .recipes.run import train
    from .solvers import build_grid, build_solver, integrate, sample
    from .training import Trainer, TrainingConfig

__version__ = "0.1.0"

_WHERE = {
    "Adapter": "personal",
    "Bound": "objectives",
    "ClassifierFree": "denoisers",
    "Denoiser": "denoisers",
    "Denoising": "objectives",
    "Gaussian": "processes",
    "GaussianMixture": "denoisers",
    "Hybrid": "objectives",
    "Images": "domains.images",
    "Model": "model",
    "Noise": "noise",
    "Prediction": "processes",
    "Recipe": "recipes",
    "Sampling": "model",
    "SfumatoError": "errors",
    "Trainer": "training",
    "TrainingConfig": "training",
    "build_grid": "solvers",
    "build_schedule": "processes",
    "build_solver": "solvers",
    "check_process": "processes",
    "finetune": "recipes.finetune",
    "finetune_recipe": "recipes.finetune",
    "integrate": "solvers",
    "learn_word": "recipes.inversion",
    "load": "bundle",
    "load_adapter": "adapter_files",
    "read_recipe": "recipes",
    "sample": "solvers",
    "save": "bundle",
    "save_adapter": "adapter_files",
    "train": "recipes.run",
}

__all__ = [
    "Adapter",
    "Bound",
    "ClassifierFree",
    "Denoiser",
    "Denoising",
    "Gaussian",
    "GaussianMixture",
    "Hybrid",
    "Images",
    "Model",
    "Noise",
    "Prediction",
    "Recipe",
    "Sampling",
    "SfumatoError",
    "Trainer",
    "TrainingConfig",
    "build_grid",
    "build_schedule",
    "build_solver",
    "check_process",
    "finetune",
    "finetune_recipe",
    "integrate",
    "learn_word",
    "load",
    "load_adapter",
    "read_recipe",
    "sample",
    "save",
    "save_adapter",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
