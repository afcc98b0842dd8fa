"""Train a stage: `python train.py` trains a ControlNet on the shipped base model. Config: configs/train.yaml."""

import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.utilities import rank_zero_only
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cldm.branches.controlnet import Branch
from cldm.branches.interop import load_control
from cldm.runs.building import instantiate
from cldm.runs.checkout import commit
from cldm.runs.configs import mistakes_refused, refuse_mistakes, register_resolvers
from cldm.runs.folder import Refused, Run, attempt, differences, finish, overrides_of, results_of, stable
from cldm.runs.sweeps import in_sweep, note_failure
from cldm.runs.tracking import control_cost, describe_run, log_outcome, parts, parts_table, wandb_run
from cldm.runs.trained import base_beside, base_of
from cldm.training.callbacks import EMA, Checkpoints, Export, HintUse, Watch, averaged
from cldm.training.control_ldm import ControlLDM
from cldm.training.report import ancestry, report
from ldm.diffusion import LatentDiffusion
from ldm.files import to_json
from ldm.interop import PARTS, load_base
from ldm.sharding import is_sharded, whole
from ldm.training.stage import Stage

register_resolvers()


def build_module(cfg: DictConfig, model: LatentDiffusion) -> Stage:
    """The LightningModule of the stage, around the model and, for control, a branch copied from its U-Net."""
    module = instantiate(cfg.stage.module, _convert_="all")
    optimizer = instantiate(cfg.optimizer, _convert_="all")
    if cfg.stage.name == "autoencoder":
        return module(autoencoder=model.autoencoder, optimizer=optimizer)
    if cfg.stage.name == "diffusion":
        return module(diffusion=model, optimizer=optimizer)
    control = instantiate(cfg.control, _convert_="all")(model.unet)
    return module(diffusion=model, control=control, optimizer=optimizer)


def typed() -> list[str]:
    """The overrides of the command."""
    return [*HydraConfig.get().overrides.task] if HydraConfig.initialized() else []


def train(cfg: DictConfig) -> dict[str, Any]:
    """Build, fit, report in the run's folder; returns what results.json holds. A finished run is not done again."""
    with mistakes_refused():
        base_of(cfg)  # complains of a missing one before there is a folder
    done = results_of(cfg)
    if done is not None:
        print(f"already done: {cfg.run_dir} (delete the folder to do it again)")
        return done
    with attempt(cfg, typed()) as run, wandb_run():
        return fit(cfg, run)


