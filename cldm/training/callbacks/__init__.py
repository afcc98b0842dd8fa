"""Callbacks of the training stages, under the names that configs/trainer uses."""

from cldm.training.callbacks.average import EMA, averaged
from cldm.training.callbacks.checkpoints import Checkpoints
from cldm.training.callbacks.export import Export
from cldm.training.callbacks.guard import Guard, save_checkpoint
from cldm.training.callbacks.hint_use import HintUse
from cldm.training.callbacks.pace import Pace
from cldm.training.callbacks.progress import Progress
from cldm.training.callbacks.requeue import Preempted, Requeue
from cldm.training.callbacks.watch import Watch

__all__ = [
    "EMA",
    "Checkpoints",
    "Export",
    "Guard",
    "HintUse",
    "Pace",
    "Preempted",
    "Progress",
    "Requeue",
    "Watch",
    "averaged",
    "save_checkpoint",
]
