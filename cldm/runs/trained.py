"""Trained branches: found, recognised by what they say of themselves, and loaded with the base they belong to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from hydra import compose
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue
from torch import nn

from cldm.branches.controlnet import Branch
from cldm.branches.interop import load_control
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.folder import BASE_FILE, INPUTS
from cldm.runs.recorded import FILE, condition_settings, exported, recorded_values, with_values
from ldm.diffusion import LatentDiffusion
from ldm.files import content
from ldm.interop import load_base
from ldm.interop.published import Published, read
from ldm.interop.schedules import check
from ldm.weights import fingerprint, read_metadata

GROUPS = ("model", "control", "condition")  # config choices that a control file states
ADVICE = {"model": "trained.model=sd15 (or sd21, pretrained, ...)",
          "condition": "trained.condition=canny (or another; none for ready maps)"}  # fmt: skip
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_checkpoint(checkpoint: str | None) -> Path:
    """The control weights of a run folder, or a published file or diffusers folder; None means the newest run.

    SystemExit says what to run first.
    """
    if checkpoint is None:
        found = sorted(Path("runs").glob(f"**/{FILE}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SystemExit("no trained ControlNet in runs/ yet; run `python train.py` first (minutes on a laptop)")
        print(f"checkpoint: {found[-1]}, the newest")
        return found[-1]
    path = Path(checkpoint).expanduser()
    if path.is_dir() and (path / "config.json").is_file():  # diffusers' form
        return path
    if path.is_dir():
        seeds = sorted(path.glob(f"seed-*/{FILE}"))
        if len(seeds) > 1:
            raise SystemExit(f"checkpoint={checkpoint} has several seeds: name one of {', '.join(map(str, seeds))}")
        if (other := exported(path)) != path and other.name != FILE:
            raise SystemExit(f"checkpoint={checkpoint} is a run of stage={other.stem}; name one of stage=control")
        path = seeds[0] if seeds and not (path / FILE).is_file() else path / FILE
    if not path.is_file():
        raise SystemExit(f"checkpoint={checkpoint}: there is no {path}")
    return path


def training_config(path: Path, base: str | None, model: str | None = None, condition: str | None = None) -> DictConfig:
    """The training config that the checkpoint's metadata names; only names of this repository's configs are followed.

    model, condition: instead of what it says, and needed for the checkpoints of others, which say nothing.
    """
    told = {"model": model, "condition": condition}
    names = {"control": "controlnet", **published(path).metadata, **{k: v for k, v in told.items() if v}}
    if missing := [group for group in GROUPS if group not in names]:
        raise SystemExit(f"{path} does not say which {' and '.join(missing)} it was trained with: add "
                         + " and ".join(ADVICE[group] for group in missing))  # fmt: skip
    key = "model.path" if names["model"] == "pretrained" else "base"
    for group in GROUPS:
        if not (REPOSITORY / "configs" / group / f"{names[group]}.yaml").is_file() or not names[group].isidentifier():
            raise SystemExit(f"{path}: there is no {group}={names[group]} in configs/{group}")
    if path.is_dir() and base is None and names.get("locking", "locked") != "locked":
        raise SystemExit(f"{path} was trained together with its base: set base= to the {BASE_FILE} of its run")
    choices = [f"{group}={names[group]}" for group in GROUPS]
    cfg = compose("train", overrides=[*choices, *([f"{key}='{base}'"] if base else [])])
    return as_the_file_says(path, recorded_values(path, cfg), names)


def as_the_file_says(path: Path, cfg: DictConfig, names: Mapping[str, str]) -> DictConfig:
    """`cfg` with the condition's parameters, the size and the noise schedule that the file was written with. The record
    of its run may be of an attempt that has not written it yet.

    names: what the configs of model and condition are called.
    """
    told = published(path).metadata
    if names["condition"] == told.get("condition"):
        cfg.condition = with_values(OmegaConf.to_container(cfg.condition), condition_settings(told, path))
    sides = [int(side) for side in told.get("resolution", "").split("x") if side.isdigit()]
    if sides:
        cfg.size = sides[0] if len(sides) == 1 else sides
    place = cfg.model if names["model"] == "pretrained" else cfg.model.schedule
    with open_dict(place):
        for key, value in published(path).schedule.items():
            if names["model"] != "pretrained" or key in place:  # there the base says the rest
                place[key] = value
    return cfg


def published(path: Path) -> Published:
    """The checkpoint, its weights not yet read from disk; SystemExit says what is wrong with it."""
    try:
        found = read(path)
        found.part("control")
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    return found


def checkpoints_of(first: str | None, cfg: DictConfig) -> tuple[list[Path], list[DictConfig]]:
    """The files of `first` and of those that `more` adds to it, and their training configs, which share a model."""
    if odd := [unit for unit in cfg.more if not isinstance(unit, DictConfig) or not unit.get("checkpoint")]:
        raise SystemExit(f"an entry of more must be an object with a checkpoint, got {odd[0]}")
    paths = [find_checkpoint(first), *(find_checkpoint(unit.checkpoint) for unit in cfg.more)]
    if given := [key for key in ("base", "moved_from") if cfg.get(key)]:
        refuse_another_base(paths, given)
    kinds = [cfg.trained.condition, *(unit.get("condition") for unit in cfg.more)]
    trainings = [
        training_config(path, cfg.base, cfg.trained.model, kind) for path, kind in zip(paths, kinds, strict=True)
    ]
    if not cfg.base:
        trainings = [on_recorded_base(path, training) for path, training in zip(paths, trainings, strict=True)]
    refuse_several_bases(paths)
    if len({str(training.model) for training in trainings}) > 1:
        raise SystemExit(f"the checkpoints were trained with different models: {', '.join(map(str, paths))}")
    return paths, trainings


def on_recorded_base(path: Path, training: DictConfig) -> DictConfig:
    """`training` on the base that the run of the file recorded, where that still holds what it held then."""
    record, inputs = (path.with_name(name) for name in ("config.yaml", INPUTS))
    if path.name != FILE or not record.is_file() or not inputs.is_file():
        return training
    base, held = OmegaConf.select(OmegaConf.load(record), "base"), json.loads(inputs.read_text()).get("base")
    if isinstance(base, str) and held and Path(base).exists() and content(exported(Path(base))) == held:
        training.base = base
    return training


def guidance_filled_in(cfg: DictConfig, training: DictConfig) -> DictConfig:
    """`cfg`; where its sampler.guidance is null, with the one that suits the model of the training config."""
    if cfg.sampler.guidance is not None:
        return cfg
    return OmegaConf.merge(cfg, {"sampler": {"guidance": training.sampler.guidance}})  # type: ignore[return-value]


def refuse_another_base(paths: Sequence[Path], given: Sequence[str]) -> None:
    """SystemExit if a branch was trained together with its base: then the keys `given` would change nothing."""
    try:
        own = [base for path in paths if (base := base_beside(path))]
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if own:
        raise SystemExit(f"leave out {', '.join(f'{key}=' for key in given)}: "
                         f"the branch was trained together with its base, {own[0]}, and works on it")  # fmt: skip


def refuse_several_bases(paths: Sequence[Path]) -> None:
    """SystemExit if one of the further branches was trained together with a base that is not the first one's."""
    try:
        first, *others = (base and content(base) for base in map(base_beside, paths))
    except ValueError as error:
        raise SystemExit(str(error)) from error
    for path, own in zip(paths[1:], others, strict=True):
        if own not in (None, first):
            raise SystemExit(
                f"more: {path} was trained together with its base and works on no other; name it first, as checkpoint="
            )


