"""Randomness as a function of names, not of history: what a step draws does not depend on what ran before it."""

import hashlib

import torch


def stable_seed(*keys: int | str) -> int:
    """A 63-bit seed from any keys, such as (seed, rank, step); the same on every machine and in every process."""
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*keys: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator seeded by `stable_seed(*keys)`."""
    return torch.Generator(device=device).manual_seed(stable_seed(*keys))
