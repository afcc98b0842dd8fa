"""What a finished run says of itself: figures on held-out items, pictures, a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cldm.evaluation.report import autoencoder_report, base_report, control_report, control_rows, table
from cldm.pictures import Panel, plot
from cldm.runs import metrics
from cldm.tables.convergence import Moment, moment
from ldm.training.outcome import History
from ldm.weights import read_metadata


def ancestry(*sources: str | Path | None) -> list[dict[str, Any]]:
    """What the files of ours that a run starts from say of themselves, oldest first, each after its own ancestors."""
    found: list[dict[str, Any]] = []
    for source in sources:
        if source is None or Path(source).suffix != ".safetensors":
            continue
        told = read_metadata(source)
        own = {name: told[name] for name in ("stage", "command", "commit", "steps", "metrics") if name in told}
        lineage = [*json.loads(told.get("ancestors", "[]")), *([own] if "command" in own else [])]
        found += [ancestor for ancestor in lineage if ancestor not in found]
    return found


def report(cfg: DictConfig, module: Any, data: Any, sampling: Any, distances: Any) -> dict[str, Any]:
    """Measure the stage on held-out items, write its pictures, print its table; returns the first part of results.

    distances: a Reconstruction, of stage=autoencoder.
    """
    stage, folder = cfg.stage.name, Path(cfg.run_dir)
    history, hint_use = module.outcome.looks, module.outcome.hint_use
    results: dict[str, Any] = {"stage": stage, "condition": data.condition.name, "seed": cfg.seed}
    if stage == "control":
        items = cfg.stage.report_items
        drawn = (module.diffusion, module.control, data.validation, sampling, data.condition, folder, items)
        fidelity = control_report(*drawn) if items else {}
        found = moment(curves(history) | curves(hint_use))
        convergence_plot(folder, history, hint_use, found)
        if found:
            print(f"\n{found}")
        if fidelity:
            print("\n" + table(fidelity, control_rows(data.validation)))
        convergence = {"convergence_step": found and found.step, "convergence": found and asdict(found)}
        return {**results, "fidelity": fidelity, **convergence, "looks": history}
    if stage == "diffusion":
        losses = {name: values[-1] for name, values in history.items() if name.startswith("loss") and values}
        scores = base_report(module.diffusion, data.validation, sampling, folder) | losses
    else:
        scores = autoencoder_report(module.autoencoder, data.validation, data.condition, distances)
    print("\n" + "\n".join(f"{name:20} {value:8.3f}" for name, value in scores.items()))
    return {**results, "fidelity": scores}


Curves = dict[str, tuple[Sequence[int], Sequence[float]]]
"""(steps, values) by name."""


def curves(history: History) -> Curves:
    """A history as curves."""
    steps = [int(step) for step in history.get("step", ())]
    return {name: (steps, values) for name, values in history.items() if name != "step"}


def convergence_plot(folder: Path, history: History, hint_use: History, found: Moment | None) -> None:
    """convergence.png: fidelity on held-out items beside the losses, which do not show the moment."""
    watched = curves(history)
    shown = ("edge_f1_1px", "edge_f1_2px", "shape_iou", "circle_iou", "concept", "hint_error")
    fidelity = {name: watched[name] for name in shown if name in watched} | curves(hint_use)
    trained = metrics.curves(folder, ["train/loss"]).get("train/loss")
    losses: Curves = {"training": (trained.steps, trained.values)} if trained else {}
    losses |= {f"held out, t {name[5:]}": curve for name, curve in watched.items() if name.startswith("loss_")}
    panels = [Panel("fidelity to the hint, held-out items", fidelity), Panel("denoising loss", losses, log=True)]
    plot(folder / "convergence.png", panels, (found.step, str(found)) if found and found.step is not None else None)
