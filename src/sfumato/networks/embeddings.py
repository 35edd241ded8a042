"""What a network is told besides the noisy state: the noise level, and the condition in its slots.

A denoising network is one function for all noise levels, so it must *see* the level. A bare real
number c reaches a network badly (a linear layer of it is a straight line), hence the Fourier features

    phi_k(c) = [cos(w_k c), sin(w_k c)],      w_k geometric between 1 and 32 rad per unit of c.

With c = -log_snr / 8 (EDM's ln(sigma) / 4) of a range of about five units, the lowest frequency tells
clean from noise and the highest has a wavelength of 0.2, a fortieth of the range; higher ones would
add nothing but large derivatives in c, which hurt whatever differentiates the network in time
(consistency models and flow maps, see Lu & Song 2024, arXiv:2410.11081, section 4.1).

A condition is a dictionary with a few known slots. Each has a *null*: what the network sees when the
slot is absent. Nulls are learned (a row of the label table, a text token), so dropping a slot at random
while training gives the unconditional network that classifier-free guidance needs (Ho & Salimans 2022,
arXiv:2207.12598), and a missing key at sampling time means the same as the null written out.

    slot         shape                      null, or no key             reaches the network by
    "label"      (batch,) long              the value `classes`         the embedding
    "text"       (batch, tokens, text_dim)  an all-False row of mask    the embedding, cross-attention
    "text_mask"  (batch, tokens) bool       (no key: all are seen)
    "image"      (batch, channels, h, w)    zeros                       concatenation to the state
    "numbers"    (batch, numbers)           NaN, each for itself        the embedding
    "augmentation" (batch, augmented)       zeros: as it is             the embedding
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SLOTS = ("label", "text", "text_mask", "image")


class FourierFeatures(nn.Module):
    """Embed a real number in sines and cosines: phi(c) = [cos(w c), sin(w c)], (batch,) -> (batch, width).

    Frequencies are fixed and geometric between `lowest` and `highest` (radians per unit of c).
    Raises ValueError when `width` is odd or below 4. Source: Vaswani et al. 2017, section 3.5; Tancik et
    al. 2020 (arXiv:2006.10739).
    """

    frequencies: Tensor

    def __init__(self, width: int, lowest: float = 1.0, highest: float = 32.0) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"FourierFeatures: width must be even and at least 4, got {width}")
        frequencies = torch.linspace(math.log(lowest), math.log(highest), width // 2).exp()
        # Not saved: it follows from the configuration.
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        """Return the features of each level: (batch,) -> (batch, width)."""
        angle = level[:, None] * self.frequencies
        # Unit variance a feature, as the linear layer that follows is initialised for.
        return math.sqrt(2) * torch.cat([angle.cos(), angle.sin()], dim=1)


class Conditioning(nn.Module):
    """Turn (noise level, condition) into one global embedding and, with text, a sequence to attend to.

        embedding = silu(W2 silu(W1 phi(c)) + label_table[y] + W4 [known n, known] + W5 a + W3 mean(context))

    Args:
        width: of the embedding, and of the context tokens.
        classes: number of labels; 0 means that there is no label slot.
        text_dim: width of the text tokens given; 0 means that there is no text slot.
        image_channels: channels of the image slot; 0 means that there is no image slot.
        numbers: how many numbers (batch, numbers) the slot of that name holds, about the size of 1; NaN says nothing.
        augmented: parameters (batch, augmented) of how a picture was changed, in the slot "augmentation".

    `forward(noise_level, condition)` returns `(embedding, context, mask)` with shapes (batch, width),
    (batch, 1 + tokens, width) and (batch, 1 + tokens); the last two are None without a text slot. The
    first context token is the learned null; it is visible exactly where no text token is.
    Raises ValueError for a slot that this network does not have, or whose shape is wrong.
    """

    def __init__(
        self,
        width: int,
        *,
        classes: int = 0,
        text_dim: int = 0,
        image_channels: int = 0,
        numbers: int = 0,
        augmented: int = 0,
    ) -> None:
        super().__init__()
        sizes = {
            "classes": classes,
            "text_dim": text_dim,
            "image_channels": image_channels,
            "numbers": numbers,
            "augmented": augmented,
        }
        for name, value in sizes.items():
            if value < 0:
                raise ValueError(f"{name} must be zero (no such slot) or positive, got {value}")
        self.count, self.augmented = numbers, augmented
        self.classes, self.text_dim, self.image_channels = classes, text_dim, image_channels
        self.level = nn.Sequential(
            FourierFeatures(64), nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width)
        )
        if classes:
            self.labels = nn.Embedding(classes + 1, width)  # the last row is "no label"
        if text_dim:
            self.text_in = nn.Linear(text_dim, width)
            self.text_null = nn.Parameter(torch.randn(width))
            self.text_pool = nn.Linear(width, width)
        if numbers:
            self.numbers = nn.Linear(2 * numbers, width)
        if augmented:
            self.augmentation = nn.Linear(augmented, width, bias=False)
        allowed = {"label": classes, "text": text_dim, "text_mask": text_dim, "image": image_channels}
        allowed |= {"numbers": numbers, "augmentation": augmented}
        self.slots = tuple(name for name, size in allowed.items() if size)

    def check(self, condition: Mapping[str, Tensor]) -> None:
        """Raise ValueError for a slot that this network was built without, naming those it has."""
        for name in condition:
            if name not in self.slots:
                raise ValueError(
                    f"this network has no condition slot {name!r}; it has {list(self.slots) or 'none'} "
                    "(set classes, text_dim, image_channels or numbers when building it)"
                )

    def forward(
        self, noise_level: Tensor, condition: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return (embedding, context, mask); see the class."""
        condition = condition or {}
        self.check(condition)
        batch = noise_level.shape[0]
        embedding = self.level(noise_level)
        if self.classes:
            label = condition.get("label")
            if label is None:
                label = torch.full((batch,), self.classes, dtype=torch.long, device=noise_level.device)
            elif label.shape != (batch,):
                raise ValueError(f"condition 'label' must be ({batch},), got {tuple(label.shape)}")
            embedding = embedding + self.labels(label)
        if self.count:
            told = condition.get("numbers")
            if told is None:
                told = embedding.new_full((batch, self.count), float("nan"))
            if told.shape != (batch, self.count):
                raise ValueError(
                    f"condition 'numbers' must be ({batch}, {self.count}), got {tuple(told.shape)}"
                )
            known = told.isfinite()
            embedding = embedding + self.numbers(
                torch.cat([told.where(known, 0.0).to(embedding.dtype), known.to(embedding.dtype)], 1)
            )
        if self.augmented and (change := condition.get("augmentation")) is not None:
            if change.shape != (batch, self.augmented):
                raise ValueError(
                    f"condition 'augmentation' must be ({batch}, {self.augmented}), got {tuple(change.shape)}"
                )
            embedding = embedding + self.augmentation(change.to(embedding.dtype))
        if not self.text_dim:
            return F.silu(embedding), None, None
        context, mask = self._context(batch, condition)
        # A mean over what is visible: the sentence at a glance, for every layer.
        pooled = (context * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.silu(embedding + self.text_pool(pooled)), context, mask

    def _context(self, batch: int, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        context = self.text_null.expand(batch, 1, -1)
        text, mask = condition.get("text"), condition.get("text_mask")
        if text is None:
            return context, torch.ones(batch, 1, dtype=torch.bool, device=context.device)
        if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != self.text_dim:
            raise ValueError(
                f"condition 'text' must be ({batch}, tokens, {self.text_dim}), got {tuple(text.shape)}"
            )
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        elif mask.shape != text.shape[:2]:
            raise ValueError(
                f"condition 'text_mask' must be {tuple(text.shape[:2])}, got {tuple(mask.shape)}"
            )
        # Hidden tokens may hold anything, NaN included: overwrite them, do not just give them weight 0.
        words = self.text_in(torch.where(mask[..., None], text, torch.zeros_like(text)))
        # The null token stands in where nothing else is visible, so no softmax row is ever empty.
        return torch.cat([context, words], dim=1), torch.cat([~mask.any(1, keepdim=True), mask], dim=1)

    def join_image(self, x: Tensor, condition: Mapping[str, Tensor] | None) -> Tensor:
        """Concatenate the image slot to the state: (batch, c, h, w) -> (batch, c + image_channels, h, w)."""
        if not self.image_channels:
            return x
        image = (condition or {}).get("image")
        shape = (x.shape[0], self.image_channels, *x.shape[2:])
        if image is None:
            image = x.new_zeros(shape)
        elif image.shape != shape:
            raise ValueError(f"condition 'image' must be {shape}, got {tuple(image.shape)}")
        return torch.cat([x, image], dim=1)


def rms_norm(x: Tensor, dim: int = -1) -> Tensor:
    """Scale every vector along `dim` to unit root mean square: x / sqrt(mean(x^2) + 1e-6), same shape.

    No learned gain: the adaptive scale that follows in every block is one. Cheaper than GroupNorm in
    channels_last memory, where a pixel's channels lie side by side, and a sample never sees another.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-6)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention softmax(q k^T / sqrt(d)) v with q and k scaled to unit RMS; (batch, heads, tokens, d) each.

    `mask` is bool (batch, keys), True where a key may be seen. The normalised q and k keep logits
    bounded, hence training stable at high learning rates (Dehghani et al. 2023, arXiv:2302.05442).
    Up to 1024 x 1024 tokens it is written out, which has a forward-mode derivative (torch.func.jvp);
    above, the fused kernel saves the memory: wrap a jvp in `sdpa_kernel(SDPBackend.MATH)` there.
    """
    query, key = rms_norm(query), rms_norm(key)
    if mask is not None:
        mask = mask[:, None, None, :]
    if query.shape[2] * key.shape[2] > 1024**2:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    logits = query @ key.mT / math.sqrt(query.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask, -math.inf)
    return logits.softmax(dim=-1) @ value


def rotated(x: Tensor) -> Tensor:
    """x (batch, heads, tokens, 2 n) with the plane of its numbers k and n + k turned by i w_k at token i.

    w_k = 10000^(-k / n). Turned queries and keys meet as <R_i q, R_j k> = <q, R_(j-i) k>: what they say of each other
    depends on how far they are apart. Source: Su et al. 2021, arXiv:2104.09864.
    """
    half = x.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[-2], device=x.device)[:, None] * rate
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    """Multi-head self- or cross-attention over tokens: (batch, tokens, width) -> the same.

    With `context_width` keys and values come from `forward`'s `context` (batch, keys, context_width),
    under its `mask`; without, from x itself. Raises ValueError when `head` does not divide `width`.
    rotary: self-attention knows how far tokens are apart, see `rotated`.
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """

    def __init__(self, width: int, head: int, context_width: int = 0, rotary: bool = False) -> None:
        super().__init__()
        if width % head:
            raise ValueError(
                f"the width of a head must divide the width of the layer: {head} does not divide {width}"
            )
        if rotary and (context_width or head % 2):
            raise ValueError("rotary positions are of self-attention, with heads of an even width")
        self.heads, self.rotary = width // head, rotary
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(context_width or width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Attend from x to `context`, or to x itself without one."""
        source = x if context is None else context
        query = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(source).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if self.rotary:
            query, key = rotated(query), rotated(key)
        return self.out(attend(query, key, value, mask).transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each of x looks at each of `context`: the softmax of `attend`, (batch, heads, tokens, keys)."""
        query = rms_norm(self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2))
        key = self.key_value(context).unflatten(2, (2, self.heads, -1))[:, :, 0].transpose(1, 2)
        logits = query @ rms_norm(key).mT / math.sqrt(query.shape[-1])
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
        return logits.softmax(dim=-1)


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zeroed(layer: Layer) -> Layer:
    """Set a layer's weight and bias to zero, and return it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def run(checkpointing: bool, block: nn.Module, *inputs: Tensor | None) -> Tensor:
    """Return block(*inputs); with `checkpointing`, store the inputs only, for the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False)
    return block(*inputs)


def check_positive(**values: int) -> None:
    """Raise ValueError naming the first value that is not a positive whole number."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive whole number, got {value!r}")


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a size given as one number or two; ValueError otherwise."""
    values = (size, size) if isinstance(size, int) else tuple(size)
    if len(values) != 2:
        raise ValueError(f"size must be one number or (height, width), got {size!r}")
    check_positive(height=values[0], width=values[1])
    return values[0], values[1]
