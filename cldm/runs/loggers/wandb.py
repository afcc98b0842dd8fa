"""W&B: the run of a run folder, while it is trained and whenever something is added to it later."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from PIL import Image
from pytorch_lightning.loggers import WandbLogger

from cldm.runs.checkout import commit
from ldm.files import LARGE, write_text

ID_FILE = "wandb_id"
"""In the run folder: what is resumed or added later goes on as the same W&B run."""

CURVES = ("train/", "val/", "watch/", "pace/", "hint_use")
"""How the names begin of figures whose smallest, largest and last values stand in the run's summary."""


def has_wandb_key() -> bool:
    """Whether W&B could log in without asking: a key in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, NetrcParseError):
        return False


def is_offline() -> bool:
    """Whether runs are kept on this machine: WANDB_MODE decides; without it, whether there is a key."""
    mode = os.environ.get("WANDB_MODE")
    return mode != "online" if mode else not has_wandb_key()


class RunLogger(WandbLogger):
    """log_model: hand the weights of the finished run over as an artifact. Others: see WandbLogger."""

    def __init__(self, log_model: bool = False, **options: Any):
        super().__init__(**options)
        self._wandb_init.pop("anonymous", None)  # wandb warns of it in every run, whatever its value
        self.keeps_weights = log_model
        self.declared: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures. Curves are declared one by one: of two patterns that a name fits W&B would take either."""
        for name in [name for name in metrics if name.startswith(CURVES) and name not in self.declared]:
            self.experiment.define_metric(name, step_metric="trainer/global_step", summary="min,max,last")
            self.declared.add(name)
        super().log_metrics(metrics, step)

    def log_pictures(self, pictures: Mapping[str, tuple[Image.Image, str]], step: int) -> None:
        """Log pictures with captions, together: a panel then shows them side by side."""
        import wandb

        row: dict[str, Any] = {name: [wandb.Image(p, caption=told)] for name, (p, told) in pictures.items()}
        self.experiment.log({**row, "trainer/global_step": step})

    def log_weights(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Hand over what a finished run exported, its configuration and its checkpoints, where log_model asks for it.

        A file of 64 MiB or more is named by where it lies and by its content, not copied.
        """
        if not self.keeps_weights:
            return
        import wandb

        described = {name: facts[name] for name in ("stage", "steps", "seed") if name in facts} | {"commit": commit()}
        artifact = wandb.Artifact(artifact_name(facts["stage"], str(self.version)), "model", metadata=described)
        exported = sorted(folder.glob("*.safetensors"))
        for path in (folder / "config.yaml", *exported, *sorted(folder.glob("checkpoints/*.ckpt"))):
            name = str(path.relative_to(folder))
            if path.stat().st_size < LARGE:
                artifact.add_file(str(path), name)
            else:
                artifact.add_reference(path.resolve().as_uri(), name)
        self.experiment.log_artifact(artifact, aliases=["latest", f"step-{facts['steps']}"])


def artifact_name(stage: str, run_id: str) -> str:
    """What the artifact of a run's weights is called."""
    return f"{stage}-{run_id}"


def wandb_logger(save_dir: str, **options: Any) -> RunLogger:
    """W&B, offline unless a key is set (WANDB_MODE, if set, decides): never a prompt. options: see RunLogger.

    The run's id is kept in the run folder, so that a resumed run goes on as the same W&B run.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    id_file = Path(save_dir) / ID_FILE
    run_id = id_file.read_text().strip() if id_file.exists() else os.urandom(6).hex()
    write_text(id_file, run_id)
    return RunLogger(save_dir=save_dir, id=run_id, resume="allow", offline=is_offline(), **options)


@contextmanager
def wandb_run(folder: Path) -> Iterator[None]:
    """Ends the W&B run that starts within the context, as failed if it does: the next job of a sweep gets its own."""
    failed = 1
    with staged_in(folder / "wandb"):
        try:
            yield
            failed = 0
        finally:
            wandb = sys.modules.get("wandb")  # loaded only by its logger
            if wandb is not None and wandb.run is not None:
                wandb.finish(exit_code=failed)


@contextmanager
def staged_in(folder: Path) -> Iterator[None]:
    """Files of tables and artifacts wait in the folder for their upload, unless WANDB_DATA_DIR names another: W&B's own
    default is in the user's home, where a copy of the run folder would leave them behind."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)


@contextmanager
def continued(folder: Path, settings: Mapping[str, Any]) -> Iterator[Any]:
    """The W&B run of a run folder, open again within the context, to add to it.

    settings: the folder's own of its logger (logger.wandb in config.yaml).
    """
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")
    mode = os.environ.get("WANDB_MODE") or ("offline" if is_offline() else "online")
    own = {name: value for name, value in settings.items() if name not in ("_target_", "save_dir", "log_model")}
    with wandb_run(folder):
        yield wandb.init(
            **own,
            id=(folder / ID_FILE).read_text().strip(),
            resume="allow",
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(console="off"),
        )
