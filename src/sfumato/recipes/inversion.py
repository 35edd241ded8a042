"""Textual inversion: a word learned from a few pictures, by the trainer that trains models (see `personal.words`).

The pictures are shown with prompts, given as what a text encoder makes of them ("a picture of", "a photo of" ...), and
the word stands after each. Nothing but the word is trained, so nothing is forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapter_files import save_adapter
from ..domains.image_data import ImageData, keyed_words
from ..errors import BundleError, DataError, RunError
from ..model import Model
from ..objectives import build_objective
from ..personal import Adapter, Speller, text_width
from ..training import Callback, Interrupted, Trainer, TrainingConfig, TrainingResult
from .codec import with_latents

PROMPTS = ("a picture of", "a drawing of", "an image of", "a small picture of", "one", "this is")
DEFAULT = TrainingConfig(
    images=3_200, batch=16, learning_rate=1e-2, warmup=160, decay="cosine", ema=(0.05,), validate_every=0,
    checkpoint_every=1_600, log_every=160,
)  # fmt: skip
_PROMPT = 0x9807  # a stream of the keyed words


@dataclass(frozen=True)
class Prompted:
    """Pictures with prompts: row i is shown with the prompt that word(seed, images_seen + i) draws.

    text: (prompts, tokens, text_dim). mask: (prompts, tokens) bool.
    """

    data: Any
    text: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Any, seed: int = 0, images_seen: int = 0) -> dict[str, Any]:
        """As `ImageData.batch`, with "text" and "text_mask" in place of a label."""
        batch = self.data.batch(indices, seed, images_seen)
        words = keyed_words(seed, _PROMPT, images_seen, len(indices)) >> np.uint64(32)
        which = (words * np.uint64(len(self.text)) >> np.uint64(32)).astype(np.int64)
        return {"x": batch["x"], "condition": {"text": self.text[which], "text_mask": self.mask[which]}}


def learn_word(  # noqa: PLR0913 (what a training depends on)
    model: Model,
    data: ImageData,
    name: str,
    out: str | Path,
    *,
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    tokens: int = 1,
    start: Tensor | None = None,
    training: TrainingConfig | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    say: Callable[[str], None] = lambda text: None,
) -> tuple[Adapter, TrainingResult]:
    """Learn what to call the pictures: a word of so many tokens, in a run folder; left in `out/adapter`.

    data: pictures of the model's size, `model.domain.read(...)`. text: (prompts, tokens, text_dim), embeddings of
    prompts for the word to follow, with text_mask (prompts, tokens); None: of `PROMPTS`, by the encoder that the model
    was trained with. start: (tokens, text_dim), where to start: the
    embedding of a word that comes near; default the mean token of the prompts.
    Returns the adapter that holds the word, for `model.with_adapters`, and the result (an `Interrupted` if a signal
    ended it; then nothing is written). Raises BundleError for a model without text, DataError for fewer than two
    pictures or prompts that do not fit.
    """
    out, width = Path(out), text_width(model.denoiser.network)
    if not width:
        raise BundleError("this model takes no text, so it cannot learn a word: teach it a class instead")
    if model.base is not None:
        raise BundleError(
            "this model enlarges another's pictures: teach the word to the one that it enlarges"
        )
    if not name or any(sign in name for sign in "<> \t\n"):
        raise DataError(f"a word's name has no spaces and no angle brackets: {name!r} has")
    if len(data) < 2:
        raise DataError(f"at least 2 pictures are needed to learn a word from, not {len(data)}")
    if text is None:
        said = model.conditions.texts(PROMPTS, len(PROMPTS))
        text, text_mask = said["text"], said["text_mask"]
    if text.ndim != 3 or text.shape[2] != width or not len(text):
        raise DataError(f"prompts are (prompts, tokens, {width}), not {tuple(text.shape)}")
    if tokens < 1:
        raise DataError(f"a word has at least one token, not {tokens}")
    mask = torch.ones(text.shape[:2], dtype=torch.bool) if text_mask is None else text_mask.bool()
    if mask.shape != text.shape[:2]:
        raise DataError(f"the prompts' mask is {tuple(text.shape[:2])}, not {tuple(mask.shape)}")
    config = training or DEFAULT
    denoiser = copy.deepcopy(model.denoiser).train()
    denoiser.network = Speller(
        denoiser.network, _start(text, mask, tokens, config.seed) if start is None else start
    )
    asked = (model.info.get("recipe") or {}).get("objective", {}) | {"drop": 0.0}
    objective = build_objective(**{key: value for key, value in asked.items() if key != "losses"})
    say(f"{len(data):,} pictures; a word of {len(denoiser.network.word)} times {width} numbers")
    trainer = Trainer(
        denoiser,
        objective,
        Prompted(with_latents(data, model.codec), text, mask),
        config,
        out,
        callbacks=callbacks,
    )
    if not resume and (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise RunError(f"{out} already holds a run: resume it, or choose another folder")
    result = trainer.fit(resume)
    about = {"data": {"train": data.card()}, "training": {"images": result.images, "seconds": result.seconds}}
    word = result.weights["network.word"].detach().clone()
    adapter = Adapter(model.fingerprint, words={name: word}, about=about)
    if not isinstance(result, Interrupted):
        save_adapter(adapter, out / "adapter")
    return adapter, result


def _start(text: Tensor, mask: Tensor, tokens: int, seed: int) -> Tensor:
    """The mean token of the prompts; several of them a little apart, or they would stay the same for ever."""
    seen = text[mask] if bool(mask.any()) else text.flatten(0, 1)
    word = seen.mean(0).expand(tokens, -1).clone()
    if tokens > 1:
        noise = torch.randn(word.shape, generator=torch.Generator().manual_seed(seed))
        word += 0.1 * seen.std() * noise.to(word) if len(seen) > 1 else 0.01 * noise.to(word)
    return word
