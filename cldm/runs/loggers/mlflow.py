"""MLflow: runs in an SQLite file, or on the server that MLFLOW_TRACKING_URI names.

`mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows them.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger

from cldm.runs.listing import flat
from ldm.files import write_text

ID_FILE = "mlflow_id"
LONGEST = 250  # characters of a parameter's value


class RunLogger(MLFlowLogger):
    """MLFlowLogger whose runs may be resumed, and that takes pictures."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """What the run is. MLflow never changes a parameter: what a resumed run has changed is a tag, changed.NAME."""
        told = vars(params) if isinstance(params, Namespace) else params
        known = self.experiment.get_run(self.run_id).data.params
        now = {name: str(value)[:LONGEST] for name, value in flat(dict(told)).items()}
        for name, value in now.items():
            if known.get(name, value) != value:
                self.experiment.set_tag(self.run_id, f"changed.{name}", value)
        super().log_hyperparams({name: value for name, value in now.items() if name not in known})

    def log_pictures(self, pictures: Mapping[str, tuple[Image.Image, str]], step: int) -> None:
        """Pictures at an optimizer step; MLflow has no place for their captions."""
        for name, (picture, _) in pictures.items():
            self.experiment.log_image(self.run_id, picture.convert("RGB"), key=name, step=step, synchronous=True)


def mlflow_logger(run_dir: str, folder: str, experiment: str = "controlnet", **options: Any) -> RunLogger:
    """MLflow's database is <folder>/mlflow.db, pictures lie in <folder>/mlflow; MLFLOW_TRACKING_URI decides, if set.

    The run's id is kept in the run folder, so that a resumed run goes on as the same one. options: see MLFlowLogger.
    """
    place, server = Path(folder).resolve(), os.environ.get("MLFLOW_TRACKING_URI")
    place.mkdir(parents=True, exist_ok=True)
    id_file = Path(run_dir) / ID_FILE
    try:
        logger = RunLogger(
            experiment_name=experiment,
            run_name="/".join(Path(run_dir).parts[-2:]),
            tracking_uri=server or f"sqlite:///{place / 'mlflow.db'}",
            artifact_location=None if server else (place / "mlflow").as_uri(),
            run_id=id_file.read_text().strip() if id_file.exists() else None,
            **options,
        )
    except ModuleNotFoundError as error:
        raise ImportError(f"logger=mlflow needs mlflow (pip install -e '.[mlflow]'): {error}") from None
    write_text(id_file, str(logger.run_id))
    return logger
