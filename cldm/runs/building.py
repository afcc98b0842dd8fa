"""Objects from configurations. What a configuration may call is known beforehand: files come from strangers too."""

import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cldm.runs.checkout import REPOSITORY

OURS = ("cldm.branches", "cldm.conditions", "cldm.data", "cldm.evaluation", "cldm.runs.loggers", "cldm.runs.tracking",
        "cldm.sampling", "cldm.training", "cldm.worlds", "ldm.autoencoder", "ldm.conditioner", "ldm.diffusion",
        "ldm.interop", "ldm.losses", "ldm.samplers", "ldm.schedule", "ldm.text_encoder", "ldm.training",
        "ldm.unet")  # fmt: skip
"""Rooms whose classes and functions build things."""

OTHERS = ("torch.optim", "torchao.optim", "torchao.prototype.low_bit_optim", "bitsandbytes.optim",
          "pytorch_lightning.Trainer", "pytorch_lightning.callbacks", "pytorch_lightning.loggers",
          "pytorch_lightning.plugins", "pytorch_lightning.profilers", "pytorch_lightning.strategies")  # fmt: skip
"""Where the classes of others come from that configurations name."""

HOMES = (*OURS, *OTHERS, "pytorch_lightning", "lightning_fabric")
"""Where they are defined: a name such as cldm.data.folder.np.load is found in ours, and is not of ours."""

_TARGET = re.compile(r"_target_['\"]?\s*[=:]\s*['\"]?(\w[\w.]+)")
_typed: set[str] = set()


def allow(overrides: Iterable[str]) -> None:
    """Allow the targets that were typed on the command line."""
    _typed.update(name for item in overrides for name in _TARGET.findall(item))


def instantiate(config: Any, **options: Any) -> Any:
    """hydra.utils.instantiate, for targets of OURS and OTHERS, typed ones and those of the user's configuration files.

    ValueError for another target anywhere in `config`, before anything is called.
    """
    plain: Any = OmegaConf.to_container(config, resolve=True) if OmegaConf.is_config(config) else config
    for key in config if isinstance(config, DictConfig) else ():
        if OmegaConf.is_missing(config, key) and key not in options:
            _ = config[key]  # raises MissingMandatoryValue with the key's whole name, which `plain` has lost
    targets = {str(name): _resolved(str(name)) for name in _targets(plain)}
    with _whitelist({*targets, *targets.values()}):
        return hydra.utils.instantiate({**plain, **options})


def _whitelist(names: set[str]) -> AbstractContextManager[Any]:
    """Hydra's own list of what may be called, which 1.4 asks for and 1.3 does not know. What an allowed target returns
    counts as called too if it can be called, as a network can: hence the rooms, and the targets' own modules."""
    found = getattr(hydra.utils, "execution_whitelist", None)
    rooms = sorted({f"{room}.*" for room in (*OURS, *(name.rpartition(".")[0] for name in names))})
    return found([*sorted(names), *rooms]) if found and names else nullcontext()


def _targets(config: Any) -> Iterator[Any]:
    children = config.values() if isinstance(config, dict) else config if isinstance(config, list | tuple) else ()
    if isinstance(config, dict) and "_target_" in config:
        yield config["_target_"]
    for child in children:
        yield from _targets(child)


def _resolved(name: str) -> str:
    """The name under which an allowed target is defined."""
    if name not in _typed and not _begins(name, (*OURS, *OTHERS)) and name not in _in_config_files():
        raise _refused(name)
    try:
        found = hydra.utils.get_object(name)
    except (ImportError, ValueError) as error:
        raise ValueError(f"_target_={name}: there is no such class or function ({error})") from error
    home = getattr(found, "__module__", "") or ""
    ours, others = _begins(name, OURS), _begins(name, OTHERS)
    if (ours or others) and not (_begins(home, HOMES) and (ours or isinstance(found, type))):
        raise _refused(name)
    return f"{home}.{getattr(found, '__qualname__', '')}"


def _refused(name: str) -> ValueError:
    return ValueError(
        f"_target_={name} is not called: a configuration may name what builds models, data and training here "
        "(cldm.runs.building lists it); type _target_=... on the command line if you mean it"
    )


def _begins(name: str, places: Iterable[str]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _in_config_files() -> set[str]:
    """The targets that files of configs/ name, and of folders that --config-dir adds."""
    folders = {str(REPOSITORY / "configs")}
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders |= {source.path for source in sources if source.schema == "file" and source.path}
    texts = [path.read_text() for folder in folders for path in Path(folder).rglob("*.yaml")]
    return {name for text in texts for name in _TARGET.findall(text)}
