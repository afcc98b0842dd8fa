"""Promises of `python -m cldm report`: a page that holds all it shows, true figures, a reason for what it lacks."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cldm.commands.cli import main
from cldm.reports import protocols
from cldm.reports.content import content
from cldm.reports.page import page
from cldm.reports.spec import ReportSpec, read_spec
from cldm.reports.workspace import markdown
from cldm.tables.statistics import bootstrap_intervals
from tests.run_folders import PROTOCOL, compared, ended, evaluation, quality_at, run_folder, scene

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods with two seeds each; only read."""
    return compared(tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def told(place: Path) -> dict[str, Any]:
    """What the page of these runs says."""
    return content([place], ReportSpec())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two configurations, evaluated; only copied."""
    place = tmp_path_factory.mktemp("pair")
    for name, lr in (("a", 1e-3), ("b", 2e-3)):
        run = run_folder(place / name, steps=20, every=20, config={"optimizer": {"lr": lr}})
        evaluation(run, 0.7, items=1)
    return place


def data_of(html: str) -> dict[str, Any]:
    """The data that a page holds."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def one_run(place: Path, **options: Any) -> Path:
    return run_folder(place / "run" / "seed-0", steps=40, every=20, jump=20, **options)


# ------------------------------------------------------------------ what it says


def test_runs_that_differ_in_their_seed_alone_are_one_group_and_what_differs_is_said(told):
    assert [group["name"] for group in told["groups"]] == ["control=controlnet", "control=lite"]
    assert [group["seeds"] for group in told["groups"]] == [[0, 1], [0, 1]]
    assert told["settings"] == [
        {"key": "control._target_", "values": ["cldm.branches.controlnet", "cldm.branches.lite"]}
    ]
    assert [group["states"] for group in told["groups"]] == [["done", "done"]] * 2
    assert told["trouble"] == []


def test_examples_of_another_seed_are_another_method(tmp_path):
    for number in (0, 1):
        run_folder(tmp_path / str(number), steps=40, config={"data": {"order": 0, "seed": number}})
    told = content([tmp_path], ReportSpec())
    assert [group["seeds"] for group in told["groups"]] == [[0], [0]]
    assert told["settings"] == [{"key": "data.seed", "values": ["0", "1"]}]


def test_a_run_that_was_made_again_is_no_further_seed(tmp_path):
    for name, seed in (("a", 0), ("a-again", 0), ("b", 1)):
        evaluation(run_folder(tmp_path / name, seed, steps=40), 0.5)
    late = {"event": "start", "commit": "c", "when": "2026-11-26T08:00:00+0000"}
    (tmp_path / "a-again" / "attempts.jsonl").write_text(json.dumps(late) + "\n")
    told = content([tmp_path], ReportSpec())
    (group,) = told["groups"]
    assert sorted(group["seeds"]) == [0, 1]
    reason = f"left out: the configuration and seed of {tmp_path}/a-again, made again"
    assert told["trouble"] == [{"run": str(tmp_path / "a"), "reason": reason}]
    (table,) = told["tables"]
    assert [row["n"] for row in table["rows"]["perfect"]] == [2]


def resumed(run: Path, changed: list[str], step: int | None = 150, **more: Any) -> Path:
    """A run folder whose last attempt went on from a step with these differences."""
    with open(run / "attempts.jsonl", "a") as file:
        start = {"event": "start", "commit": "c", "resumed": True, "changed": changed}
        file.write(json.dumps({**start, **({} if step is None else {"step": step}), **more}) + "\n")
    return run


def test_a_run_that_went_on_under_another_configuration_is_a_group_of_its_own_and_told(tmp_path):
    for seed in (0, 1, 2):
        run_folder(tmp_path / str(seed), seed, steps=40, pictures=False)
    resumed(tmp_path / "0", ["steps: 150 -> 200", "trainer.max_steps: 150 -> 200"])  # that is no change of method
    assert len(content([tmp_path], ReportSpec())["groups"]) == 1
    resumed(tmp_path / "1", ["optimizer.lr: 1.0 -> 0.001", "steps: 150 -> 200"])
    told = content([tmp_path], ReportSpec())
    assert [(group["name"], group["seeds"]) for group in told["groups"]] == [
        ("default", [0, 2]), ("default, from step 150 lr 1.0 -> 0.001", [1])
    ]  # fmt: skip
    reason = "went on under another configuration from step 150: optimizer.lr: 1.0 -> 0.001"
    assert told["trouble"] == [{"run": str(tmp_path / "1"), "reason": reason}]


def test_a_change_that_was_undone_or_only_of_how_the_folder_is_written_is_none(tmp_path):
    folder = resumed(run_folder(tmp_path / "0", steps=40), ["trainer.callbacks.checkpoint.folder: R/x -> /x"], None)
    resumed(folder, ["optimizer.lr: 0.001 -> 1.0"])
    with open(folder / "attempts.jsonl", "a") as file:
        file.write('{"event": "stopped", "reason": "ValueError: no", "undone": true}\n')
    assert content([tmp_path], ReportSpec())["trouble"] == []
    resumed(folder, ["optimizer.lr: 0.001 -> 1.0"], None)  # as runs before December 2026 noted it
    (told,) = content([tmp_path], ReportSpec())["trouble"]
    assert "configuration later: optimizer.lr: 0.001 -> 1.0" in told["reason"]


def test_a_group_whose_runs_have_read_other_pictures_is_told(tmp_path):
    folders = [run_folder(tmp_path / f"seed-{seed}", seed) for seed in (0, 1)]
    for folder in folders:
        (folder / "inputs.json").write_text(json.dumps({"data.path": "8 pictures", "base": "weights"}))
    assert content([tmp_path], ReportSpec())["trouble"] == []
    (folders[1] / "inputs.json").write_text(json.dumps({"data.path": "16 pictures", "base": "weights"}))
    (told,) = content([tmp_path], ReportSpec())["trouble"]
    assert told["reason"] == "its runs have read other contents under the same data.path"


def test_a_file_that_is_called_like_an_attempt_ends_no_report(tmp_path):
    (one_run(tmp_path) / "metrics.old.csv").write_text("step,train/loss\n0,1\n")
    assert content([tmp_path], ReportSpec())["curves"]


def test_a_line_is_the_mean_of_the_seeds_within_its_band_on_all_three_axes(told):
    (curve,) = (one for one in told["curves"] if one["name"] == "hint_use")
    line = curve["axes"]["steps"]["0"]
    assert line["x"] == [*range(0, 201, 10)]
    seeds = [
        [0.3 * quality_at(step, jump, level) - 0.03 for step in line["x"]] for jump, level in ((90, 0.9), (100, 0.88))
    ]
    assert line["mean"] == pytest.approx(np.mean(seeds, 0), rel=1e-4, abs=1e-5)
    assert line["low"] == pytest.approx(np.min(seeds, 0), rel=1e-4, abs=1e-5)
    assert line["high"] == pytest.approx(np.max(seeds, 0), rel=1e-4, abs=1e-5)
    assert curve["axes"]["samples"]["0"]["x"] == [8 * step for step in line["x"]]
    seconds = curve["axes"]["seconds"]["0"]  # seed 1 is slower, and alone at its end
    assert seconds["x"][-1] == pytest.approx(0.42 * 200)
    assert seconds["n"] == [2] * (len(seconds["x"]) - 1) + [1]


def line_of(told: dict[str, Any], name: str) -> dict[str, Any]:
    """The line of the first group in the plot of a curve against steps."""
    (curve,) = (one for one in told["curves"] if one["name"] == name)
    return curve["axes"]["steps"]["0"]


@pytest.mark.parametrize("step", [0, 60])
def test_a_seed_that_failed_counts_up_to_its_own_end_and_the_others_go_on(tmp_path, step):
    for seed in (0, 1, 2):
        run_folder(tmp_path / str(seed), seed, pictures=False)
    whole = line_of(content([tmp_path], ReportSpec()), "hint_use")
    ended(tmp_path / "1", step, "RuntimeError: out of memory")
    line = line_of(content([tmp_path], ReportSpec()), "hint_use")
    assert line["x"] == whole["x"] == [*range(0, 201, 10)]
    assert line["n"] == [3 if x <= step else 2 for x in line["x"]]
    assert line["mean"] == pytest.approx(whole["mean"])  # the seeds of this curve are alike
    assert all(low <= mean <= high for low, mean, high in zip(line["low"], line["mean"], line["high"], strict=True))


def test_numbers_that_do_not_exist_end_the_curve_of_their_own_seed_alone(tmp_path):
    for seed in (0, 1):
        run_folder(tmp_path / str(seed), seed, pictures=False)
    path = tmp_path / "0" / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    lost = [re.sub(r"^[^,]+", "nan", row) for row in rows[7:]]
    path.write_text("\n".join([head, *rows[:7], *lost]))
    line = line_of(content([tmp_path], ReportSpec()), "hint_use")
    assert (line["x"][-1], line["n"]) == (200, [2] * 7 + [1] * 14)


def test_the_moment_of_sudden_convergence_is_told_for_each_run(told):
    steps = [(one["group"], one["seed"], one["step"]) for one in told["moments"]]
    assert steps == [(0, 0, 100), (0, 1, 110), (1, 0, 140), (1, 1, 150)]
    assert told["moments"][0]["at"] == {"steps": 100, "samples": 800.0, "seconds": 40.0}


def test_a_run_that_came_too_short_for_a_moment_is_told_up_to_which_step_and_why(tmp_path):
    ended(run_folder(tmp_path / "failed", 0, pictures=False), 20, "RuntimeError: out of memory")
    ended(run_folder(tmp_path / "cut", 1, pictures=False), 40)
    run_folder(tmp_path / "never", 2, jump=900, pictures=False)
    moments = sorted(content([tmp_path], ReportSpec())["moments"], key=lambda one: one["seed"])
    assert [(one["text"], one["end"]) for one in moments] == [
        ("not by step 20, where it failed (hint_use)", 20),
        ("not by step 40, where it was cut off (hint_use)", 40),
        ("no sudden convergence (hint_use)", 200),
    ]


def test_the_grid_shows_the_same_item_of_every_run_at_the_same_steps(told):
    steps, items = told["grid"]["steps"], told["grid"]["items"]
    assert (steps[0], steps[-1], len(steps)) == (0, 200, 8)
    assert [shown["item"] for shown in items] == [0, 1, 2, 3]
    for shown in items:
        assert {row["caption"] for row in shown["rows"]} == {scene(shown["item"])[2]}
        assert shown["same"]
        assert len({row["hint"] for row in shown["rows"]}) == 1  # of one item there is one hint
        cells = [key for row in shown["rows"] for key in row["cells"]]
        assert len(cells) == len({*cells}) == 4 * 8
        assert {*cells} <= told["pictures"].keys()


def test_a_table_holds_means_intervals_over_seeds_and_paired_differences(told, place):
    (table,) = told["tables"]
    results = [
        json.loads((place / f"control-{method}" / f"seed-{seed}" / "evaluation/scenes/results.json").read_text())
        for method in ("controlnet", "lite") for seed in (0, 1)
    ]  # fmt: skip
    values = [one["metrics"]["perfect"]["edge_f1_1px"] for one in results]
    first, second = (row["cells"][0] for row in table["rows"]["perfect"])
    assert [score["name"] for score in table["scores"]] == ["edge_f1_1px", "hint_error"]
    assert [score["lower"] for score in table["scores"]] == [False, True]
    assert first["mean"] == pytest.approx(np.mean(values[:2]))
    assert first["seeds"] == pytest.approx(stats.t.interval(0.95, 1, np.mean(values[:2]), stats.sem(values[:2])))
    assert second["difference"] == pytest.approx(np.mean([values[2] - values[0], values[3] - values[1]]))
    low, high = second["difference_items"]
    assert low < second["difference"] < high
    assert "difference" not in first
    assert table["bounds"]["perfect"][0] == {"title": "base, no control", "cells": [0.12, 0.3], "groups": None}


def test_every_sample_stands_beside_its_hint_and_has_its_scores(told, place):
    (samples,) = told["samples"]
    assert len(samples["rows"]) == 6 * 2
    rows = np.load(place / "control-lite/seed-1/evaluation/scenes/per_sample.npz")
    for i, row in enumerate(sorted(samples["rows"], key=lambda row: (row["setting"], row["item"]))):
        hint, image, found, *scores = row["runs"]["3"]
        assert scores == pytest.approx([rows["edge_f1_1px"][i], rows["hint_error"][i]], abs=1e-6)
        assert {hint, image, found, row["real"]} <= told["pictures"].keys()


def test_a_bootstrap_of_columns_agrees_with_the_spread_of_their_means():
    values = np.random.default_rng(0).normal([[1.0, 5.0, 0.0]], [[1.0, 2.0, 1.0]], (400, 3))
    values[1:, 2] = np.nan
    low, high = bootstrap_intervals(values)
    half = 1.96 * values[:, :2].std(0, ddof=1) / 20
    assert low[:2] == pytest.approx(values[:, :2].mean(0) - half, abs=0.03)
    assert high[:2] == pytest.approx(values[:, :2].mean(0) + half, abs=0.03)
    assert np.isnan([low[2], high[2]]).all()  # of one value nothing can be said


# ------------------------------------------------------------------ the page


def test_the_page_holds_all_that_it_shows_and_asks_no_network(place, tmp_path, capsys):
    assert main(["report", str(place), "--out", str(tmp_path / "page.html")]) == 0
    assert "page.html" in capsys.readouterr().out
    html = (tmp_path / "page.html").read_text()
    assert {*re.findall(r"https?://[^\s\"'`<]+", html)} == {"http://www.w3.org/2000/svg"}  # a name, never fetched
    assert re.findall(r"<(?:link|iframe|img|script src)", html) == []
    told = data_of(html)
    assert {group["name"] for group in told["groups"]} == {"control=controlnet", "control=lite"}
    assert all(uri.startswith("data:image/webp;base64,") for uri in told["pictures"].values())


def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path):
    run = one_run(tmp_path, overrides=["note=</script><script>alert(1)</script>"])
    manifest = run / "previews" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("a red", "</script><img src=x onerror=alert(1)>"))
    html = page(content([tmp_path], ReportSpec(title="</script><b>")))
    assert html.count("</script>") == 2
    assert "<img src=x" not in html
    assert data_of(html)["grid"]["items"][0]["rows"][0]["caption"].startswith("</script><img")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on PATH (apt-get install chromium)")
