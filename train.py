"""Train a stage: `python train.py` trains a ControlNet on the shipped base model. Config: configs/train.yaml."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import hydra
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from cldm.runs.checkout import commit
from cldm.runs.configs import (
    expand_home,
    home_typed,
    keys_suggested,
    mistakes_refused,
    notes_told_once,
    refuse_mistakes,
    register_resolvers,
    with_choices,
)
from cldm.runs.folder import Refused, attempt, overrides_of, results_of
from cldm.runs.naming import differences, stable
from cldm.runs.sweeps import in_sweep, note_failure

register_resolvers()


def typed() -> list[str]:
    """The overrides of the command."""
    return [*HydraConfig.get().overrides.task] if HydraConfig.initialized() else []


def train(cfg: DictConfig) -> dict[str, Any]:
    """Build, fit, report in the run's folder; returns what results.json holds. A finished run is not done again."""
    from cldm.runs.loggers.wandb import wandb_run  # torch and Lightning, which --help and refusals need not wait for
    from cldm.runs.trained import base_of
    from cldm.training.fitting import fit

    expand_home(cfg)
    with mistakes_refused():
        base_of(cfg)  # complains of a missing one before there is a folder
    done = results_of(cfg)
    if done is not None:
        print(f"already done: {cfg.run_dir} (delete the folder to do it again)")
        return done
    with attempt(cfg, typed()) as run, wandb_run(run.folder):
        return fit(cfg, run)


def reproduction(cfg: DictConfig) -> DictConfig:
    """The configuration of the run in cfg.reproduce, composed anew, for a folder beside it; says how it differs."""
    old = run_at("reproduce", cfg.reproduce)
    own = [item for item in typed() if not item.startswith("reproduce=")]
    again = composed_anew(old, [f"run_dir='{old}-again'"], own)
    changed = differences(stable(OmegaConf.load(old / "config.yaml")), stable(again))  # type: ignore[arg-type]
    print(
        f"{old} again" + (", with a difference:" if changed else ", with the same configuration"), *changed, sep="\n  "
    )
    return again


def resumption(cfg: DictConfig) -> DictConfig:
    """The configuration of the run in cfg.resume, with what was typed on top."""
    if in_sweep():
        raise Refused("resume= goes on with one run: leave out -m")
    again = composed_anew(run_at("resume", cfg.resume), [], typed())
    if again.chain:
        raise Refused(f"{cfg.resume} is one stage of a chain; the command of the chain, typed again, goes on with it")
    return again


def run_at(key: str, place: str) -> Path:
    """The run folder that a key names. Refused where there is none."""
    run = Path(place)
    if not (run / "config.yaml").is_file():
        seeds = [str(path.parent) for path in sorted(run.glob("seed-*/config.yaml"))]
        raise Refused(f"{key}={place}: there is no run" + (f"; did you mean {' or '.join(seeds)}?" if seeds else ""))
    return run


def composed_anew(run: Path, first: list[str], last: list[str]) -> DictConfig:
    """The configuration of overrides: `first`, those of a run folder, and `last`, where the last of a key counts."""
    recorded = [item for item in overrides_of(run) if item not in last and not item.lstrip("+~").startswith("hydra")]
    again = compose("train", [*first, *recorded, *last], return_hydra_config=True)
    HydraConfig.instance().set_config(again)  # values that name the chosen groups ask for it
    with open_dict(again):
        del again["hydra"]
    return again


def train_chain(cfg: DictConfig) -> None:
    """Run the stages of cfg.chain one after another, each on the weights of the one before."""
    base = None
    own = [item for item in typed() if not item.startswith(("experiment=", "run_dir=", "base=", "stage="))]
    for overrides in cfg.chain:
        stage = compose("train", overrides=[*overrides, f"seed={cfg.seed}", *own, f"base={base or 'null'}"])
        stage.run_dir = str(Path(cfg.run_dir) / stage.stage.name)
        train(stage)
        base = Path(stage.run_dir) / f"{stage.stage.name}.safetensors"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    commit()  # of the code that runs, whatever is committed meanwhile
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    warnings.filterwarnings("ignore", message=".*module.s. in eval mode at the start of training.*")  # locked is meant
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    notes_told_once()
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda line: "💡" not in line.getMessage())
    try:
        refuse_mistakes(cfg)
        expand_home(cfg)
        if cfg.reproduce:
            cfg = reproduction(cfg)
        elif cfg.resume:
            cfg = resumption(cfg)
        train_chain(cfg) if cfg.chain else train(cfg)
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "SIGTERMException":  # Lightning's, which may not have been loaded
            raise SystemExit(143) from None  # 128 + SIGTERM: neither a success nor a crash; the checkpoint is saved
        if type(error).__name__ == "Preempted":  # queued again by the launcher, which wants to see the process end
            raise
        if in_sweep():
            note_failure(cfg, error, traced=not isinstance(error, Refused))
        elif isinstance(error, Refused) and "HYDRA_FULL_ERROR" not in os.environ:
            raise SystemExit(str(error)) from None
        else:
            raise
    except KeyboardInterrupt:  # what it leaves has been told
        raise SystemExit(130) from None


if __name__ == "__main__":
    sys.argv[1:] = with_choices(home_typed(sys.argv[1:]))
    with keys_suggested("train"):
        main()
