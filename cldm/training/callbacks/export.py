"""Files ready to sample with, beside every checkpoint."""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from cldm.runs.checkout import commit
from cldm.runs.folder import BASE_FILE
from cldm.training.callbacks.average import averaged
from ldm.sharding import is_sharded
from ldm.training.diffusion import base_facts
from ldm.weights import save_weights


class Export(Callback):
    """Beside every checkpoint: the stage's averaged weights as <stage>.safetensors, ready to sample with.

    A control stage that trains its base too writes that as well, first (base.safetensors).

    metadata: what the file says of itself, such as {"stage": "control", "condition": "canny"}; the module's
        `outcome.metadata` is added, and None there leaves out.
    dtype: "float32", or "float16" for a file of half the size.
    """

    def __init__(self, folder: str, metadata: dict[str, str], dtype: str = "float32"):
        if dtype not in ("float32", "float16", "bfloat16"):
            raise ValueError(f"export dtype must be float32, float16 or bfloat16, got {dtype!r}")
        self.folder, self.metadata, self.dtype = Path(folder), metadata, getattr(torch, dtype)

    def write(self, trainer: pl.Trainer, module: Any) -> None:
        """Write the file; all processes take part where weights are shared out."""
        if not (trainer.is_global_zero or is_sharded(module)):
            return
        told = {**self.metadata, **module.outcome.metadata}
        metadata = {
            **{name: str(value) for name, value in told.items() if value is not None},
            "steps": str(trainer.global_step),
            "commit": commit(),
            "command": " ".join(["python", *sys.argv]),
        }
        with averaged(module), module.exporting():
            if (base := module.trained_base()) is not None:
                save_weights(base, self.folder / BASE_FILE, {**metadata, **base_facts(base)}, self.dtype)
            path = self.folder / f"{self.metadata['stage']}.safetensors"
            save_weights(module.trained(), path, {**metadata, **module.facts(self.dtype)}, self.dtype)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.write(trainer, pl_module)
