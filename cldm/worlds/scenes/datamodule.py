"""Scenes behind the common data module."""

from collections.abc import Sequence

from cldm.conditions import Condition
from cldm.data.datamodule import DataModule
from cldm.worlds.scenes.dataset import ScenesDataset
from ldm.diffusion import LatentDiffusion
from ldm.weights import encoder_fingerprint

HELD_OUT_START = 10_000_000  # validation scenes are numbered from here; no training set is that long


def scenes_data(
    condition: Condition,
    model: LatentDiffusion,
    size: int,
    family: str,
    train_count: int,
    val_count: int,
    batch_size: int,
    keep: Sequence[str] = ("moments", "hint"),
    seed: int = 0,
    cache: str | None = None,
) -> DataModule:
    """Training scenes as latent moments, hints or images (`keep`), and held-out scenes with images and hints."""
    if train_count >= HELD_OUT_START:
        raise ValueError(f"data.train_count must be below {HELD_OUT_START}, got {train_count}")
    train = ScenesDataset(
        train_count,
        size,
        family,
        seed,
        keep=keep,
        condition=condition,
        encode=model.autoencoder.moments,
        fingerprint=encoder_fingerprint(model.autoencoder) if "moments" in keep else "",
        cache=cache,
    )
    validation = ScenesDataset(
        val_count, size, family, seed, HELD_OUT_START, ("image", "hint"), condition=condition, cache=cache
    )
    return DataModule(train, validation, batch_size, seed, condition=condition)
