"""What loggers are told of a run. The run folder is the record; loggers are copies of it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from cldm.branches.controlnet import Branch
from cldm.data.decoding import read_photo
from cldm.pictures import to_pil
from cldm.runs.loggers.wandb import RunLogger
from ldm.diffusion import LatentDiffusion


class RunCSV(CSVLogger):
    """metrics.csv in the run folder; an earlier attempt's file is kept as metrics.1.csv, metrics.2.csv, ...

    Files change with the first row: an attempt that is refused before leaves them alone.
    """

    began = False

    @property
    def experiment(self) -> Any:
        """What writes the rows, once there is one: Lightning's own removes the file that it finds."""
        return super().experiment if self.began else None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """A row."""
        path = Path(self.save_dir) / "metrics.csv"
        if not self.began and path.exists():
            attempt = 1 + len(list(path.parent.glob("metrics.*.csv")))
            path.rename(path.with_name(f"metrics.{attempt}.csv"))
        self.began = True
        super().log_metrics(metrics, step)

    def save(self) -> None:
        """Write the rows."""
        if self.began:
            super().save()


def csv_logger(save_dir: str) -> CSVLogger:
    """The run's metrics.csv."""
    return RunCSV(save_dir, name="", version="")


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


LOOK = 20
"""Pictures that a logger gets at one look, at most: more are a strip that nobody can search."""


def describe_run(loggers: Iterable[Logger], facts: dict[str, Any]) -> None:
    """Hand what a run is to the loggers that can filter and compare by it; the run folder has it in config.yaml."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(facts)


def fixed_items(columns: Mapping[str, Tensor], first: bool) -> dict[str, Tensor]:
    """Pictures (3, h, w) of a look by the keys that a panel lays out: val/000/sample, and at the first look what the
    sample was made from, val/000/hint (of an autoencoder val/000/image).

    columns: images (n, 3, h, w) by name, see Stage.pictures.
    """
    made = next(name for name in ("controlled", "sample", "reconstruction") if name in columns)
    given = [name for name in ("hint", "image") if name in columns][:1]
    names = {made: "sample"} | ({name: name for name in given} if first else {})
    count = min(len(columns[made]), LOOK // (1 + len(given)))
    return {f"val/{i:03}/{key}": columns[name][i] for i in range(count) for name, key in names.items()}


def log_look(
    logger: Logger, sheet: Image.Image, columns: Mapping[str, Tensor], captions: Sequence[str], step: int, first: bool
) -> None:
    """Hand the pictures of a look to a logger that takes pictures: one key for each item, or a sheet to TensorBoard.

    columns: images (n, 3, h, w) in [-1, 1] by name, of which `sheet` is the picture. first: see `fixed_items`.
    """
    if isinstance(logger, TensorBoardLogger):
        log_pictures(logger, {"preview": (sheet, "")}, step)
        return
    items = fixed_items(columns, first)
    told = {name: captions[int(name.split("/")[1])] for name in items}
    log_pictures(logger, {name: (to_pil(image), told[name]) for name, image in items.items()}, step)


def log_pictures(logger: Logger, pictures: Mapping[str, tuple[Image.Image, str]], step: int) -> None:
    """Hand pictures, by name with a caption, to a logger that takes pictures; the run folder holds them as files."""
    if isinstance(logger, TensorBoardLogger):
        for name, (picture, _) in pictures.items():
            logger.experiment.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")
    elif hasattr(logger, "log_pictures"):
        logger.log_pictures(
            {name: (p, f"step {step}: {told}".rstrip(": ")) for name, (p, told) in pictures.items()}, step
        )


def log_outcome(loggers: Iterable[Logger], folder: Path, results: Mapping[str, Any]) -> None:
    """Hand what results.json and the pictures of a finished run say to the loggers: result/*, convergence, grid; and
    its weights to those that were asked to keep them."""
    step, numbers = results["steps"], {"convergence_step": results.get("convergence_step")}
    for metric, value in results["fidelity"].items():
        numbers[metric] = value["control"] if isinstance(value, dict) else value
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            continue
        logger.log_metrics({f"result/{name}": value for name, value in numbers.items() if value is not None}, step)
        paths = {name: folder / f"{name}.png" for name in ("convergence", "grid")}
        shown = {name: (Image.fromarray(read_photo(path)), "") for name, path in paths.items() if path.exists()}
        log_pictures(logger, shown, step)
        if isinstance(logger, RunLogger):
            logger.log_weights(folder, results)
        logger.finalize("success")
