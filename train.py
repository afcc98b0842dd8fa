"""Train a stage: `python train.py` trains a ControlNet on the shipped base model. Config: configs/train.yaml."""

import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from cldm.callbacks import Export, Watch, averaged
from cldm.configs import REPOSITORY as REPOSITORY
from cldm.configs import register_resolvers
from cldm.runs import finish_run, report, start_run
from cldm.tracking import to_json
from ldm.diffusion import LatentDiffusion
from ldm.training import Stage
from ldm.weights import load_weights

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


def train(cfg: DictConfig) -> dict[str, Any]:
    """Build, fit, report; returns what results.json holds."""
    began = time.time()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, verbose=False)
    run = start_run(cfg)
    model = instantiate(cfg.model, _convert_="all")
    if cfg.base and cfg.stage.loads:
        load_weights(model, cfg.base, cfg.stage.loads)
    module = build_module(cfg, model)
    if cfg.init_from:
        trained, source = module.trained(), Path(cfg.init_from)
        source = source / f"{cfg.stage.name}.safetensors" if source.is_dir() else source
        # what the stage does not train stays as it came from `base`
        load_weights(trained, source, [name for name, _ in trained.named_children() if name not in cfg.stage.loads])
    condition = instantiate(cfg.condition, _convert_="all")
    data = instantiate(cfg.data, _convert_="all")(condition=condition, model=model)
    loggers = [*instantiate(cfg.logger, _convert_="all").values()]
    settings = instantiate(cfg.trainer, _convert_="all", _partial_=True)
    trainer = settings(logger=loggers, callbacks=[*settings.keywords["callbacks"].values()])
    trainer.fit(module, data, ckpt_path=run.last_checkpoint, weights_only=True)
    if not trainer.is_global_zero:
        return {}
    watch = next(c for c in trainer.callbacks if isinstance(c, Watch))
    sampling = instantiate(cfg.sampler, _convert_="all")
    module.to(trainer.strategy.root_device).eval()  # Lightning has moved it to the CPU
    with averaged(trainer, module):
        results = report(cfg, module, data, sampling, watch.history)
    export = next(c for c in trainer.callbacks if isinstance(c, Export))
    export.write(trainer, module, metrics=to_json(results["fidelity"]))
    return finish_run(run, {**results, "steps": trainer.global_step}, began)


def train_chain(cfg: DictConfig) -> None:
    """Run the stages of cfg.chain one after another, each on the weights of the one before."""
    base = None
    typed = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    typed = [item for item in typed if not item.startswith(("experiment=", "run_dir=", "base=", "stage="))]
    for overrides in cfg.chain:
        stage = compose("train", overrides=[*overrides, f"seed={cfg.seed}", *typed, f"base={base or 'null'}"])
        stage.run_dir = str(Path(cfg.run_dir) / stage.stage.name)
        train(stage)
        base = Path(stage.run_dir) / f"{stage.stage.name}.safetensors"


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*Experiment logs directory.*")
    train_chain(cfg) if cfg.chain else train(cfg)


if __name__ == "__main__":
    main()
