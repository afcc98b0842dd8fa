"""Conditioner: prompts to the context that cross-attention reads. The tokenizer is open_clip's own."""

import difflib
import functools
import importlib.util
import unicodedata
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import regex
import torch
from torch import Tensor, nn

from ldm.text_encoder import TextEncoder


@functools.cache
def _clip_tokenizer() -> Any:
    """open_clip's byte pair encoding, fed with what transformers' CLIPTokenizer would feed it.

    open_clip's own cleaning repairs encodings and HTML entities, and its words depend on a folding of case: the
    numbers of Stable Diffusion, whose every release uses transformers' tokenizer, would differ.
    """
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)  # the package itself takes seconds
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tokenizer = module.SimpleTokenizer()
    tokenizer.clean_fn = _clean
    tokenizer.pat = regex.compile(r"""'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+""")
    return tokenizer


def _clean(text: str) -> str:
    """NFC, single spaces, lower case character by character."""
    text = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text))
    return "".join(letter.lower() for letter in text)


SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def _tokens(text: str) -> list[int]:
    """CLIP's numbers of a text, without start and end; the two may also be written out in the text."""
    clip = _clip_tokenizer()
    special = dict(zip(SPECIAL, (clip.sot_token_id, clip.eot_token_id), strict=True))
    pieces = regex.split("(" + "|".join(map(regex.escape, SPECIAL)) + ")", text)
    return [token for piece in pieces for token in ([special[piece]] if piece in special else clip.encode(piece))]


class UnknownWords(UserWarning):
    """Words that a small model does not know and leaves out."""

    near: Mapping[str, str | None] = {}
    """Each with the known word nearest to it in spelling, if any is near."""

    @classmethod
    def of(cls, near: Mapping[str, str | None]) -> "UnknownWords":
        """The warning of these words."""
        offered = [repr(word) for word in near.values() if word]
        hint = f" (did you mean {', '.join(offered)}?)" if offered else ""
        found = cls(f"the model does not know {', '.join(map(repr, near))} and leaves it out{hint}")
        found.near = near
        return found


class KnownWords(UserWarning):
    """The words that a small model knows. A warning of its own, so that it is told once for all unknown words."""


class Conditioner(nn.Module):
    """list[str] -> context (b, context_length, width): start token, the text, end token, padding.

    vocabulary: None for CLIP's 49,408 tokens, or the words a small model knows; their tokens are then numbered
        0, 1, ... and start and end come last. Words outside of it are left out, with a warning.
    pad: "end" repeats the end token (Stable Diffusion 1), "zero" pads with token 0 (Stable Diffusion 2).
    """

    def __init__(self, text_encoder: TextEncoder, vocabulary: Sequence[str] | None = None, pad: str = "end"):
        super().__init__()
        if pad not in ("end", "zero"):
            raise ValueError(f"model.conditioner.pad must be 'end' or 'zero', got {pad!r}")
        self.text_encoder, self.pad = text_encoder, pad
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        self._small_ids = None if vocabulary is None else self._number(self.vocabulary or ())
        expected = 49408 if self._small_ids is None else len(self._small_ids)
        if text_encoder.token_embedding.num_embeddings != expected:
            raise ValueError(
                f"model.conditioner.text_encoder.vocab_size is {text_encoder.token_embedding.num_embeddings}, "
                f"the vocabulary has {expected} tokens (start and end included)"
            )

    @staticmethod
    def _number(words: Sequence[str]) -> dict[int, int]:
        clip = _clip_tokenizer()
        ids = dict.fromkeys(token for word in words for token in clip.encode(word))
        return {token: i for i, token in enumerate([*ids, clip.sot_token_id, clip.eot_token_id])}

    def ids(self, text: str) -> list[int]:
        """Token numbers of a text, without start and end."""
        tokens = _tokens(text)
        if self._small_ids is None:
            return tokens
        unknown = [token for token in tokens if token not in self._small_ids]
        if unknown:
            self._warn(dict.fromkeys(_clip_tokenizer().decode(unknown).split()))
        return [self._small_ids[token] for token in tokens if token in self._small_ids]

    def _warn(self, unknown: Iterable[str]) -> None:
        known = sorted(word for word in self.vocabulary or () if word.isalnum())
        nearest = {word: difflib.get_close_matches(word, known, n=1) for word in unknown}
        near = {word: next(iter(found), None) for word, found in nearest.items()}
        warnings.warn(UnknownWords.of(near), stacklevel=5)
        warnings.warn(KnownWords(f"the model knows: {' '.join(known)}"), stacklevel=5)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> token numbers (b, context_length) int64; what does not fit is cut off."""
        return self.frame([self.ids(text) for text in texts])

    def frame(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Token numbers of texts -> (b, context_length) int64: start, the text, end, padding."""
        clip, length = _clip_tokenizer(), self.text_encoder.context_length
        start, end = clip.sot_token_id, clip.eot_token_id
        if self._small_ids is not None:
            start, end = self._small_ids[start], self._small_ids[end]
        rows = []
        for text in ids:
            row = [start, *text[: length - 2], end]
            rows.append(row + [end if self.pad == "end" else 0] * (length - len(row)))
        return torch.tensor(rows, dtype=torch.int64)

    def encode(self, tokens: Tensor, clip_skip: int = 0) -> Tensor:
        """Token numbers (b, n) -> context (b, n, width), on the encoder's device."""
        return self.text_encoder(tokens.to(self.text_encoder.token_embedding.weight.device), clip_skip)

    def forward(self, texts: Sequence[str], clip_skip: int = 0) -> Tensor:
        return self.encode(self.tokenize(texts), clip_skip)
