"""The same report at W&B, by wandb-workspaces: a report, and a saved view of the project.

Saving asks W&B's server. What is saved is plain objects until then (`report`, `view`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cldm.reports.content import content
from cldm.reports.figures import ARROWS
from cldm.reports.groups import found_below
from cldm.reports.spec import ReportSpec
from cldm.runs.listing import CHOICES
from cldm.runs.loggers.wandb import ID_FILE

AXES = {
    "optimizer steps": "trainer/global_step",
    "samples seen": "samples_seen",
    "seconds of training": "train_seconds",
}


def save(places: Sequence[Path], spec: ReportSpec, project: str) -> list[str]:
    """Save the report and the view of these runs at W&B; returns their addresses. project: "entity/project"."""
    entity, slash, name = project.partition("/")
    if not slash or not entity or not name or "/" in name:
        raise ValueError(f"--wandb takes ENTITY/PROJECT, got {project!r}")
    made, ids = content(places, spec), run_ids(places)
    saved = [report(made, ids, entity, name).save(), view(made, ids, entity, name).save()]
    return [str(one.url) for one in saved]


def run_ids(places: Sequence[Path]) -> list[str]:
    """The W&B ids of the runs; ValueError if none of them was logged there."""
    files = [run.folder / ID_FILE for run in found_below(places)]
    ids = [file.read_text().strip() for file in files if file.is_file()]
    if not ids:
        raise ValueError(f"none of these runs was logged to W&B: no run folder holds {ID_FILE} (logger=wandb)")
    return ids


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError(f"--wandb needs wandb-workspaces (pip install -e '.[workspaces]'): {error}") from None
    return reports, workspaces


def report(made: Mapping[str, Any], ids: Sequence[str], entity: str, project: str) -> Any:
    """A W&B report of what `content` says; nothing is sent."""
    wr, ws = _packages()
    place = {"entity": entity, "project": project}
    mine = {**place, "filters": ws.And(ws.Metric("ID").isin([*ids]))}
    groups = wr.Runset(**mine, name="methods", groupby=[f"config.{key}" for key in keys(made)])
    singly = wr.Runset(**mine, name="runs")
    blocks: list[Any] = [wr.P(text=made["question"])] if made["question"] else []
    for heading, panels, runs in sections(wr, made):
        blocks += [wr.H2(text=heading), wr.PanelGrid(runsets=[groups if runs == "grouped" else singly], panels=panels)]
    for table in made["tables"]:
        blocks += [wr.H2(text=f"Figures: {table['label']}"), wr.MarkdownBlock(text=markdown(made, table))]
    return wr.Report(**place, title=made["title"], description=made["question"], blocks=blocks, width="fluid")


def keys(made: Mapping[str, Any]) -> list[str]:
    """Keys of the configuration that W&B has, for what differs: a choice is the name of a file that was read."""
    return [key for one in made["settings"] for key in CHOICES.get(one["key"], (one["key"],))]


def view(made: Mapping[str, Any], ids: Sequence[str], entity: str, project: str) -> Any:
    """A saved view of the project with the same panels; nothing is sent."""
    wr, ws = _packages()
    return ws.Workspace(
        entity=entity,
        project=project,
        name=made["title"],
        sections=[ws.Section(name=heading, panels=panels, is_open=True) for heading, panels, _ in sections(wr, made)],
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Metric("ID").isin([*ids])), groupby=[ws.Config(key) for key in keys(made)]
        ),
    )


def sections(wr: Any, made: Mapping[str, Any]) -> list[tuple[str, list[Any], str]]:
    """(heading, panels, whether runs are "grouped" or shown "singly") of the parts that W&B draws itself."""
    found: list[tuple[str, list[Any], str]] = [("What differs", [wr.RunComparer(diff_only=True)], "singly")]
    for title, axis in AXES.items():
        plots = [
            wr.LinePlot(title=one["name"], x=wr.Metric(axis), y=[wr.Metric(one["name"])], log_y=one["log"],
                        groupby_aggfunc="mean", groupby_rangefunc="minmax")
            for one in made["curves"]
        ]  # fmt: skip
        found += [(f"Curves against {title}", plots, "grouped")] if plots else []
    items = [page["item"] for page in made["grid"]["items"]]
    grids = [
        wr.MediaBrowser(title=f"item {item}: runs and steps", media_keys=[f"val/{item:03}/{name}" for name in names],
                        mode="grid", grid_x_axis="step", grid_y_axis="run")
        for item in items for names in (("hint", "sample"),)
    ]  # fmt: skip
    found += [("The same item, run by run and step by step", grids, "singly")] if grids else []
    lists = [wr.WeavePanelSummaryTable(table_name=f"eval/{label}/samples")
             for label in dict.fromkeys(label for table in made["tables"] for label in table["labels"])]  # fmt: skip
    return found + ([("Samples of evaluations", lists, "singly")] if lists else [])


def markdown(made: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """A table of figures with its intervals, for the setting with the fullest prompts."""
    setting = table["settings"][-1]
    head = [f"prompts {setting}", *(f"{score['name']}{ARROWS[score['lower']]}" for score in table["scores"])]
    rows = [
        [made["groups"][row["group"]]["name"], *(_cell(cell, row["n"]) for cell in row["cells"])]
        for row in table["rows"][setting]
    ]
    rows += [[bound["title"], *("–" if x is None else f"{x:.3f}" for x in bound["cells"])]
             for bound in table["bounds"][setting]]  # fmt: skip
    lines = [head, ["---", *["---:"] * len(table["scores"])], *rows]
    told = f"{table['protocol']} (protocol {table['hash']}). In brackets: 95 % interval over seeds, or over items."
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{told}"


def _cell(cell: Mapping[str, Any] | None, seeds: int) -> str:
    """Mean and interval, and of how many seeds where some have no such score."""
    if cell is None:
        return "–"
    pair = cell["seeds"] or cell["items"]
    count = f" (n = {cell['n']})" if cell["n"] < seeds else ""
    return f"{cell['mean']:.3f}" + (f" [{pair[0]:.3f}, {pair[1]:.3f}]" if pair else "") + count