def test_a_browser_draws_every_section(place, told, tmp_path):
    (tmp_path / "page.html").write_text(page(told))
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*browser, "--dump-dom", f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True,
                          timeout=120, check=True)  # fmt: skip
    drawn = done.stdout[: done.stdout.index('id="data"')]
    assert drawn.count('class="mean"') == 2 * len(told["curves"])
    assert drawn.count('class="band"') == 2 * len(told["curves"])
    assert drawn.count('class="track"') == 4
    assert drawn.count('class="card"') == 6  # of the setting shown at first
    assert drawn.count('class="protocol"') == 1
    assert drawn.count("<dt>") == len(told["words"]) > 0


# ------------------------------------------------------------------ what is not as it should be


def test_a_run_that_tells_less_is_shown_with_what_it_has_and_its_reason_is_told(tmp_path):
    one_run(tmp_path)
    odd = tmp_path / "odd"
    older = run_folder(odd / "older", steps=40, axes=False, pictures=False)
    with open(older / "metrics.csv", "a") as file:
        file.write("0.1,4")  # cut short
    (older / "results.json").write_text('{"steps": 40}')
    (odd / "empty").mkdir()
    (odd / "empty" / "attempts.jsonl").write_text("")
    cut = run_folder(odd / "cut", steps=40, pictures=False, config={"optimizer": {"lr": 5e-4}})
    (cut / "DONE.json").unlink()
    broken = evaluation(cut, 0.5, items=2) / "per_sample.npz"
    broken.write_bytes(broken.read_bytes()[:40])
    made = content([tmp_path], ReportSpec())
    told = {one["run"]: one["reason"] for one in made["trouble"]}
    assert told[str(odd / "empty")] == "unreadable: no config.yaml"
    assert told[str(cut)] == "cut off"
    assert told[str(broken.parent)].startswith("an evaluation that cannot be read")
    assert len(made["groups"]) == 2  # lr=5e-4 beside the others
    (loss,) = (one for one in made["curves"] if one["name"] == "train/loss")
    assert {*loss["axes"]["steps"]} == {"0", "1"}
    assert data_of(page(made))["tables"] == []


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """A JSON file, its content changed."""
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


