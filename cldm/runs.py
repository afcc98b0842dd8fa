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
from ldm.weights import save_weights


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


def finish_run(
    run: Run,
    cfg: DictConfig,
    module: Any,
    data: Any,
    sampling: Any,
    history: dict[str, list[float]],
    steps: int,
    began: float,
) -> dict[str, Any]:
    """Measure on held-out scenes, write weights, results.json and, last of all, DONE.json; print a summary."""
    stage, folder = cfg.stage.name, run.folder
    results: dict[str, Any] = {"stage": stage, "condition": data.condition.name, "steps": steps, "seed": cfg.seed}
    if stage == "control":
        results["fidelity"] = control_report(
            module.diffusion, module.control, data.validation, sampling, data.condition, folder
        )
        results["convergence_step"] = convergence_step(history["step"], history["edge_f1_1px"])
        series = {name: history[name] for name in ("edge_f1_1px", "edge_f1_2px", "shape_iou")}
        mark = results["convergence_step"]
        curve(folder / "convergence.png", history["step"], series, mark, "fidelity to the hint, held-out scenes")
        print("\n" + table(results["fidelity"], CONTROL_ROWS))
    elif stage == "diffusion":
        results["fidelity"] = base_report(module.diffusion, data.validation, sampling, folder)
    else:
        results["fidelity"] = autoencoder_report(module.autoencoder, data.validation, data.condition)
    if stage != "control":
        print("\n" + "\n".join(f"{name:20} {value:8.3f}" for name, value in results["fidelity"].items()))
    results |= {"wall_seconds": round(time.time() - began, 1), "commit": commit()}
    metadata = {name: str(results[name]) for name in ("stage", "condition", "steps", "seed", "commit")}
    metadata |= {"command": " ".join(["python", *sys.argv])}
    save_weights(module.trained(), folder / f"{stage}.safetensors", metadata)
    write_json(folder / "results.json", results)
    write_json(folder / "DONE.json", {"steps": steps, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    print(f"\nrun folder: {folder}")
    return results
