"""What a finished run was trained on, as images: to see whether generated ones are copies."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from cldm.conditions.plain import Unchanged
from cldm.data.cache import INDEX
from cldm.data.folder import FolderDataset, split
from cldm.data.listing import ITEMS, Item, list_items
from cldm.worlds import World, get_world
from cldm.worlds.dataset import CONTROL, WorldDataset
from ldm.random import generator


def refuse_trained_on(items: Sequence[Item], run: Path) -> None:
    """ValueError if the run in this folder has trained on any of the pictures, as its items.json tells."""
    record = run / ITEMS
    if not record.is_file():
        return
    trained = {*json.loads(record.read_text())["trained"]}
    if known := [item.name for item in items if str(item.image.resolve()) in trained]:
        raise ValueError(
            f"{run} was trained on {len(known)} of the {len(items)} pictures to measure on ({known[0]}, ...): take "
            "others, or those that it held out, data.held_out=<data.val_count of the training>"
        )


def refuse_another_world(world: object, run: Path) -> None:
    """ValueError if the run in this folder was trained on a world of a name, and `world` is another name."""
    own = _recorded(run, "data.world")
    if isinstance(world, str) and isinstance(own, str) and own != world:
        raise ValueError(f"{run} was trained on {own}, this protocol measures on {world}: take protocol={own}")


def refuse_seen_family(world: World | None, family: object, run: Path) -> None:
    """ValueError if `family` is what the world keeps from the control stage, and the run was trained on another family
    than the one that it is kept from."""
    own = _recorded(run, "data.family")
    if world is not None and family == world.unseen is not None and own not in (None, CONTROL):
        raise ValueError(f"data.family={family} is what data.family={CONTROL} leaves out; {run} was trained on {own}")


def _recorded(run: Path, key: str) -> Any:
    record = run / "config.yaml"
    return OmegaConf.select(OmegaConf.load(record), key) if record.is_file() else None


def training_images(data: Mapping[str, Any], count: int) -> Tensor | None:
    """At most `count` images (n, 3, h, w) in [-1, 1] of the training set that a run recorded under `data`.

    None for sources whose images are not at hand (shards). Nothing that the record names is built or fetched:
    it chooses a reader of this file. OSError or ValueError if the pictures are no longer there.
    """
    reader = READERS.get(str(data.get("_target_")))
    return None if reader is None else reader(data, count)


def _world(data: Mapping[str, Any], count: int) -> Tensor:
    world, shown = get_world(data["world"]), min(count, data["train_count"])  # the first ones: all are alike
    shown = WorldDataset(world, shown, data["size"], data["family"], data["seed"])
    return shown.__getitems__(range(len(shown)))["image"]


def _pictures(data: Mapping[str, Any], count: int) -> Tensor:
    items = list_items(data["path"])
    if not data["val_path"]:
        items, _ = split(items, data["val_count"])
    return _shown(items, data["size"], count)


def _cached(data: Mapping[str, Any], count: int) -> Tensor:
    index = json.loads((Path(data["path"]).expanduser() / INDEX).read_text())
    return _shown([Item(name, Path(name)) for name in dict.fromkeys(index["pictures"])], data["size"], count)


def _shown(items: Sequence[Item], size: Any, count: int) -> Tensor:
    chosen = torch.randperm(len(items), generator=generator("seen", len(items)))[:count].tolist()
    shown = FolderDataset([items[i] for i in chosen], size, Unchanged(), on_the_fly=True)
    return shown.__getitems__(range(len(shown)))["image"]


READERS: dict[str, Callable[[Mapping[str, Any], int], Tensor]] = {
    "cldm.worlds.datamodule.world_data": _world,
    "cldm.data.folder.folder_data": _pictures,
    "cldm.data.cache.cached_data": _cached,
}
