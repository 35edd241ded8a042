"""Training an autoencoder from a recipe, and training a diffusion model on its latents.

    sfumato train emoji-codec-128 --out runs/codec                          a bundle of kind "codec"
    sfumato train emoji-latent-128 codec.bundle=runs/codec/model --out ...  a model that holds that codec

The same trainer, data and run folder serve both. What is particular to an autoencoder: it needs no process and no
solver; in training it has a critic and perceptual features beside it, which the bundle leaves out; and the scale of its
latents is measured in the end, over the training pictures.

A latent model is trained on latents that were made once, before the first step, and are kept in memory: of each
picture, and of its mirror image where the data are mirrored at random. They are made anew when a run is resumed, by the
copy of the codec that the run folder keeps, so nothing can be stale.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import bundle
from ..codec import BATCH, IDENTITY, Codec, LatentCodec
from ..domains.image_data import ImageData, spread_rows
from ..domains.images import Images
from ..errors import DataError, RecipeError, RunError
from ..networks import AutoEncoder, PatchCritic, RandomFeatures, build
from ..objectives import Apprentice, Autoencoding
from ..training import TrainingResult
from . import card
from .recipe import Recipe

if TYPE_CHECKING:
    from ..evaluation.measure import Measure

SCALED_OVER = 10_000  # pictures whose latents set the scale


@dataclass(frozen=True)
class LatentData:
    """Data whose pictures have become latents: what a trainer of a latent model is shown.

    data: the pictures, with their conditions. latents: (n, c, h, w); mirrored: those of the mirror images, or None.
    """

    data: ImageData
    latents: Tensor
    mirrored: Tensor | None = None

    @classmethod
    def of(cls, data: ImageData, codec: Codec) -> LatentData:
        """Encode all pictures of some data. Raises DataError for data that are cropped at random."""
        if data.domain.crop == "random":
            raise DataError(
                "latents are made once, so pictures cannot be cropped at random: set data.crop=center"
            )
        parts = [np.arange(k, min(k + BATCH, len(data))) for k in range(0, len(data), BATCH)]
        if not parts:
            return cls(data, torch.empty(0, *codec.shape(data.domain.shape)))
        plain = torch.cat([codec.encode(data.tensor(rows)) for rows in parts])
        if not data.domain.flip:
            return cls(data, plain)
        return cls(data, plain, torch.cat([codec.encode(data.tensor(rows).flip(3)) for rows in parts]))

    def __len__(self) -> int:
        return len(self.latents)

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """A batch of the data with latents in the place of its pictures, mirrored where they are."""
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        latents = self.latents[rows]
        if self.mirrored is not None:
            turned = torch.from_numpy(self.data.mirrored(len(rows), seed, images_seen))
            latents[turned] = self.mirrored[rows[turned]]
        return self.data.batch(indices, seed, images_seen) | {"x": latents}

    def tensor(self, indices: Any = None) -> Tensor:
        """Latents (n, c, h, w), unaugmented; all of them, or those at `indices`."""
        return self.latents if indices is None else self.latents[torch.as_tensor(indices)]


def codec_of(recipe: Recipe, out: Path | None = None) -> Codec:
    """The codec of a recipe, the identity without one; `out`: the run folder that keeps a copy.

    Raises RecipeError for a codec that cannot be had, RunError where the run was begun with another.
    """
    kept = None if out is None else out / "codec"
    own = bundle.load_codec(kept) if kept is not None and (kept / "bundle.json").is_file() else None
    if recipe.codec.bundle is None:
        return own or IDENTITY
    place = Path(recipe.codec.bundle)
    if own is not None and not (place / "bundle.json").is_file():
        return own
    if not place.is_dir():
        raise RecipeError(
            f"codec.bundle = {str(place)!r}: there is no such folder; train it first "
            f"(sfumato train {recipe.codec.recipe or 'A-CODEC-RECIPE'} --out {place.parent}), or give another"
        )
    found = bundle.load_codec(place)
    if own is not None and own.fingerprint != found.fingerprint:
        raise RunError(
            f"{out} was begun with the codec {own.fingerprint[:12]}, and {place} holds {found.fingerprint[:12]}, whose "
            "latents mean other things: start another run"
        )
    return own or found


def keep_codec(codec: Codec, domain: Images, out: Path) -> None:
    """Put a copy of a codec into a run folder."""
    if isinstance(codec, LatentCodec) and not (out / "codec" / "bundle.json").is_file():
        made = {name: codec.info.get(name, {}) for name in ("recipe", "data", "training")}
        bundle.save_codec(codec, domain, out / "codec", **made)


def set_up_codec(recipe: Recipe, domain: Images) -> tuple[Apprentice, Autoencoding]:
    """The network of a codec's recipe beside its critic and features, and its loss.

    Raises RecipeError for what does not fit, MissingExtra for features that are not installed.
    """
    losses = recipe.objective.losses
    objective = Autoencoding(losses.kl, losses.perceptual, losses.adversarial)
    channels, *size = domain.shape
    given = recipe.network.model_dump()
    if fixed := sorted({"in_channels", "size"} & set(given)):
        raise RecipeError(f"network.{fixed[0]} follows from the data and cannot be set")
    with torch.random.fork_rng():
        torch.manual_seed(recipe.training.seed)
        try:
            network = build(**given, in_channels=channels, size=size)
            critic = PatchCritic(channels) if losses.adversarial else None
        except (TypeError, ValueError) as error:
            raise RecipeError(f"[network]: {error}") from None
    assert isinstance(network, AutoEncoder)
    features: nn.Module | None = None
    if losses.perceptual and losses.features == "efficientnet-lite0":
        from ..evaluation.efficientnet import EarlyFeatures

        features = EarlyFeatures()
    elif losses.perceptual:
        features = RandomFeatures(channels)
    return Apprentice(network, critic, features), objective


def finished_codec(apprentice: Apprentice, result: TrainingResult, data: ImageData, name: str) -> LatentCodec:
    """The codec with averaged weights, its latents scaled over (at most 10,000 of) the training pictures."""
    apprentice.load_state_dict(result.weights)
    network = apprentice.network.eval().requires_grad_(False)
    rows = spread_rows(data, SCALED_OVER)
    parts = [data.tensor(part) for part in np.array_split(rows, max(len(rows) // BATCH, 1))]
    with torch.no_grad():
        z = torch.cat([network.moments(part)[0] for part in parts]).double()
    network.set_scale(z.mean((0, 2, 3)), z.std((0, 2, 3)))
    return LatentCodec(network, {"name": name})


def compression(codec: LatentCodec, domain: Images) -> float:
    """How many times fewer numbers a latent has than its picture."""
    return float(np.prod(domain.shape) / np.prod(codec.shape(domain.shape)))


def write_codec(
    codec: LatentCodec, recipe: Recipe, about: dict[str, Any], data: ImageData, out: Path
) -> None:
    """Write `out/model`, a bundle of kind "codec", with its card and a picture of pictures beside reconstructions."""
    from .run import png

    x = data.tensor(spread_rows(data, 10))
    domain = data.domain
    picture = png(domain.strip([x, codec.decode(codec.encode(x))], ["given", "decoded"]))
    plain = recipe.model_dump(mode="json")
    text = card.codec_card(codec, domain, compression(codec, domain), plain, about)
    record = bundle.save_codec(
        codec, domain, out / "model", recipe=plain, **about, card=text, figures={"samples.png": picture}
    )
    codec.info.clear()
    codec.info.update(record)


def reconstruction(
    codec: Codec, held: ImageData, reference: ImageData, features: Any, progress: Any = None
) -> list[Measure]:
    """How well a codec gives held-out pictures back: PSNR in dB, absolute error, Fréchet and kernel distance.

    Distances are of reconstructions from `reference`, with those of the pictures themselves from it as the floor. PSNR
    = -10 log10 of a picture's mean squared error on [0, 1], after rounding to 256 levels, averaged over pictures.
    """
    from ..evaluation.features import in_batches, to_unit
    from ..evaluation.measure import Measure
    from ..evaluation.metrics import frechet, frechet_distance, kernel, kernel_distance

    domain, parts = held.domain, []
    for k in range(0, len(held), BATCH):
        x = held.tensor(np.arange(k, min(k + BATCH, len(held))))
        parts.append(domain.to_uint8(codec.decode(codec.encode(x))))
        if progress is not None:
            progress("reconstructing", min(k + BATCH, len(held)), len(held))
    made, true = np.concatenate(parts), held.images
    gap = (to_unit(made) - to_unit(true)).double().flatten(1)

    def mean(name: str, each: Tensor, better: str, note: str) -> Measure:
        value, half = float(each.mean()), 1.96 * float(each.std()) / len(each) ** 0.5
        return Measure(name, value, value - half, value + half, len(each), better, note=note)

    # a picture that comes back to the last bit would be infinitely good: it counts as half a level off
    psnr = -10 * gap.square().mean(1).clamp(min=(0.5 / 255) ** 2).log10()
    f, g, r = (in_batches(features, images)[0] for images in (made, true, reference.images))
    return [
        mean("PSNR", psnr, "higher", "dB, on held-out pictures"),
        mean("absolute error", gap.abs().mean(1), "lower", "on a scale from 0 to 1, on held-out pictures"),
        frechet(f, r, floor=frechet_distance(g, r)),
        kernel(f, r, floor=kernel_distance(g, r)),
    ]


def part_of(data: ImageData, count: int) -> ImageData:
    """At most `count` pictures in a fixed random order."""
    return data.take(np.random.default_rng(0).permutation(len(data))[:count])


def encoded(pictures: Tensor, codec: Codec) -> Tensor:
    """Pictures as a model's denoiser sees them."""
    return torch.cat([codec.encode(part) for part in pictures.split(BATCH)])


def with_latents(data: ImageData, codec: Codec) -> Any:
    """Data as a trainer of a model with this codec is shown them."""
    return LatentData.of(data, codec) if isinstance(codec, LatentCodec) else data
