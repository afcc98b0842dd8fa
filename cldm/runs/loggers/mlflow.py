"""MLflow: runs in an SQLite file, or on the server that MLFLOW_TRACKING_URI names.

`mlflow ui --backend-store-uri sqlite:///runs/mlflow.db` shows them.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger

from cldm.runs.listing import flat
from cldm.runs.naming import shown_name
from ldm.files import write_text

ID_FILE = "mlflow_id"
LONGEST = 250  # characters of a parameter's value


class RunLogger(MLFlowLogger):
    """MLFlowLogger whose runs may be resumed, and that takes pictures."""

    @cached_property
    def logged(self) -> set[tuple[str, int, float]]:
        """The figures that earlier attempts logged, by name and step: MLflow would keep two of a step."""
        client, run = self.experiment, self.run_id
        return {
            (name, one.step, one.value)
            for name in client.get_run(run).data.metrics
            for one in client.get_metric_history(run, name)
        }

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Figures at an optimizer step; what a run does again alike after a kill is not logged again."""
        new = {name: value for name, value in metrics.items() if (name, step, float(value)) not in self.logged}
        super().log_metrics(new, step)

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


def known_run(id_file: Path, uri: str) -> str | None:
    """The id in the file, if MLflow still has its run."""
    if not id_file.is_file():
        return None
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    name = id_file.read_text().strip()
    try:
        if MlflowClient(uri).get_run(name).info.lifecycle_stage == "active":
            return name
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    print(f"note: MLflow has no run {name} any more (at {uri}): this attempt is logged as a new one")
    return None


def mlflow_logger(run_dir: str, folder: str, experiment: str = "controlnet", **options: Any) -> RunLogger:
    """MLflow's database is <folder>/mlflow.db, pictures lie in <folder>/mlflow; MLFLOW_TRACKING_URI decides, if set.

    The run's id is kept in the run folder, so that a resumed run goes on as the same one; one that was deleted there is
    begun anew. options: see MLFlowLogger.
    """
    place, server = Path(folder).resolve(), os.environ.get("MLFLOW_TRACKING_URI")
    place.mkdir(parents=True, exist_ok=True)
    id_file, uri = Path(run_dir) / ID_FILE, server or f"sqlite:///{place / 'mlflow.db'}"
    try:
        logger = RunLogger(
            experiment_name=experiment,
            run_name=shown_name(run_dir),
            tracking_uri=uri,
            artifact_location=None if server else (place / "mlflow").as_uri(),
            run_id=known_run(id_file, uri),
            **options,
        )
    except ModuleNotFoundError as error:
        raise ImportError(f"logger=mlflow needs mlflow (pip install -e '.[mlflow]'): {error}") from None
    write_text(id_file, str(logger.run_id))
    return logger