def trained_size(training: DictConfig) -> int | list[int]:
    """`size` of a training config: one number, or [height, width]."""
    return [*size] if isinstance(size := training.size, ListConfig) else size


def is_pooled(path: Path) -> bool:
    """Whether the checkpoint says that its residuals are averaged over the image."""
    return bool(published(path).parts["control"].settings.get("pooling"))


def load_model(path: Path, cfg: DictConfig) -> tuple[LatentDiffusion, Branch]:
    """The base and its branch, both loaded strictly. A base that was trained together with the branch comes with it."""
    base = base_beside(path) or base_of(cfg)
    diffusion = built_for(cfg, base)
    load_base(diffusion, base)
    return diffusion.eval(), load_branch(path, cfg, diffusion)


def built_for(cfg: DictConfig, base: str | Path | None) -> LatentDiffusion:
    """The model of a config, to load `base` into. Without a base its weights are random, and always the same: those
    that a branch was trained on are those that it draws with."""
    if base is not None:
        return instantiate(cfg.model, _convert_="all")
    print("note: this model has no weights, its base is random: good for tests, no figure means anything")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return instantiate(cfg.model, _convert_="all")


def load_models(paths: Sequence[Path], trainings: Sequence[DictConfig]) -> tuple[LatentDiffusion, list[Branch]]:
    """The base of the first branch, and all branches."""
    diffusion, first = load_model(paths[0], trainings[0])
    others = zip(paths[1:], trainings[1:], strict=True)
    return diffusion, [first, *(load_branch(path, training, diffusion) for path, training in others)]


