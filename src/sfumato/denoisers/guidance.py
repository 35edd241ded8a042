"""Guidance as a value: how far to push towards a condition, where, and what keeps the push in bounds.

**The law.** With c the condition and b a base (nothing said, or a negative condition), the score of

    p_w(x)  ~  p(x | b)^(1 - w - sum w_k)  p(x | c)^w  prod_k p(x | c_k)^w_k

is linear in the scores of its factors, and x_0 is affine in the score, so that at each noise level

    x0_w = x0_b + w (x0_c - x0_b) + sum_k w_k (x0_k - x0_b).                                                       (1)

Without further terms that is classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), with b a condition a
negative prompt, with terms composition (Liu et al. 2022, arXiv 2206.01714), w_k < 0 being negation. (It is the
score of no diffusion: p_w of the noisy data is not the noisy p_w, which is why large w need repairs.)

**Repairs**, all in the space of x_0. With d = x0_c - x0_b, d_k likewise, (1) is x0_c + u, u = (w - 1) d + sum w_k d_k.

    interval    u only where low < sigma / alpha <= high                     Kynkaanniemi et al. 2024, arXiv 2404.07724
    norm        each d times min(1, norm / |d|)                              Sadat et al. 2024, arXiv 2410.02416 (APG)
    parallel    the part of u along x0_c times `parallel`; APG has 0         the same paper
    rescale     f x0_w std(x0_c) / std(x0_w) + (1 - f) x0_w                  Lin et al. 2023, arXiv 2305.08891
    threshold   clip to [-s, s] and divide by s, s = max(1, quantile of |x0_w|)     Saharia et al. 2022, section 2.3

in this order; |.|, std and quantiles are over one sample. Threshold is for data in [-1, 1]. APG's momentum adds a mean
over earlier steps, which no function of (x_t, level) can be, and is left out. Where nothing is guided (w = 1 and no
terms, outside the interval) the denoiser's own answer passes untouched, bit for bit.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..errors import SolverError, choose
from ..processes import Level
from ..processes.gaussian import fit
from .denoiser import Condition

Words = Mapping[str, Any]  # a condition as a user says it: {"label": "Bag"}
LARGEST = 1e4  # a weight beyond it only overflows


@dataclass(frozen=True)
class Guidance:
    """A weight with its repairs: x0_w = x0_b + weight (x0_c - x0_b) + terms, see the file's head.

    interval: (low, high] in sigma / alpha, the noise beside data of unit scale. norm: longest x0_c - x0_b of a sample.
    parallel: share kept of what points along x0_c. rescale: in [0, 1]. threshold: a quantile in (0, 1].
    negative: what is guided away from, instead of from nothing, {"label": "Bag"}. also: further conditions with their
    weights, ((-0.5, {"label": "Coat"}), ..). Raises SolverError for a value out of range.
    """

    weight: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    parallel: float = 1.0
    norm: float | None = None
    threshold: float | None = None
    negative: Words | None = field(default=None, hash=False)
    also: tuple[tuple[float, Words], ...] = field(default=(), hash=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "also", tuple((weight, dict(words)) for weight, words in self.also))
        put(self, "negative", dict(self.negative) if self.negative else None)
        if self.interval is not None:
            put(self, "interval", tuple(map(float, self.interval)))
        for weight in (self.weight, *(weight for weight, _ in self.also)):
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise SolverError(f"a guidance weight must be finite, not {weight!r}")
            if abs(weight) > LARGEST:
                raise SolverError(f"a guidance weight of {weight:g} overflows: it may be {LARGEST:g} at most")
        for name, value, holds, rule in (
            ("interval", self.interval, _ordered, "low..high in sigma / alpha with 0 <= low < high"),
            ("rescale", self.rescale, lambda v: 0 <= v <= 1, "in [0, 1]"),
            ("parallel", self.parallel, lambda v: 0 <= v <= 1, "in [0, 1]"),
            ("norm", self.norm, lambda v: v > 0, "positive"),
            ("threshold", self.threshold, lambda v: 0 < v <= 1, "in (0, 1]"),
        ):
            try:
                fine = value is None or holds(value)
            except (TypeError, ValueError):
                fine = False
            if not fine:
                raise SolverError(f"the {name} of guidance must be {rule}, not {value!r}")

    @property
    def idle(self) -> bool:
        """Whether it guides nowhere."""
        return self.weight == 1 and not self.also

    @property
    def linear(self) -> bool:
        """Whether it is (1) alone, which holds in any row and not in x_0 only."""
        return self.rescale == 0 and self.parallel == 1 and self.norm is None and self.threshold is None

    def inside(self, level: Level) -> Any:
        """Whether a level is guided: a bool, or a tensor (batch,)."""
        if self.interval is None:
            return True
        low, high = self.interval
        # multiplied out: alpha = 0 is an infinite ratio
        return (level.sigma > low * level.alpha) & (
            level.sigma <= high * level.alpha if high < math.inf else True
        )

    def mixed(self, own: Tensor, base: Tensor, others: list[Tensor]) -> Tensor:
        """(1), of values of any row."""
        value = base + self.weight * (own - base)
        for (weight, _), other in zip(self.also, others, strict=True):
            value = value + weight * (other - base)
        return value

    def repaired(self, own: Tensor, base: Tensor, others: list[Tensor]) -> Tensor:
        """(1) with its repairs, of values of x_0 (batch, ...)."""
        if self.parallel == 1 and self.norm is None:
            x0 = self.mixed(own, base, others)
        else:
            push = (self.weight - 1) * self._short(own - base)
            for (weight, _), other in zip(self.also, others, strict=True):
                push = push + weight * self._short(other - base)
            x0 = own + push - (1 - self.parallel) * along(push, own)
        if self.rescale:
            tiny = torch.finfo(x0.dtype).tiny
            ratio = own.flatten(1).std(1) / x0.flatten(1).std(1).clamp(min=tiny)
            x0 = fit(self.rescale * ratio + (1 - self.rescale), x0) * x0
        return x0 if self.threshold is None else thresholded(x0, self.threshold)

    def _short(self, difference: Tensor) -> Tensor:
        if self.norm is None:
            return difference
        length = difference.flatten(1).norm(dim=1)
        return fit((self.norm / length.clamp(min=1e-30)).clamp(max=1), difference) * difference

    def __str__(self) -> str:
        plain = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "weight"}
        parts = [
            f"{name}={_number(value[0])}..{_number(value[1])}"
            if name == "interval"
            else f"{name}={_number(value)}"
            for name, value in plain.items()
            if name not in ("negative", "also") and value != type(self).__dataclass_fields__[name].default
        ]
        parts += [f"negative={_written(self.negative)}"] if self.negative else []
        parts += [f"also={_number(weight)}*{_written(words)}" for weight, words in self.also]
        return f"{_number(self.weight)}{':' if parts else ''}{','.join(parts)}"

    def __format__(
        self, spec: str
    ) -> str:  # so that a weight and a guidance are written alike, f"{guidance:g}"
        return str(self)

    def to_json(self) -> str:
        """As text, which `build_guidance` reads."""
        return str(self)


def build_guidance(value: float | str | Guidance) -> float | Guidance:
    """Guidance from a number, or from text such as "2.5:interval=0.2..3,rescale=0.7"; a mere weight stays a number.

    Further values: parallel, norm, threshold; negative=label:Bag for what to guide away from, also=-0.5*label:Coat for
    further conditions. What holds a comma is written in quotes, and several names of one condition are joined by "&".
    Raises SolverError for a name or value that does not exist.
    """
    if isinstance(value, str):
        weight, _, text = value.partition(":")
        found: dict[str, Any] = {"weight": _float(weight, "the guidance weight")}
        for item in _split(text, ","):
            name, equals, said = item.partition("=")
            if not equals:
                raise SolverError(f"guidance is written weight:name=value,name=value, not {value!r}")
            choose(name, [f.name for f in fields(Guidance)[1:]], "value of guidance", SolverError)
            if name == "interval":
                low, dots, high = said.partition("..")
                if not dots:
                    raise SolverError(f"an interval of guidance is written low..high, not {said!r}")
                found[name] = _float(low, name), _float(high, name)
            elif name == "negative":
                found[name] = found.get(name, {}) | _read(said)
            elif name == "also":
                factor, star, words = said.partition("*")
                if not star:
                    raise SolverError(f"a further condition is written also=weight*name:value, not {said!r}")
                found[name] = (*found.get(name, ()), (_float(factor, "the weight of also"), _read(words)))
            else:
                found[name] = _float(said, name)
        value = Guidance(**found)
    elif not isinstance(value, Guidance):
        value = Guidance(value)
    return float(value.weight) if value == Guidance(value.weight) else value


def along(push: Tensor, direction: Tensor) -> Tensor:
    """The part of each sample's push that is parallel to a direction, <u, d> d / |d|^2, in float64 inside."""
    u, d = push.flatten(1).double(), direction.flatten(1).double()
    share = (u * d).sum(1, keepdim=True) / d.square().sum(1, keepdim=True).clamp(min=1e-30)
    return (share * d).reshape(push.shape).to(push.dtype)


