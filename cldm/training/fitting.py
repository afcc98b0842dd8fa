"""One attempt at a run: what its configuration names is built, trained and reported."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_only
from torch import nn

from cldm.branches.controlnet import Branch
from cldm.branches.interop import load_control
from cldm.conditions import Condition
from cldm.data.listing import ITEMS
from cldm.data.transforms import check_size
from cldm.runs.building import instantiate
from cldm.runs.checkout import commit
from cldm.runs.configs import mistakes_refused
from cldm.runs.folder import Refused, Run, finish
from cldm.runs.recorded import SETTINGS, exported, settings_told
from cldm.runs.tracking import control_cost, describe_run, log_outcome, parts, parts_table
from cldm.runs.trained import base_beside, base_of, built_for
from cldm.training.callbacks import averaged
from cldm.training.control_ldm import ControlLDM
from cldm.training.report import ancestry, report
from ldm.diffusion import LatentDiffusion
from ldm.files import to_json, write_json
from ldm.interop import PARTS, load_base
from ldm.sharding import is_sharded, whole
from ldm.training.stage import DoesNotFit, OptimizerFactory, Stage

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
CUTTING = ("limit_train_batches", "overfit_batches", "fast_dev_run")
"""Keys of Lightning's Trainer that would cut the data, which have no end here: the first batches would come again."""


class TimeIsUp(SystemExit):
    """trainer.max_time has passed before the last step; the message says at which."""


def check_trainer(keywords: Mapping[str, Any]) -> None:
    """ValueError for what Lightning's Trainer takes, but under which a number would not be what it says."""
    for name in CUTTING:
        given = keywords.get(name)
        if given is not None and given is not False:
            raise ValueError(
                f"trainer.{name}={given}: Lightning would repeat the first batches; leave it out, set steps= for less "
                "training, or data.train_count= for less data"
            )
    if keywords.get("precision") not in PRECISIONS:
        raise ValueError(f"trainer.precision must be one of {', '.join(PRECISIONS)}, got {keywords.get('precision')}")
    clip = keywords.get("gradient_clip_val")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, int | float) or clip < 0):
        raise ValueError(f"trainer.gradient_clip_val must be a number from 0 on, or null, got {clip!r}")


def trainer_of(cfg: DictConfig) -> tuple[pl.Trainer, dict[str, Any]]:
    """The trainer, and its callbacks by the names of the configuration; those that are null are left out."""
    settings = instantiate(cfg.trainer, _convert_="all", _partial_=True)
    check_trainer(settings.keywords)
    callbacks = {name: one for name, one in settings.keywords["callbacks"].items() if one is not None}
    return settings(logger=False, callbacks=[*callbacks.values()]), callbacks


def refuse_cut_short(cfg: DictConfig, trainer: pl.Trainer, run: Run) -> None:
    """TimeIsUp where trainer.max_time has ended the training: the run is not done."""
    if cfg.trainer.get("max_time") and trainer.global_step < trainer.max_steps:
        raise TimeIsUp(
            f"training stopped at step {trainer.global_step} of {trainer.max_steps}: trainer.max_time "
            f"(of all attempts) has passed. It goes on with resume={run.folder} and a longer one"
        )


def build_module(cfg: DictConfig, model: LatentDiffusion) -> Stage:
    """The LightningModule of the stage, around the model and, for control, a branch copied from its U-Net."""
    module = instantiate(cfg.stage.module, _convert_="all")
    optimizer = optimizer_of(cfg)
    if cfg.stage.name == "autoencoder":
        return module(autoencoder=model.autoencoder, optimizer=optimizer)
    if cfg.stage.name == "diffusion":
        return module(diffusion=model, optimizer=optimizer)
    control = instantiate(cfg.control, _convert_="all")(model.unet)
    return module(diffusion=model, control=control, optimizer=optimizer)


def optimizer_of(cfg: DictConfig) -> OptimizerFactory:
    """What makes the optimizer from parameters. ValueError for values that it does not take, before anything runs."""
    make = instantiate(cfg.optimizer, _convert_="all")
    try:
        make([nn.Parameter(torch.zeros(1))])
    except (ValueError, TypeError, IndexError) as error:  # as torch's optimizers complain
        told = {key: value for key, value in cfg.optimizer.items() if not str(key).startswith("_")}
        raise ValueError(f"optimizer={told}: {error}") from error
    return make


