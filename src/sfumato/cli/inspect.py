"""`sfumato inspect`."""

from __future__ import annotations

import json as js
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model import Model


def inspect(bundle: Path, /, *, json: bool = False) -> int:
    """Show what is in a model's folder, a bundle or a pipeline of diffusers, and check that it is whole.

    Parameters
    ----------
    bundle
        The model's folder.
    json
        Print the whole record as JSON instead.
    """
    from ..bundle import load, read_record, read_tuned
    from ..denoisers import build_guidance
    from .show import console, pairs

    if (bundle / "bundle.json").is_file() and read_record(bundle).get("kind") == "codec":
        return _inspect_codec(bundle, json)
    model = load(bundle)
    record = model.info
    if json:
        print(js.dumps(record, indent=1))
        return 0
    data, training, plan = record["data"].get("train", {}), record["training"], record["sampling"]
    console.print(
        f"[bold]{record['recipe'].get('name', bundle.name)}[/bold] {record['recipe'].get('about', '')}"
    )
    config = ", ".join(
        f"{k}={v}"
        for k, v in record["network"]["config"].items()
        if v not in (None, (), [], 0, False) and not isinstance(v, dict)
    )
    tuned = [
        f"{len(entry['solver']['rows'])} steps at guidance {build_guidance(entry['solver']['guidance']):g} "
        f"(median error {entry['errors']['tuned']['median']:.4f})"
        for entry in read_tuned(bundle)
    ]
    count, shown, seconds = data.get("count", 0), training.get("images", 0), training.get("seconds", 0)
    whole = record["format"] == "sfumato-bundle"  # and not a pipeline of diffusers, which says less of itself
    what = "pictures" if model.domain.name == "images" else "examples"
    trained = f"{data.get('name', '?')}: {count:,} {what}, {shown:,} shown, {seconds:,.0f} s"
    made = f"{record.get('created', '')} by {', '.join(map(' '.join, record['versions'].items()))}"
    pairs(
        {
            "network": f"{record['network']['kind']}, {record['parameters']:,} parameters ({config})",
            "process": _process(model.denoiser.process),
            "predicts": record["denoiser"]["parameterisation"],
            "state": "a leaf each: " + ", ".join(leaves)
            if isinstance(leaves := getattr(model.denoiser.process, "processes", None), Mapping)
            else "×".join(map(str, model.domain.shape))
            + (
                " (channels, height, width), in [-1, 1]"
                if model.domain.name == "images"
                else f", {model.domain.name}"
            ),
            **_latents(model),
            "labels": ", ".join(model.classes) or "none",
            **({"given by": ", ".join(own)} if (own := getattr(model.domain, "asks", ())) else {}),
            "sampled by": f"{plan['solver']['kind']}, {plan['steps']} steps on the {plan['grid']['kind']} grid, "
            f"guidance {build_guidance(plan['guidance']):g}",
            "tuned to": ", ".join(tuned) or "nothing",
            "trained on": trained if data else "not stated",
            "licence of data": data.get("licence", "not stated"),
            "made": made.strip(),
            "SHA-256": record["sha256"],
        }
    )
    if whole:
        console.print("whole: the record and the weights have the SHA-256 that they state")
    return 0


def _latents(model: Model) -> dict[str, str]:
    """What a model of latents says of its codec."""
    record = model.info.get("codec")
    if record is None:
        return {}
    shape = "×".join(map(str, model.latent_shape))
    return {"latents": f"{shape}, decoded by {record['name'] or 'its codec'} ({record['fingerprint'][:12]})"}


def _inspect_codec(bundle: Path, json: bool) -> int:
    """`inspect` of an autoencoder."""
    from ..bundle import load_codec
    from ..domains.images import Images
    from .show import console, pairs

    codec = load_codec(bundle)
    record: dict[str, Any] = codec.info
    if json:
        print(js.dumps(record, indent=1))
        return 0
    recipe, data, training = record["recipe"], record["data"].get("train", {}), record["training"]
    shape = Images.from_json(record["domain"]).shape
    latent = codec.shape(shape)
    console.print(f"[bold]{recipe.get('name', bundle.name)}[/bold] {recipe.get('about', '')}")
    shown = f"{training.get('images', 0):,} shown, {training.get('seconds', 0):,.0f} s"
    fewer = math.prod(shape) / math.prod(latent)
    config = ", ".join(f"{k}={v}" for k, v in record["network"]["config"].items())
    pairs(
        {
            "codec": f"{codec.network.kind}, {record['parameters']:,} parameters ({config})",
            "pictures": "×".join(map(str, shape)) + " (channels, height, width), in [-1, 1]",
            "latents": "×".join(map(str, latent)) + f", {fewer:.3g} times fewer numbers",
            "decoded in tiles": f"exactly, with an overlap of {codec.network.halo} latents or more",
            "trained on": f"{data['name']}: {data['count']:,} pictures, {shown}" if data else "not stated",
            "licence of data": data.get("licence", "not stated"),
            "made": record["created"] + " by " + ", ".join(map(" ".join, record["versions"].items())),
            "latents' SHA-256": record["fingerprint"],
            "SHA-256": record["sha256"],
        }
    )
    console.print("whole: the record and the weights have the SHA-256 that they state")
    return 0


def _process(process: Any) -> str:
    """A process in words."""
    from ..processes import Joint

    if isinstance(process, Joint):
        kinds = {_process(leaf).partition(",")[0] for leaf in process.processes.values()}
        return f"joint, {len(process.processes)} leaves with a time each: {', '.join(sorted(kinds))}"
    if hasattr(process, "sigma_data"):
        return f"{process.schedule}, sigma_data {process.sigma_data:g}"
    return f"{process.law} symbols, {process.schedule}"