def to_work(modules: Iterable[nn.Module], device: str, precision: str) -> None:
    """Bring networks to where and in what they draw. Convolutions of channels-last weights are faster: 16 % of a
    320-wide block in fp32 on a CPU."""
    for module in modules:
        module.to(device, PRECISIONS[precision]).to(memory_format=torch.channels_last)


def load_branch(path: Path, cfg: DictConfig, diffusion: LatentDiffusion) -> Branch:
    """The branch in the file, for the model it was trained on."""
    trained_on, loaded = published(path).metadata.get("base_fingerprint"), fingerprint(diffusion)
    if trained_on not in (None, loaded):
        print(f"note: {path} was trained on base {trained_on}, this base is {loaded}; images may obey less well")
    check(diffusion.schedule, published(path).schedule, path)
    control: Branch = instantiate(cfg.control, _convert_="all")(diffusion.unet)
    load_control(control, path, pools=True)
    return control.eval()


@torch.no_grad()
def move_branch(branch: Branch, cfg: DictConfig, source: str, target: LatentDiffusion) -> None:
    """Add to a loaded branch what tells the encoder of `target` from that of the base in `source`, on which it was
    trained; `python -m cldm transfer` does so for files. ValueError for a branch that is no copy of the encoder."""
    trained_on: LatentDiffusion = instantiate(cfg.model, _convert_="all")
    load_base(trained_on, source)
    old, new = (dict(model.unet.encoder.named_parameters()) for model in (trained_on, target))
    own = {name.removeprefix("encoder."): p for name, p in branch.named_parameters() if name.startswith("encoder.")}
    if {name: p.shape for name, p in own.items()} != {name: p.shape for name, p in old.items()}:
        raise ValueError("moved_from needs a branch that is a copy of the base's encoder, as control=controlnet is")
    for name, parameter in own.items():
        parameter.add_(new[name] - old[name])


def base_of(cfg: DictConfig) -> str | None:
    """Where the weights of the locked model come from, a file, or a folder in diffusers' form; None for a model that
    has random ones."""
    try:
        return None if cfg.base is None else str(exported(Path(cfg.base)))
    except (MissingMandatoryValue, InterpolationToMissingValueError) as error:
        raise ValueError(
            "this model comes without weights: set base=FILE_OR_FOLDER (model=pretrained: model.path=...) to a Stable "
            "Diffusion checkpoint or diffusers folder of yours; docs/bring_your_own.md says more"
        ) from error


def base_beside(control: Path) -> Path | None:
    """The base that was trained together with the branch in a file, and lies beside it; None if it was locked."""
    if control.suffix != ".safetensors" or read_metadata(control).get("locking", "locked") == "locked":
        return None
    base = control.with_name(BASE_FILE)
    if not base.is_file():
        raise ValueError(
            f"{control} was trained together with its base (stage.module.locking), and {base} is missing; "
            "keep the two files together"
        )
    return base


def base_content(path: Path, cfg: DictConfig) -> str | None:
    """The content of the base that a branch is loaded with, see ldm.files.content; None for one without weights."""
    base = base_beside(path) or base_of(cfg)
    return None if base is None else content(base)


def device_and_precision(cfg: DictConfig) -> tuple[str, str]:
    """Where to work and in what; by default a GPU in fp16 if there is one, else fp32."""
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.device(device)
    except RuntimeError:
        raise SystemExit(f"device must be cpu, cuda, cuda:1, ... or mps, got {device}") from None
    precision = cfg.precision or ("fp32" if device == "cpu" else "fp16")
    if precision not in PRECISIONS:
        raise SystemExit(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    return device, precision
