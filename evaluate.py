"""Measure whether images obey: `python evaluate.py checkpoint=RUN protocol=NAME`. Config: configs/evaluate.yaml."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cldm.conditions import Condition
from cldm.conditions.plain import Unchanged
from cldm.control import ControlUnit, check_settings
from cldm.controlnet import ControlNet
from cldm.data.held_out import REFERENCE_START
from cldm.evaluation.clip import ClipScore
from cldm.evaluation.gallery import claim, draw_missing, read_images
from cldm.evaluation.protocol import Shot, protocol_hash, shots
from cldm.evaluation.quality import diversity, frechet_distance, kernel_distance
from cldm.evaluation.report import results_table
from cldm.evaluation.scores import Rows, Target, as_files, join, means, score, slices
from cldm.evaluation.segmenter import load_segmenter
from cldm.generation import Sampling
from cldm.runs import recorded_values
from cldm.tracking import commit, write_json
from ldm.diffusion import LatentDiffusion
from ldm.weights import fingerprint, read_metadata
from sample import PRECISIONS, find_checkpoint, load_model, training_config

PROTOCOL = ("name", "items", "noise_seeds", "prompts", "data", "size", "scale", "start", "end", "mode", "weighting",
            "negative", "precision", "sampler", "clip", "reference")  # fmt: skip
"""Keys of the config that numbers of one table must share."""


@dataclass
class Subject:
    """One checkpoint to measure, and what it is measured on. Weights are loaded when they are first needed."""

    path: Path
    cfg: DictConfig
    training: DictConfig
    device: str
    precision: str

    def __post_init__(self) -> None:
        self.condition: Condition = instantiate(self.training.condition, _convert_="all")
        self.sampling: Sampling = instantiate(self.cfg.sampler, _convert_="all")
        self.size = self.cfg.size or self.training.size
        data = instantiate(self.cfg.data, _convert_="all")
        self.data = data(condition=self.condition, size=self.size, count=self.cfg["items"])
        self.items = self.data.__getitems__(range(self.cfg["items"]))
        scenes = getattr(self.data, "scenes", None)
        self.scenes = None if scenes is None else [*scenes]
        self.shots = shots(self.items["caption"], self.cfg.prompts, self.cfg.noise_seeds, scenes is not None)
        self.metadata = read_metadata(self.path)
        clip, segmenter = self.cfg.clip, self.cfg.segmenter
        self.clip = ClipScore(clip.arch, clip.weights, self.device) if clip.weights else None
        self.segmenter = load_segmenter(segmenter) if segmenter and self.scenes else None

    def load(self) -> None:
        """Read the weights."""
        _ = self.models

    @cached_property
    def models(self) -> tuple[LatentDiffusion, ControlNet]:
        """The base and the branch, on the device."""
        diffusion, net = load_model(self.path, self.training)
        self.fingerprint = fingerprint(diffusion)
        for module in (diffusion, net):
            module.to(self.device, PRECISIONS[self.precision]).to(memory_format=torch.channels_last)
        return diffusion, net

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that is fixed, with a digest of the items themselves."""
        given: Any = OmegaConf.to_container(self.cfg, resolve=True)
        digest = hashlib.blake2b(digest_size=8)
        digest.update(as_files(self.items["image"]).numpy().tobytes())
        digest.update("\n".join(self.items["caption"]).encode())
        fixed = {key: given[key] for key in PROTOCOL}
        fixed |= {"size": self.size, "precision": self.precision, "items_digest": digest.hexdigest()}
        fixed["segmenter"] = fingerprint(self.segmenter) if self.segmenter else None
        fixed["clip"] = {"arch": given["clip"]["arch"], "weights": fingerprint(self.clip.model)} if self.clip else None
        fixed |= {"steps": self.sampling.steps, "guidance": self.sampling.guidance}
        return json.loads(json.dumps(fixed))

    def target(self, chosen: Sequence[Shot]) -> Target:
        """What the images of these shots are measured against."""
        items = [shot.item for shot in chosen]
        return Target(
            self.items["hint"][items],
            [self.items["caption"][i] for i in items],
            [shot.prompt for shot in chosen],
            self.scenes and [self.scenes[i] for i in items],
        )

    def draw(self, chosen: Sequence[Shot], controlled: bool) -> Tensor:
        """The images (n, 3, h, w) in [-1, 1] of these shots."""
        diffusion, net = self.models
        hints, cfg = self.items["hint"][[shot.item for shot in chosen]].to(self.device), self.cfg
        unit = ControlUnit(net, hints, cfg.scale, start=cfg.start, end=cfg.end, mode=cfg.mode, weighting=cfg.weighting)
        return self.sampling(
            diffusion,
            [shot.prompt for shot in chosen],
            [shot.seed for shot in chosen],
            tuple(hints.shape[-2:]),
            unit if controlled else None,
            cfg.negative,
        )

    @torch.no_grad()
    def reconstructions(self) -> Tensor:
        """The real images through the autoencoder: what no control can surpass."""
        autoencoder = self.models[0].autoencoder
        dtype = PRECISIONS[self.precision]
        images = self.items["image"]
        return torch.cat([
            autoencoder.decode(autoencoder.encode(images[part].to(self.device, dtype))).float().cpu()
            for part in slices(len(images), 16)
        ])  # fmt: skip

    def measure(self, images: Tensor, chosen: Sequence[Shot]) -> Rows:
        """The scores of these images, with the columns that say which image a row is about."""
        parts = [
            score(images[part], self.target(chosen[part]), self.condition, self.segmenter, self.clip)
            for part in chunks(chosen)
        ]
        ids = {
            "item": np.array([shot.item for shot in chosen]),
            "setting": np.array([shot.setting for shot in chosen]),
            "noise": np.array([shot.noise for shot in chosen]),
        }
        return ids | join(parts)

    @cached_property
    def real_features(self) -> Tensor:
        """Of real scenes that are no items."""
        data = instantiate(self.cfg.data, _convert_="all", start=REFERENCE_START)
        others = data(condition=Unchanged(), size=self.size, count=self.cfg.reference)
        return self.features(others.__getitems__(range(len(others)))["image"])

    def features(self, images: Tensor) -> Tensor:
        """The segmenter's features (n, d)."""
        assert self.segmenter is not None
        return torch.cat([self.segmenter.features(images[part]) for part in slices(len(images), 64)])

    def quality(self, images: Tensor, chosen: Sequence[Shot]) -> dict[str, dict[str, float]]:
        """Numbers of whole sets of images, by prompt setting."""
        found = {}
        for setting in dict.fromkeys(shot.setting for shot in chosen):
            rows = [i for i, shot in enumerate(chosen) if shot.setting == setting]
            items = torch.tensor([chosen[i].item for i in rows])
            found[setting] = {"diversity_pixels": diversity(images[rows], items)}
            if self.segmenter is not None and len(rows) > 1:
                features = self.features(images[rows])
                found[setting]["fid_scenes"] = frechet_distance(features, self.real_features)
                found[setting]["kid_scenes"] = kernel_distance(features, self.real_features)
        return found

    def summary(self, images: Tensor, rows: Rows, chosen: Sequence[Shot]) -> dict[str, dict[str, float]]:
        """{prompt setting: {score: mean, and the numbers of whole sets}}."""
        return {s: scores | self.quality(images, chosen)[s] for s, scores in by_setting(rows).items()}


