"""A table from nothing by the commands that a user types: two variants and a composition, two seeds, a few steps of a
tiny model."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from cldm.commands.cli import main
from cldm.runs import parallel
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from ldm.weights import save_weights
from tests.processes import Forked

TABLE = """
title: Tiny
about: Two variants of a model that knows nothing.
train: [model=tiny, base=base.safetensors, condition=canny, steps=2, batch_size=2, data.train_count=4, data.val_count=2,
  data.cache=cache, sampler.steps=1, trainer.callbacks.watch.count=2, stage.report_items=0, logger=csv]
seeds: [0, 1]
rows:
  ControlNet: {}
  with colours: {more: [{train: [condition=color_grid], scale: 0.5}]}
evaluations:
  seen: [protocol=stickers, items=3, "noise_seeds=[0]", "prompts=[none,perfect]", sampler.steps=1,
    base=base.safetensors, cache=cache/evaluation]
columns:
  - {title: edge F1, from: seen, metric: edge_f1_1px, setting: none, better: higher}
  - {title: concept, from: seen, metric: concept, setting: perfect, better: higher}
  - {title: colours, from: seen, metric: color_grid_hint_color, setting: none, better: lower}
  - {title: seconds, from: run, metric: train_seconds, better: lower, digits: 1}
figure: {evaluation: seen, items: [0], settings: [none, perfect]}
"""


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """`command("table", ...)`: what `python -m cldm table ...` prints, run in tmp_path; the jobs that it starts are
    processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(parallel, "subprocess", SimpleNamespace(Popen=Forked, STDOUT=subprocess.STDOUT))

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["cldm", *arguments])
        code, told = main([*arguments]), capsys.readouterr()
        assert code == 0, told.out + told.err
        return told.out

    return run


@pytest.mark.slow
def test_a_table_and_its_figures_from_nothing_by_one_command_each(composed, fill_zeros, tmp_path, command):
    model = instantiate(composed("model=tiny").model, _convert_="all")
    fill_zeros(model)
    save_weights(model, tmp_path / "base.safetensors")
    (tmp_path / "mine.yaml").write_text(TABLE)
    making = ["table", "mine.yaml", "--train", "--evaluate", "--jobs", "2", "--allow", "commits"]

    told = command(*making)
    assert "4 runs to train" in told
    assert "4 evaluations to make" in told
    out = tmp_path / "runs" / "tables" / "mine"
    text = (out / "table.md").read_text()
    assert text in told
    assert "| ControlNet | 0." in text
    assert "| ceiling: real images through the autoencoder |" in text
    assert "python -m cldm table mine.yaml --train --evaluate --jobs 2" in text
    assert (out / "table.tex").read_text().startswith("% Tiny")
    Image.open(out / "table.png").verify()

    rows = [*csv.DictReader((out / "table.csv").open())]
    one = next(row for row in rows if row["row"] == "ControlNet" and row["seed"] == "1")
    alone, more = [json.loads(path.read_text()) for path in (tmp_path / one["run"]).glob("evaluation/*/results.json")]
    if alone["more"]:
        alone, more = more, alone
    assert float(one["value"]) == alone["metrics"]["none"]["edge_f1_1px"] != more["metrics"]["none"]["edge_f1_1px"]

    colours = [row for row in rows if row["column"] == "colours" and row["seed"]]
    assert [row["row"] for row in colours] == ["with colours"] * 2

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    again = command(*making)
    assert "0 runs to train" in again
    assert "0 evaluations to make" in again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}

    command("table", "mine.yaml", "--allow", "commits", "--publish", "published")
    assert not [*(tmp_path / "published").rglob("*.safetensors")]
    command("table", "mine.yaml", "published", "--allow", "commits", "--out", "rebuilt")
    made, again = (tmp_path / folder / "table.md" for folder in ("runs/tables/mine", "rebuilt"))
    assert made.read_text().split("Command: ")[0] == again.read_text().split("Command: ")[0]

    command("figure", "mine.yaml")
    assert Image.open(out / "figure.png").width > 3 * 64
    command("figure", one["run"], "--items", "0")
    Image.open(tmp_path / one["run"] / "convergence_strip.png").verify()
