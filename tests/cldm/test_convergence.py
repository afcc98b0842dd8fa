"""Promises of the convergence watcher."""

import json

import numpy as np
import pytest

from cldm.tables.convergence import Moment, convergence_step, moment
from cldm.tables.sheets import convergence_strip, history
from ldm.files import append_line
from tests.run_folders import run_folder

STEPS = list(range(0, 1000, 50))


@pytest.mark.parametrize("at", [1, 2, 7, 19])
@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_a_planted_jump_is_found(at, noise):
    values = np.where(np.arange(20) < at, 0.3, 0.8) + noise * np.random.default_rng(at).standard_normal(20)
    assert convergence_step(STEPS, values.tolist()) == STEPS[at]


def test_the_step_is_read_from_the_steps_and_not_from_their_number():
    assert convergence_step([0, 7, 1000, 1001], [0.1, 0.1, 0.9, 0.9]) == 1000


@pytest.mark.parametrize(
    "values",
    [
        [0.5] * 20,
        [0.5 + 0.002 * i for i in range(20)],  # 0.04 in all
        (0.5 + 0.01 * np.random.default_rng(0).standard_normal(20)).tolist(),
        [0.8] * 10 + [0.3] * 10,  # it got worse
    ],
    ids=["flat", "slow", "noise", "fall"],
)
def test_no_convergence_where_fidelity_does_not_rise(values):
    assert convergence_step(STEPS, values) is None


def test_the_jump_that_counts_can_be_chosen():
    values = [0.3] * 10 + [0.45] * 10
    assert convergence_step(STEPS, values) == 500
    assert convergence_step(STEPS, values, jump=0.2) is None


def test_a_moment_tells_its_resolution_and_what_happened_before_the_first_look():
    steps, jump = [0, 10, 20, 30, 40], [0.0, 0.0, 0.01, 0.6, 0.6]
    found = moment({"hint_use": (steps, jump), "edge_f1_1px": ([0, 40], [0.1, 0.8])})
    assert found == Moment("hint_use", 30, 10)
    assert str(found) == "sudden convergence: steps 20 to 30 (hint_use)"
    high = moment({"hint_use": (steps, [0.6] * 5)})
    assert high.early
    assert "before the first look, at step 0" in str(high)
    assert moment({"hint_use": (steps, [0.0] * 5)}) == Moment("hint_use", None)
    assert moment({"edge_f1_1px": ([0, 40], [0.1, 0.8])}) == Moment("edge_f1_1px", 40, 40)
    assert moment({}) is None


@pytest.mark.parametrize("count", [0, 1])
def test_a_curve_of_less_than_two_points_has_no_jump(count):
    assert convergence_step(STEPS[:count], [0.5] * count) is None


def test_a_missing_figure_does_not_hide_the_jump():
    values = [float("nan"), *[0.3] * 9, *[0.8] * 10]
    assert convergence_step(STEPS, values) == 500


def test_looks_that_a_resumption_gave_up_are_not_shown(tmp_path):
    run = run_folder(tmp_path / "run", steps=40, every=10, jump=20)
    append_line(run / "previews" / "manifest.jsonl", {"resumed": 20})
    assert [*history(run)] == [0, 10, 20]


def test_the_strip_of_a_run_tells_the_moment_of_its_results_and_draws_every_stage(tmp_path, monkeypatch):
    run = run_folder(tmp_path / "run", steps=40, every=20, jump=20)
    lines = [json.loads(line) for line in (run / "previews/manifest.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line |= {"color_distance": 30.0 + 5 * i, "columns": ["image", "hint", "reconstruction"]}
    (run / "previews/manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    marks = []
    monkeypatch.setattr("matplotlib.axes.Axes.axvline", lambda self, x, **told: marks.append((x, told["label"])))
    monkeypatch.setattr("matplotlib.axes.Axes.legend", lambda *_, **__: None)
    convergence_strip(run, [0], 64, "color_distance")
    assert marks == []  # the results date nothing, however a figure rises
    results = json.loads((run / "results.json").read_text())
    told = {"measure": "hint_use", "step": 30, "resolution": 10, "early": False}
    (run / "results.json").write_text(json.dumps(results | {"convergence": told}))
    convergence_strip(run, [0], 64, "color_distance")
    assert marks == [(30, "sudden convergence: steps 20 to 30 (hint_use)")]