def chunks(chosen: Sequence[Shot], size: int = 64) -> list[slice]:
    """The shots in slices of at most `size` that do not mix prompt settings: each has scores of its own."""
    found: list[slice] = []
    for _, group in groupby(range(len(chosen)), key=lambda i: chosen[i].setting):
        rows = [*group]
        found += [slice(rows[0] + part.start, rows[0] + part.stop) for part in slices(len(rows), size)]
    return found


def by_setting(rows: Rows) -> dict[str, dict[str, float]]:
    """{prompt setting: {score: mean}}."""
    settings = dict.fromkeys(rows["setting"].tolist())
    scores = {name: values for name, values in rows.items() if name not in ("item", "setting", "noise")}
    return {
        setting: means({name: values[rows["setting"] == setting] for name, values in scores.items()})
        for setting in settings
    }


def reference(subject: Subject, batch_size: int) -> dict[str, Any]:
    """Ceilings, and the scores of the base without control: the same for all checkpoints of a base, made once."""
    subject.load()
    key = {
        "protocol": protocol_hash(subject.protocol),
        "base": subject.fingerprint,
        "condition": repr(subject.condition),
        "baseline": str(subject.cfg.baseline),
        "commit": commit(),
    }
    folder = Path(subject.cfg.cache) / protocol_hash(key)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # several evaluations at a time: one makes it, the others wait
        path = folder / "reference.json"
        return json.loads(path.read_text()) if path.is_file() else _make_reference(subject, folder, key, batch_size)


