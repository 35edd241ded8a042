"""Pipelines of diffusers, as a denoiser and as a model.

    denoiser = from_diffusers("pipeline")              every solver, guidance, likelihood ... takes it
    model = load_diffusers("pipeline")                 what `sfumato sample pipeline` uses; sfumato.load does the same

What is taken from a pipeline is its network and what its scheduler says of the training (see `schedulers`); how it is
called is in `networks`, and what is refused in `folders`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..denoisers import Denoiser
from ..domains.images import Images
from ..errors import BundleError, choose
from ..model import Model, Sampling
from ..processes import Gaussian
from ..solvers import DPMpp2M, FlowGrid
from .adapted import Adapted, Reading
from .folders import INDEX, digests, network_part, other_parts, read_index, read_json, weight_files
from .networks import CONVENTIONS, Borrowed
from .schedulers import Said, read_scheduler, the_diffusers

LARGEST_RATIO = 160.0  # of sigma / alpha, where sampling with a network that predicts eps starts


def from_diffusers(
    source: str | Path | nn.Module | Any,
    scheduler: Any = None,
    *,
    null_label: int | None = None,
    unconditional: Mapping[str, Tensor] | None = None,
    constants: Mapping[str, Any] | None = None,
    shift: float | None = None,
    size: tuple[int, int] | None = None,
    variant: str | None = None,
) -> Adapted:
    """The denoiser of a pipeline folder, a pipeline or a network of diffusers.

    source: a folder with model_index.json; or a pipeline; or a network, of a class in `adapters.CONVENTIONS`.
    scheduler: a scheduler of diffusers, its config, or the folder it was saved in; needed with a bare network, and
    instead of the pipeline's with another source.
    null_label: the label that the network was trained to take for "none". unconditional: {"text": ..., "pooled": ...},
    the embeddings that mean "no prompt". Guidance needs one of these: ClassifierFree(denoiser, weight,
    denoiser.network.classes). constants: {"guidance": ...} of a distilled Flux, {"time_ids": ...} of SDXL.
    shift: of a flow, instead of the scheduler's; size: (height, width) of x_t, for flows that are shifted by it.
    variant: of the weights, as "fp16". Raises BundleError or SolverError in one line for what is not supported.
    """
    the_diffusers()
    if isinstance(source, (str, Path)):
        network, saved = _read(Path(source), variant)
    elif isinstance(source, nn.Module):
        network, saved = source, None
    else:
        network = getattr(source, "unet", None) or getattr(source, "transformer", None)
        saved = getattr(source, "scheduler", None)
        if not isinstance(network, nn.Module):
            raise BundleError(
                f"from_diffusers takes a folder, a pipeline or a network, not {type(source).__name__}"
            )
    chosen = saved if scheduler is None else scheduler
    if chosen is None:
        raise BundleError("a network alone does not say which noise it was trained on: give its scheduler")
    if isinstance(chosen, (str, Path)):
        path = Path(chosen)
        chosen = read_json(path / "scheduler_config.json" if path.is_dir() else path)
    borrowed = Borrowed(network, null_label, unconditional, constants)
    return _adapt(borrowed, read_scheduler(chosen, shift=shift, tokens=_tokens(borrowed, size)))


def _adapt(borrowed: Borrowed, said: Said) -> Adapted:
    borrowed.config["reading"] = said.reading.to_json()
    if borrowed.learned_variance and not said.bounded:
        raise BundleError(
            "a network that learned the variance itself (variance_type 'learned') is not supported"
        )
    return Adapted(borrowed, said.process, said.reading, borrowed.learned_variance)


def _read(folder: Path, variant: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a pipeline folder and the config of its scheduler."""
    index = read_index(folder)
    part = folder / network_part(folder, index)
    config = read_json(part / "config.json")
    name = choose(
        config.get("_class_name"), [*CONVENTIONS, "Transformer2DModel"], "class of network", BundleError
    )
    if config.get("quantization_config") or "auto_map" in config:
        raise BundleError(f"{part} is quantised or brings code of its own: neither is supported")
    weight_files(part, variant)
    saved = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        network, found = getattr(the_diffusers(), name).from_pretrained(
            part,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except (
        SafetensorError,
        OSError,
        TypeError,
        ValueError,
        KeyError,
        RuntimeError,
        ZeroDivisionError,
    ) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BundleError(f"{part} does not hold a {name}: {line}") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if found.get(what):
            raise BundleError(
                f"the weights in {part} are not those of its config: {what.replace('_', ' ')} "
                f"{', '.join(map(str, sorted(found[what])[:3]))}"
            )
    return network.eval().requires_grad_(False), saved


def _tokens(borrowed: Borrowed, size: tuple[int, int] | None) -> int | None:
    """How many tokens a transformer makes of a picture, None where that is not known."""
    side = borrowed.config["arguments"].get("sample_size")
    height, width = size or ((side, side) if isinstance(side, int) else (0, 0))
    patch = 2 if borrowed.convention.folded == 4 else borrowed.config["arguments"].get("patch_size") or 1
    return (height // patch) * (width // patch) or None


def load_diffusers(folder: str | Path, *, sampling: Sampling | None = None, **settings: Any) -> Model:
    """A pipeline folder of diffusers as a `Model`: to be sampled, inspected and tuned as one of our own.

    sampling: how; without it DPM-Solver++(2M) in 20 steps on the flow grid, from where sigma / alpha is 160 if the
    network predicts eps (nearer to alpha = 0 that says nothing of x_0). settings: those of `from_diffusers`.
    Raises BundleError for what `from_diffusers` refuses, and for a pipeline whose samples are not pictures yet because
    it works on latents or from text: use `from_diffusers` and its own other parts there.
    """
    folder = Path(folder)
    index = read_index(folder)
    others = other_parts(index)
    if others:
        raise BundleError(
            f"{folder} also needs its {' and '.join(others)} to make pictures: take its network with "
            "sfumato.adapters.from_diffusers and use those beside it"
        )
    denoiser = from_diffusers(folder, **settings)
    borrowed: Any = denoiser.network
    side = borrowed.config["arguments"].get("sample_size")
    if side is None or borrowed.widths:
        raise BundleError(f"the network in {folder} states no sample_size, or needs text: use from_diffusers")
    domain = Images(
        size=(side, side) if isinstance(side, int) else tuple(side),
        channels=borrowed.channels,
        classes=_names(index.get("id2label"), borrowed.classes),
    )
    sampling = sampling or Sampling(DPMpp2M(), FlowGrid(start=_start(denoiser)))
    return Model(denoiser, domain, sampling, _record(folder, index, denoiser, domain, sampling))


def _start(denoiser: Denoiser) -> float:
    """The time to start from: 1, or for a network that predicts eps the last at which that says something of x_0."""
    last = denoiser.process.level(1.0)
    if denoiser.parameterisation != "eps" or last.sigma <= LARGEST_RATIO * last.alpha:
        return 1.0
    limit = -2 * torch.log(torch.tensor(LARGEST_RATIO, dtype=torch.float64))
    return float(denoiser.process.schedule.time(limit))


def _names(stated: Any, classes: int) -> tuple[str, ...]:
    """Names of the labels, all different: the pipeline's id2label or their numbers."""
    stated = stated if isinstance(stated, dict) else {}
    names = [str(stated.get(str(k), k)) for k in range(classes)]
    return tuple(name if names.count(name) == 1 else f"{name} ({k})" for k, name in enumerate(names))


def _record(
    folder: Path, index: Mapping[str, Any], denoiser: Adapted, domain: Images, sampling: Sampling
) -> dict[str, Any]:
    """What a bundle's record would say of this model, as far as it is known."""
    borrowed: Any = denoiser.network
    part = folder / network_part(folder, dict(index))
    read = [folder / INDEX, folder / "scheduler" / "scheduler_config.json", part / "config.json"]
    files = digests(folder, [*read, *sorted(part.glob("*.safetensors"))])
    return {
        "format": "diffusers",
        "pipeline": index["_class_name"],
        "versions": {"diffusers": str(index.get("_diffusers_version", "unknown"))},
        "network": {"kind": borrowed.kind, "config": borrowed.config},
        "parameters": sum(p.numel() for p in borrowed.parameters()),
        "process": denoiser.process.to_json(),
        "denoiser": {
            "parameterisation": denoiser.parameterisation,
            "learned_variance": denoiser.learned_variance,
        },
        "domain": domain.to_json(),
        "sampling": sampling.to_json(),
        "guidable": borrowed.null_label is not None,
        "recipe": {},
        "data": {},
        "training": {},
        "files": files,
        "sha256": hashlib.sha256("".join(sorted(files.values())).encode()).hexdigest(),
    }


def rebuild(
    config: Mapping[str, Any], process: Gaussian, weights: Mapping[str, Tensor], learned_variance: bool
) -> Adapted:
    """The denoiser of a bundle that a pipeline was saved in: from its network's config and weights."""
    name = choose(config["class"], CONVENTIONS, "class of network", BundleError)
    network = getattr(the_diffusers(), name).from_config(config["arguments"])
    nothing = {key.removeprefix("null_"): value for key, value in weights.items() if key.startswith("null_")}
    borrowed = Borrowed(network, config["null_label"], nothing, config["constants"])
    borrowed.load_state_dict(dict(weights))
    return _adapt(borrowed, Said(process, Reading(**config["reading"]), learned_variance))
