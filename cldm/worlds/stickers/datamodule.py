"""Stickers behind the common data module."""

from collections.abc import Sequence

from cldm.conditions import Condition
from cldm.data.datamodule import DataModule
from cldm.worlds.stickers.dataset import StickersDataset
from ldm.autoencoder import AutoencoderKL
from ldm.diffusion import LatentDiffusion
from ldm.weights import fingerprint

HELD_OUT_START = 10_000_000  # validation compositions are numbered from here; no training set is that long


def stickers_data(
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
    """Training compositions as latent moments, hints, labels or images (`keep`), and held-out compositions with images
    and hints."""
    if train_count >= HELD_OUT_START:
        raise ValueError(f"data.train_count must be below {HELD_OUT_START}, got {train_count}")
    train = StickersDataset(
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
    validation = StickersDataset(
        val_count, size, family, seed, HELD_OUT_START, ("image", "hint"), condition=condition, cache=cache
    )
    return DataModule(train, validation, batch_size, seed, condition=condition)


def encoder_fingerprint(autoencoder: AutoencoderKL) -> str:
    """A name for the encoder's weights: cached moments belong to it, whatever the decoder."""
    return fingerprint(autoencoder.encoder) + fingerprint(autoencoder.quant_conv)
