"""Small captioned pictures that several tests read."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (230, 20, 20), "green": (10, 200, 40), "blue": (20, 40, 240), "black": (10, 10, 10)}


def coloured(folder: Path, copies: int = 6) -> Path:
    """A folder of plain pictures with a table of captions, two a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        for k in range(copies):
            u = np.clip(np.array(colour) + rng.integers(-9, 10, (8, 8, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(u).save(folder / f"{name}-{k}.png")
            own = {"file_name": f"{name}-{k}.png", "text": [f"{name} {k}", f"{name} {k}, a colour"]}
            lines.append(json.dumps(own | {"group": f"{name}{k // 2}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder
