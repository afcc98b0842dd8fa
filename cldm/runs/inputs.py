"""What a run is given beside its configuration: files whose change makes another run of the same words."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cldm.runs.recorded import exported
from ldm.files import FILES, content, listing, sizes

SHARDS = ("data.urls", "data.val_urls")
PICTURES = ("data.path", "data.val_path", *SHARDS)
CACHE_INDEX = "index.json"


def inputs(cfg: DictConfig) -> dict[str, str]:
    """Contents of the files and folders of weights that a configuration names, by its keys, see ldm.files.content; of
    the pictures (PICTURES) names and sizes."""
    plain: Any = OmegaConf.to_container(cfg, resolve=False)
    names = ["base", "init_from", *(f"{part}.{file}" for part in ("model", "condition") for file in FILES)]
    places = {name: OmegaConf.select(cfg, name) for name in names if _is_given(plain, name)}
    own = f"{OmegaConf.select(cfg, 'stage.name')}.safetensors"  # of a run folder
    paths = {name: Path(place).expanduser() for name, place in places.items() if isinstance(place, str)}
    paths = {name: path / own if (path / own).is_file() else exported(path) for name, path in paths.items()}
    found = {name: content(path) for name, path in paths.items() if path.exists()}
    for name in PICTURES:
        given = OmegaConf.select(cfg, name) if _is_given(plain, name) else None
        with suppress(ValueError, OSError, ImportError):  # told when the data are made
            found |= _pictures(name, given) if given else {}
    return found


def _pictures(name: str, given: Any) -> dict[str, str]:
    """What is known, without reading them, of the pictures that a key names."""
    if name in SHARDS:
        from cldm.data.webdataset import expand  # late: `--help` and refusals need none of this

        files = [Path(url).expanduser() for url in expand(given)]
        return {name: sizes(files)} if all(file.is_file() for file in files) else {}
    place = Path(str(given)).expanduser()
    if (place / CACHE_INDEX).is_file():
        return {f"{name} (cache)": content(place / CACHE_INDEX)}
    if place.is_file() and place.suffix in (".json", ".jsonl", ".csv"):
        from cldm.data.listing import list_items

        items = list_items(place)
        files = [file for item in items for file in (item.image, item.hint) if file is not None]
        return {f"{name} (items)": f"{content(place)} {sizes(files)}"}
    return {name: listing(place)} if place.exists() else {}


def _is_given(config: Any, name: str) -> bool:
    for part in name.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config not in (None, "???")
