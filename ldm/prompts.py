"""Prompts as people write them for sampling: (word:1.2) weights and texts of any length. Training reads literally."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.conditioner import Conditioner

STEP = 1.1
"""What a bare pair of round brackets multiplies a weight by, and square brackets divide it by."""

_TOKEN = re.compile(r"\\[()\[\]\\]|[()\[\]]|:\s*([+-]?\d*\.?\d+)\s*\)|[^\\()\[\]:]+|[\\:]")


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Pieces of a prompt and their weights: "a (red:1.3) [big] ball" -> [("a ", 1), ("red", 1.3), ...].

    The web UI's syntax: (x:1.3) multiplies by 1.3, (x) by 1.1, [x] divides by 1.1; brackets nest; a backslash
    makes the next bracket a letter. A bracket that is never closed is a letter.
    """
    pieces: list[tuple[str, float]] = []
    opened: list[tuple[str, int]] = []  # bracket, and the piece it begins before
    for match in _TOKEN.finditer(prompt):
        text, number = match[0], match[1]
        if text in ("(", "["):
            opened.append((text, len(pieces)))
            pieces.append((text, 1.0))
        elif number is not None and opened and opened[-1][0] == "(":
            _close(pieces, opened.pop()[1], float(number))
        elif text == ")" and opened and opened[-1][0] == "(":
            _close(pieces, opened.pop()[1], STEP)
        elif text == "]" and opened and opened[-1][0] == "[":
            _close(pieces, opened.pop()[1], 1 / STEP)
        else:
            pieces.append((text[1:] if len(text) == 2 and text[0] == "\\" else text, 1.0))
    merged: list[tuple[str, float]] = []
    for text, weight in pieces:
        if merged and merged[-1][1] == weight:
            merged[-1] = (merged[-1][0] + text, weight)
        elif text:
            merged.append((text, weight))
    return merged


def _close(pieces: list[tuple[str, float]], start: int, factor: float) -> None:
    pieces[start] = ("", 1.0)  # the bracket itself
    pieces[start + 1 :] = [(text, weight * factor) for text, weight in pieces[start + 1 :]]


def encode_prompts(conditioner: Conditioner, prompts: Sequence[str], clip_skip: int = 0) -> Tensor:
    """Prompts with weights and of any length -> context (b, k n, d), k chunks of the encoder's length n.

    Chunks are encoded one by one, each between start and end tokens, and stand side by side, as in the web UI. Give
    prompts of one `chunk_count` together: of several, k is their least common multiple, because a shorter one is
    repeated, which attention does not see. A token of weight w becomes e + w (c - e), with c its embedding and e the
    empty prompt's there.
    """
    rows = [_chunks(conditioner, prompt) for prompt in prompts]
    count = math.lcm(*(len(row) for row in rows))
    flat = [chunk for row in rows for chunk in row]
    context = conditioner.encode(conditioner.frame([ids for ids, _ in flat]), clip_skip)
    if any(weight != 1 for _, weights in flat for weight in weights):
        empty = conditioner.encode(conditioner.frame([[]]), clip_skip)
        factors = torch.ones(context.shape[:2], device=context.device)
        for factor, (_, weights) in zip(factors, flat, strict=True):
            factor[1 : 1 + len(weights)] = torch.tensor(weights)
        weighted = empty + factors[:, :, None].to(context.dtype) * (context - empty)
        context = torch.where(factors[:, :, None] == 1, context, weighted)
    parts = context.split([len(row) for row in rows])
    return torch.stack([part.flatten(0, 1).repeat(count // len(part), 1) for part in parts])


def chunk_count(conditioner: Conditioner, prompt: str) -> int:
    """How many chunks of the encoder's length a prompt takes."""
    return len(_chunks(conditioner, prompt))


def _chunks(conditioner: Conditioner, prompt: str) -> list[tuple[list[int], list[float]]]:
    """Token numbers and weights of a prompt, in pieces that fit between start and end; at least one."""
    ids: list[int] = []
    weights: list[float] = []
    for text, weight in parse_weights(prompt):
        found = conditioner.ids(text)
        ids += found
        weights += [weight] * len(found)
    size = conditioner.text_encoder.context_length - 2
    starts = range(0, max(len(ids), 1), size)
    return [(ids[i : i + size], weights[i : i + size]) for i in starts]


def match_lengths(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two contexts (b, n, d) and (b, m, d), repeated to one length; attention does not see the repetition."""
    length = math.lcm(a.shape[1], b.shape[1])
    return a.repeat(1, length // a.shape[1], 1), b.repeat(1, length // b.shape[1], 1)