def test_a_difference_tells_of_how_many_pairs_of_seeds_it_is(tmp_path):
    for lr, seed, quality in ((1e-3, 0, 0.6), (1e-3, 1, 0.9), (2e-3, 0, 0.7), (2e-3, 1, 0.8), (3e-3, 0, 0.5)):
        config = {"optimizer": {"lr": lr}}
        evaluation(run_folder(tmp_path / f"{lr}-{seed}", seed, steps=40, pictures=False, config=config), quality)
    (table,) = content([tmp_path], ReportSpec())["tables"]
    _, both, one = (row["cells"][0] for row in table["rows"]["perfect"])
    assert (both["pairs"], one["pairs"]) == (2, 1)
    assert one["difference"] == pytest.approx(one["values"][0] - table["rows"]["perfect"][0]["cells"][0]["values"][0])


def test_bold_is_what_is_better_than_every_other_group_beyond_the_interval(tmp_path):
    for lr, qualities in ((1e-3, (0.2, 0.22)), (2e-3, (0.5, 0.51)), (3e-3, (0.52, 0.49))):
        for seed, quality in enumerate(qualities):
            run = run_folder(
                tmp_path / f"{lr}-{seed}", seed, steps=20, pictures=False, config={"optimizer": {"lr": lr}}
            )
            results = evaluation(run, quality, settings=["perfect"], items=1) / "results.json"
            values = {"edge_f1_1px": quality, "hint_error": 0.9 if lr == 3e-3 else 0.2 - 0.1 * quality}
            changed(results, lambda told, values=values: told["metrics"].update(perfect=values))
    (table,) = content([tmp_path], ReportSpec())["tables"]
    assert [score["name"] for score in table["scores"]] == ["edge_f1_1px", "hint_error"]
    assert table["best"]["perfect"] == [None, 1]  # two are alike in edges; of errors the second is the lowest for sure