def thresholded(x0: Tensor, quantile: float) -> Tensor:
    """clip(x0, -s, s) / s with s the larger of 1 and a sample's quantile of |x0|; data live in [-1, 1]."""
    scale = x0.flatten(1).abs().quantile(quantile, dim=1).clamp(min=1)
    return (x0 / fit(scale, x0)).clamp(-1, 1)


STAY = ("image", "count", "spectrum", "augmentation")
"""Slots that say what a sample is of, not what it should be like: guidance leaves them in both branches."""


def nothing(condition: Condition, classes: int) -> dict[str, Tensor]:
    """The same condition saying nothing: no label, no text, no number.

    A picture that is enlarged, how many points a sample has and a sound's spectrum stay: they are no wishes.
    """
    empty: dict[str, Tensor] = {}
    for name, value in (condition or {}).items():
        if name == "label":
            empty[name] = torch.full_like(value, classes)
        elif name == "text":
            empty[name] = torch.zeros_like(value)
            empty["text_mask"] = torch.zeros(value.shape[:2], dtype=torch.bool, device=value.device)
        elif name == "numbers":
            empty[name] = torch.full_like(value, float("nan"))
        else:
            empty[name] = value if name in STAY else torch.zeros_like(value)
    return empty


def _ordered(interval: Any) -> bool:
    low, high = interval
    return 0 <= low < high


def _float(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SolverError(f"{what} must be a number, not {text!r}") from None


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


def _split(text: str, mark: str) -> list[str]:
    """The parts of text between marks that are not inside quotes."""
    return re.findall(rf'(?:[^{mark}"]|"(?:[^"\\]|\\.)*"|")+', text)


def _written(words: Words) -> str:
    return "&".join(f"{name}:{json.dumps(value)}" for name, value in words.items())


def _read(text: str) -> dict[str, Any]:
    found = {}
    for part in _split(text, "&"):
        name, colon, value = part.partition(":")
        if not colon or not name or not value:
            raise SolverError(f"a condition is written name:value, such as label:Bag, not {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
