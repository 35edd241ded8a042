"""The laws that every domain obeys, to be run on one's own: `check_domain(domain)`.

A domain stands between files and a model, so what must hold is that nothing is lost or changed on the way there and
back. Each law is tried on pictures made for the purpose (noise, all black, all white, a ramp), and a broken one
raises `LawBroken`, which says which law, and by how much.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


class LawBroken(AssertionError):
    """A law that a domain says it obeys, and does not."""


def _law(holds: bool, law: str, found: str) -> None:
    if not holds:
        raise LawBroken(f"{law}: {found}")


def check_domain(domain: Any, *, count: int = 6, seed: int = 0) -> None:
    """Run the laws of a domain of pictures; None if all hold. The domain must have its size and channels.

    1. encode gives float32 (n, c, h, w) in [−1, 1]; decode gives [0, 1] to within 1/255 of the pixels, and clips
       what lies outside. 2. to_uint8(encode(u)) = u. 3. from_json(to_json()) is the same domain, through JSON text.
    4. What write wrote, read reads: the same pixels and labels. 5. picture is at least as large as what it shows.
    6. A batch cut in two is the same batch, and asking twice gives the same.
    Raises LawBroken, naming the law.
    """
    channels, height, width = domain.shape
    u = _examples(count, height, width, channels, seed)
    _codec_laws(domain, u)

    again = type(domain).from_json(json.loads(json.dumps(domain.to_json())))
    _law(again == domain, "from_json(to_json()) is the same domain", f"got {again!r} from {domain!r}")

    labels = np.arange(count) % len(domain.classes) if domain.classes else None
    _file_laws(domain, u, labels)

    sheet = domain.picture(domain.encode(u), columns=2)
    least = (2 * width, -(-count // 2) * height)
    _law(
        sheet.width >= least[0] and sheet.height >= least[1],
        "a picture has room for its samples",
        f"{sheet.size} is smaller than {least}",
    )


def _examples(count: int, height: int, width: int, channels: int, seed: int) -> np.ndarray:
    u = np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    special = [0, 255, np.linspace(0, 255, height * width * channels).reshape(height, width, channels)]
    for picture, value in zip(u, special, strict=False):
        picture[:] = np.asarray(value).astype(np.uint8)
    return u


def _codec_laws(domain: Any, u: np.ndarray) -> None:
    x = domain.encode(u)
    _law(
        x.dtype == torch.float32 and tuple(x.shape) == (len(u), *domain.shape),
        "encode gives float32 (n, *shape)",
        f"got {x.dtype} {tuple(x.shape)}",
    )
    _law(bool((x.abs() <= 1).all()), "encode stays in [-1, 1]", f"got {float(x.min())} to {float(x.max())}")
    expected = torch.from_numpy(u.astype(np.float32) / 255).permute(0, 3, 1, 2)
    error = float((domain.decode(x) - expected).abs().max())
    _law(error <= 1 / 255, "decode(encode(u)) is u / 255 to within 1/255", f"off by {error:.4g}")
    wild = domain.decode(torch.cat([x * 3, x - 5, x + 5]))
    _law(
        bool((wild >= 0).all() and (wild <= 1).all()),
        "decode clips to [0, 1]",
        f"got up to {float(wild.max()):.4g}",
    )
    back = domain.to_uint8(x)
    off = int(np.abs(back.astype(int) - u.astype(int)).max()) if back.shape == u.shape else -1
    _law(
        off == 0, "to_uint8(encode(u)) is u", f"off by {off} of 255" if off > 0 else f"got shape {back.shape}"
    )


def _file_laws(domain: Any, u: np.ndarray, labels: np.ndarray | None) -> None:
    with tempfile.TemporaryDirectory(prefix="sfumato-laws-") as folder:
        paths = domain.write(domain.encode(u), Path(folder), labels)
        _law(
            len(paths) == len(u) and all(path.is_file() for path in paths),
            "write makes one file a sample",
            f"{len(paths)} files for {len(u)} samples",
        )
        stray = {p.name for p in Path(folder).iterdir()} - {p.name for p in paths}
        _law(not stray, "write leaves no other files", f"found {', '.join(sorted(stray))}")
        # Crops with a margin enlarge pictures on the way in; all else of the domain is kept.
        plain = type(domain).from_json({**domain.to_json(), "crop": "none"})
        data = plain.read(Path(folder))
        _law(bool(np.array_equal(data.images, u)), "read gives the pixels that write wrote", "they differ")
        if labels is not None:
            same = data.targets is not None and np.array_equal(data.targets, labels)
            _law(bool(same), "read gives the labels that write wrote", f"{data.targets} for {labels}")
        indices = np.arange(len(u))
        whole, again = data.batch(indices, 3, 40)["x"], data.batch(indices, 3, 40)["x"]
        _law(bool(torch.equal(whole, again)), "a batch asked for twice is the same", "they differ")
        cut = [data.batch(indices[:2], 3, 40)["x"], data.batch(indices[2:], 3, 42)["x"]]
        _law(bool(torch.equal(whole, torch.cat(cut))), "a batch cut in two is the same batch", "they differ")
