"""Worlds as sources of data: for training, and to measure on."""

from collections.abc import Sequence

from cldm.conditions import Condition
from cldm.data.datamodule import DataModule, check_val_count
from cldm.data.transforms import check_size
from cldm.worlds import HELD_OUT_START, TEST_START, World, get_world
from cldm.worlds.dataset import WorldDataset
from ldm.diffusion import LatentDiffusion
from ldm.identity import encoder_key


def world_data(
    condition: Condition,
    model: LatentDiffusion,
    world: str | World,
    size: int | Sequence[int],
    family: str,
    train_count: int,
    val_count: int,
    batch_size: int,
    keep: Sequence[str] = ("moments", "hint"),
    seed: int = 0,
    order: int = 0,
    cache: str | None = None,
) -> DataModule:
    """Training items of a world as latent moments, hints or images (`keep`), and held-out ones with images and hints.

    world: one of WORLDS by its name, or a world of your own. seed: of the items.
    order: the seed of the order in which training sees them.
    """
    if not 0 < train_count < HELD_OUT_START:
        raise ValueError(f"data.train_count must be at least 1 and below {HELD_OUT_START}, got {train_count}")
    check_val_count(val_count)
    place = get_world(world) if isinstance(world, str) else world
    size = _side(size, place.name)
    train = WorldDataset(
        place,
        train_count,
        size,
        family,
        seed,
        keep=keep,
        condition=condition,
        encode=model.autoencoder.moments,
        fingerprint=encoder_key(model.autoencoder) if "moments" in keep else "",
        cache=cache,
    )
    kept = ("image", "hint")
    validation = WorldDataset(
        place, val_count, size, family, seed, HELD_OUT_START, kept, condition=condition, cache=cache
    )
    return DataModule(train, validation, batch_size, order, condition=condition)


def _side(size: int | Sequence[int], world: str) -> int:
    height, width = check_size(size, "size")
    if height != width:
        raise ValueError(f"size={[height, width]}: pictures of {world} are square; give one number")
    return height


def world_items(
    condition: Condition,
    size: int | Sequence[int],
    count: int,
    world: str | World,
    family: str,
    seed: int = 0,
    start: int = TEST_START,
) -> WorldDataset:
    """`count` items of a family with images, hints and captions, neither trained on nor watched during training."""
    place = get_world(world) if isinstance(world, str) else world
    side = _side(size, place.name)
    return WorldDataset(place, count, side, family, seed, start, ("image", "hint"), condition=condition)
