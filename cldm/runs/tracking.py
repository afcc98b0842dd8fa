"""Loggers and the identity of a run. The run folder is the record; loggers are copies of it."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from cldm.branches.controlnet import Branch
from cldm.data.decoding import read_photo
from cldm.pictures import to_pil
from ldm.diffusion import LatentDiffusion
from ldm.files import write_text


def has_wandb_key() -> bool:
    """Whether W&B could log in without asking: a key in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, NetrcParseError):
        return False


def wandb_logger(save_dir: str, **options: Any) -> WandbLogger:
    """W&B, offline unless a key is set (WANDB_MODE, if set, decides): never a prompt. options: see WandbLogger.

    The run's id is kept in the run folder, so that a resumed run goes on as the same W&B run.
    """
    mode = os.environ.get("WANDB_MODE")
    offline = mode != "online" if mode else not has_wandb_key()
    os.environ.setdefault("WANDB_SILENT", "true")
    id_file = Path(save_dir) / "wandb_id"
    run_id = id_file.read_text().strip() if id_file.exists() else os.urandom(6).hex()
    write_text(id_file, run_id)
    return WandbLogger(save_dir=save_dir, id=run_id, resume="allow", offline=offline, **options)


@contextmanager
def wandb_run() -> Iterator[None]:
    """Ends the W&B run that starts within the context, as failed if it does: the next job of a sweep gets its own."""
    failed = 1
    try:
        yield
        failed = 0
    finally:
        wandb = sys.modules.get("wandb")  # loaded only by its logger
        if wandb is not None and wandb.run is not None:
            wandb.finish(exit_code=failed)


def csv_logger(save_dir: str) -> CSVLogger:
    """metrics.csv in the run folder; an earlier attempt's file is kept as metrics.1.csv, metrics.2.csv, ..."""
    path = Path(save_dir) / "metrics.csv"
    if path.exists():
        attempt = 1 + len(list(path.parent.glob("metrics.*.csv")))
        path.rename(path.with_name(f"metrics.{attempt}.csv"))
    return CSVLogger(save_dir, name="", version="")


def parts(module: nn.Module) -> dict[str, dict[str, Any]]:
    """Parameters, how many of them train, type and mode of each part of a training stage."""
    children = dict(module.named_children())
    children |= dict(children.pop("diffusion").named_children()) if "diffusion" in children else {}
    return {
        name: {
            "parameters": sum(p.numel() for p in part.parameters()),
            "trainable": sum(p.numel() for p in part.parameters() if p.requires_grad),
            "dtype": "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in part.parameters()})),
            "mode": "/".join(sorted({"train" if module.training else "eval" for module in part.modules()})),
        }
        for name, part in children.items()
        if any(True for _ in part.parameters())
    }


def parts_table(found: dict[str, dict[str, Any]]) -> str:
    """`parts` as lines to print; with GFLOP per image where known."""
    lines = [f"{'part':16}{'parameters':>14}{'trainable':>14}{'GFLOP':>9}  {'dtype':10}mode"]
    for name, facts in found.items():
        gflop = f"{facts['gflop']:.3f}" if "gflop" in facts else ""
        counts = f"{facts['parameters']:14,}{facts['trainable']:14,}{gflop:>9}"
        lines.append(f"{name:16}{counts}  {facts['dtype']:10}{facts['mode']}")
    return "\n".join(lines)


def flops(network: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Floating-point operations of one forward on float inputs of these shapes: 2 per multiply-add, of convolutions
    and matrix products alone. Nothing is computed: weights and inputs are without data."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    state = {name: t.to("meta", torch.float32 if t.is_floating_point() else t.dtype) for name, t in tensors}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(network, state, tuple(torch.empty(shape, device="meta") for shape in shapes))
    return counter.get_total_flops()


def control_cost(diffusion: LatentDiffusion, control: Branch, size: tuple[int, int]) -> dict[str, float]:
    """GFLOP of one forward of U-Net and branch for one image of `size`, hint encoder included."""
    latent, text = diffusion.latent_shape(*size), diffusion.conditioner.text_encoder
    inputs = ((1, *latent), (1,), (1, text.context_length, text.width))
    return {
        "unet": flops(diffusion.unet, *inputs) / 1e9,
        "control": flops(control, *inputs, (1, control.hint_channels, *size)) / 1e9,
    }


def describe_run(loggers: Iterable[Logger], facts: dict[str, Any]) -> None:
    """Hand what a run is to the loggers that can filter and compare by it; the run folder has it in config.yaml."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(facts)


def log_grid(
    logger: Logger, name: str, sheet: Image.Image, columns: Mapping[str, Tensor], captions: Sequence[str], step: int
) -> None:
    """Hand a grid to a logger that takes pictures: to W&B row by row under their captions, to TensorBoard as a sheet.

    columns: images (n, 3, h, w) in [-1, 1] by name, of which `sheet` is the picture.
    """
    if isinstance(logger, WandbLogger):
        rows = [torch.cat([images[i] for images in columns.values()], dim=2) for i in range(len(captions))]
        told = [f"step {step}: {caption} ({', '.join(columns)})" for caption in captions]
        logger.log_image(name, [to_pil(row) for row in rows], step=step, caption=told)
    else:
        log_picture(logger, name, sheet, step)


def log_picture(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Hand a picture to a logger that takes pictures; the run folder holds it as a file either way."""
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step=step, caption=[f"step {step}"])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")


def log_outcome(loggers: Iterable[Logger], folder: Path, results: Mapping[str, Any]) -> None:
    """Hand what results.json and the pictures of a finished run say to the loggers: result/*, convergence, grid."""
    step, numbers = results["steps"], {"convergence_step": results.get("convergence_step")}
    for metric, value in results["fidelity"].items():
        numbers[metric] = value["control"] if isinstance(value, dict) else value
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue
        logger.log_metrics({f"result/{name}": value for name, value in numbers.items() if value is not None}, step)
        for name in ("convergence", "grid"):
            if (path := folder / f"{name}.png").exists():
                log_picture(logger, name, Image.fromarray(read_photo(path)), step)
