"""What sample.py does: jobs from its configuration, checked before weights are read, drawn, kept in a ledger."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from cldm.branches.controlnet import Branch
from cldm.conditions import Condition
from cldm.data.transforms import check_size
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.configs import expand_home
from cldm.runs.trained import base_content, base_of, device_and_precision, guidance_filled_in, trained_size
from cldm.sampling.control import ControlUnit, check_window
from cldm.sampling.generation import Sampling
from cldm.sampling.jobs import Job, UnitSettings, check_pictures, load_image, load_mask, make_job, read_jobs
from cldm.sampling.ledger import Ledger, Shot, draw_in_batches, free_folder
from cldm.sampling.opening import Networks, Opened, load_networks, open_checkpoints
from ldm.diffusion import LatentDiffusion
from ldm.files import content, locked, remove_partial
from ldm.identity import decisive

JOB_KEYS = ("hint", "photo", "prompt", "negative", "count", "seed", "size", "scale", "scales", "start", "end", "mode",
            "weighting", "pool", "region", "image", "strength", "mask")  # fmt: skip
SAMPLER_KEYS = ("steps", "spacing", "guidance", "rescale", "clip_skip", "prompt_weights")  # that a job may set
SAMPLERS = sorted(path.stem for path in (REPOSITORY / "configs" / "sampler").glob("*.yaml"))


def jobs_of(cfg: DictConfig, size: int | list[int], pools: list[bool]) -> list[Job]:
    """What is to be drawn: one job from the keys of the config, or a list of them. pools: what each checkpoint says."""
    given = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(given, dict)
    defaults = {key: given[key] for key in JOB_KEYS} | {"size": given["size"] or size}
    extra = [{k: v for k, v in unit.items() if k not in ("checkpoint", "condition")} for unit in given["more"]]
    jobs = read_jobs(cfg.jobs, defaults, extra) if cfg.jobs else [make_job({}, defaults, extra)]
    return [
        replace(job, units=pools_filled_in(job, pools), sampler=sampler_settings(given["sampler"], job)) for job in jobs
    ]


def pools_filled_in(job: Job, pools: list[bool]) -> tuple[UnitSettings, ...]:
    """The controls of a job; where their pool is null, with what their checkpoint says."""
    return tuple(
        replace(unit, pool=pool) if unit.pool is None else unit for unit, pool in zip(job.units, pools, strict=True)
    )


def sampler_settings(shared: dict[str, Any], job: Job) -> dict[str, Any]:
    """The config of a job's sampler: the shared one, with what the job says of its own. ValueError for what cannot be.

    A name takes another algorithm; the other keys are those of SAMPLER_KEYS and the algorithm's (eta, order).
    """
    own, settings = dict(job.sampler), dict(shared)
    if name := own.pop("name", None):
        if name not in SAMPLERS:
            raise ValueError(f"{job.name}: sampler must be one of {', '.join(SAMPLERS)}, got {name!r}")
        settings["sampler"] = OmegaConf.to_container(compose("sample", overrides=[f"sampler={name}"]).sampler.sampler)
    algorithm = settings["sampler"] = dict(settings["sampler"])
    places = dict.fromkeys(SAMPLER_KEYS, settings) | {key: algorithm for key in algorithm if not key.startswith("_")}
    for key, value in own.items():
        if key not in places:
            raise ValueError(f"{job.name}: unknown setting {key!r} of sampler; known: name, {', '.join(places)}")
        wanted = type(places[key][key])
        fits = isinstance(value, wanted) or (wanted is float and isinstance(value, int))
        if not fits or (isinstance(value, bool) and wanted is not bool):
            raise ValueError(f"{job.name}: {key} of sampler must be a {wanted.__name__}, got {value!r}")
        places[key][key] = value
    return settings


def check(jobs: list[Job], opened: Opened) -> None:
    """Raise for whatever cannot be drawn, before weights are read: sizes, steps, pictures that are none."""
    for job in jobs:
        try:
            check_job(job, opened.skeleton, opened.branches)
            check_pictures(job, opened.conditions)
        except ValueError as error:
            raise ValueError(f"{job.name}: {error}" if len(jobs) > 1 else str(error)) from error


def check_job(job: Job, skeleton: LatentDiffusion, nets: list[Branch]) -> None:
    """ValueError where sizes and steps of a job do not suit the model and its branches, which have no weights yet."""
    check_size([*job.size], "size")
    skeleton.latent_shape(*job.size)
    sampling, strength = instantiate(job.sampler, _convert_="all"), job.strength if job.image else 1.0
    sampling.check(skeleton, strength)
    for net, unit in zip(nets, job.units, strict=True):
        check_window(len(sampling.timesteps(skeleton, strength)), unit.start, unit.end)
        if unit.scales:  # as many as the branch has residuals
            ControlUnit(net, torch.empty(1, net.hint_channels, 8, 8, device="meta"), scales=unit.scales)


class Inputs:
    """The pictures of jobs as tensors. A job's are read, and its conditions run, once: the last jobs' stay at hand."""

    KEPT = 64  # jobs: more than a batch has

    def __init__(self, conditions: list[Condition]):
        self.conditions, self.loaded = conditions, dict[str, dict[str, Any]]()

    def __call__(self, job: Job) -> dict[str, Any]:
        """With one row: hints and regions of its controls, image and mask."""
        if job.name not in self.loaded:
            while len(self.loaded) >= self.KEPT:
                self.loaded.pop(next(iter(self.loaded)))
            self.loaded[job.name] = self._load(job)
        return self.loaded[job.name]

    def _load(self, job: Job) -> dict[str, Any]:
        size, units = job.size, zip(job.units, self.conditions, strict=True)
        mask = load_mask(job.mask, size) if job.mask else None
        return {
            "hints": [unit.load(size, condition, lambda _: None, mask) for unit, condition in units],
            "regions": [unit.load_region(size) for unit in job.units],
            "image": load_image(job.image, size) if job.image else None,
            "mask": mask,
        }


def shown(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Those pictures as the sheet has them, in [-1, 1], by their headings."""
    names = ["hint"] if len(inputs["hints"]) == 1 else [f"hint {i + 1}" for i in range(len(inputs["hints"]))]
    columns = {name: 2 * hint - 1 for name, hint in zip(names, inputs["hints"], strict=True)}
    if inputs["image"] is not None:
        columns["image"] = inputs["image"]
    if inputs["mask"] is not None:
        columns["mask"] = 2 * inputs["mask"].expand(-1, 3, -1, -1) - 1
    return columns


