"""Where in the picture a network looks at a word while it draws: the maps of its cross-attention.

In a layer of cross-attention every place i of the picture spreads a weight of one over the tokens j of the text,

    A_ij = softmax_j(q_i . k_j / sqrt(d)),      sum_j A_ij = 1.

Averaged over heads, brought to the size of the picture, and averaged over layers and steps of sampling, A_.j is a map
of token j (Tang et al. 2022, DAAM, arXiv 2210.04885). Everything on the way is linear with weights that sum to one, so
at every pixel the maps of all tokens, the null token among them, still sum to one: a map is a share of attention, and a
word of several tokens has the sum of theirs. The first map is that of the null token, which is looked at only where
there is no text.

A map shows where a token was read from, not that it caused what is there: information moves between pixels after it
was read, and a sentence also reaches the network as one pooled vector, which no map sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..denoisers import Condition
from ..errors import DataError, SolverError
from ..networks import rewired
from ..networks.embeddings import Attention
from ..processes import Level, Prediction
from .plots import as_png, drawing


class _Noted(nn.Module):
    """A layer of cross-attention that also hands its weights, (batch, heads, places, tokens), to `note`."""

    def __init__(self, attention: Attention, note: Any):
        super().__init__()
        self.attention, self.note = attention, note

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if context is not None:
            with torch.no_grad():
                self.note(self.attention.weights(x, context, mask))
        return self.attention(x, context, mask)


class Watched(nn.Module):
    """A denoiser that notes where its network looks at the words of each of `samples` samples; one a run of sampling.

    What it answers is to the bit what the denoiser answers. Wrap the denoiser itself and then guide: of several
    branches in one batch the first `samples` rows are noted, which is where guidance puts the conditional one. Kept is
    one sum a resolution, however many steps there are. Others may use the same denoiser meanwhile: neither it nor its
    network is changed. Raises SolverError for a network without cross-attention to text, a batch smaller than
    `samples` (an adaptive solver leaves samples behind: choose one that steps together), or a text of another length
    than in the calls before.
    """

    def __init__(self, denoiser: Any, samples: int):
        super().__init__()
        self.denoiser, self.process, self.samples = denoiser, denoiser.process, samples
        self.paths = [
            name
            for name, module in denoiser.named_modules()
            if isinstance(module, Attention) and name.split(".")[-1] == "words"
        ]
        if not self.paths:
            raise SolverError("this denoiser's network does not attend to text: build it with text_dim")
        self.calls = 0
        self._sums: dict[
            int, Tensor
        ] = {}  # by number of places: (samples, places, tokens), over layers and calls
        self._layers: dict[int, int] = {}

    @property
    def network(self) -> Any:
        """The network inside."""
        return self.denoiser.network

    @property
    def parameterisation(self) -> str:
        """The row the network predicts."""
        return self.denoiser.parameterisation

    def forward(self, x_t: Tensor, t: float | Tensor | Level, condition: Condition = None) -> Prediction:
        if len(x_t) < self.samples:
            raise SolverError(
                f"a batch of {len(x_t)} was asked of a record of {self.samples} samples: draw them in one batch, "
                "with a solver that steps them together"
            )
        met: dict[int, list[Tensor]] = {}

        def note(weights: Tensor) -> None:
            part = weights[: self.samples].float().mean(1)
            met.setdefault(part.shape[1], []).append(part)

        view = self.denoiser
        for path in self.paths:
            view = rewired(view, path, lambda layer: _Noted(layer, note))  # type: ignore[arg-type]
        said = view(x_t, t, condition)
        if sum(map(len, met.values())) != len(self.paths):
            raise SolverError(
                "the layers that attend to text are never reached: watch the network that was not compiled"
            )
        for places, parts in met.items():
            part = torch.stack(parts).sum(0)
            before = self._sums.get(places)
            if before is not None and before.shape != part.shape:
                raise SolverError(
                    f"a text of {part.shape[2] - 1} tokens was asked of a record of {before.shape[2] - 1}"
                )
            self._sums[places] = part if before is None else before + part
            self._layers[places] = self._layers.get(places, 0) + len(parts)
        self.calls += 1
        return said

    @property
    def maps(self) -> Tensor:
        """The maps so far, (samples, 1 + tokens, height, width), the null token's first; over tokens they sum to 1.

        Raises SolverError before the first call.
        """
        if not self.calls:
            raise SolverError("nothing was recorded: sample with this denoiser first")
        owner: Any = next(m for m in self.denoiser.modules() if hasattr(m, "padding") and hasattr(m, "size"))
        height, width = owner.size
        tall, wide = height + owner.padding[3], width + owner.padding[1]
        total, layers = 0.0, sum(self._layers.values())
        for places, summed in self._sums.items():
            side = round((tall * wide / places) ** 0.5)  # pixels on a place's side
            grid = summed.mT.unflatten(2, (tall // side, wide // side))
            total = total + F.interpolate(grid, (tall, wide), mode="bilinear", align_corners=False)
        maps: Any = total / layers
        return maps[:, :, :height, :width]


def group_pieces(tokens: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """The words of a text and which tokens make each, from its tokens as WordPiece writes them.

    "##" continues a word; tokens in brackets, as [CLS] and [SEP], are no words. Returns (words, indices).
    """
    words: list[str] = []
    groups: list[list[int]] = []
    for number, token in enumerate(tokens):
        if token.startswith("##") and words:
            words[-1] += token[2:]
            groups[-1].append(number)
        elif not (token.startswith("[") and token.endswith("]")):
            words.append(token)
            groups.append([number])
    return words, groups


def word_maps(maps: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """Maps of words, (samples, words, h, w): for each the sum of its tokens' maps, of `Watched.maps` (null first).

    groups: for each word the numbers of its tokens, counted without the null token. Raises DataError for one that is
    not there.
    """
    tokens = maps.shape[1] - 1
    for group in groups:
        for number in group:
            if not 0 <= number < tokens:
                raise DataError(f"there is no token {number}: the text has tokens 0 to {tokens - 1}")
    if not groups or not all(groups):
        raise DataError("a map needs words, each of at least one token")
    return torch.stack([maps[:, [1 + n for n in group]].sum(1) for group in groups], 1)


def picture(pixels: np.ndarray, maps: Tensor, words: Sequence[str]) -> bytes:
    """A PNG: a row a sample, the picture first, then for each word the picture under its heat map.

    pixels: uint8 (n, h, w, c), as a domain's `pixels` gives. maps: (n, words, h, w), of `word_maps`. Each map is drawn
    from its own least to its own greatest share, which stand over it: attention is spread thinly over many tokens.
    Raises DataError for shapes that do not fit, MissingExtra without matplotlib.
    """
    count, height, width = pixels.shape[:3]
    if tuple(maps.shape) != (count, len(words), height, width):
        raise DataError(
            f"{count} pictures of {height}×{width} and {len(words)} words need maps of "
            f"{(count, len(words), height, width)}, not {tuple(maps.shape)}"
        )
    grey = pixels[..., :3].mean(-1)
    with drawing(1.5 * (len(words) + 1) + 0.3, 1.75 * count + 0.2) as figure:
        axes = figure.subplots(count, len(words) + 1, squeeze=False)
        for row, places in enumerate(axes):
            places[0].imshow(pixels[row].squeeze(-1) if pixels.shape[3] == 1 else pixels[row], cmap="gray",
                             vmin=0, vmax=255, interpolation="nearest")  # fmt: skip
            for k, word in enumerate(words):
                heat = maps[row, k].cpu().numpy()
                places[k + 1].imshow(grey[row], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
                places[k + 1].imshow(heat, cmap="inferno", alpha=0.6, interpolation="bilinear")
                places[k + 1].set_title(f"{word}\n{heat.min():.2f} to {heat.max():.2f}", fontsize=8)
            for axis in places:
                axis.set_axis_off()
        return as_png(figure)
