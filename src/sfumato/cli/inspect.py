"""`sfumato inspect`."""

from __future__ import annotations

import json as js
from pathlib import Path


def inspect(bundle: Path, /, *, json: bool = False) -> int:
    """Show what is in a model's folder, a bundle or a pipeline of diffusers, and check that it is whole.

    Parameters
    ----------
    bundle
        The model's folder.
    json
        Print the whole record as JSON instead.
    """
    from ..bundle import load, read_tuned
    from ..denoisers import build_guidance
    from .show import console, pairs

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
    trained = f"{data.get('name', '?')}: {count:,} pictures, {shown:,} shown, {seconds:,.0f} s"
    made = f"{record.get('created', '')} by {', '.join(map(' '.join, record['versions'].items()))}"
    pairs(
        {
            "network": f"{record['network']['kind']}, {record['parameters']:,} parameters ({config})",
            "process": f"{model.denoiser.process.schedule}, sigma_data {model.denoiser.process.sigma_data:g}",
            "predicts": record["denoiser"]["parameterisation"],
            "state": "×".join(map(str, model.domain.shape)) + " (channels, height, width), in [-1, 1]",
            "labels": ", ".join(model.classes) or "none",
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
