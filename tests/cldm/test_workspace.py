"""Promises of `python -m cldm report --wandb`: the same report, built without a server."""

from pathlib import Path

import pytest

from cldm.commands.cli import main
from cldm.reports.content import content
from cldm.reports.spec import ReportSpec
from cldm.reports.workspace import keys, report, run_ids, view
from tests.run_folders import evaluation, run_folder

expr = pytest.importorskip("wandb_workspaces.expr", reason="needs wandb-workspaces: pip install -e '.[workspaces]'")
wr = pytest.importorskip("wandb_workspaces.reports.v2", reason="needs wandb-workspaces: pip install -e '.[workspaces]'")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of one seed that were logged to W&B, and a run that was not."""
    place = tmp_path_factory.mktemp("logged")
    for name, lr in (("a", 1e-3), ("b", 1e-4)):
        run = run_folder(place / name / "seed-0", steps=40, config={"optimizer": {"lr": lr}})
        (run / "wandb_id").write_text(f"id-{name}\n")
        evaluation(run, 0.8, items=2)
    run_folder(place / "c" / "seed-0", steps=40, pictures=False)
    return place


@pytest.fixture(scope="module")
def made(place):
    return content([place], ReportSpec(title="Rates", question="Which rate?", items=(0, 2)))


def test_the_report_shows_the_same_curves_items_and_figures_of_the_same_runs(place, made):
    ids = run_ids([place])
    assert ids == ["id-a", "id-b"]
    built = report(made, ids, "me", "controlnet")
    parts = [part for block in built.blocks for part in (block.panels if isinstance(block, wr.PanelGrid) else [block])]
    told = "\n".join(part._to_model().model_dump_json(by_alias=True) for part in parts)
    assert (built.title, built.entity, built.project) == ("Rates", "me", "controlnet")
    grids = [block for block in built.blocks if isinstance(block, wr.PanelGrid)]
    plots = [panel for block in grids for panel in block.panels if isinstance(panel, wr.LinePlot)]
    assert len(plots) == 3 * len(made["curves"])
    assert {str(plot.x.name) for plot in plots} == {"trainer/global_step", "samples_seen", "train_seconds"}
    media = [panel for block in grids for panel in block.panels if isinstance(panel, wr.MediaBrowser)]
    assert [panel.media_keys for panel in media] == [[f"val/00{i}/hint", f"val/00{i}/sample"] for i in (0, 2)]
    assert {(panel.grid_x_axis, panel.grid_y_axis) for panel in media} == {("step", "run")}
    grouped = {key for block in grids for runset in block.runsets for key in runset.groupby}
    assert grouped == {"config.optimizer.lr"}
    filters = {str(runset.filters) for block in grids for runset in block.runsets}
    assert len(filters) == 1
    assert "id-a" in filters.pop()
    for text in ("eval/scenes/samples", "edge_f1_1px ↑", "Which rate?", "0.970"):
        assert text in told


def test_the_view_holds_the_panels_of_the_report(place, made):
    built = view(made, run_ids([place]), "me", "controlnet")
    model = built._to_model().model_dump_json(by_alias=True)
    assert [section.name for section in built.sections] == [
        "What differs", "Curves against optimizer steps", "Curves against samples seen",
        "Curves against seconds of training", "The same item, run by run and step by step", "Samples of evaluations",
    ]  # fmt: skip
    assert "val/002/sample" in model
    assert "optimizer.value.lr" in model or "optimizer.lr" in model


def test_runs_of_several_conditions_are_grouped_by_what_w_and_b_recorded(tmp_path):
    for name in ("canny", "depth"):
        for seed in (0, 1):
            told = {"callbacks": {"export": {"metadata": {"condition": name}}}}
            config = {"condition": {"_target_": f"cldm.conditions.{name}"}, "trainer": told}
            run_folder(tmp_path / name / f"seed-{seed}", seed, steps=20, pictures=False, config=config)
    made = content([tmp_path], ReportSpec())
    key = "trainer.value.callbacks.export.metadata.condition"
    built = report(made, ["id"], "me", "controlnet")
    grids = [block for block in built.blocks if isinstance(block, wr.PanelGrid)]
    grouped = {key for block in grids for runset in block.runsets for key in runset.groupby}
    sent = [expr.groupby_str_to_key(one) for one in grouped]
    assert [(one.section, one.name) for one in sent] == [("config", key)]
    assert key in view(made, ["id"], "me", "controlnet")._to_model().model_dump_json(by_alias=True)


def test_runs_on_several_data_are_grouped_by_what_tells_them_apart_and_never_by_order(tmp_path):
    for name, data in (("a", {"world": "stickers", "_target_": "cldm.worlds.datamodule.world_data"}),
                       ("b", {"world": None, "_target_": "cldm.data.folder.folder_data"})):  # fmt: skip
        for seed in (0, 1):
            config = {"data": {**data, "order": seed}}
            run_folder(tmp_path / name / f"seed-{seed}", seed, steps=20, pictures=False, config=config)
    assert keys(content([tmp_path], ReportSpec())) == ["data.world", "data._target_"]


def test_what_cannot_be_saved_is_refused_before_anything_is_sent(place, tmp_path, capsys):
    assert main(["report", str(place), "--wandb", "noslash"]) == 1
    assert "--wandb takes ENTITY/PROJECT, got 'noslash'" in capsys.readouterr().err
    run_folder(tmp_path / "run", steps=20, pictures=False)
    assert main(["report", str(tmp_path), "--wandb", "me/p"]) == 1
    assert "none of these runs was logged to W&B" in capsys.readouterr().err
