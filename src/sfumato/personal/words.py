"""New words: vectors learned for a thing that no word names (textual inversion, Gal et al. 2022, arXiv:2208.01618).

The network is frozen, and a word v, (tokens, text_dim), is the only thing that is learned: it stands among the tokens
of a prompt's embedding, and the training loss is minimised over it,

    v* = argmin_v  E  w || y - network(x_t, [text, v]) ||^2.

Gal et al. put v before the text encoder; here it stands behind it, in the network's own text slot, so that a word does
not depend on which encoder there is, and can be learned with none at hand. It is used by name: in a prompt, "<name>"
stands for the word (`spoken`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import BundleError, choose

_NAMED = re.compile(r"<([^<>\s]+)>")
Encode = Callable[[list[str]], tuple[Tensor, Tensor]]


def text_width(network: nn.Module) -> int:
    """Numbers in a token of the network's text slot, 0 if it has none."""
    config, widths = getattr(network, "config", {}), getattr(network, "widths", {})
    return config.get("text_dim") or widths.get("text") or 0


def place(
    text: Tensor, mask: Tensor | None, word: Tensor, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(text, mask) with a word's tokens after those of each prompt, or of the prompts that `rows` marks.

    text: (batch, tokens, text_dim). mask: (batch, tokens) bool, None for all. word: (tokens, text_dim).
    rows: (batch,) bool. Raises BundleError if their widths differ.
    """
    if word.ndim != 2 or word.shape[1] != text.shape[2]:
        raise BundleError(
            f"a word of {tuple(word.shape)} does not fit prompts with tokens of {text.shape[2]} numbers"
        )
    batch = len(text)
    mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask
    shown = torch.ones(batch, dtype=torch.bool, device=text.device) if rows is None else rows
    own = word.to(text).expand(batch, *word.shape)
    return torch.cat([text, own], 1), torch.cat([mask, shown[:, None].expand(batch, len(word))], 1)


def spoken(prompts: Sequence[str], words: Mapping[str, Tensor], encode: Encode) -> dict[str, Tensor]:
    """{"text", "text_mask"} of prompts in which "<name>" stands for a learned word.

    encode(prompts) -> (text (batch, tokens, text_dim), mask (batch, tokens)) is the text encoder, which is given the
    prompts without those names. Raises BundleError for a name that is no word of the model.
    """
    used = [_NAMED.findall(prompt) for prompt in prompts]
    for name in dict.fromkeys(name for names in used for name in names):
        if not words:
            raise BundleError(
                f"the prompt asks for the word <{name}>, and the model has learned none: give its adapter"
            )
        choose(name, words, "word", BundleError)
    text, mask = encode([" ".join(_NAMED.sub(" ", prompt).split()) for prompt in prompts])
    for name, word in words.items():
        rows = torch.tensor([name in names for names in used], device=text.device)
        if rows.any():
            text, mask = place(text, mask, word, rows)
    return {"text": text, "text_mask": mask}


class Speller(nn.Module):
    """A frozen network that says a word in every prompt: the word is its only parameter that is trained.

    word: (tokens, text_dim) to start from. Called as the network is; a condition without text is the word alone.
    Raises BundleError for a network that has no text slot, or one of another width.
    """

    def __init__(self, network: nn.Module, word: Tensor):
        super().__init__()
        width = text_width(network)
        if not width:
            raise BundleError("this model takes no text, so it cannot learn a word: teach it a class instead")
        if word.ndim != 2 or word.shape[1] != width or not len(word):
            raise BundleError(f"a word of this model is (tokens, {width}), not {tuple(word.shape)}")
        self.network = network.requires_grad_(False)
        self.word = nn.Parameter(word.detach().clone())
        self.config = network.config  # type: ignore[attr-defined]

    def forward(
        self, x: Tensor, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """As the network's own."""
        said = dict(condition or {})
        text = said.get("text", self.word.new_zeros(len(x), 0, self.word.shape[1]))
        said["text"], said["text_mask"] = place(text, said.get("text_mask"), self.word)
        return self.network(x, noise_level, said)
