"""A scheduler of diffusers, read as what it says of the training: a process and a reading.

A scheduler mixes two things: the noise that the network was trained on, which belongs to the model, and a way to
sample, which does not. Only the first is taken:

    DDPM, DDIM, PNDM, DPM-Solver, UniPC, Euler ...   a `Table` of its abar (whatever its betas, rescaled to zero
                                                     terminal SNR or not), told by the entry: t = i / (n - 1)
    flow matching, or another with use_flow_sigmas   `Shifted(Flow(), shift)`, told n sigma
    EDM                                              `EDM` with its sigma_data, scaled input, told ln(sigma) / 4

abar is taken from the scheduler of diffusers itself, so it is the float32 table that x_t was made with in training.
Some set the last entry of a rescaled table to 2^-24, because their own steps divide by it; it is 0 in training and
here. A flow whose shift depends on the size of the picture (`use_dynamic_shifting`) has mu linear in the number of
tokens and a factor of exp(mu), or mu if its `time_shift_type` is linear.

Grids (karras, spacing, terminal stretch) and clipping are the sampling's: use the grids and solvers of this package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import BundleError, MissingExtra, SolverError, choose
from ..processes import EDM, VE, Flow, Gaussian, Shifted, Table
from .adapted import Reading

_TABLES = (
    "DDPM",
    "DDPMParallel",
    "DDIM",
    "DDIMParallel",
    "PNDM",
    "LMSDiscrete",
    "EulerDiscrete",
    "EulerAncestralDiscrete",
    "HeunDiscrete",
    "KDPM2Discrete",
    "KDPM2AncestralDiscrete",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "DPMSolverSDE",
    "DEISMultistep",
    "UniPCMultistep",
    "SASolver",
)
_FLOWS = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
_EDMS = ("EDMEuler", "EDMDPMSolverMultistep")
SCHEDULERS = tuple(f"{name}Scheduler" for name in (*_TABLES, *_FLOWS, *_EDMS))
_ROWS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


class Said(NamedTuple):
    """What a scheduler says of the training. bounded: whether a learned variance is a place between the two bounds."""

    process: Gaussian
    reading: Reading
    bounded: bool


def the_diffusers() -> Any:
    """The package, imported when it is needed. Raises MissingExtra."""
    try:
        import diffusers
    except ImportError:
        raise MissingExtra("diffusers", extra="diffusers") from None
    return diffusers


def read_scheduler(scheduler: Any, *, shift: float | None = None, tokens: int | None = None) -> Said:
    """Read a scheduler of diffusers, or the mapping of its scheduler_config.json.

    shift: of a flow, instead of the config's. tokens: of a picture, for a flow that is shifted by its size.
    Raises BundleError for a scheduler or prediction type that is not supported, naming those that are.
    """
    config = dict(scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", {}))
    name = config.get("_class_name") if isinstance(scheduler, Mapping) else type(scheduler).__name__
    if name is None:
        raise BundleError("the config of the scheduler does not say of which class it is (_class_name)")
    name = choose(name, SCHEDULERS, "scheduler of diffusers", BundleError)
    steps = config.get("num_train_timesteps", 1000)
    if isinstance(steps, bool) or not isinstance(steps, int) or not 2 <= steps <= 1_000_000:
        raise BundleError(f"num_train_timesteps is a whole number from 2 to 1,000,000, not {steps!r}")
    if isinstance(scheduler, Mapping):
        try:
            scheduler = getattr(the_diffusers(), name).from_config(
                {key: value for key, value in config.items() if not key.startswith("_")}
            )
        except (TypeError, ValueError, NotImplementedError, RuntimeError) as error:
            raise BundleError(f"{name} refuses its config: {str(error).splitlines()[0]}") from None
        config = dict(scheduler.config)
    kind = name.removesuffix("Scheduler")
    try:
        if kind in _EDMS:
            return _edm(config)
        if kind in _FLOWS or config.get("use_flow_sigmas"):
            return _flow(config, steps, shift, tokens)
        return _table(scheduler, config)
    except SolverError as error:
        raise BundleError(f"{name} describes no noise schedule: {error}") from None


def _table(scheduler: Any, config: Mapping[str, Any]) -> Said:
    predicts = config.get("prediction_type", "epsilon")
    predicts = _ROWS[choose(predicts, _ROWS, "prediction type of a scheduler", BundleError)]
    if config.get("timestep_type", "discrete") != "discrete":
        raise BundleError(f"timestep_type {config['timestep_type']!r} is not supported: only 'discrete' is")
    alpha_bar = scheduler.alphas_cumprod.double().tolist()
    if config.get("rescale_betas_zero_snr"):
        alpha_bar[-1] = 0.0
    process = Gaussian(Table(tuple(alpha_bar)))
    return Said(process, Reading(predicts, "index", len(alpha_bar)), config.get("variance_type") != "learned")


def _flow(config: Mapping[str, Any], steps: int, shift: float | None, tokens: int | None) -> Said:
    if config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise BundleError(
            f"a flow predicts 'flow_prediction'; {config['prediction_type']!r} is not supported there"
        )
    if config.get("invert_sigmas"):
        raise BundleError("a flow that runs the other way (invert_sigmas) is not supported")
    if shift is None and config.get("use_dynamic_shifting"):
        shift = dynamic_shift(config, tokens)
    factor = config.get("shift", config.get("flow_shift", 1.0)) if shift is None else shift
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < math.inf:
        raise BundleError(f"the shift of a flow is a positive number, not {factor!r}")
    schedule = Flow() if factor == 1 else Shifted(Flow(), float(factor))
    return Said(Gaussian(schedule), Reading("flow", "flow", steps), True)


def dynamic_shift(config: Mapping[str, Any], tokens: int | None) -> float:
    """The factor of a flow that is shifted by the number of tokens; raises BundleError if that is not known."""
    if tokens is None:
        raise BundleError(
            "this flow is shifted by the size of the picture: give size=(height, width) or the shift itself"
        )
    first, last = config["base_image_seq_len"], config["max_image_seq_len"]
    slope = (config["max_shift"] - config["base_shift"]) / (last - first)
    mu = config["base_shift"] + slope * (tokens - first)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def _edm(config: Mapping[str, Any]) -> Said:
    rows = {"epsilon": "edm", "v_prediction": "-edm"}
    predicts = rows[choose(config.get("prediction_type"), rows, "prediction type of EDM", BundleError)]
    low, high = config["sigma_min"], config["sigma_max"]
    exponential = config.get("sigma_schedule") == "exponential"
    schedule = VE(low, high) if exponential else EDM(low, high, config.get("rho", 7.0))
    return Said(Gaussian(schedule, config["sigma_data"]), Reading(predicts, "edm", scaled=True), True)