def fit(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Build, fit, report."""
    began = time.monotonic()
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    pl.seed_everything(cfg.seed, verbose=False)
    scratch = cfg.stage.module.get("locking") == "scratch"
    loads = [part for part in cfg.stage.loads if not (scratch and part == "unet")]
    with mistakes_refused():
        size = drawing_size(cfg)
        locked = "unet" in loads  # else the weights are to be trained, and begin as cfg.seed says
        model = built_for(cfg, base_of(cfg)) if locked else instantiate(cfg.model, _convert_="all")
        if loads:
            load_base(model, base_of(cfg), loads)
        module = build_module(cfg, model)
        if scratch and cfg.init_from:
            raise ValueError("stage.module.locking=scratch starts without trained weights: leave out init_from")
        source = start_from(cfg, module, model) if cfg.init_from else None
        condition = instantiate(cfg.condition, _convert_="all")
        data = instantiate(cfg.data, _convert_="all")(condition=condition, model=model)
        trainer, callbacks = trainer_of(cfg)
        data.check(trainer.world_size)
        if isinstance(module, ControlLDM):
            data.check_hints()
        distances = instantiate(cfg.stage.distances) if cfg.stage.name == "autoencoder" else None
        if trainer.is_global_zero:
            sources = [place for place in (source, base_of(cfg) if loads else None) if place]
            record_items(run.folder / ITEMS, data, sources)
        trainer.loggers = loggers = loggers_of(cfg)  # last: what is refused leaves no run behind in them
    base = base_of(cfg) if loads else None
    module.outcome.metadata = {
        **(hint_facts(cfg, condition) if isinstance(module, ControlLDM) else dict.fromkeys(("condition", "control"))),
        **({} if loads else {"base": None}),
        "resolution": str(size[0]) if size[0] == size[1] else f"{size[0]}x{size[1]}",
        "ancestors": to_json(ancestry(base, source)),
    }
    module.hold_frozen_in(str(trainer.precision))
    found = parts(module.train())
    if isinstance(module, ControlLDM):
        for part, cost in control_cost(model, module.control, size).items():
            found[part]["gflop"] = cost
    if trainer.is_global_zero:
        print(parts_table(found))
    batch = cfg.batch_size * cfg.trainer.accumulate_grad_batches * trainer.world_size
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    facts = {"commit": commit(), "parts": found, "effective_batch": batch}
    describe_run(loggers, {**config, **facts})
    module.outcome.facts = {"config": config, **facts}
    try:
        trainer.fit(module, data, ckpt_path=run.last_checkpoint, weights_only=True)
    except DoesNotFit as error:
        raise Refused(str(error)) from error
    refuse_cut_short(cfg, trainer, run)
    if is_sharded(module):
        module = gathered(cfg, module)
    if not trainer.is_global_zero:
        return {}
    results = measured(cfg, trainer, module, data, distances)
    if "export" in callbacks:
        callbacks["export"].write(trainer, module)
    results["steps"] = trainer.global_step
    results["train_seconds"] = round(module.clock.seconds, 1)
    results["setup_seconds"] = round((module.clock.first or time.monotonic()) - began, 1)
    log_outcome(loggers, run.folder, results)
    return finish(run, results)


def hint_facts(cfg: DictConfig, condition: Condition) -> dict[str, str | None]:
    """What the file of a branch says of the hints that it was trained on."""
    return {"extractor": repr(condition), SETTINGS: settings_told(cfg), "polarity": condition.polarity}


def measured(cfg: DictConfig, trainer: pl.Trainer, module: Stage, data: Any, distances: Any) -> dict[str, Any]:
    """The closing report, of the averaged weights; the exported file is to tell its figures."""
    sampling = instantiate(cfg.sampler, _convert_="all")
    module.to(trainer.strategy.root_device, torch.float32).eval()  # Lightning has moved it to the CPU
    with averaged(module):
        results = report(cfg, module, data, sampling, distances)
    module.outcome.metadata["metrics"] = to_json(results["fidelity"])
    return results


def record_items(path: Path, data: Any, sources: Sequence[str | Path] = ()) -> None:
    """Write which pictures the run trains on and holds out. What an earlier attempt trained on stays trained on, and
    so does what the runs of `sources`, the weights that it starts from, were trained on. Refused, with nothing
    written, where one of these is to be measured on."""
    # a world's compositions, which their numbers hold apart, and shards have none
    trained, held_out = (getattr(source, "pictures", []) for source in (data.train, data.validation))
    records = [path, *(Path(place).with_name(ITEMS) for place in sources)]
    before = [name for record in records if record.is_file() for name in json.loads(record.read_text())["trained"]]
    if known := sorted({*held_out} & {*before, *trained}):
        raise Refused(
            f"{len(known)} of the {len(held_out)} held-out pictures were trained on, by an earlier attempt or by the "
            f"run that this one starts from ({known[0]}, ...): hold out as many as then (data.val_count), or name "
            "others (data.val_path)"
        )
    if trained or before:
        write_json(path, {"trained": [*dict.fromkeys([*before, *trained])], "held_out": held_out})


def drawing_size(cfg: DictConfig) -> tuple[int, int]:
    """(h, w) of `size`, one number or a pair; ValueError if the data have another."""
    plain: Any = OmegaConf.to_container(OmegaConf.create({"size": cfg.size, "own": cfg.data.get("size")}))
    found = check_size(plain["size"], "size")
    if plain["own"] is not None and check_size(plain["own"]) != found:
        raise ValueError(f"data.size={plain['own']} differs from size={plain['size']}: set size, data.size follows it")
    return found


def loggers_of(cfg: DictConfig) -> list[Any]:
    """The loggers. They rename and write files as they are made: of several processes the first one has them."""
    first = not getattr(rank_zero_only, "rank", 0)
    return [*instantiate(cfg.logger, _convert_="all").values()] if first else []


def gathered(cfg: DictConfig, module: Stage) -> Stage:
    """A module with all the weights, and the average, that trainer=fsdp has shared out; every process calls this."""
    module.outcome.average = {name: whole(a) for name, a in module.outcome.average.items()}
    state = {name: whole(t).cpu() for name, t in module.state_dict().items()}
    alone = build_module(cfg, instantiate(cfg.model, _convert_="all"))
    alone.load_state_dict(state)
    alone.base_fingerprint, alone.clock, alone.outcome = module.base_fingerprint, module.clock, module.outcome
    return alone


def start_from(cfg: DictConfig, module: Stage, model: LatentDiffusion) -> Path:
    """Load the weights that cfg.init_from names, those of a run folder or a file, into what the stage trains; returns
    the file."""
    trained, source = module.trained(), Path(cfg.init_from)
    own = source / f"{cfg.stage.name}.safetensors"
    source = own if own.is_file() else exported(source)
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
