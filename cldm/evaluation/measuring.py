"""What evaluate.py does: draw, measure, write results.json; bounds that checkpoints of a base share are made once."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from cldm.evaluation.applied import UNIT, branches_of
from cldm.evaluation.gallery import claim, draw_missing, read_images
from cldm.evaluation.protocol import Shot, protocol_hash
from cldm.evaluation.report import results_table
from cldm.evaluation.samples import write_samples
from cldm.evaluation.scores import as_files, means
from cldm.evaluation.subject import Subject
from cldm.runs.checkout import code, commit
from cldm.runs.configs import expand_home, mistakes_refused
from cldm.runs.evaluations import Evaluation
from cldm.runs.folder import Refused, overrides_of
from cldm.runs.loggers.evaluation import log_evaluation
from cldm.runs.recorded import FILE
from cldm.runs.trained import device_and_precision
from ldm.files import locked, whole, write_json
from ldm.identity import key


def reference(subject: Subject, batch_size: int) -> dict[str, Any]:
    """Ceilings, and the scores of the base without control: the same for all checkpoints of a base, made once."""
    model, _ = subject.models
    parts = {
        "protocol": protocol_hash(
            {key: value for key, value in subject.protocol.items() if key not in (*UNIT, "more")}
        ),
        "base": subject.fingerprint,
        "model": key(model.untold(), model.conditioner.vocabulary),
        **{name: subject.key[name] for name in ("schedule", "conditions", "hints")},
        "baseline": subject.cfg.baseline,
        "code": code(),
    }
    folder = Path(subject.cfg.cache) / protocol_hash(parts)
    with locked(folder, wait=True):  # several evaluations at a time: one makes it, the others wait
        path = folder / "reference.json"
        return json.loads(path.read_text()) if path.is_file() else _make_reference(subject, folder, parts, batch_size)


def _make_reference(subject: Subject, folder: Path, key: dict[str, Any], batch_size: int) -> dict[str, Any]:
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
    """Draw, measure, write results.json, per_sample.npz and samples.jsonl into `folder`, and add them to the W&B run of
    the checkpoint where it has one; returns the results."""
    batch_size = subject.cfg.batch_size or (8 if subject.device == "cpu" else 16)
    first, more = subject.first, subject.branches[1:]
    claim(folder, subject.key, subject.cfg.overwrite)
    images = folder / "images"
    draw_missing(images, subject.shots, batch_size, lambda s: subject.draw(s, True), f"drawing {first.path.parent}")
    drawn = read_images(images, subject.shots)
    rows = subject.measure(drawn, subject.shots) | subject.nearest(drawn)
    bounds = reference(subject, batch_size)
    bounds["real"] |= means(subject.nearest(subject.items["image"]))  # of the run's own data: not for all to share
    results = {
        "checkpoint": str(first.path),
        "checkpoint_sha256": first.sha256,
        "base_sha256": subject.key["base"],
        "more": [{"checkpoint": str(branch.path), "checkpoint_sha256": branch.sha256} for branch in more],
        "condition": subject.cfg.trained.condition or first.metadata.get("condition"),
        "seed": int(first.metadata["seed"]) if "seed" in first.metadata else None,
        "commit": first.metadata.get("commit"),
        "evaluated_at_commit": commit(),
        "overrides": overrides_of(first.run) if first.run else [],
        "protocol": subject.protocol,
        "protocol_hash": subject.key["protocol"],
        "steps": int(first.metadata["steps"]) if "steps" in first.metadata else None,
        "n": subject.cfg["items"] * len(subject.cfg.noise_seeds),
        "metrics": subject.summary(drawn, rows, subject.shots),
        **bounds,
    }
    with whole(folder / "per_sample.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, **rows)  # type: ignore[arg-type]
    target, real = subject.target(subject.shots), subject.items["image"]
    write_samples(folder, drawn, subject.shots, target, real, first.condition)
    write_json(folder / "results.json", results)
    if first.run:
        log_evaluation(first.run, Evaluation(folder))
    if not subject.cfg.keep_images:
        for pictures in (images, folder / "items", folder / "hints"):
            shutil.rmtree(pictures, ignore_errors=True)
    return json.loads((folder / "results.json").read_text())


def evaluate(cfg: DictConfig) -> list[Path]:
    """Measure every checkpoint; returns the folders of their results."""
    expand_home(cfg)
    given = [cfg.checkpoint] if cfg.checkpoint is None or isinstance(cfg.checkpoint, str) else [*cfg.checkpoint]
    device, precision = device_and_precision(cfg)
    try:
        with mistakes_refused():
            if not given:
                raise ValueError("checkpoint=[] names no checkpoint")
            subjects = [branches_of(cfg, one) for one in given]
            folders = [output_folder(cfg, branches[0].path, len(subjects)) for branches in subjects]
            for branches, folder in zip(subjects, folders, strict=True):
                subject = Subject(branches, cfg, device, precision)
                subject.refuse_copies()
                subject.load()  # what cannot be measured is refused before there is a folder
                with locked(folder):
                    results = evaluate_one(subject, folder)
                print("\n" + results_table(results) + f"\n\n{folder / 'results.json'}")
    except (Refused, ImportError) as error:
        raise SystemExit(str(error)) from error
    return folders


def output_folder(cfg: DictConfig, path: Path, count: int) -> Path:
    """Where the results of a checkpoint go: into its run folder, or beside a file of another name."""
    if cfg.out is None:
        return path.parent / "evaluation" / (cfg.name if path.name == FILE else f"{cfg.name}-{path.stem}")
    if count == 1:
        return Path(cfg.out)
    return Path(cfg.out) / hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()