def test_a_difference_lies_in_its_interval_where_some_images_have_no_score(tmp_path):
    for number, lost in enumerate((0, 3)):
        run = run_folder(tmp_path / str(number), steps=40, pictures=False, config={"optimizer": {"lr": 1e-3 + number}})
        path = evaluation(run, 0.5, settings=["perfect"], items=8) / "per_sample.npz"
        rows = dict(np.load(path))
        rows["edge_f1_1px"] = np.array([0.5] * 5 + [9.0] * 3) + 0.01 * number * np.arange(8)
        rows["edge_f1_1px"][len(rows["item"]) - lost :] = np.nan
        np.savez_compressed(path, **rows)
        mean = float(np.nanmean(rows["edge_f1_1px"]))
        changed(
            path.with_name("results.json"), lambda told, mean=mean: told["metrics"]["perfect"].update(edge_f1_1px=mean)
        )
    (table,) = content([tmp_path], ReportSpec())["tables"]
    cell = table["rows"]["perfect"][1]["cells"][0]
    low, high = cell["difference_items"]
    assert low <= cell["difference"] <= high
    assert cell["difference"] == pytest.approx(0.02)


def test_runs_of_other_bases_or_conditions_keep_bounds_and_hints_of_their_own(tmp_path):
    runs = [run_folder(tmp_path / str(i), steps=40, config={"base": f"base{i}"}) for i in (0, 1)]
    for run in runs:
        evaluation(run, 0.7, items=2)
    changed(runs[1] / "evaluation/scenes/results.json", lambda told: told["base"]["perfect"].update(edge_f1_1px=0.3))
    save = Image.new("RGB", (64, 64), (9, 9, 200))
    for hint in (runs[1] / "evaluation/scenes/items").glob("*_hint.png"):
        save.save(hint)
    told = content([tmp_path], ReportSpec())
    bases = [row for row in told["tables"][0]["bounds"]["perfect"] if row["title"].startswith("base")]
    assert [(row["cells"][0], row["groups"]) for row in bases] == [(0.12, [0]), (0.3, [1])]
    ceilings = [row for row in told["tables"][0]["bounds"]["perfect"] if row["title"].startswith("ceiling")]
    assert [row["groups"] for row in ceilings] == [None]
    (samples,) = told["samples"]
    for row in samples["rows"]:
        assert row["runs"]["0"][0] != row["runs"]["1"][0]


