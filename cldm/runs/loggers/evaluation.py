"""What an evaluation adds to the W&B run of its checkpoint: figures, protocol, and a table of the samples."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cldm.runs.evaluations import PICTURES, Evaluation
from cldm.runs.loggers.wandb import ID_FILE, artifact_name, continued
from ldm.files import write_text
from ldm.identity import key

USED = ("protocol_hash", "checkpoint_sha256", "base_sha256", "more", "evaluated_at_commit")
"""What results.json says of where the figures come from."""

TOLD = "wandb_row"
"""In the folder of an evaluation: the key of the figures that its W&B run has. A command that is typed again adds no
second row of them."""


def log_evaluation(run: Path, evaluation: Evaluation) -> None:
    """Add an evaluation to the W&B run of a run folder; nothing where the run was logged elsewhere.

    The same figures are added once.

    Figures: eval/<protocol>/<setting>/<score>. Configuration: eval/<protocol>. Table: eval/<protocol>/samples.
    Where W&B cannot be reached, a note says so: the evaluation's folder has it all.
    """
    if not (run / ID_FILE).is_file():
        return
    import wandb

    facts = {name: evaluation.results[name] for name in USED if name != "evaluated_at_commit"}
    row, told = key((run / ID_FILE).read_text(), facts, evaluation.figures()), evaluation.folder / TOLD
    if told.is_file() and told.read_text() == row:
        return
    try:
        _log(run, evaluation)
        write_text(told, row)
    except wandb.errors.Error as error:
        print(f"note: the evaluation was not added to the W&B run of {run}: {error}")


def _log(run: Path, evaluation: Evaluation) -> None:
    config: Any = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))
    settings = (config.get("logger") or {}).get("wandb") or {}
    results, prefix = evaluation.results, f"eval/{evaluation.label}"
    with continued(run, settings) as tracked:
        facts = {name: results[name] for name in USED} | {"protocol": results["protocol"]}
        tracked.config.update({prefix: facts}, allow_val_change=True)
        tracked.define_metric(f"{prefix}/*", step_metric="trainer/global_step")
        row: dict[str, Any] = {f"{prefix}/{name}": value for name, value in evaluation.figures().items()}
        row |= {f"{prefix}/samples": sample_table(evaluation), "trainer/global_step": results["steps"]}
        tracked.log(row)
        if settings.get("log_model") and not tracked.offline:
            _name_weights(tracked, f"{artifact_name(config['stage']['name'], tracked.id)}:latest")


def _name_weights(tracked: Any, artifact: str) -> None:
    """Say which weights were used; a note where W&B does not have them: trained offline, or not to the end."""
    try:
        tracked.use_artifact(artifact)
    except Exception as error:  # of many kinds: W&B's own, ValueError, those of its service
        print(f"note: the evaluation names no weights in W&B, its figures are there: no artifact {artifact} ({error})")


def sample_table(evaluation: Evaluation) -> Any:
    """A wandb.Table of one row for each sample: its pictures, what was asked for, and its scores."""
    import wandb

    rows = [*evaluation.samples()]
    scores = [*rows[0]["scores"]] if rows else []
    told = ("item", "setting", "seed", "caption", "prompt")
    table = wandb.Table(columns=[*told, *PICTURES, *scores])
    for row in rows:
        pictures = [wandb.Image(str(row[name])) if name in row else None for name in PICTURES]
        table.add_data(*(row[name] for name in told), *pictures, *(row["scores"][name] for name in scores))
    return table