def rows(tensors: list[Tensor]) -> Tensor:
    """One row if all are the same object: a batch of one job encodes its hint once."""
    return tensors[0] if all(tensor is tensors[0] for tensor in tensors) else torch.cat(tensors)


def draw(
    shots: list[Shot],
    diffusion: LatentDiffusion,
    nets: list[Branch],
    load: Inputs,
    callback: Callable[[int, Tensor], None],
) -> Tensor:
    """A batch of images (b, 3, h, w) in [-1, 1]."""
    inputs, first = [load(shot.job) for shot in shots], shots[0].job
    units = [
        ControlUnit(
            net,
            rows([item["hints"][i] for item in inputs]),
            settings.scale,
            settings.scales,
            start=settings.start,
            end=settings.end,
            mode=settings.mode,
            weighting=settings.weighting,
            pool=bool(settings.pool),
            mask=rows([item["regions"][i] for item in inputs]) if settings.region else None,
        )
        for i, (net, settings) in enumerate(zip(nets, first.units, strict=True))
    ]
    sampling: Sampling = instantiate(first.sampler, _convert_="all")
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


def tell_of_the_example(cfg: DictConfig, condition: Condition) -> None:
    """Say which of the shipped example's values are in force beside what was given, or do not suit the condition."""
    example = OmegaConf.load(REPOSITORY / "configs" / "sample.yaml")
    own_hint = cfg.photo or cfg.hint != example.hint
    if cfg.image and not own_hint:
        print(f"note: the hint is the example's, {cfg.hint}; photo={cfg.image} takes that of the picture")
    if not own_hint and condition.polarity != "white_on_black":
        made = "a photo= to make its map of, or " if condition.computable else ""
        print(f"note: the example's hint is a map of edges, the checkpoint's condition is {condition.name}; give {made}"
              "a hint=")  # fmt: skip
    if cfg.prompt == example.prompt and (cfg.image or own_hint):
        print(f"note: the prompt is the example's: {cfg.prompt}")


