"""How the networks of diffusers are called: one small function for each, and one module that has our signature.

    network(x, told, condition) -> answer

Our condition names what is known: `label` (batch,), `text` (batch, tokens, width) with `text_mask` (batch, tokens),
`pooled` (batch, width). Each function below says them in the words of one class of diffusers. No code of a folder's is
run: the classes are diffusers' own, and only these.

**Saying nothing.** Guidance asks the network a second time without the condition. For labels that is the label
`classes` (one more than the last), which is told as the network's own null label. For text it is a mask that keeps no
token, which is replaced by what the pipeline stands for nothing: the embedding of the empty prompt or zeros, which the
caller gives as `unconditional`. A network that has no word for nothing says so when it is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..denoisers import Condition
from ..errors import SolverError, choose
from .adapted import as_row, torch_dtype

Said = Mapping[str, Any]


def _unet(model: Any, x: Tensor, told: Tensor, c: Said) -> Tensor:
    return model(x, told, class_labels=c.get("label"), return_dict=False)[0]


def _unet_condition(model: Any, x: Tensor, told: Tensor, c: Said) -> Tensor:
    added = None
    if "pooled" in c:  # SDXL: the picture's original size, crop and target size, in pixels
        side = [8 * n for n in x.shape[-2:]]
        ids = torch.tensor(c.get("time_ids") or (*side, 0, 0, *side), dtype=x.dtype, device=x.device)
        added = {"text_embeds": c["pooled"], "time_ids": ids.expand(len(x), -1)}
    return model(
        x,
        told,
        encoder_hidden_states=c["text"],
        encoder_attention_mask=c.get("text_mask"),
        class_labels=c.get("label"),
        added_cond_kwargs=added,
        return_dict=False,
    )[0]


def _dit(model: Any, x: Tensor, told: Tensor, c: Said) -> Tensor:
    return model(x, timestep=told, class_labels=c["label"], return_dict=False)[0]


def _pixart(model: Any, x: Tensor, told: Tensor, c: Said) -> Tensor:
    return model(
        x,
        encoder_hidden_states=c["text"],
        encoder_attention_mask=c.get("text_mask"),
        timestep=told,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        return_dict=False,
    )[0]


def _sd3(model: Any, x: Tensor, told: Tensor, c: Said) -> Tensor:
    return model(
        x, encoder_hidden_states=c["text"], pooled_projections=c["pooled"], timestep=told, return_dict=False
    )[0]


def _flux(model: Any, x: Tensor, told: Tensor, c: Said) -> Tensor:
    """Two by two pixels are a token, each with its place; the class itself multiplies the time by 1000."""
    height, width = x.shape[-2] // 2, x.shape[-1] // 2
    places = torch.zeros(height, width, 3, device=x.device)
    places[..., 1] = torch.arange(height, device=x.device)[:, None]
    places[..., 2] = torch.arange(width, device=x.device)
    guidance = c.get("guidance")
    answer = model(
        F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2),
        encoder_hidden_states=c["text"],
        pooled_projections=c["pooled"],
        timestep=told / 1000,
        img_ids=places.flatten(0, 1).to(x.dtype),
        txt_ids=torch.zeros(c["text"].shape[1], 3, dtype=x.dtype, device=x.device),
        guidance=None if guidance is None else x.new_full((len(x),), float(guidance)),
        return_dict=False,
    )[0]
    return F.pixel_shuffle(answer.transpose(1, 2).unflatten(2, (height, width)), 2)


class Convention(NamedTuple):
    """One class of diffusers: how it is asked, and what of its config says which conditions it takes."""

    ask: Callable[[Any, Tensor, Tensor, Said], Tensor]
    text: str | None = None  # entry of the config with the width of `text`
    pooled: str | None = None
    masks: bool = False
    labels: str | None = None  # entry of the config with the number of labels
    folded: int = 1  # channels of the network for one of the picture


CONVENTIONS: dict[str, Convention] = {
    "UNet2DModel": Convention(_unet, labels="num_class_embeds"),
    "UNet2DConditionModel": Convention(
        _unet_condition,
        text="cross_attention_dim",
        pooled="projection_class_embeddings_input_dim",
        masks=True,
        labels="num_class_embeds",
    ),
    "DiTTransformer2DModel": Convention(_dit, labels="num_embeds_ada_norm"),
    "PixArtTransformer2DModel": Convention(_pixart, text="caption_channels", masks=True),
    "SD3Transformer2DModel": Convention(_sd3, text="joint_attention_dim", pooled="pooled_projection_dim"),
    "FluxTransformer2DModel": Convention(
        _flux, text="joint_attention_dim", pooled="pooled_projection_dim", folded=4
    ),
}
# What would change the meaning of a call and is not served, by entry of the config. A learned time embedding is a
# table of whole times, which knows no fraction.
_REFUSED: dict[str, Callable[[Any], bool]] = {
    "time_embedding_type": lambda value: value == "learned",
    "class_embed_type": lambda value: value is not None,
    "addition_embed_type": lambda value: value not in (None, "text_time"),
    "encoder_hid_dim_type": lambda value: value is not None,
    "use_additional_conditions": bool,
}
# What some networks are told in every call: the entry of the config that says so, and whether they must be.
_CONSTANTS = {"guidance": ("guidance_embeds", True), "time_ids": ("addition_time_embed_dim", False)}


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what diffusers adds to it: its version, the class, the path it was read from."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


class Borrowed(nn.Module):
    """A network of diffusers with the signature of ours.

    model: an instance of a class in CONVENTIONS. null_label: the label that means "none", if there is one.
    unconditional: {"text": (tokens, width), "pooled": (width,)} that mean "nothing".
    constants: what is told in every call: `guidance` of a distilled Flux, `time_ids` of SDXL.
    Raises SolverError for another class, and for one whose config asks for what is not served.
    """

    kind = "diffusers"

    def __init__(
        self,
        model: nn.Module,
        null_label: int | None = None,
        unconditional: Mapping[str, Tensor] | None = None,
        constants: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        name = choose(type(model).__name__, CONVENTIONS, "class of network", SolverError)
        given: Any = model.config
        for entry, refused in _REFUSED.items():
            if refused(given.get(entry)):
                raise SolverError(f"{name} with {entry} = {given[entry]!r} is not supported")
        self.model, self.convention = model, CONVENTIONS[name]
        self.constants = dict(constants or {})
        for constant in self.constants:
            choose(constant, _CONSTANTS, "constant", SolverError)
        for constant, (entry, must) in _CONSTANTS.items():
            if (constant in self.constants) > bool(given.get(entry)):
                raise SolverError(f"this {name} takes no {constant}: its config has no {entry}")
            if must and given.get(entry) and constant not in self.constants:
                raise SolverError(f"this {name} must be told its {constant}: constants={{{constant!r}: ...}}")
        self.channels = given["in_channels"] // self.convention.folded
        answered = (given.get("out_channels") or given["in_channels"]) // self.convention.folded
        if answered not in (self.channels, 2 * self.channels):
            raise SolverError(
                f"{name} takes {self.channels} channels and answers {answered}: one that is given more than x_t is "
                "not supported"
            )
        self.learned_variance = answered == 2 * self.channels
        self.widths = self._widths(given)
        rows = given.get(self.convention.labels) if self.convention.labels else None
        if name == "DiTTransformer2DModel" and null_label is None:
            null_label = rows  # the row beyond the classes, which it is trained with
        last = (rows or 0) - (name != "DiTTransformer2DModel")
        if null_label is not None and not (rows and 0 <= null_label <= last):
            raise SolverError(
                f"null_label {null_label} is none of the network's labels"
                + (f" 0 to {last}" if rows else ": it has none")
            )
        self.null_label = null_label
        self.classes = (rows or 0) - (null_label is not None and null_label == (rows or 0) - 1)
        for what in unconditional or {}:
            choose(what, self.widths, "unconditional of this network", SolverError)
        for what, depth in (("text", 3), ("pooled", 2)):
            value = (unconditional or {}).get(what)
            if value is not None and value.shape[-1] != self.widths[what]:
                raise SolverError(
                    f"unconditional {what!r} of {tuple(value.shape)} does not fit this network: widths {self.widths}"
                )
            shaped = None if value is None else value.reshape((1,) * (depth - value.ndim) + value.shape)
            self.register_buffer(f"null_{what}", shaped)
        self.config = {
            "class": name,
            "classes": self.classes,
            "null_label": null_label,
            "constants": self.constants,
            "arguments": _plain(json.loads(model.to_json_string())),  # type: ignore[operator]
        }

    def _widths(self, given: Any) -> dict[str, int]:
        widths = {}
        if self.convention.text:
            width = given[self.convention.text]
            widths["text"] = width[0] if isinstance(width, (list, tuple)) else width
        if self.convention.pooled and given.get(self.convention.pooled):
            widths["pooled"] = given[self.convention.pooled] - 6 * (given.get("addition_time_embed_dim") or 0)
        return widths

    def forward(self, x: Tensor, told: Tensor, condition: Condition = None) -> Tensor:
        if x.shape[1] != self.channels:
            raise SolverError(f"this network takes {self.channels} channels, not a state of {tuple(x.shape)}")
        names = [*self.widths, *(["text_mask"] if self.widths else []), *(["label"] if self.classes else [])]
        for name in condition or {}:
            choose(name, names, "condition of this network", SolverError)
        dtype, said = torch_dtype(self.model), dict(self.constants)
        if self.classes:
            said["label"] = self._label((condition or {}).get("label"), x)
        if self.widths:
            said |= self._text(condition or {}, x, dtype)
        return self.convention.ask(self.model, x.to(dtype), told, said)

    def _label(self, label: Any, x: Tensor) -> Tensor:
        none = -1 if self.null_label is None else self.null_label
        if label is None:
            label = x.new_full((len(x),), self.classes, dtype=torch.long)
        label = as_row(label, x, None, "label")
        top = self.classes - (self.null_label is None)
        if label.ndim != 1 or label.is_floating_point() or not bool(((label >= 0) & (label <= top)).all()):
            about = (
                "" if self.null_label is not None else " (and it has none that means nothing: see null_label)"
            )
            raise SolverError(f"this network needs labels (batch,) from 0 to {top}{about}")
        return torch.where(label == self.classes, none, label)

    def _text(self, condition: Mapping[str, Tensor], x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
        """Text and pooled text, with what means nothing in the rows whose mask keeps no token."""
        kept, empty = None, x.new_zeros(len(x), dtype=torch.bool)
        if "text" not in condition:
            empty = ~empty
        elif "text_mask" in condition:
            kept = as_row(condition["text_mask"], x, condition["text"].shape[1], "text_mask").bool()
            empty = ~kept.any(1)
        said = {}
        for name, width in self.widths.items():
            nothing, value = getattr(self, f"null_{name}"), condition.get(name)
            if nothing is None and (value is None or bool(empty.any())):
                raise SolverError(
                    f"this network is conditioned on text: give {name!r} in the condition, and for guidance or "
                    f"sampling without a prompt say what means nothing, unconditional={{{name!r}: ...}}"
                )
            if value is None and nothing is not None:
                value = nothing.expand(len(x), *nothing.shape[1:])
            value = as_row(value, x, width, name)
            if nothing is not None and bool(empty.any()):
                if nothing.shape[1:-1] not in (value.shape[1:-1], (1,)):
                    raise SolverError(
                        f"unconditional {name!r} has {nothing.shape[1]} tokens and the condition {value.shape[1]}"
                    )
                value = torch.where(empty.reshape(-1, *[1] * (value.ndim - 1)), nothing.to(value), value)
            said[name] = value.to(dtype)
        if kept is not None and not bool((kept | empty[:, None]).all()):
            if not self.convention.masks:
                raise SolverError(f"{type(self.model).__name__} takes no text_mask: pad the text instead")
            said["text_mask"] = kept | empty[:, None]
        return said
