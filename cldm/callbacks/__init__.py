"""Callbacks of the training stages, under the names that configs/trainer uses."""

from cldm.callbacks.average import EMA, averaged
from cldm.callbacks.checkpoints import Checkpoints
from cldm.callbacks.export import Export
from cldm.callbacks.guard import Guard, save_checkpoint
from cldm.callbacks.progress import Progress
from cldm.callbacks.watch import Watch

__all__ = ["EMA", "Checkpoints", "Export", "Guard", "Progress", "Watch", "averaged", "save_checkpoint"]
