"""The bundle: a trained model as a folder that anyone can open and nobody needs to trust.

    model/
      bundle.json            network, process, row, domain, sampling, recipe, data card, versions, hashes
      weights.safetensors    the averaged weights
      codec.safetensors      of a model of latents: the autoencoder that makes pictures of them
      README.md              the model card, written by the run
      figures/               the pictures that the card shows
      tuned.json             solvers fitted to these weights by `sfumato tune`, if it was asked to

There is no code in it: the network is named, and its JSON configuration goes to the constructor of that name. Loading
checks before it builds: the JSON carries a SHA-256 of itself and of the weights, and a bundle that was truncated,
edited or never was one is refused in one line that says what is wrong. It is written aside and renamed, so that a full
disk or a kill leaves the old bundle or the new one.

A trained autoencoder is a bundle too, of kind "codec": `save_codec` writes it, `load_codec` reads it, or the codec of a
model of latents.

Tuned solvers stand in a file of their own, with a SHA-256 of its own: a model that has been tuned is the same model,
and what receipts say of it still holds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from . import __version__
from .cascade import Base
from .codec import IDENTITY, LatentCodec
from .denoisers import CategoricalDenoiser, Classifier, Denoiser, JointDenoiser
from .domains import build_domain
from .domains.images import Images
from .errors import BundleError, RunError, SfumatoError
from .files import folder_atomically, opened, reason, write_json
from .model import Model, Sampling
from .networks import AutoEncoder, build
from .processes import Categorical, Joint, build_process
from .solvers import Tuned
from .solvers.tuning import Tuning
from .training.tensors import write_safetensors

FORMAT, VERSION = "sfumato-bundle", 1
LARGEST_JSON = 16 * 2**20


def _digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of the record without its own entry "sha256", as canonical JSON."""
    plain = {key: value for key, value in record.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def describe(
    path: Path, record: Mapping[str, Any], card: str | None, figures: Mapping[str, bytes] | None
) -> dict[str, Any]:
    """Write a record with its SHA-256 to `path`, beside it the card and the pictures it shows; returns the record."""
    signed = json.loads(json.dumps(record))  # what is hashed is what will be read
    signed["sha256"] = _digest(signed)
    with opened(path) as file:
        file.write(json.dumps(signed, indent=1).encode())
    if card is not None:
        path.with_name("README.md").write_text(card, encoding="utf-8")
    for name, content in (figures or {}).items():
        path.with_name("figures").mkdir(exist_ok=True)
        (path.with_name("figures") / name).write_bytes(content)
    return signed


def save(
    model: Model,
    folder: str | Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    card: str | None = None,
    figures: Mapping[str, bytes] | None = None,
    guidable: bool = True,
    text: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a model as a bundle and return its record; atomic, and replaces a bundle that is there.

    recipe, data, training: what made it, plain values. card: the model card in Markdown. figures: PNG files by name.
    guidable: whether conditions were dropped in training. text: the encoder of a model that is asked by captions, its
    name, dim, limit and hash; that of the model's own bundle by default. Raises RunError if the folder cannot be
    written.
    """
    network, codec = model.denoiser.network, model.codec
    about = {
        "network": {"kind": network.kind, "config": network.config},
        "parameters": sum(p.numel() for p in network.parameters()),
        "process": model.denoiser.process.to_json(),
        "denoiser": {
            "parameterisation": model.denoiser.parameterisation,
            "learned_variance": model.denoiser.learned_variance,
        },
        "domain": model.domain.to_json(),
        "sampling": model.sampling.to_json(),
        "guidable": guidable and bool(model.info.get("guidable", True)),
        "adapters": model.info.get("adapters", []),
        "words": {name: word.tolist() for name, word in model.words.items()},
    }
    if (text := text or model.info.get("text")) is not None:
        about["text"] = dict(text)
    networks = {"weights.safetensors": network}
    if isinstance(codec, LatentCodec):
        about["codec"] = _of_codec(codec)
        networks["codec.safetensors"] = codec.network
    if model.base is not None:
        about["base"] = {"level": model.base.level, "fingerprint": model.base.model.fingerprint}
    about |= {"recipe": dict(recipe or {}), "data": dict(data or {}), "training": dict(training or {})}
    return _write(Path(folder), about, networks, card, figures or {}, model.base and model.base.model)


def save_again(model: Model, folder: str | Path) -> dict[str, Any]:
    """Write a model that came from a bundle as another bundle, without its card, figures and tuned solvers."""
    info = model.info
    kept = {name: info.get(name) for name in ("recipe", "data", "training", "text")}
    return save(model, folder, guidable=bool(info.get("guidable", True)), **kept)


def save_codec(
    codec: LatentCodec,
    domain: Images,
    folder: str | Path,
    *,
    card: str | None = None,
    figures: Mapping[str, bytes] | None = None,
    **made: Mapping[str, Any],
) -> dict[str, Any]:
    """Write an autoencoder as a bundle of kind "codec" and return its record; otherwise as `save`.

    made: recipe, data, training, as there.
    """
    about = {"kind": "codec", **_of_codec(codec), "domain": domain.to_json()}
    about |= {name: dict(made.get(name) or {}) for name in ("recipe", "data", "training")}
    return _write(Path(folder), about, {"weights.safetensors": codec.network}, card, figures or {})


def _of_codec(codec: LatentCodec) -> dict[str, Any]:
    """What a record says of a codec."""
    return {
        "network": {"kind": codec.network.kind, "config": codec.network.config},
        "parameters": sum(p.numel() for p in codec.network.parameters()),
        "fingerprint": codec.fingerprint,
        "name": codec.info.get("recipe", {}).get("name", codec.info.get("name", "")),
    }


def _write(
    folder: Path,
    about: Mapping[str, Any],
    networks: Mapping[str, Any],
    card: str | None,
    figures: Mapping[str, bytes],
    base: Model | None = None,
) -> dict[str, Any]:
    """Write the weights of networks, the record that describes and hashes them, the card and its figures; atomic."""
    try:
        with folder_atomically(folder) as aside:
            if base is not None:
                save_again(base, aside / "base")
            digests = {}
            for name, network in networks.items():
                with opened(aside / name) as file:
                    weights = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
                    digests[name] = write_safetensors(file, weights, {"format": FORMAT})
            record: dict[str, Any] = {
                "format": FORMAT,
                "version": VERSION,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {
                    "sfumato": __version__,
                    "torch": str(torch.__version__),
                    "python": platform.python_version(),
                },
                **about,
                "files": digests,
            }
            record = describe(aside / "bundle.json", record, card, figures)
    except OSError as error:
        raise RunError(f"could not write the bundle {folder}: {reason(error)}") from error
    return record


def read_record(folder: str | Path) -> dict[str, Any]:
    """The checked record of a bundle, without loading its weights. Raises BundleError saying what is wrong."""
    folder = Path(folder)
    path = folder / "bundle.json"
    if not folder.is_dir():
        raise BundleError(f"{folder} is no bundle: there is no such folder")
    if not path.is_file():
        inside = folder / "model" / "bundle.json"
        hint = f"; did you mean {inside.parent}?" if inside.is_file() else ""
        raise BundleError(f"{folder} is no bundle: it has no bundle.json{hint}")
    if path.stat().st_size > LARGEST_JSON:
        raise BundleError(f"{path} is {path.stat().st_size:,} bytes long; a bundle's record never is")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not whole JSON: the bundle is damaged ({error})") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise BundleError(f"{path} is not a sfumato bundle: its format is not {FORMAT!r}")
    if record.get("version") != VERSION:
        raise BundleError(
            f"{path} has bundle version {record.get('version')!r}; this sfumato reads version {VERSION}"
        )
    if record.get("sha256") != _digest(record):
        raise BundleError(f"{path} was edited or damaged: it does not have the SHA-256 that it states")
    return record


def load(folder: str | Path) -> Model:
    """The model in a bundle, or in a pipeline folder of diffusers, ready to sample. Runs no code of the folder's.

    Raises BundleError for a bundle that is damaged, edited, foreign or of another version, with the reason.
    """
    folder = Path(folder)
    if not (folder / "bundle.json").is_file() and (folder / "model_index.json").is_file():
        from .adapters import load_diffusers

        return replace(load_diffusers(folder), tuned=_solvers(folder))
    record = read_record(folder)
    if record.get("kind") == "codec":
        raise BundleError(
            f"{folder} holds a codec, which turns pictures into latents and back but makes none: it is read by "
            f"sfumato.bundle.load_codec, and a model trained on its latents with codec.bundle={folder}"
        )
    content = _checked(folder, "weights.safetensors", record)
    try:
        process: Any = build_process(**record["process"])
        weights = load_safetensors(content)
        if record["network"]["kind"] == "diffusers":
            from .adapters import rebuild

            denoiser: Any = rebuild(
                record["network"]["config"], process, weights, record["denoiser"]["learned_variance"]
            )
        else:
            network = build(record["network"]["kind"], **record["network"]["config"])
            network.load_state_dict(weights)
            said = record["denoiser"]
            if said["parameterisation"] == Classifier.parameterisation:
                denoiser = Classifier(network, process)
            elif isinstance(process, Categorical):
                denoiser = CategoricalDenoiser(network, process, said["parameterisation"])
            elif isinstance(process, Joint):
                denoiser = JointDenoiser(network, process, said["parameterisation"])
            else:
                denoiser = Denoiser(network, process, **said)
        model = Model(
            denoiser,
            build_domain(**record["domain"]),
            Sampling.from_json(record["sampling"]),
            record,
            _solvers(folder),
            {name: torch.tensor(word) for name, word in record.get("words", {}).items()},
            _codec(folder, "codec.safetensors", record["codec"], record) if "codec" in record else IDENTITY,
            _base(folder, record["base"]) if "base" in record else None,
        )
    except BundleError:
        raise
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, SfumatoError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{folder} does not describe a model of this sfumato: {line}") from error
    model.denoiser.eval().requires_grad_(False)
    return model


def load_codec(folder: str | Path) -> LatentCodec:
    """The codec in a bundle: of an autoencoder, or of a model of latents. Raises BundleError as `load` does."""
    folder = Path(folder)
    record = read_record(folder)
    if record.get("kind") == "codec":
        return _codec(folder, "weights.safetensors", record, record)
    if "codec" not in record:
        raise BundleError(f"{folder} holds a model of pictures, which has no codec")
    return _codec(folder, "codec.safetensors", record["codec"], record)


def _codec(folder: Path, name: str, about: Mapping[str, Any], record: Mapping[str, Any]) -> LatentCodec:
    """The codec whose weights are in a file of a bundle, which its record hashes and a part of it describes."""
    content = _checked(folder, name, record)
    try:
        network: Any = build(about["network"]["kind"], **about["network"]["config"])
        if not isinstance(network, AutoEncoder):
            raise BundleError(f"{folder} names a codec of kind {network.kind!r}, which is none")
        network.load_state_dict(load_safetensors(content))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BundleError(f"{folder} does not describe a codec of this sfumato: {line}") from error
    network.eval().requires_grad_(False)
    return LatentCodec(network, dict(about))


def _base(folder: Path, about: Mapping[str, Any]) -> Base:
    """The model whose pictures are enlarged, in a bundle inside of the bundle."""
    model = load(folder / "base")
    if model.fingerprint != about["fingerprint"]:
        raise BundleError(f"{folder / 'base'} holds another model than the one that {folder} enlarges")
    return Base(model, float(about["level"]))


def _checked(folder: Path, name: str, record: Mapping[str, Any]) -> bytes:
    """The content of a bundle's file, if it has the SHA-256 that the record states."""
    path = folder / name
    if not path.is_file():
        raise BundleError(f"{folder} has no {name}: the bundle is not whole")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != record.get("files", {}).get(name):
        kind = " (it is a pickle, which could run code: it was not opened)" if _pickled(content) else ""
        raise BundleError(
            f"{path} is not the file that bundle.json describes: truncated, edited or swapped{kind}"
        )
    return content


def save_tuned(folder: str | Path, found: Tuning) -> Path:
    """Put a tuned solver into a bundle, in place of one for the same steps, guidance and kind of condition; atomic.

    Raises BundleError if it is no better than every rival on held-out trajectories: such a solver is never shipped.
    """
    if not found.better:
        raise BundleError(f"the solver tuned to {found.solver.steps} steps is no better than an untuned one")
    folder, own = Path(folder), found.solver
    others = [
        entry
        for entry in read_tuned(folder)
        if [entry["solver"][key] for key in ("guidance", "conditional")]
        != [own.to_json()[key] for key in ("guidance", "conditional")]
        or len(entry["solver"]["rows"]) != own.steps
    ]
    entry = {
        "solver": own.to_json(),
        "errors": {name: asdict(errors) for name, errors in found.errors.items()},
        "trajectories": {"fitted": found.fitted, "held out": found.held_out},
        "seconds": round(found.seconds, 1),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    record: dict[str, Any] = {"format": f"{FORMAT}-tuned", "version": VERSION, "solvers": [*others, entry]}
    record = json.loads(json.dumps(record))
    write_json(folder / "tuned.json", record | {"sha256": _digest(record)})
    return folder / "tuned.json"


def read_tuned(folder: str | Path) -> list[dict[str, Any]]:
    """What a bundle says of its tuned solvers, [] where it has none. Raises BundleError for a damaged file."""
    path = Path(folder) / "tuned.json"
    if not path.is_file():
        return []
    try:
        record = json.loads(path.read_bytes()) if path.stat().st_size <= LARGEST_JSON else None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get("sha256") != _digest(record):
        raise BundleError(f"{path} was edited or damaged: delete it, and tune the model again")
    if (record.get("format"), record.get("version")) != (f"{FORMAT}-tuned", VERSION):
        raise BundleError(f"{path} is not of this sfumato: delete it, and tune the model again")
    return record["solvers"]


def _solvers(folder: Path) -> tuple[Tuned, ...]:
    values = [entry["solver"] for entry in read_tuned(folder)]
    return tuple(Tuned(**{key: value for key, value in one.items() if key != "kind"}) for one in values)


def _pickled(content: bytes) -> bool:
    return content[:4] == b"PK\x03\x04" or (content[:1] == b"\x80" and content[8:9] != b"{")
