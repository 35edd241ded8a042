"""A pipeline folder, read without trusting it.

    pipeline/
      model_index.json                 which class each part is of
      unet/ or transformer/            config.json, diffusion_pytorch_model.safetensors (or shards and their index)
      scheduler/scheduler_config.json

The folder names classes; only classes of diffusers itself that we know are made, so a folder that brings its own code
is refused, and none of it is imported. Weights are read from safetensors alone: a .bin is a pickle, which may run code
when it is opened. An index of shards names files, which must lie beside it. JSON is bounded in size.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ..errors import BundleError

INDEX = "model_index.json"
LARGEST_JSON = 16 * 2**20
NETWORKS = ("unet", "transformer")
_BESIDE = (
    "vae",
    "vqvae",
    "movq",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "image_encoder",
    "bert",
)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises BundleError if there is no such file, or it is too long or no object."""
    if not path.is_file():
        raise BundleError(f"there is no {path}")
    if path.stat().st_size > LARGEST_JSON:
        raise BundleError(f"{path} is {path.stat().st_size:,} bytes long, which no configuration is")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not whole JSON: {error}") from None
    if not isinstance(values, dict):
        raise BundleError(f"{path} does not hold a JSON object")
    return values


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json, whose parts that we use are classes of diffusers. Raises BundleError otherwise."""
    if not folder.is_dir():
        raise BundleError(f"{folder} is no pipeline: there is no such folder")
    index = read_json(folder / INDEX)
    if not isinstance(index.get("_class_name"), str):
        raise BundleError(
            f"{folder / INDEX} names a pipeline with code of its own, which is not run: {index.get('_class_name')!r}"
        )
    present = [name for name in NETWORKS if _part(folder, index, name)]
    if len(present) != 1:
        found = " and ".join(present) or "neither"
        raise BundleError(f"{folder} must hold one network, in unet/ or transformer/; it has {found}")
    if not _part(folder, index, "scheduler"):
        raise BundleError(
            f"{folder} has no scheduler, so it is not known which noise the network was trained on"
        )
    return index


def _part(folder: Path, index: dict[str, Any], name: str) -> str | None:
    """The class of a part, None if the pipeline has none."""
    entry = index.get(name)
    if entry is None or entry == [None, None]:
        return None
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        raise BundleError(f"{folder / INDEX} does not say which class {name} is of: {entry!r}")
    if entry[0] != "diffusers":
        raise BundleError(
            f"{name} of {folder} is {entry[0]}.{entry[1]}, code that does not come with diffusers: it is not run"
        )
    return entry[1]


def network_part(folder: Path, index: dict[str, Any]) -> str:
    """The name of the network's folder, unet or transformer."""
    return next(name for name in NETWORKS if _part(folder, index, name))


def other_parts(index: dict[str, Any]) -> list[str]:
    """The parts that turn text or latents into something: a pipeline with any of them does not work on pixels alone."""
    return [name for name in _BESIDE if index.get(name) not in (None, [None, None])]


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of a network, all of them in its folder. Raises BundleError for pickles and strays."""
    ending = f".{variant}.safetensors" if variant else ".safetensors"
    whole = folder / f"diffusion_pytorch_model{ending}"
    if whole.is_file():
        return [whole]
    shards = folder / (f"diffusion_pytorch_model.safetensors.index{'.' + variant if variant else ''}.json")
    if not shards.is_file():
        bins = sorted(
            path.name for pattern in ("*.bin", "*.pt", "*.ckpt", "*.pth") for path in folder.glob(pattern)
        )
        if bins:
            raise BundleError(
                f"{folder} has only {bins[0]}, a pickle, which may run code when opened: it was not. Save the model "
                "again with safe_serialization"
            )
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        hint = f"; it has {', '.join(others)}: name its variant" if others else ""
        raise BundleError(f"{folder} has no {whole.name}{hint}")
    named = read_json(shards).get("weight_map")
    names = (
        sorted(set(named.values())) if isinstance(named, dict) and all(map(_plain, named.values())) else []
    )
    if not names:
        raise BundleError(f"{shards} does not name files that lie beside it")
    for name in names:
        if not (folder / name).is_file():
            raise BundleError(f"{folder} lacks {name}, a part of its weights")
    return [shards, *(folder / name for name in names)]


def _plain(name: Any) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def digests(folder: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of files, by their place in the folder."""
    found = {}
    for path in files:
        with open(path, "rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