def plan(cfg: DictConfig, opening: Callable[[DictConfig], Opened] = open_checkpoints) -> tuple[Opened, list[Job]]:
    """Everything found and checked before weights are read; SystemExit says what cannot be drawn."""
    try:
        opened = opening(cfg)
        first = opened.trainings[0]
        jobs = jobs_of(guidance_filled_in(cfg, first), trained_size(first), opened.pools)
        check(jobs, opened)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    return opened, jobs


@dataclass(frozen=True)
class Hands:
    """How checkpoints are opened and loaded, and who hears of the steps: a program that draws often has its own.

    bar: as tqdm; what its `update` raises ends the drawing.
    """

    opening: Callable[[DictConfig], Opened] = open_checkpoints
    networks: Callable[[Opened, DictConfig], Networks] = load_networks
    bar: Callable[..., Any] = tqdm


def draw_all(shots: list[Shot], opened: Opened, ledger: Ledger, load: Inputs, cfg: DictConfig, hands: Hands) -> None:
    """Read the weights and draw the shots and sheets, with a progress bar that counts the steps of every image."""
    networks = hands.networks(opened, cfg)
    device, _ = device_and_precision(cfg)
    steps = sum(int(s.job.sampler["steps"] * (s.job.strength if s.job.image else 1)) for s in shots)
    size = cfg.batch_size or (4 if device == "cpu" else 16)
    with hands.bar(total=steps, desc=f"drawing {len(shots)} images", unit="step") as bar:
        report = lambda _, z: bar.update(len(z))  # noqa: E731
        brush = partial(draw, diffusion=networks.diffusion, nets=networks.branches, load=load, callback=report)
        draw_in_batches(shots, brush, ledger, size, lambda job: _sheet(ledger, job, load))


def _sheet(ledger: Ledger, job: Job, load: Inputs) -> None:
    ledger.sheet(job, shown(load(job)))


def sample(cfg: DictConfig, hands: Hands | None = None) -> Path:
    """Draw the images; returns their folder."""
    expand_home(cfg)
    _, precision = device_and_precision(cfg)
    hands = hands or Hands()
    opened, jobs = plan(cfg, hands.opening)
    if not cfg.jobs:
        tell_of_the_example(cfg, opened.conditions[0])
    first = opened.trainings[0]
    common = {
        "checkpoints": [{"file": str(path), "content": content(path)} for path in opened.paths],
        "base": {"file": base_of(first), "content": base_content(opened.paths[0], first)},
        "conditions": [decisive(condition) for condition in opened.conditions],
        "precision": precision,
    }
    folder = Path(cfg.out) if cfg.out else opened.paths[0].parent / "samples"
    if not (cfg.out or cfg.jobs):
        folder = free_folder(folder, common, jobs[0])
    ledger = Ledger(folder, common, flat=not cfg.jobs, resume=bool(cfg.jobs))
    with locked(ledger.folder):
        return fill(ledger, opened, jobs, cfg, hands)


def fill(ledger: Ledger, opened: Opened, jobs: list[Job], cfg: DictConfig, hands: Hands) -> Path:
    """Draw what is missing in the folder, with a sheet for each job; returns the folder."""
    remove_partial(ledger.folder, *(ledger.sheet_path(job).parent for job in jobs))
    shots, load = ledger.missing(jobs), Inputs(opened.conditions)
    try:
        ledger.refuse_strangers(shots)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if old := sum((ledger.folder / shot.file).exists() for shot in shots):
        print(f"note: {old} image{'s' * (old != 1)} in {ledger.folder} will be drawn again, with these settings")
    if shots:
        draw_all(shots, opened, ledger, load, cfg, hands)
    for job in jobs:
        if not ledger.has_sheet(job):
            _sheet(ledger, job, load)
    there = sum(job.count for job in jobs) - len(shots)
    print(
        f"{len(shots)} image{'s' * (len(shots) != 1)} and sheets in {ledger.folder}"
        + (f"; {there} were there already" if there else "")
    )
    return ledger.folder
