"""Trackio: figures and pictures in a local database, with a dashboard that needs no account.

`TRACKIO_DIR=runs/trackio trackio show` opens it.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import Logger

from cldm.runs.naming import shown_name
from ldm.files import write_text

ID_FILE = "trackio_id"


class TrackioLogger(Logger):
    """Logs to the project's database in `folder`, TRACKIO_DIR if that is set. A resumed run goes on under its name.

    run_dir: the run folder; the run's name is `shown_name` and an id of its own, which is kept in the folder.
    """

    def __init__(self, run_dir: str, folder: str, project: str = "controlnet", group: str | None = None):
        super().__init__()
        os.environ.setdefault("TRACKIO_DIR", str(Path(folder).resolve()))  # read when trackio is first imported
        try:
            import trackio
        except ImportError as error:
            raise ImportError(f"logger=trackio needs trackio (pip install -e '.[trackio]'): {error}") from None
        self.trackio: Any = trackio
        self.project, self.group, self.run_name = project, group, _name(Path(run_dir))
        self._run: Any = None
        self._config: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return self.project

    @property
    def version(self) -> str:
        return self.run_name

    @property
    def experiment(self) -> Any:
        """The run, open; begun anew or gone on with."""
        if self._run is None:
            options = {"name": self.run_name, "group": self.group, "config": self._config, "resume": "allow"}
            self._run = self.trackio.init(project=self.project, embed=False, auto_log_cpu=False, **options)
        return self._run

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """What the run is. Called before anything else is logged."""
        self._config = vars(params) if isinstance(params, Namespace) else dict(params)

    @cached_property
    def logged(self) -> set[tuple[str, int, float]]:
        """The figures that earlier attempts logged, by name and step: Trackio would keep two of a step."""
        from trackio.sqlite_storage import SQLiteStorage  # trackio itself has no way to read a run

        rows = SQLiteStorage.get_logs(self.project, self.run_name)
        return {(name, row["step"], value) for row in rows for name, value in row.items() if isinstance(value, float)}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Figures at an optimizer step; what a run does again alike after a kill is not logged again."""
        told = {name: float(value) for name, value in metrics.items()}
        new = {name: value for name, value in told.items() if (name, step, value) not in self.logged}
        if new:
            self.experiment.log(new, step=step)

    def log_pictures(self, pictures: Mapping[str, tuple[Image.Image, str]], step: int) -> None:
        """Pictures with captions at an optimizer step."""
        row = {name: self.trackio.Image(picture, caption=told) for name, (picture, told) in pictures.items()}
        self.experiment.log(row, step=step)

    def finalize(self, status: str) -> None:
        """Write what is still on its way."""
        if self._run is not None:
            self._run.finish()
            self._run = None


def _name(run: Path) -> str:
    id_file = run / ID_FILE
    own = id_file.read_text().strip() if id_file.is_file() else os.urandom(3).hex()
    write_text(id_file, own)
    return f"{shown_name(str(run))}-{own}"