def test_an_evaluation_of_another_step_is_left_out_and_told(tmp_path):
    run = one_run(tmp_path, pictures=False)
    changed(evaluation(run, 0.8, items=2) / "results.json", lambda told: told.update(steps=20))
    told = content([tmp_path], ReportSpec())
    assert told["tables"] == []
    assert "of step 20, and the run is at step 40" in told["trouble"][0]["reason"]


def test_commits_are_those_of_all_attempts_or_of_the_results_where_no_attempts_were_kept(tmp_path):
    run = one_run(tmp_path, pictures=False)
    with open(run / "attempts.jsonl", "a") as file:
        file.write(json.dumps({"event": "start", "commit": "f" * 40}) + "\n")
    assert content([tmp_path], ReportSpec())["groups"][0]["commits"] == ["0123456789ab", "f" * 12]
    (run / "attempts.jsonl").unlink()
    changed(run / "results.json", lambda told: told.update(commits=["a" * 40, "b" * 40]))
    assert content([tmp_path], ReportSpec())["groups"][0]["commits"] == ["a" * 12, "b" * 12]


def test_a_score_of_a_whole_set_is_offered_for_no_single_image(tmp_path):
    results = evaluation(one_run(tmp_path, pictures=False), 0.8, items=2) / "results.json"
    changed(results, lambda told: told["metrics"]["perfect"].update(fid=3.0))
    told = content([tmp_path], ReportSpec(scores=["fid", "edge_f1_1px"]))
    assert [score["name"] for score in told["tables"][0]["scores"]] == ["fid", "edge_f1_1px"]
    assert [score["name"] for score in told["samples"][0]["scores"]] == ["edge_f1_1px"]


