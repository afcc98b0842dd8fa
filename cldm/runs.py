"""A run folder from its first file to its last: config, provenance, weights, results.json, DONE.json."""

import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cldm.evaluation.convergence import convergence_step
from cldm.evaluation.report import CONTROL_ROWS, autoencoder_report, base_report, control_report, table
from cldm.pictures import curve
from cldm.tracking import commit, write_json


@dataclass(frozen=True)
class Run:
    """The folder of a run, and the checkpoint that it goes on from."""

    folder: Path
    last_checkpoint: str | None


def start_run(cfg: DictConfig) -> Run:
    """Make the folder self-describing: resolved config, command, commit, versions."""
    folder = Path(cfg.run_dir)
    last = folder / "checkpoints" / "last.ckpt"
    if cfg.resume and not last.exists():
        raise FileNotFoundError(f"resume={cfg.resume}: no checkpoint at {last}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    provenance = {
        "command": " ".join(["python", *sys.argv]),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(folder / "provenance.json", provenance)
    return Run(folder, str(last) if cfg.resume else None)


def report(cfg: DictConfig, module: Any, data: Any, sampling: Any, history: dict[str, list[float]]) -> dict[str, Any]:
    """Measure the stage on held-out scenes, write its pictures, print its table; returns the first part of results."""
    stage, folder = cfg.stage.name, Path(cfg.run_dir)
    results: dict[str, Any] = {"stage": stage, "condition": data.condition.name, "seed": cfg.seed}
    if stage == "control":
        fidelity = control_report(module.diffusion, module.control, data.validation, sampling, data.condition, folder)
        steps = [int(step) for step in history["step"]]
        moment = convergence_step(steps, history["edge_f1_1px"]) if "edge_f1_1px" in history else None
        shown = ("edge_f1_1px", "edge_f1_2px", "shape_iou", "hint_error")
        series = {name: values for name, values in history.items() if name in shown}
        title = "fidelity to the hint, held-out items"
        curve(folder / "convergence.png", steps, series, moment, title)
        print("\n" + table(fidelity, CONTROL_ROWS))
        return {**results, "fidelity": fidelity, "convergence_step": moment}
    if stage == "diffusion":
        scores = base_report(module.diffusion, data.validation, sampling, folder)
    else:
        scores = autoencoder_report(module.autoencoder, data.validation, data.condition)
    print("\n" + "\n".join(f"{name:20} {value:8.3f}" for name, value in scores.items()))
    return {**results, "fidelity": scores}


def finish_run(run: Run, results: dict[str, Any], began: float) -> dict[str, Any]:
    """Write results.json and, last of all, DONE.json."""
    results = {**results, "wall_seconds": round(time.time() - began, 1), "commit": commit()}
    write_json(run.folder / "results.json", results)
    finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(run.folder / "DONE.json", {"steps": results["steps"], "finished": finished})
    print(f"\nrun folder: {run.folder}")
    return results
