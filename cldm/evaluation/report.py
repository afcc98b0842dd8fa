"""What a finished run says of itself: figures on held-out items, and a grid of pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cldm.branches.controlnet import Branch
from cldm.conditions import Condition
from cldm.conditions.plain import Unchanged
from cldm.evaluation.metrics import autoencoder_metrics, control_scores, diffusion_metrics
from cldm.evaluation.reconstruction import Reconstruction
from cldm.pictures import grid, save_atomically
from cldm.sampling.control import ControlUnit
from cldm.worlds import WORLDS, Known, get_world, known, world_of
from ldm.autoencoder import AutoencoderKL
from ldm.batch import Batch
from ldm.diffusion import LatentDiffusion

Sampling = Callable[..., Tensor]
CHUNK = 32  # images sampled at a time


def batches(dataset: Any, count: int) -> list[tuple[Batch, Known | None]]:
    """The first `count` held-out items in chunks, each with its truths if they are known."""
    count = min(count, len(dataset))
    ranges = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
    return [(dataset.__getitems__(r), known(dataset, r)) for r in ranges]


@dataclass(frozen=True)
class Drawn:
    """What was drawn of held-out items: pictures (n, 3, h, w) by name, hints in [0, 1], captions."""

    images: dict[str, Tensor]
    hints: Tensor
    captions: list[str]


Draw = Callable[[Batch], dict[str, Tensor]]
"""A batch -> pictures by name, on the CPU."""


def draw_items(dataset: Any, count: int, draw: Draw, what: str) -> Drawn:
    """What `draw` makes of the first `count` held-out items, in chunks."""
    found: list[dict[str, Tensor]] = []
    hints, captions = [], []
    for batch, _ in tqdm(batches(dataset, count), desc=f"sampling {what}", unit="batch"):
        found.append(draw(batch))
        hints.append(batch["hint"])
        captions += batch["caption"]
    return Drawn({name: torch.cat([one[name] for one in found]) for name in found[0]}, torch.cat(hints), captions)


@torch.no_grad()
def control_report(
    diffusion: LatentDiffusion,
    control: Branch,
    dataset: Any,
    sampling: Sampling,
    condition: Condition,
    folder: Path,
    count: int = 64,
    shown: int = 16,
) -> dict[str, dict[str, float]]:
    """Figures over `count` held-out items, {metric: {column: value}}; writes grid.png into `folder`. Columns:

    base: the locked model without control, same prompts and seeds. control: with it. no prompt: with the hint alone.
    unseen: the same for what the control stage has never shown, where the world keeps some back. ceiling: the real
    image through the autoencoder.
    """
    device = diffusion.schedule.betas.device

    def controlled(batch: Batch, prompts: Sequence[str]) -> Tensor:
        unit = ControlUnit(control, batch["hint"].to(device))
        return sampling(diffusion, prompts, batch["id"].tolist(), tuple(batch["image"].shape[-2:]), control=unit).cpu()

    def without_prompt(batch: Batch) -> Tensor:
        return controlled(batch, [""] * len(batch["caption"]))

    def draw(batch: Batch) -> dict[str, Tensor]:
        real, size = batch["image"], tuple(batch["image"].shape[-2:])
        return {
            "base": sampling(diffusion, batch["caption"], batch["id"].tolist(), size).cpu(),
            "control": controlled(batch, batch["caption"]),
            "no prompt": without_prompt(batch),
            "ceiling": diffusion.decode(diffusion.encode(real.to(device))).cpu(),
            "real": real,
        }

    drawn = draw_items(dataset, count, draw, "held-out items")
    pictures = {name: drawn.images[name][:shown] for name in ("base", "control", "no prompt", "real")}
    sheet = grid({"hint": 2.0 * drawn.hints[:shown] - 1.0, **pictures}, drawn.captions[:shown])
    save_atomically(sheet, folder / "grid.png")
    columns = {name: (drawn, dataset, name) for name in ("base", "control", "no prompt", "ceiling")}
    count = len(drawn.captions)  # of as many others, so that the figures are equally certain
    unseen = dataset.unseen(count) if world_of(dataset) else None
    if unseen is not None:
        others = draw_items(unseen, count, lambda batch: {"unseen": without_prompt(batch)}, "unseen items, no prompt")
        columns["unseen"] = (others, unseen, "unseen")
    order = [name for name in REPORT_COLUMNS if name in columns]
    scores = {}
    for name in order:
        of, source, picture = columns[name]
        truth = known(source, range(len(of.captions)))
        scores[name] = control_scores(of.images[picture], of.hints, of.captions, truth, condition)
    return {metric: {name: scores[name][metric] for name in order} for metric in scores["base"]}


REPORT_COLUMNS = ("base", "control", "no prompt", "unseen", "ceiling")


def table(fidelity: dict[str, dict[str, float]], rows: dict[str, str]) -> str:
    """A plain-text table of the chosen metrics (name -> what it is called)."""
    rows = {metric: title for metric, title in rows.items() if metric in fidelity}
    if not rows:
        return "no figure can be computed for this condition"
    columns = [*next(iter(fidelity.values()))]
    width = max(map(len, rows.values()))
    lines = [" " * width + "".join(f"{name:>10}" for name in columns)]
    for metric, title in rows.items():
        values = "".join(f"{fidelity[metric][name]:10.3f}" for name in columns)
        lines.append(f"{title:<{width}}{values}")
    if "no prompt" in columns:
        also = "; unseen: the same, of what training never showed" if "unseen" in columns else ""
        lines.append(f"no prompt: drawn from the hint alone{also}")
    return "\n".join(lines)


HINT_ROWS = {"edge_f1_1px": "edge F1, 1 px", "edge_f1_2px": "edge F1, 2 px", "hint_error": "hint error"}


def control_rows(dataset: Any) -> dict[str, str]:
    """The scores to print of a control stage, and what they are called."""
    world = world_of(dataset)
    return HINT_ROWS | ({name: world.titles[name] for name in world.headlines} if world else {})


def base_report(
    diffusion: LatentDiffusion, dataset: Any, sampling: Sampling, folder: Path, count: int = 512
) -> dict[str, Any]:
    """Whether samples of the base show `count` held-out captions; writes grid.png into `folder`."""
    samples, captions = [], []
    for batch, _ in tqdm(batches(dataset, count), desc="sampling held-out captions", unit="batch"):
        size = tuple(batch["image"].shape[-2:])
        samples.append(sampling(diffusion, batch["caption"], batch["id"].tolist(), size).cpu())
        captions += batch["caption"]
    images = torch.cat(samples)
    save_atomically(grid({"sample": images[:24]}, captions[:24], pairs=6), folder / "grid.png")
    truth = known(dataset, range(len(captions)))
    return diffusion_metrics({"sample": images}, Batch(caption=captions), truth, Unchanged())


@torch.no_grad()
def autoencoder_report(
    autoencoder: AutoencoderKL, dataset: Any, condition: Condition, distances: Reconstruction
) -> dict[str, float]:
    """PSNR in dB and edge scores of the reconstructions of every held-out item, and their distances as a set."""
    found, pairs = [], []
    for batch, truth in batches(dataset, len(dataset)):
        x = batch["image"]
        y = autoencoder.decode(autoencoder.encode(x.to(autoencoder.scale.device))).clamp(-1.0, 1.0).cpu()
        scores = autoencoder_metrics({"image": x, "reconstruction": y}, batch, truth, condition)
        found.append((len(x), scores))
        pairs.append((x, y))
    total = sum(count for count, _ in found)
    means = {name: sum(count * s[name] for count, s in found) / total for name in found[0][1]}
    real, made = map(torch.cat, zip(*pairs, strict=True))
    return means | distances(real, made, truth.judge if truth else None)


RESULT_ROWS = HINT_ROWS | {
    "hint_color": "hint colour distance",
    "hint_miou": "hint mIoU",
    "hint_angle": "hint angle, degrees",
    "hint_rmse": "hint RMSE",
    "clip_caption": "CLIP score, caption",
    "fid": "FID",
    "kid": "KID",
    "nearest_training": "nearest training image",
}


def results_table(results: dict[str, Any]) -> str:
    """The protocol, and a plain-text table of the chosen scores by prompt setting, of results.json."""
    p = results["protocol"]
    head = (
        f"protocol {p['name']} {results['protocol_hash']}: {p['items']} items x noise seeds {p['noise_seeds']}, "
        f"{p['sampler']['sampler']['_target_'].rsplit('.', 1)[-1]} {p['steps']} steps, guidance {p['guidance']}, "
        f"scale {p['scale']}, {p['precision']}"
    )
    columns = [*results["metrics"]]
    known = RESULT_ROWS | (get_world(p["world"]).titles if p.get("world") in WORLDS else {})
    titles = known | {
        f"{branch['condition']}_{name}": f"{branch['condition']}: {title}"
        for branch in p.get("more", ())
        for name, title in known.items()
    }
    rows = [name for name in titles if any(name in results["metrics"][setting] for setting in columns)]
    if not rows:
        return f"{head}\nno score can be computed for this condition"
    width = max(len(titles[name]) for name in rows)

    def cell(values: dict[str, Any], name: str) -> str:
        value = values.get(name)
        return f"{'-' if value is None else f'{value:.3f}':>13}"

    lines = [head, " " * width + "".join(f"{name:>13}" for name in (*columns, "base", "ceiling", "real"))]
    base = results.get("base", {}).get(columns[-1], {})
    for name in rows:
        cells = [results["metrics"][setting] for setting in columns] + [base, results["ceiling"], results["real"]]
        lines.append(f"{titles[name]:<{width}}" + "".join(cell(values, name) for values in cells))
    of_base = f"base: without control, prompts {columns[-1]}; " if base else ""
    lines.append(f"{of_base}ceiling: real images through the autoencoder")
    return "\n".join(lines)
