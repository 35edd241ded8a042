"""An adapter as a folder: small, checked, and with no code in it.

    adapter/
      adapter.json           which weights it was made for (their SHA-256), rank, alpha, layers, classes, words, hashes
      weights.safetensors    A and B of each layer, rows of classes, vectors of words
      README.md, figures/    its card, written by the run

It is read as a bundle is: the JSON states the SHA-256 of itself and of the tensors, and a folder that was cut short,
edited or is something else is refused in one line.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from . import __version__
from .bundle import LARGEST_JSON, _digest, _pickled, describe
from .errors import BundleError, RunError
from .files import folder_atomically, opened, reason
from .personal import Adapter
from .training.tensors import write_safetensors

FORMAT, VERSION = "sfumato-adapter", 1


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    *,
    card: str | None = None,
    figures: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write an adapter as a folder and return its record; atomic, and replaces one that is there.

    What `adapter.about` holds goes into the record. Raises RunError if the folder cannot be written.
    """
    folder = Path(folder)
    try:
        with folder_atomically(folder) as aside:
            with opened(aside / "weights.safetensors") as file:
                digest = write_safetensors(file, adapter.tensors(), {"format": FORMAT})
            record: dict[str, Any] = {
                **adapter.about,
                "format": FORMAT,
                "version": VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"sfumato": __version__},
                "base": adapter.base,
                "rank": adapter.rank,
                "alpha": adapter.alpha,
                "layers": list(adapter.updates),
                "classes": list(adapter.classes),
                "words": list(adapter.words),
                "parameters": adapter.parameters,
                "files": {"weights.safetensors": digest},
            }
            record.pop("sha256", None)
            record = describe(aside / "adapter.json", record, card, figures)
    except OSError as error:
        raise RunError(f"could not write the adapter {folder}: {reason(error)}") from error
    return record


def load_adapter(folder: str | Path) -> Adapter:
    """The adapter in a folder. Runs no code of the folder's.

    Raises BundleError for one that is damaged, edited, foreign or of another version, with the reason.
    """
    folder = Path(folder)
    path = folder / "adapter.json"
    if not path.is_file():
        inside = folder / "adapter" / "adapter.json"
        hint = f"; did you mean {inside.parent}?" if inside.is_file() else ""
        raise BundleError(f"{folder} is no adapter: there is no {path.name} in it{hint}")
    try:
        record = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST_JSON else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BundleError(f"{path} is damaged, or does not describe an adapter of sfumato")
    if record.get("version") != VERSION:
        raise BundleError(
            f"{path} has adapter version {record.get('version')!r}; this sfumato reads version {VERSION}"
        )
    if record.get("sha256") != _digest(record):
        raise BundleError(f"{path} was edited or damaged: it does not have the SHA-256 that it states")
    weights = folder / "weights.safetensors"
    content = weights.read_bytes() if weights.is_file() else b""
    if hashlib.sha256(content).hexdigest() != record["files"].get(weights.name):
        kind = " (it is a pickle, which could run code: it was not opened)" if _pickled(content) else ""
        raise BundleError(
            f"{weights} is not the file that adapter.json describes: missing, truncated, edited or swapped{kind}"
        )
    try:
        held = load_safetensors(content)
        return Adapter(
            record["base"],
            {name: (held[f"{name}.down"], held[f"{name}.up"]) for name in record["layers"]},
            record["alpha"],
            {name: held[f"class/{name}"] for name in record["classes"]},
            {name: held[f"word/{name}"] for name in record["words"]},
            record,
        )
    except (SafetensorError, KeyError, TypeError) as error:
        raise BundleError(f"{folder} does not hold the adapter that it describes: {error}") from error


def parse_adapter(text: str) -> tuple[Adapter, float]:
    """An adapter and its weight from "PATH" or "PATH:weight".

    Raises BundleError for a weight that is no finite number, and for what `load_adapter` refuses.
    """
    path, colon, tail = text.rpartition(":")
    if not colon or Path(text).exists():
        return load_adapter(text), 1.0
    try:
        weight = float(tail)
    except ValueError:
        raise BundleError(
            f"an adapter is given as PATH or PATH:weight: {tail!r} in {text!r} is no weight, and there is no such path"
        ) from None
    if not math.isfinite(weight):
        raise BundleError(f"an adapter's weight must be finite, not {tail}")
    return load_adapter(path), weight
