"""The laws that every domain obeys, to be run on one's own: `check_domain(domain, source=...)`.

A domain stands between files and a model, so what must hold is that nothing is lost or changed on the way there and
back, that what is done to an example depends on that example alone, and that files are there, whole, and named as is
promised. A broken law raises `LawBroken`, which says in one line which law, and how it was broken.

Domains of any kind are tried on examples of theirs. `Images` needs none: its laws are tried on pictures made for the
purpose (noise, all black, all white, a ramp).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from sfumato.domains.image_data import spread_rows
from sfumato.domains.images import Images
from sfumato.errors import DataError
from sfumato.noise import Noise


class LawBroken(AssertionError):
    """A law that a domain says it obeys, and does not."""


def _law(holds: bool, law: str, found: str) -> None:
    if not holds:
        raise LawBroken(f"{law}: {found}")


def _does(law: str, call: Callable[[], Any]) -> Any:
    """What a call gives; whatever it raises breaks the law that it can be made."""
    try:
        return call()
    except Exception as problem:
        said = (str(problem).splitlines() or [""])[0]
        raise LawBroken(f"{law}: {type(problem).__name__}: {said}") from problem


def check_domain(
    domain: Any, examples: Any = None, *, source: Any = None, count: int = 6, seed: int = 0
) -> None:
    """Run the laws of a domain on some of its examples, or on those at a source, read twice; None if all hold.

    1. from_json(to_json()) is the same domain, through JSON text. 2. Reading twice gives the same examples. 3. States
    are finite (a leaf of several may be NaN, where it is missing), have the domain's shape, and each depends on its
    example alone; so does what the network is told. 4. A batch cut in two is the same batch, and its condition has a
    row for each example. 5. What is asked in sampling has a row for each sample, in slots that training told of. 6.
    decode, text, write, picture and strip take states; write makes one file a sample, whole, by its name, the same
    whether written alone or with others, or one file of all that is named samples; and no other files. 7. split shares
    the examples out, each once, and no group is on both sides. 8. The hash is of the examples: fewer have another, and
    nothing above changes it.
    Of `Images`, which needs no examples: encode gives float32 in [−1, 1], decode gives [0, 1] to within 1/255 of the
    pixels, to_uint8(encode(u)) = u, and what write wrote, read reads, pixels and labels.
    Raises LawBroken, naming the law.
    """
    if source is not None:
        examples = _does("read gives examples", lambda: domain.read(source))
        again = _does("reading twice works", lambda: domain.read(source))
        _law(
            examples.sha256() == again.sha256() and examples.domain == again.domain,
            "reading twice gives the same examples",
            f"{examples.sha256()[:12]} and {again.sha256()[:12]}",
        )
    if examples is None:
        if not isinstance(domain, Images):
            raise TypeError("the laws are tried on examples: give some, or a source to read them from")
        _json_law(domain)
        _image_laws(domain, count, seed)
        return
    domain, before = examples.domain, examples.sha256()
    _json_law(domain)
    rows = spread_rows(examples, count)
    _data_laws(examples, rows)
    if isinstance(domain, Images):
        _image_laws(domain, count, seed)
    else:
        states = _state_laws(domain, examples, rows)
        _written_laws(domain, states, None if examples.targets is None else examples.targets[rows])
    _law(examples.sha256() == before, "nothing changes the examples that are kept", "their hash changed")


def _json_law(domain: Any) -> None:
    law = "from_json(to_json()) is the same domain"
    again = _does(law, lambda: type(domain).from_json(json.loads(json.dumps(domain.to_json()))))
    _law(again == domain, law, f"got {again!r} from {domain!r}")
    kind = domain.to_json().get("kind")
    _law(kind == domain.name, "to_json() says the kind", f"{kind!r}, not {domain.name!r}")


def _leaves(states: Any) -> dict[str, Tensor]:
    """The tensors of a state, by name; a plain one has none."""
    return dict(states) if isinstance(states, Mapping) else {"": states}


def _part(states: Any, rows: Any) -> Any:
    """Some rows of states, as states."""
    return {k: v[rows] for k, v in states.items()} if isinstance(states, Mapping) else states[rows]


def _same(a: Any, b: Any) -> bool:
    """Whether two states or conditions are equal; NaN, which says nothing, is equal to itself."""
    a, b = _leaves(a), _leaves(b)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and bool(np.array_equal(a[k].numpy(), b[k].numpy(), equal_nan=a[k].is_floating_point()))
        for k in a
    )


def _data_laws(data: Any, rows: np.ndarray) -> None:
    """What holds for sets of examples of every kind, those of pictures included."""
    n, batch = len(rows), _does("batch works", lambda: data.batch(rows, 3, 40))
    _law("x" in batch, "a batch holds states by the name x", f"it holds {', '.join(batch)}")
    condition = batch.get("condition", {})
    for name, value in {**_leaves(batch["x"]), **condition}.items():
        held = len(value) if isinstance(value, Tensor) and value.ndim else 0
        _law(held == n, "a batch has a row for each example", f"{held} of {name or 'x'} for {n} examples")
    if data.targets is not None:
        same = "label" in condition and condition["label"].tolist() == data.targets[rows].tolist()
        _law(same, "a batch tells the labels of its examples", f"{condition.get('label')}")
    again = data.batch(rows, 3, 40)
    twice = _same(batch["x"], again["x"]) and _same(condition, again.get("condition", {}))
    _law(twice, "a batch asked for twice is the same", "they differ")
    for part, seen in ((slice(0, 1), 40), (slice(1, None), 41)):
        if len(rows[part]):
            cut = data.batch(rows[part], 3, seen)
            same = _same(cut["x"], _part(batch["x"], part))
            same = same and _same(cut.get("condition", {}), _part(condition, part))
            _law(same, "a batch cut in two is the same batch", "they differ")
    if len(data) > 1:
        fewer = data.take(np.arange(len(data) - 1)).sha256()
        _law(fewer != data.sha256(), "fewer examples have another hash", f"{fewer[:12]} too")
        _split_laws(data)


def _split_laws(data: Any) -> None:
    named = data.take(np.arange(len(data)))  # rows in numbers of what is stored
    groups = [data.groups[row] for row in named.rows] if data.groups else []
    if groups and len(set(groups)) < 2:
        return
    train, held = _does("split works", lambda: data.split(0.5))
    every = sorted([*train.rows.tolist(), *held.rows.tolist()])
    law = "split shares the examples out, each once"
    _law(every == sorted(named.rows.tolist()), law, f"{len(train)} and {len(held)} of {len(data)}")
    if groups:
        both = {data.groups[row] for row in train.rows} & {data.groups[row] for row in held.rows}
        _law(not both, "no group is on both sides of a split", f"{', '.join(sorted(both)[:3])}")
    again = data.split(0.5)
    same = np.array_equal(again[0].rows, train.rows)
    _law(bool(same), "the same split is the same twice", "they differ")


def _state_laws(domain: Any, data: Any, rows: np.ndarray) -> Any:
    """The states of some examples, which obey the laws of states."""
    stored = _does("the examples at some rows can be had", lambda: data.at(rows))
    states = _does("encode takes what is stored", lambda: domain.encode(stored))
    shape = _does("the domain has a shape", lambda: domain.shape)
    for name, leaf in _leaves(states).items():
        _law(isinstance(leaf, Tensor), "encode gives tensors", f"{name or 'x'} is a {type(leaf).__name__}")
        wanted = shape[name] if isinstance(shape, Mapping) else shape
        if isinstance(shape, Mapping) or not isinstance(states, Mapping):
            law = "encode gives states (n, *shape)"
            _law(
                tuple(leaf.shape) == (len(rows), *wanted),
                law,
                f"{tuple(leaf.shape)}, not n = {len(rows)}, {wanted}",
            )
        # of several leaves one may be missing, which is NaN
        missing = leaf.isnan() & isinstance(states, Mapping)
        _law(
            bool((leaf.isfinite() | missing).all()), "states are finite", f"NaN or infinity in {name or 'x'}"
        )
    told = _does("told takes what is stored", lambda: domain.told(stored))
    for slot, value in told.items():
        held = len(value) if isinstance(value, Tensor) and value.ndim else 0
        law = "what a network is told has a row for each example"
        _law(held == len(rows), law, f"{held} of {slot!r} for {len(rows)} examples")
    for k, row in enumerate(rows):
        alone = data.at([row])
        same = _same(domain.encode(alone), _part(states, slice(k, k + 1)))
        _law(same, "a state depends on its example alone", f"example {row} differs by itself")
        same = _same(domain.told(alone), _part(dict(told), slice(k, k + 1)))
        _law(same, "what a network is told depends on its example alone", f"example {row} differs by itself")
    try:
        asked = domain.asked({}, Noise(0, len(rows)))
    except DataError:
        asked = {}  # there is something that must be asked for
    for slot, value in asked.items():
        _law(len(value) == len(rows), "what is asked has a row for each sample", f"{len(value)} of {slot!r}")
        _law(slot in told, "what is asked in sampling was told of in training", f"{slot!r} was not")
    return states


def _written_laws(domain: Any, states: Any, labels: np.ndarray | None) -> None:
    """What samples become."""
    n = len(next(iter(_leaves(states).values())))
    _does("decode takes states", lambda: domain.decode(states))
    texts = _does("text takes states", lambda: domain.text(states))
    good = isinstance(texts, list) and len(texts) == n and all(isinstance(text, str) for text in texts)
    _law(good, "text gives a text for each sample", f"{len(texts)} for {n}, {type(texts).__name__}")
    with tempfile.TemporaryDirectory(prefix="sfumato-laws-") as folder:
        whole, alone = Path(folder, "whole"), Path(folder, "alone")
        marks = None if labels is None else torch.from_numpy(labels)
        paths = _does("write takes states", lambda: domain.write(states, whole, marks, 7))
        together = [path.name for path in paths] == [f"samples.{domain.suffix}"]
        there = (together or len(paths) == n) and all(
            path.is_file() and path.stat().st_size for path in paths
        )
        law = f"write makes one file a sample, or samples.{domain.suffix} of all, with something in it"
        _law(there, law, f"{len(paths)} paths for {n} samples")
        stray = {path.name for path in whole.iterdir()} - {path.name for path in paths}
        _law(not stray, "write leaves no other files", f"found {', '.join(sorted(stray))}")
        for k, path in enumerate([] if together else paths):
            good = path.name.startswith(f"sample-{7 + k:05d}") and path.name.endswith(f".{domain.suffix}")
            law = f"files are named sample-00007….{domain.suffix}, by their numbers"
            _law(good, law, f"{path.name} is the {k + 1}. from 7 on")
            one = slice(k, k + 1)
            (own,) = domain.write(_part(states, one), alone, None if marks is None else marks[one], 7 + k)
            same = own.name == path.name and own.read_bytes() == path.read_bytes()
            _law(same, "a sample is written the same alone and with others", f"{path.name} differs")
    for what, call in (
        ("picture", lambda: domain.picture(states)),
        ("strip", lambda: domain.strip([states, states])),
    ):
        shown = _does(f"{what} takes states", call)
        _law(isinstance(shown, Image), f"{what} is a picture", f"it is a {type(shown).__name__}")


def _image_laws(domain: Images, count: int, seed: int) -> None:
    channels, height, width = domain.shape
    u = _examples(count, height, width, channels, seed)
    _codec_laws(domain, u)
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
