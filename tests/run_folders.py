"""Run folders as training and evaluation leave them, made without a network: for what reads and compares runs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageDraw
from torch import Tensor

from cldm.pictures import grid, save_atomically, to_pil

COMMIT = "0123456789abcdef0123456789abcdef01234567"
COLORS = {"red": (200, 60, 50), "teal": (40, 150, 150), "gold": (215, 170, 60), "plum": (140, 70, 140)}
PROTOCOL = {"name": "scenes", "items": 6, "noise_seeds": [0], "steps": 10, "guidance": 3.0, "scale": 1.0,
            "world": "none", "sampler": {"sampler": {"_target_": "ldm.samplers.ddim"}}}  # fmt: skip


def scene(item: int, size: int = 64) -> tuple[Tensor, Tensor, str]:
    """(hint, image, caption) of an item: a shape on a ground; images (3, h, w) in [-1, 1]."""
    rng = np.random.default_rng(item)
    name, kind = list(COLORS)[item % 4], ("circle", "square")[item // 2 % 2]
    x, y, r = (int(rng.integers(*bounds)) for bounds in ((20, 44), (20, 44), (10, 18)))
    pictures = []
    for ground, fill, outline in ((0, (0, 0, 0), (255, 255, 255)), (235, COLORS[name], COLORS[name])):
        picture = Image.new("RGB", (64, 64), (ground,) * 3)
        draw = getattr(ImageDraw.Draw(picture), {"circle": "ellipse", "square": "rectangle"}[kind])
        draw((x - r, y - r, x + r, y + r), fill=fill, outline=outline)
        pictures.append(torch.from_numpy(np.array(picture.resize((size, size)))).permute(2, 0, 1) / 127.5 - 1)
    return pictures[0], pictures[1], f"a {name} {kind} on a light ground"


def drawn(item: int, quality: float, seed: int) -> Tensor:
    """An image of an item: right at quality 1, noise over another item's at 0."""
    rng = torch.Generator().manual_seed(1000 * seed + item)
    wrong = scene(item + 3)[1] + 0.5 * torch.randn(3, 64, 64, generator=rng)
    return (quality * scene(item)[1] + (1 - quality) * wrong).clamp(-1, 1)


def quality_at(step: int, jump: int, level: float) -> float:
    """How well a run that converges at `jump` obeys by a step."""
    return 0.1 + (level - 0.1) / (1 + float(np.exp((jump - step) / 12)))


def run_folder(
    folder: Path,
    seed: int = 0,
    *,
    steps: int = 200,
    jump: int = 90,
    level: float = 0.9,
    every: int = 20,
    pictures: bool = True,
    axes: bool = True,
    config: dict[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> Path:
    """The folder of a finished run. axes: whether it logged samples and seconds."""
    folder.mkdir(parents=True)
    told = {"name": "control-canny", "seed": seed, "steps": steps, "size": 64, "run_dir": str(folder), "batch_size": 8,
            "optimizer": {"lr": 1e-3}, "data": {"order": seed}, "stage": {"name": "control", "module": {"seed": seed}},
            "trainer": {"default_root_dir": str(folder), "max_steps": steps}, **(config or {})}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(told))
    (folder / "overrides.yaml").write_text(yaml.safe_dump([*overrides, f"seed={seed}"]))
    start = {"event": "start", "commit": COMMIT, "when": "2026-11-25T08:00:00+0000"}
    (folder / "attempts.jsonl").write_text(json.dumps(start) + "\n")
    looks = [*range(0, steps + 1, every)]
    quality = {step: quality_at(step, jump, level) for step in range(0, steps + 1, 10)}
    metrics(folder / "metrics.csv", quality, looks, seed, axes)
    if pictures:
        previews(folder / "previews", {step: quality[step] for step in looks}, seed)
    fidelity = {"edge_f1_1px": {"base": 0.1, "control": quality[steps], "ceiling": 0.97}}
    results = {"stage": "control", "steps": steps, "train_seconds": 0.4 * steps, "fidelity": fidelity, "seed": seed}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "DONE.json").write_text("{}")
    return folder


def ended(run: Path, step: int, reason: str | None = None) -> Path:
    """A finished run's folder as if it had come no further than `step`: failed for a reason, or cut off."""
    for name in ("DONE.json", "results.json"):
        (run / name).unlink()
    if reason is not None:
        (run / "FAILED.json").write_text(json.dumps({"reason": reason}))
    head, *rows = (run / "metrics.csv").read_text().splitlines()
    kept = [row for row in rows if int(row.split(",")[head.split(",").index("step")]) <= step]
    (run / "metrics.csv").write_text("\n".join([head, *kept]) + "\n")
    return run


