"""Draw images that obey a hint with a trained ControlNet. Config: configs/sample.yaml."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

import train  # noqa: F401  (registers the config resolvers)
from cldm.conditions import Condition
from cldm.control import ControlUnit
from cldm.controlnet import ControlNet
from cldm.generation import Sampling
from cldm.interop import load_control
from cldm.jobs import Job, Ledger, Shot, draw_in_batches, load_image, load_mask, make_job, read_jobs
from cldm.runs import base_beside, base_of
from ldm.diffusion import LatentDiffusion
from ldm.interop import load_base
from ldm.weights import fingerprint, read_metadata

FILE = "control.safetensors"
GROUPS = ("model", "control", "condition")  # config choices that a control file states
JOB_KEYS = ("hint", "photo", "prompt", "negative", "count", "seed", "size", "scale", "start", "end", "mode",
            "weighting", "pool", "region", "image", "strength", "mask")  # fmt: skip
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def find_checkpoint(checkpoint: str | None) -> Path:
    """The control weights of a run folder or file; None means the newest run. SystemExit says what to run first."""
    if checkpoint is None:
        found = sorted(Path("runs").glob(f"**/{FILE}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SystemExit("no trained ControlNet in runs/ yet; run `python train.py` first (minutes on a laptop)")
        return found[-1]
    path = Path(checkpoint)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"checkpoint={checkpoint}: there is no {path}")
    return path


def training_config(path: Path, base: str | None) -> DictConfig:
    """The training config that the file's metadata names; only names of this repository's configs are followed."""
    metadata = read_metadata(path)
    missing = [group for group in GROUPS if group not in metadata]
    if missing:
        raise SystemExit(f"{path} does not say which {', '.join(missing)} it was trained with; is it a control file?")
    names = [f"{group}={metadata[group]}" for group in GROUPS]
    key = "model.path" if metadata["model"] == "pretrained" else "base"
    return compose("train", overrides=[*names, *([f"{key}='{base}'"] if base else [])])


def load_model(path: Path, cfg: DictConfig) -> tuple[LatentDiffusion, ControlNet]:
    """The base and its branch, both loaded strictly. A base that was trained together with the branch comes with it."""
    base = base_of(cfg)
    diffusion: LatentDiffusion = instantiate(cfg.model, _convert_="all")
    load_base(diffusion, base_beside(path) or base)
    return diffusion.eval(), load_branch(path, cfg, diffusion)


def load_branch(path: Path, cfg: DictConfig, diffusion: LatentDiffusion) -> ControlNet:
    """The branch in the file, for the model it was trained on."""
    trained_on, loaded = read_metadata(path).get("base_fingerprint"), fingerprint(diffusion)
    if trained_on not in (None, loaded):
        print(f"note: {path} was trained on base {trained_on}, this base is {loaded}; images may obey less well")
    control: ControlNet = instantiate(cfg.control, _convert_="all")(diffusion.unet)
    load_control(control, path)
    return control.eval()


def jobs_of(cfg: DictConfig, size: int) -> list[Job]:
    """What is to be drawn: one job from the keys of the config, or a list of them."""
    given = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(given, dict)
    defaults = {key: given[key] for key in JOB_KEYS} | {"size": given["size"] or size}
    extra = [{k: v for k, v in unit.items() if k != "checkpoint"} for unit in given["more"]]
    if cfg.jobs:
        return read_jobs(cfg.jobs, defaults, extra)
    return [make_job({}, defaults, extra)]


def check(jobs: list[Job], sampling: Sampling, training: DictConfig, conditions: list[Condition]) -> None:
    """Raise for whatever cannot be drawn, before weights are read: sizes, steps, pictures that are none."""
    with torch.device("meta"):
        skeleton: LatentDiffusion = instantiate(training.model, _convert_="all")
    for job in jobs:
        skeleton.latent_shape(*job.size)
        sampling.timesteps(skeleton, job.strength if job.image else 1.0)
        load_inputs(job, conditions, notify=print)


def load_inputs(job: Job, conditions: list[Condition], notify: Callable[[str], None]) -> dict[str, Any]:
    """The pictures of a job as tensors with one row: hints and regions of its controls, image and mask."""
    size = job.size
    return {
        "hints": [unit.load(size, c, notify) for unit, c in zip(job.units, conditions, strict=True)],
        "regions": [unit.load_region(size) for unit in job.units],
        "image": load_image(job.image, size) if job.image else None,
        "mask": load_mask(job.mask, size) if job.mask else None,
    }


def rows(tensors: list[Tensor]) -> Tensor:
    """One row if all are the same object: a batch of one job encodes its hint once."""
    return tensors[0] if all(tensor is tensors[0] for tensor in tensors) else torch.cat(tensors)


def draw(
    shots: list[Shot],
    sampling: Sampling,
    diffusion: LatentDiffusion,
    nets: list[ControlNet],
    conditions: list[Condition],
    callback: Callable[[int, Tensor], None],
) -> Tensor:
    """A batch of images (b, 3, h, w) in [-1, 1]."""
    loaded = {shot.job.name: load_inputs(shot.job, conditions, notify=lambda _: None) for shot in shots}
    inputs, first = [loaded[shot.job.name] for shot in shots], shots[0].job
    units = [
        ControlUnit(
            net,
            rows([item["hints"][i] for item in inputs]),
            settings.scale,
            start=settings.start,
            end=settings.end,
            mode=settings.mode,
            weighting=settings.weighting,
            pool=settings.pool,
            mask=rows([item["regions"][i] for item in inputs]) if settings.region else None,
        )
        for i, (net, settings) in enumerate(zip(nets, first.units, strict=True))
    ]
    return sampling(
        diffusion,
        [shot.job.prompt for shot in shots],
        [shot.seed for shot in shots],
        first.size,
        units,
        [shot.job.negative for shot in shots],
        image=rows([item["image"] for item in inputs]) if first.image else None,
        strength=first.strength if first.image else 1.0,
        mask=rows([item["mask"] for item in inputs]) if first.mask else None,
        callback=callback,
    )


def digest(path: Path) -> str:
    """16 hex digits of a file: a retrained checkpoint under an old name draws anew."""
    return hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()


def sample(cfg: DictConfig) -> Path:
    """Draw the images; returns their folder."""
    paths = [find_checkpoint(cfg.checkpoint), *(find_checkpoint(unit.checkpoint) for unit in cfg.more)]
    trainings = [training_config(path, cfg.base) for path in paths]
    if len({str(training.model) for training in trainings}) > 1:
        raise SystemExit(f"the checkpoints were trained with different models: {', '.join(map(str, paths))}")
    conditions = [instantiate(training.condition, _convert_="all") for training in trainings]
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = cfg.precision or ("fp32" if device == "cpu" else "fp16")
    if precision not in PRECISIONS:
        raise SystemExit(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    sampling: Sampling = instantiate(cfg.sampler, _convert_="all")
    try:
        jobs = jobs_of(cfg, trainings[0].size)
        check(jobs, sampling, trainings[0], conditions)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    ledger = Ledger(
        Path(cfg.out) if cfg.out else paths[0].parent / "samples",
        {
            "checkpoints": [{"file": str(path), "digest": digest(path)} for path in paths],
            "sampler": OmegaConf.to_container(cfg.sampler, resolve=True),
            "base": base_of(trainings[0]),
            "precision": precision,
        },
        flat=not cfg.jobs,
        resume=bool(cfg.jobs),
    )
    shots = ledger.missing(jobs)
    if shots:
        diffusion, net = load_model(paths[0], trainings[0])
        nets = [net, *(load_branch(p, t, diffusion) for p, t in zip(paths[1:], trainings[1:], strict=True))]
        home = "cpu" if sampling.low_memory else device
        for module in (diffusion, *nets):
            # convolutions of channels-last weights are faster: 16 % of a 320-wide block in fp32 on a CPU
            module.to(home, PRECISIONS[precision]).to(memory_format=torch.channels_last)
        steps = sum(int(sampling.steps * shot.job.strength) if shot.job.image else sampling.steps for shot in shots)
        size = cfg.batch_size or (4 if device == "cpu" else 16)
        with tqdm(total=steps, desc=f"drawing {len(shots)} images", unit="step") as bar:
            report = lambda _, z: bar.update(len(z))  # noqa: E731
            draw_in_batches(shots, partial(draw, sampling=sampling, diffusion=diffusion, nets=nets,
                                           conditions=conditions, callback=report), ledger, size)  # fmt: skip
    for job in jobs:
        if {shot.file for shot in ledger.shots(job)} & {shot.file for shot in shots}:
            ledger.sheet(job, load_inputs(job, conditions, notify=lambda _: None)["hints"])
    there = sum(job.count for job in jobs) - len(shots)
    print(f"{len(shots)} images and sheets in {ledger.folder}" + (f"; {there} were there already" if there else ""))
    return ledger.folder


@hydra.main(version_base="1.3", config_path="configs", config_name="sample")
def main(cfg: DictConfig) -> None:
    sample(cfg)


if __name__ == "__main__":
    main()