def _make_reference(subject: Subject, folder: Path, key: dict[str, str], batch_size: int) -> dict[str, Any]:
    claim(folder, key, overwrite=False)
    real = [Shot(i, "perfect", 0, caption) for i, caption in enumerate(subject.items["caption"])]
    sets = {"ceiling": as_files(subject.reconstructions()), "real": subject.items["image"]}
    found: dict[str, Any] = {
        name: subject.summary(images, subject.measure(images, real), real)["perfect"] for name, images in sets.items()
    }
    if subject.cfg.baseline:
        images = folder / "images"
        draw_missing(images, subject.shots, batch_size, lambda s: subject.draw(s, False), "drawing without control")
        drawn = read_images(images, subject.shots)
        found["base"] = subject.summary(drawn, subject.measure(drawn, subject.shots), subject.shots)
        shutil.rmtree(images)
    path = folder / "reference.json"
    write_json(path, found)
    return json.loads(path.read_text())


def evaluate_one(subject: Subject, folder: Path) -> dict[str, Any]:
    """Draw, measure, write results.json and per_sample.npz into `folder`; returns the results."""
    batch_size = subject.cfg.batch_size or (8 if subject.device == "cpu" else 16)
    sha256 = hashlib.sha256(subject.path.read_bytes()).hexdigest()
    identity = protocol_hash(subject.protocol)
    claim(folder, {"protocol": identity, "checkpoint": sha256}, subject.cfg.overwrite)
    images = folder / "images"
    draw_missing(images, subject.shots, batch_size, lambda s: subject.draw(s, True), f"drawing {subject.path.parent}")
    drawn = read_images(images, subject.shots)
    rows = subject.measure(drawn, subject.shots)
    run = subject.path.parent
    overrides = run / ".hydra" / "overrides.yaml"
    results = {
        "checkpoint": str(subject.path),
        "checkpoint_sha256": sha256,
        "condition": subject.metadata.get("condition"),
        "seed": int(subject.metadata["seed"]) if "seed" in subject.metadata else None,
        "commit": subject.metadata.get("commit"),
        "evaluated_at_commit": commit(),
        "overrides": OmegaConf.to_container(OmegaConf.load(overrides)) if overrides.is_file() else [],
        "protocol": subject.protocol,
        "protocol_hash": identity,
        "n": subject.cfg["items"] * len(subject.cfg.noise_seeds),
        "metrics": subject.summary(drawn, rows, subject.shots),
        **reference(subject, batch_size),
    }
    with open(folder / "per_sample.partial", "wb") as file:
        np.savez_compressed(file, **rows)  # type: ignore[arg-type]
    (folder / "per_sample.partial").replace(folder / "per_sample.npz")
    write_json(folder / "results.json", results)
    if not subject.cfg.keep_images:
        shutil.rmtree(images)
    return json.loads((folder / "results.json").read_text())


def evaluate(cfg: DictConfig) -> list[Path]:
    """Measure every checkpoint; returns the folders of their results."""
    given = [cfg.checkpoint] if cfg.checkpoint is None or isinstance(cfg.checkpoint, str) else [*cfg.checkpoint]
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = cfg.precision or ("fp32" if device == "cpu" else "fp16")
    if precision not in PRECISIONS:
        raise SystemExit(f"precision must be one of {', '.join(PRECISIONS)}, got {precision}")
    try:
        check_settings(cfg.start, cfg.end, cfg.mode, cfg.weighting)
        paths = [find_checkpoint(one) for one in given]
        folders = [output_folder(cfg, path, len(paths)) for path in paths]
        trainings = [recorded_values(path, training_config(path, cfg.base)) for path in paths]
        for path, training, folder in zip(paths, trainings, folders, strict=True):
            results = evaluate_one(Subject(path, cfg, training, device, precision), folder)
            print("\n" + results_table(results) + f"\n\n{folder / 'results.json'}")
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    return folders


def output_folder(cfg: DictConfig, path: Path, count: int) -> Path:
    """Where the results of a checkpoint go."""
    if cfg.out is None:
        return path.parent / "evaluation" / cfg.name
    if count == 1:
        return Path(cfg.out)
    return Path(cfg.out) / hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()


@hydra.main(version_base="1.3", config_path="configs", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    evaluate(cfg)


if __name__ == "__main__":
    main()