def fit(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Build, fit, report."""
    began = time.monotonic()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, verbose=False)
    scratch = cfg.stage.module.get("locking") == "scratch"
    loads = [part for part in cfg.stage.loads if not (scratch and part == "unet")]
    with mistakes_refused():
        model = instantiate(cfg.model, _convert_="all")
        if loads:
            load_base(model, base_of(cfg), loads)
        module = build_module(cfg, model)
        source = start_from(cfg, module, model) if cfg.init_from else None
        condition = instantiate(cfg.condition, _convert_="all")
        data = instantiate(cfg.data, _convert_="all")(condition=condition, model=model)
        # they rename and write files as they are made: of several processes the first one has them
        first = not getattr(rank_zero_only, "rank", 0)
        loggers = [*instantiate(cfg.logger, _convert_="all").values()] if first else []
        settings = instantiate(cfg.trainer, _convert_="all", _partial_=True)
        trainer = settings(logger=loggers, callbacks=[*settings.keywords["callbacks"].values()])
    export = next(c for c in trainer.callbacks if isinstance(c, Export))
    checkpoints = next(c for c in trainer.callbacks if isinstance(c, Checkpoints))
    ancestors = ancestry(base_of(cfg) if loads else None, source)
    export.metadata |= {
        "extractor": repr(condition),
        "polarity": condition.polarity,
        "ancestors": to_json(ancestors),
    }
    module.hold_frozen_in(str(trainer.precision))
    found = parts(module.train())
    if isinstance(module, ControlLDM):
        for part, cost in control_cost(model, module.control, (cfg.size, cfg.size)).items():
            found[part]["gflop"] = cost
    if trainer.is_global_zero:
        print(parts_table(found))
    batch = cfg.batch_size * cfg.trainer.accumulate_grad_batches * trainer.world_size
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    facts = {"commit": commit(), "parts": found, "effective_batch": batch}
    describe_run(loggers, {**config, **facts})
    checkpoints.facts = {"config": config, **facts}
    trainer.fit(module, data, ckpt_path=run.last_checkpoint, weights_only=True)
    if is_sharded(module):
        module = gathered(cfg, trainer, module)
    if not trainer.is_global_zero:
        return {}
    watch = next(c for c in trainer.callbacks if isinstance(c, Watch))
    use = next((c.history for c in trainer.callbacks if isinstance(c, HintUse)), {})
    sampling = instantiate(cfg.sampler, _convert_="all")
    module.to(trainer.strategy.root_device, torch.float32).eval()  # Lightning has moved it to the CPU
    with averaged(trainer, module):
        results = report(cfg, module, data, sampling, watch.history, use)
    export.write(trainer, module, metrics=to_json(results["fidelity"]))
    results["steps"] = trainer.global_step
    results["train_seconds"] = round(module.clock.seconds, 1)
    results["setup_seconds"] = round((module.clock.first or time.monotonic()) - began, 1)
    log_outcome(loggers, run.folder, results)
    return finish(run, results)


def gathered(cfg: DictConfig, trainer: Any, module: Stage) -> Stage:
    """A module with all the weights, and the average, that trainer=fsdp has shared out; every process calls this."""
    ema = next(c for c in trainer.callbacks if isinstance(c, EMA))
    ema.average = {name: whole(a) for name, a in ema.average.items()}
    state = {name: whole(t).cpu() for name, t in module.state_dict().items()}
    alone = build_module(cfg, instantiate(cfg.model, _convert_="all"))
    alone.load_state_dict(state)
    alone.base_fingerprint, alone.clock = module.base_fingerprint, module.clock
    return alone


def start_from(cfg: DictConfig, module: Stage, model: LatentDiffusion) -> Path:
    """Load the weights that cfg.init_from names, those of a run folder or a file, into what the stage trains; returns
    the file."""
    trained, source = module.trained(), Path(cfg.init_from)
    exported = source / f"{cfg.stage.name}.safetensors"
    source = exported if exported.is_file() else source
    if not source.exists():
        raise ValueError(f"init_from={cfg.init_from}: there is no such run folder or file")
    if isinstance(trained, Branch):
        own_base, base = base_beside(source), base_of(cfg)
        if own_base is not None and (base is None or Path(base).resolve() != own_base.resolve()):
            raise ValueError(f"{source} was trained together with a base of its own: start with base={own_base} too")
        load_control(trained, source)
    else:  # what the stage does not train stays as it came from `base`
        names = {name for name, _ in trained.named_children()} - {*cfg.stage.loads}
        # an autoencoder of fewer latent channels may start a wider one
        load_base(model, source, [part for part in PARTS if part in names], widen=cfg.stage.name == "autoencoder")
    return source


def reproduction(cfg: DictConfig) -> DictConfig:
    """The configuration of the run in cfg.reproduce, composed anew, for a folder beside it; says how it differs."""
    old = Path(cfg.reproduce)
    own = [item for item in typed() if not item.startswith("reproduce=")]
    again = composed_anew(old, [f"run_dir='{old}-again'"], own)
    changed = differences(stable(OmegaConf.load(old / "config.yaml")), stable(again))  # type: ignore[arg-type]
    print(
        f"{old} again" + (", with a difference:" if changed else ", with the same configuration"), *changed, sep="\n  "
    )
    return again


def resumption(cfg: DictConfig) -> DictConfig:
    """The configuration of the run in cfg.resume, with what was typed on top."""
    again = composed_anew(Path(cfg.resume), [], typed())
    if again.chain:
        raise Refused(f"{cfg.resume} is one stage of a chain; the command of the chain, typed again, goes on with it")
    return again


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
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(lambda line: "💡" not in line.getMessage())
    try:
        refuse_mistakes(cfg)
        if cfg.reproduce:
            cfg = reproduction(cfg)
        elif cfg.resume:
            cfg = resumption(cfg)
        train_chain(cfg) if cfg.chain else train(cfg)
    except SIGTERMException:
        raise SystemExit(143) from None  # 128 + SIGTERM: neither a success nor a crash; the checkpoint is saved
    except (Exception, SystemExit) as error:
        if in_sweep():
            note_failure(cfg, error)
        elif isinstance(error, Refused) and "HYDRA_FULL_ERROR" not in os.environ:
            raise SystemExit(str(error)) from None
        else:
            raise


if __name__ == "__main__":
    main()
