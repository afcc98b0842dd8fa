"""python -m cldm batch: the sbatch file of a run, or of a sweep, without submitting anything."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cldm.runs.checkout import REPOSITORY

EXAMPLES = """\
  python -m cldm batch trainer=gpu condition=depth steps=20000                the file of one run, to read
  python -m cldm batch trainer=gpu condition=depth steps=20000 | sbatch       ... to submit
  python -m cldm batch resources=node trainer=ddp resources.nodes=2 steps=20000 | sbatch --array=0-2     seeds 0, 1, 2
  python -m cldm batch sweep=locking trainer=gpu launcher=slurm               what train.py with these would submit
What a job asks the cluster for: resources=gpu, node or cpu (configs/resources), and single values of it."""

NO_SWEEP = "a sweep is submitted by launcher=slurm, one job for each of its runs: add it, or leave out what sweeps"

SCRIPT = REPOSITORY / "cluster" / "train.sbatch"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("-m", "--multirun", action="store_true", help="as train.py has it")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of train.py")


def run(args: argparse.Namespace) -> None:
    """Print the file."""
    is_sweep = "launcher=slurm" in args.overrides
    if not is_sweep and (args.multirun or sweeps(args.overrides)):
        raise ValueError(NO_SWEEP)
    print(of_sweep(args.overrides) if is_sweep else of_run(args.overrides), end="")


def sweeps(overrides: Sequence[str]) -> bool:
    """Whether some key has several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        return any(one.is_sweep_override() for one in OverridesParser.create().parse_overrides(list(overrides)))
    except OverrideParseException as error:
        raise ValueError(str(error)) from None


def of_run(overrides: Sequence[str]) -> str:
    """cluster/train.sbatch for these overrides, with what `resources` asks for."""
    chosen = [item for item in overrides if item.removeprefix("+").startswith("resources=")]
    others = [item for item in overrides if item not in chosen]
    appended = [f"+{item.removeprefix('+')}" for item in chosen or ["resources=gpu"]]
    cfg = checked([*appended, *others])
    if cfg.hydra.sweeper.params:
        raise ValueError(NO_SWEEP)
    wanted = cfg.resources
    asked = {
        "nodes": wanted.nodes,
        "ntasks-per-node": wanted.tasks,
        "gpus-per-node": wanted.gpus,
        "cpus-per-task": wanted.cpus,
        "mem": f"{wanted.memory}G",
        "time": f"{wanted.minutes // 60:02}:{wanted.minutes % 60:02}:00",
    }
    text = SCRIPT.read_text()
    for name, value in asked.items():
        text = re.sub(rf"^#SBATCH --{name}=.*$", f"#SBATCH --{name}={value}", text, flags=re.MULTILINE)
    typed = shlex.join([*appended, *others]) if overrides else ""
    return text.replace("\nsrun ", f'\nset -- {typed} "$@"\nsrun ', 1) if typed else text


def checked(overrides: Sequence[str]) -> Any:
    """The configuration of train.py and of its launcher. ValueError for what train.py would refuse."""
    from cldm.runs.configs import configs_at_hand, refuse_mistakes, with_hydra

    cfg = with_hydra(overrides)
    try:
        with configs_at_hand():
            refuse_mistakes(cfg)
    except SystemExit as error:
        raise ValueError(str(error)) from None
    return cfg


def of_sweep(overrides: Sequence[str]) -> str:
    """What submitit would hand to sbatch for `python train.py OVERRIDES`."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    try:
        from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string
    except ImportError as error:
        raise ValueError(f"launcher=slurm needs submitit (pip install -e '.[submitit]'): {error}") from None
    # the launcher brings resources with it: train.py has nothing to append there
    overrides = [item.removeprefix("+") if item.startswith("+resources=") else item for item in overrides]
    parsed = OverridesParser.create().parse_overrides(overrides)
    cfg = checked([item for item, one in zip(overrides, parsed, strict=True) if not one.is_sweep_override()])
    launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    own = ("_target_", "submitit_folder", "max_num_timeout")
    names: Any = SlurmExecutor._equivalence_dict()  # submitit has no public way to print the file
    asked = {names.get(key, key): value for key, value in launcher.items() if key not in own and value is not None}
    if "mem" in asked:
        asked["mem"] = f"{asked['mem']}GB"
    swept = [*overrides, *(f"{key}={value}" for key, value in (cfg.hydra.sweeper.params or {}).items())]
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(swept), None)[0]
    folder = Path(launcher["submitit_folder"]).expanduser().absolute()
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return _make_sbatch_string(command, folder, map_count=len(jobs) if len(jobs) > 1 else None, **asked)