def test_names_of_groups_hold_what_tells_them_apart_however_much_was_typed(tmp_path):
    for i in range(4):
        config = {
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
            "stage": {"shift": i},
            "watch": {"count": 4 + i // 2},
        }
        typed = [f"trainer.callbacks.watch.count={4 + i // 2}", "data.train_count=123456789", f"stage.shift={i}"]
        run_folder(
            tmp_path / str(i), steps=20, pictures=False, config=config, overrides=[*typed, f"long.key={'x' * 70}{i}"]
        )
    names = [group["name"] for group in content([tmp_path], ReportSpec())["groups"]]
    assert names == ["shift=0", "shift=1", "shift=2", "shift=3"]


def _rewritten(name: str, text: str | bytes) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def _results(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return lambda run: changed(run / "evaluation/scenes/results.json", change)


def _rows(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def go(run: Path) -> None:
        rows = dict(np.load(run / "evaluation/scenes/per_sample.npz"))
        change(rows)
        np.savez(run / "evaluation/scenes/per_sample.npz", **rows)

    return go


def _lines(name: str, change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def go(run: Path) -> None:
        lines = [json.loads(line) for line in (run / name).read_text().splitlines()]
        for line in lines:
            change(line)
        (run / name).write_text("\n".join(map(json.dumps, lines)))

    return go


def _a_folder(name: str) -> Callable[[Path], Any]:
    return lambda run: ((run / name).unlink(), (run / name).mkdir())


SAMPLES, MANIFEST = "evaluation/scenes/samples.jsonl", "previews/manifest.jsonl"
HEAD = "hint_use,samples_seen,train_seconds,step,train/loss,val/loss,watch/edge_f1_1px"
ODD = {
    "metrics of zeros": _rewritten("metrics.csv", b"\0" * 200_000),
    "metrics with an open quote": _rewritten("metrics.csv", HEAD + '\n"' + "x" * 200_000),
    "metrics of bytes": _rewritten("metrics.csv", bytes(range(256)) * 100),
    "metrics of step nan": _rewritten("metrics.csv", "step,val/loss\nnan,1\ninf,2\n"),
    "metrics that are a folder": _a_folder("metrics.csv"),
    "a list of seeds": _rewritten("config.yaml", "seed: [1, 2]\nsize: 64\n"),
    "a configuration that holds itself": _rewritten("config.yaml", "a: &a\n  b: *a\nseed: 0\n"),
    "inputs within inputs": _rewritten("inputs.json", '{"base": {"a": [1]}}'),
    "metrics without settings": _results(lambda told: told.update(metrics={"edge_f1_1px": 0.5})),
    "no metrics": _results(lambda told: told.update(metrics={})),
    "no means": _results(lambda told: told.update(metrics={"none": {}, "perfect": {}})),
    "a step of text": _results(lambda told: told.update(steps="20")),
    "steps of text": _rewritten("results.json", '{"steps": "twenty", "fidelity": {"edge_f1_1px": "x"}}'),
    "text for a figure": _results(lambda told: told["metrics"]["none"].update(edge_f1_1px="x")),
    "a flat base": _results(lambda told: told.update(base={"none": 0.3})),
    "a sampler of text": _results(lambda told: told["protocol"].update(sampler="ddim")),
    "a sampler without target": _results(lambda told: told["protocol"].update(sampler={"sampler": "ddim"})),
    "data of text": _results(lambda told: told["protocol"].update(data="folder")),
    "one noise seed": _results(lambda told: told["protocol"].update(noise_seeds=0)),
    "rows without setting": _rows(lambda rows: rows.pop("setting")),
    "rows without item": _rows(lambda rows: rows.pop("item")),
    "rows without noise": _rows(lambda rows: rows.pop("noise")),
    "a short column": _rows(lambda rows: rows.update(edge_f1_1px=rows["edge_f1_1px"][:1])),
    "a column of text": _rows(lambda rows: rows.update(edge_f1_1px=np.array(["a"] * len(rows["item"])))),
    "no rows": _rows(lambda rows: rows.update({name: rows[name][:0] for name in rows})),
    "samples without item": _lines(SAMPLES, lambda line: line.pop("item")),
    "samples with a list for an item": _lines(SAMPLES, lambda line: line.update(item=[1])),
    "samples without caption": _lines(SAMPLES, lambda line: line.pop("caption")),
    "samples that are numbers": _rewritten(SAMPLES, "[1]\n3\n"),
    "a number for a picture": _lines(SAMPLES, lambda line: line.update(hint=5)),
    "looks without columns": _lines(MANIFEST, lambda line: line.pop("columns")),
    "looks without file": _lines(MANIFEST, lambda line: line.pop("file")),
    "looks without step": _lines(MANIFEST, lambda line: line.pop("step")),
    "looks without items": _lines(MANIFEST, lambda line: line.pop("ids")),
    "looks with a number of captions": _lines(MANIFEST, lambda line: line.update(captions=4)),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_folder_that_is_not_as_it_should_be_ends_neither_report_nor_list(tmp_path, pair, odd, capsys):
    shutil.copytree(pair, tmp_path, dirs_exist_ok=True)
    ODD[odd](tmp_path / "b")
    made = content([tmp_path], ReportSpec())
    data_of(page(made))
    (table,) = made["tables"]
    assert 0 in [row["group"] for row in table["rows"]["perfect"]]
    (tmp_path / "b" / "results.json").unlink()
    (tmp_path / "b" / "DONE.json").unlink()
    assert main(["runs", str(tmp_path), "--json"]) in (0, None)
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_groups_stand_by_the_size_of_what_differs(tmp_path):
    for i, lr in enumerate((1e-2, 5e-5, 1e-3)):
        run_folder(tmp_path / str(i), steps=20, pictures=False, config={"optimizer": {"lr": lr}})
    (setting,) = content([tmp_path], ReportSpec())["settings"]
    assert setting == {"key": "optimizer.lr", "values": ["5e-05", "0.001", "0.01"]}


def test_figures_of_different_protocols_are_never_in_one_table(tmp_path):
    run = one_run(tmp_path, pictures=False)
    other = run_folder(tmp_path / "other" / "seed-0", steps=40, pictures=False, overrides=["a=b"], config={"a": "b"})
    evaluation(run, 0.8, hash_="aaaa", items=2)
    evaluation(other, 0.9, hash_="bbbb", items=2)
    tables = content([tmp_path], ReportSpec())["tables"]
    assert {table["hash"] for table in tables} == {"aaaa", "bbbb"}
    assert [len(table["rows"]["perfect"]) for table in tables] == [1, 1]


def two_runs(place: Path) -> list[Path]:
    """Two runs of two configurations, of one seed."""
    return [run_folder(place / name, steps=40, pictures=False, config={"control": {"_target_": name}})
            for name in ("p", "q")]  # fmt: skip


def test_evaluations_of_one_protocol_are_one_table_whatever_their_folders_are_called(tmp_path):
    for run, name in zip(two_runs(tmp_path), ("scenes", "scenes-2"), strict=True):
        evaluation(run, 0.8, items=2, name=name)
    (table,) = content([tmp_path], ReportSpec())["tables"]
    assert (table["label"], table["labels"]) == ("scenes, scenes-2", ["scenes", "scenes-2"])
    assert [row["group"] for row in table["rows"]["perfect"]] == [0, 1]
    evaluation(tmp_path / "p", 0.7, items=2, name="scenes-2")  # a run that has both: they are two
    tables = content([tmp_path], ReportSpec())["tables"]
    assert [(one["label"], [row["group"] for row in one["rows"]["perfect"]]) for one in tables] == [
        ("scenes", [0]), ("scenes-2", [0, 1])
    ]  # fmt: skip


def test_a_table_has_the_scores_of_every_group_also_those_that_others_lack(tmp_path):
    """One protocol measures runs of several conditions, and each has scores of its own."""
    for run in two_runs(tmp_path):
        evaluated = evaluation(run, 0.8, items=2)
    with_score(evaluated, "hint_rmse", 0.25)
    (table,) = content([tmp_path], ReportSpec())["tables"]
    names = [score["name"] for score in table["scores"]]
    assert names == ["edge_f1_1px", "hint_error", "hint_rmse"]
    first, second = (row["cells"][names.index("hint_rmse")] for row in table["rows"]["perfect"])
    assert (first, second["mean"]) == (None, 0.25)


def test_what_has_no_curve_no_figure_or_no_finite_loss_is_told(tmp_path):
    good, bare = two_runs(tmp_path)
    evaluation(good, 0.8, items=2)
    head, *rows = (good / "metrics.csv").read_text().splitlines()
    place = head.split(",").index("train/loss")
    cells = [row.split(",") for row in rows]
    for row in cells[-3:]:
        row[place] = "nan"
    (good / "metrics.csv").write_text("\n".join([head, *map(",".join, cells)]) + "\n")
    (bare / "metrics.csv").unlink()
    told = {line["reason"] for line in content([tmp_path], ReportSpec())["trouble"]}
    assert told == {
        "train/loss is no finite number at 3 of its 5 steps, first at 20",
        "no curves: metrics.csv has none of those shown here",
        "no figures: not evaluated (evaluate.py)",
    }


@pytest.mark.parametrize("kind", ["previews", "evaluation"])
def test_a_picture_whose_end_was_lost_is_missing_alone(tmp_path, kind):
    run = one_run(tmp_path)
    evaluation(run, 0.8, items=1)
    for path in (run / kind).rglob("*.png"):
        Image.effect_noise((512, 512), 90).convert("RGB").save(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\0"))
    made = content([tmp_path], ReportSpec())
    assert len(made["tables"]) == len(made["samples"]) == 1
    assert bool(made["grid"]["items"]) == (kind == "evaluation")


def test_protocols_that_read_alike_are_told_apart_by_all_in_which_they_differ(tmp_path):
    own = [{"size": 64, "more": [], "judge": "p"}, {"size": 128, "more": [{"checkpoint": "x", "scale": 0.5}]}]
    for run, keys, hash_ in zip(two_runs(tmp_path), own, ("aaaa", "bbbb"), strict=True):
        path = evaluation(run, 0.8, items=2, hash_=hash_) / "results.json"
        changed(path, lambda told, keys=keys: told["protocol"].update(keys))
    first, second = (table["protocol"] for table in content([tmp_path], ReportSpec())["tables"])
    plain = protocols.told({"protocol": PROTOCOL | {"items": 2}})
    assert first == f"{plain}; judge p; more []; more.0.checkpoint –; more.0.scale –; size 64"
    assert second == f"{plain}; judge –; more –; more.0.checkpoint x; more.0.scale 0.5; size 128"


def test_evaluations_by_other_code_or_on_another_base_are_told(tmp_path):
    for run in two_runs(tmp_path):
        path = evaluation(run, 0.8, items=2) / "results.json"
    assert content([tmp_path], ReportSpec())["trouble"] == []
    changed(path, lambda told: told.update(evaluated_at_commit="f" * 40, base_sha256="other"))
    told = content([tmp_path], ReportSpec())
    names = [group["name"] for group in told["groups"]]
    assert told["trouble"] == [
        {"run": "figures of scenes (aaaa)", "reason": f"made by different code: 0123456789ab for {names[0]}; "
                                                      f"ffffffffffff for {names[1]}"},
        {"run": "figures of scenes (aaaa)", "reason": f"made on different bases: b for {names[0]}; "
                                                      f"other for {names[1]}"},
    ]  # fmt: skip


def with_score(evaluated: Path, score: str, value: float | None) -> None:
    """Give every image of an evaluation, and its means, this value of a score."""
    path = evaluated / "per_sample.npz"
    rows = dict(np.load(path))
    np.savez_compressed(path, **rows, **{score: np.full(len(rows["item"]), np.nan if value is None else value)})
    for setting in ("none", "perfect"):
        changed(evaluated / "results.json", lambda told, own=setting: told["metrics"][own].update({score: value}))


def test_no_group_is_better_by_a_score_without_a_direction(tmp_path):
    for lr, value in ((1e-3, 0.3), (2e-3, 0.02)):
        for seed in (0, 1):
            run = run_folder(tmp_path / f"{lr}-{seed}", seed, steps=20, pictures=False,
                             config={"optimizer": {"lr": lr}})  # fmt: skip
            with_score(evaluation(run, 0.8, items=2), "nearest_training", value + 0.001 * seed)
    made = content([tmp_path], ReportSpec(scores=("nearest_training", "hint_error")))
    (table,) = made["tables"]
    assert [score["lower"] for score in table["scores"]] == [None, True]
    assert [score["lower"] for score in made["samples"][0]["scores"]] == [None, True]
    assert table["best"]["perfect"][0] is None
    assert table["rows"]["perfect"][1]["cells"][0]["difference"] == pytest.approx(-0.28)
    assert "| nearest_training | hint_error ↓ |" in markdown(made, table)


def test_a_value_that_fewer_seeds_have_says_how_many(tmp_path):
    for seed, value in ((0, 0.5), (1, None)):
        run = run_folder(tmp_path / str(seed), seed, steps=20, pictures=False)
        with_score(evaluation(run, 0.8, items=2), "circle_iou", value)
    made = content([tmp_path], ReportSpec(scores=("circle_iou", "hint_error")))
    (row,) = made["tables"][0]["rows"]["perfect"]
    assert (row["n"], [cell["n"] for cell in row["cells"]]) == (2, [1, 2])
    assert "| control-canny | 0.500 [0.500, 0.500] (n = 1) |" in markdown(made, made["tables"][0])


def test_a_protocol_is_told_by_what_is_unusual_in_it():
    protocol = {"items": 6, "noise_seeds": [0, 1], "steps": 10, "guidance": 3.0, "scale": 1.0, "end": 1.0}
    plain = protocols.told({"protocol": protocol})
    assert plain.endswith("steps, guidance 3.0, scale 1.0")
    own = {"end": 0.5, "mode": "control", "data": {"family": "unseen"}}
    assert protocols.told({"protocol": protocol | own}) == f"{plain}, family unseen, end 0.5, mode control"


def test_a_single_seed_has_an_interval_over_items_only(tmp_path):
    evaluation(one_run(tmp_path, pictures=False), 0.8)
    (cell, _) = content([tmp_path], ReportSpec())["tables"][0]["rows"]["perfect"][0]["cells"]
    assert cell["seeds"] is None
    assert cell["items"][0] < cell["mean"] < cell["items"][1]


def test_a_specification_chooses_what_is_shown(place, tmp_path):
    file = tmp_path / "spec.yaml"
    file.write_text("{title: Small or large, reference: lite, curves: [val/loss, val/loss], items: [2, 2], looks: 3,"
                    " samples: 2, scores: [hint_error]}")  # fmt: skip
    made = content([place], read_spec(file))
    assert made["title"] == "Small or large"
    assert [group["name"] for group in made["groups"]] == ["control=lite", "control=controlnet"]
    assert [one["name"] for one in made["curves"]] == ["val/loss"]
    assert ([shown["item"] for shown in made["grid"]["items"]], len(made["grid"]["steps"])) == ([2], 3)
    assert [score["name"] for score in made["tables"][0]["scores"]] == ["hint_error"]
    assert {row["item"] for row in made["samples"][0]["rows"]} == {0, 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour: red", "a report takes title, question, curves.*got colour"),
        ("items: [a]", "items is a list of numbers from 0, got"),
        ("items: [-1]", "items is a list of numbers from 0, got"),
        ("items: [true]", "items is a list of numbers from 0, got"),
        ("scores: [3]", "scores is a list of texts, got"),
        ("looks: 0", "looks is a number from 1, got 0"),
        ("title: 3", "title is a text, got 3"),
        ("[1, 2]", "a report takes .*got list"),
        ("[]", "a report takes .*got list"),
        ("a: [", "--spec .*spec.yaml is no YAML file"),
        ("title: 2026-13-45", "--spec .*spec.yaml is no YAML file: month"),
        ("\udcff", "--spec .*spec.yaml is no text file"),
    ],
)
def test_a_mistake_in_a_specification_is_said_in_one_sentence(tmp_path, text, message):
    (tmp_path / "spec.yaml").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"curves": ("val/los",)}, r"curves: no run has 'val/los'; did you mean val/loss"),
        ({"scores": ("hint_eror",)}, r"scores: no run has 'hint_eror'; did you mean hint_error\?"),
        ({"items": (0, 99)}, "items: no run's previews have 99; they have 0 to 3"),
    ],
)
def test_what_no_run_has_is_refused_with_near_names(place, asked, message):
    with pytest.raises(ValueError, match=message):
        content([place], ReportSpec(**asked))


def test_files_that_cannot_be_read_or_written_are_said_with_their_option(place, tmp_path, capsys):
    for options, message in (
        (["--spec", f"{tmp_path}/nope.yaml"], f"--spec {tmp_path}/nope.yaml cannot be read: No such file or directory"),
        (["--spec", f"{tmp_path}"], f"--spec {tmp_path} cannot be read: Is a directory"),
        (["--out", f"{tmp_path}"], f"--out {tmp_path} is a folder; it takes the name of a file"),
        (["--out", f"{__file__}/a"], f"--out {__file__}/a lies in {__file__}, which is a file"),
    ):
        assert main(["report", str(place), *options]) == 1
        assert message in capsys.readouterr().err


def test_a_place_without_runs_and_an_unknown_reference_are_refused(place, tmp_path, capsys):
    assert main(["report", str(tmp_path / "nothing")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no run folder" in capsys.readouterr().err
    with pytest.raises(ValueError, match="reference='mlp' is in the name of no group; there are: control=controlnet; "):
        content([place], ReportSpec(reference="mlp"))