def metrics(path: Path, quality: dict[int, float], looks: Sequence[int], seed: int, axes: bool) -> None:
    """metrics.csv as Lightning's logger writes it: a row for each time that something was logged."""
    names = ["hint_use", *(["samples_seen", "train_seconds"] if axes else []), "step", "train/loss", "val/loss",
             "watch/edge_f1_1px"]  # fmt: skip
    rng, lines = np.random.default_rng(seed), [",".join(names)]
    for step, value in quality.items():
        row = {"step": step, "samples_seen": 8 * step, "train_seconds": (0.4 + 0.02 * seed) * step}
        row |= {"hint_use": 0.3 * value - 0.03, "train/loss": 0.3 - 0.1 * value + 0.02 * rng.random()}
        if step in looks:
            row |= {"val/loss": 0.28 - 0.1 * value, "watch/edge_f1_1px": value + 0.02 * rng.standard_normal()}
        lines.append(",".join(str(row.get(name, "")) for name in names))
    path.write_text("\n".join(lines) + "\n")


def previews(folder: Path, quality: dict[int, float], seed: int, count: int = 4) -> None:
    """Sheets of the same items, and the manifest that says what is on them."""
    items = [scene(item) for item in range(count)]
    captions = [caption for _, _, caption in items]
    fixed = {
        "hint": torch.stack([hint for hint, _, _ in items]),
        "target": torch.stack([image for _, image, _ in items]),
    }
    lines = []
    for step, value in quality.items():
        columns = {**fixed, "controlled": torch.stack([drawn(item, value, seed) for item in range(count)])}
        name = f"step_{step:07d}.png"
        save_atomically(grid(columns, captions), folder / name)
        lines.append({"file": name, "step": step, "columns": [*columns], "ids": [*range(count)], "captions": captions})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluation(
    run: Path,
    quality: float,
    settings: Sequence[str] = ("none", "perfect"),
    name: str = "scenes",
    hash_: str = "aaaa",
    items: int = 6,
) -> Path:
    """An evaluation in a run folder, as evaluate.py leaves it."""
    told = yaml.safe_load((run / "config.yaml").read_text())
    folder, seed = run / "evaluation" / name, int(told["seed"])
    rng, lines, columns = np.random.default_rng(seed), [], {"item": [], "setting": [], "noise": [], "edge_f1_1px": [],
                                                            "hint_error": []}  # fmt: skip
    for setting in settings:
        for item in range(items):
            own = float(np.clip(quality - 0.1 * (setting == "none") + 0.15 * rng.standard_normal(), 0, 1))
            hint, real, caption = scene(item)
            files = {"hint": (f"items/{item:05d}_hint.png", hint), "real": (f"items/{item:05d}_real.png", real),
                     "image": (f"images/{setting}/item_{item:05d}_noise_0.png", drawn(item, own, seed)),
                     "hint_of_image": (f"hints/{setting}/item_{item:05d}_noise_0.png", own * hint)}  # fmt: skip
            for file, picture in files.values():
                save_atomically(to_pil(picture), folder / file)
            lines.append({"item": item, "setting": setting, "noise": 0, "seed": item, "caption": caption,
                          "prompt": caption if setting == "perfect" else "",
                          **{key: file for key, (file, _) in files.items()}})  # fmt: skip
            row = {"item": item, "setting": setting, "noise": 0, "edge_f1_1px": own, "hint_error": 0.3 * (1 - own)}
            for key, value in row.items():
                columns[key].append(value)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arrays = {key: np.array(values) for key, values in columns.items()}
    np.savez_compressed(folder / "per_sample.npz", **arrays)
    scores = ("edge_f1_1px", "hint_error")
    means = {s: {score: float(arrays[score][arrays["setting"] == s].mean()) for score in scores} for s in settings}
    bounds = {"edge_f1_1px": 0.97, "hint_error": 0.01}
    results = {"checkpoint": str(run / "control.safetensors"), "checkpoint_sha256": "c", "base_sha256": "b", "more": [],
               "protocol": PROTOCOL | {"items": items, "prompts": [*settings]}, "protocol_hash": hash_,
               "steps": told["steps"], "evaluated_at_commit": COMMIT, "metrics": means, "ceiling": bounds,
               "real": bounds, "base": {s: {"edge_f1_1px": 0.12, "hint_error": 0.3} for s in settings}}  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def compared(place: Path) -> Path:
    """Two methods with two seeds each, evaluated alike."""
    for method, jump, level in (("controlnet", 90, 0.9), ("lite", 140, 0.75)):
        for seed in (0, 1):
            run = run_folder(
                place / f"control-{method}" / f"seed-{seed}", seed, jump=jump + 10 * seed, level=level - 0.02 * seed,
                config={"control": {"_target_": f"cldm.branches.{method}"}}, overrides=[f"control={method}"],
            )  # fmt: skip
            evaluation(run, level - 0.02 * seed)
    return place
