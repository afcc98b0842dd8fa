"""TensorBoard: figures and pictures in the run folder. `tensorboard --logdir runs` shows them."""

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger

from cldm.runs.folder import step_saved


def tensorboard_logger(save_dir: str, **options: Any) -> TensorBoardLogger:
    """The run's files in <save_dir>/tensorboard. options: see TensorBoardLogger.

    What an earlier attempt logged after the checkpoint from which this one goes on is hidden: it is logged again.
    """
    last = Path(save_dir) / "checkpoints" / "last.ckpt"
    first = (step_saved(last) or 0) + 1 if last.is_file() else 0
    return TensorBoardLogger(save_dir, name="tensorboard", version="", purge_step=first, **options)
