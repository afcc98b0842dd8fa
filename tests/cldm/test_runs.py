"""Promises of `python -m cldm runs`: every folder is listed with its state, broken ones with the reason."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cldm.commands.cli import main
from cldm.runs import metrics
from cldm.runs.checkout import REPOSITORY
from cldm.runs.listing import RunFolder
from ldm.files import locked
from tests.run_folders import evaluation, run_folder


def folder(place: Path, name: str, lr: float = 1e-3, **files: str) -> Path:
    path = place / name
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(f"optimizer: {{lr: {lr}}}\nseed: 0\n")
    for file, text in files.items():
        (path / file.replace("_", ".")).write_text(text)
    return path


@pytest.fixture
def place(tmp_path):
    results = json.dumps({"steps": 10, "fidelity": {"edge_f1_1px": {"base": 0.1, "control": 0.8}}})
    folder(tmp_path, "a", 1e-3, results_json=results, DONE_json="{}")
    folder(tmp_path, "b", 1e-4, FAILED_json=json.dumps({"reason": "ValueError: no"}))
    folder(tmp_path, "c", 1e-4)
    folder(tmp_path, "d", 1e-4, DONE_json="{}", results_json='{"steps": ')
    broken = folder(tmp_path, "e")
    (broken / "config.yaml").write_text("optimizer: {lr")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "attempts.jsonl").write_text("")
    return tmp_path


def listed(capsys, *arguments: object) -> dict[str, dict]:
    assert main(["runs", *map(str, arguments), "--json"]) == 0
    return {row["run"]: row for row in json.loads(capsys.readouterr().out)}


def test_every_run_is_listed_with_its_state_and_broken_ones_with_the_reason(place, capsys):
    with locked(place / "c"):
        found = listed(capsys, place)
    assert {name: row["state"] for name, row in found.items()} == {
        "a": "done",
        "b": "failed: ValueError: no",
        "c": "running",
        "d": "unreadable: results.json is broken",
        "e": "unreadable: config.yaml is broken",
        "f": "unreadable: no config.yaml",
    }
    assert listed(capsys, place)["c"]["state"] == "cut off"
    start, stop = '{"event": "start"}\n', '{"event": "stopped", "reason": "asked to end"}\n'
    (place / "c" / "attempts.jsonl").write_text(start + stop)
    assert listed(capsys, place)["c"]["state"] == "stopped: asked to end"
    (place / "c" / "attempts.jsonl").write_text(stop + start + "3\n")
    assert listed(capsys, place)["c"]["state"] == "cut off"
    assert found["a"] == {"run": "a", "state": "done", "steps": 10, "edge_f1_1px": 0.8, "optimizer.lr": 0.001}


def test_the_steps_of_a_run_that_is_not_done_are_those_it_has_logged(place, capsys):
    (place / "c" / "config.yaml").write_text("steps: 4000\n")
    assert listed(capsys, place)["c"]["steps"] == 0
    rows = [f"{step},0.5" for step in range(0, 20_000, 10)]
    (place / "c" / "metrics.1.csv").write_text("\n".join(["step,train/loss", *rows]) + "\n")
    assert listed(capsys, place)["c"]["steps"] == 19_990
    (place / "c" / "metrics.csv").write_text("step,train/loss\n20000,0.5\n20010")  # cut off while it was written
    found = listed(capsys, place)
    assert found["c"]["steps"] == 20_000
    assert found["a"]["steps"] == 10
    (place / "c" / "metrics.csv").write_bytes(b"\xff,\n1,2\n")
    assert listed(capsys, place)["c"]["steps"] == 19_990


def test_of_runs_of_several_stages_choices_are_told_and_not_all_that_follows_from_them(tmp_path, capsys):
    def run(name: str, config: dict, *typed: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(json.dumps(config))
        (tmp_path / name / "overrides.yaml").write_text(json.dumps(typed))

    def config(stage: str, **more: Any) -> dict:
        told = {"trainer": {"callbacks": {"export": {"metadata": {"stage": stage, "model": "tiny"}}}}}
        return {**told, "data": {"_target_": "cldm.data.folder.folder_data", "augment": stage}, "steps": 9, **more}

    run("a", config("autoencoder", words=["a"] * 90), "stage=autoencoder")
    run("b", config("control", lr=1e-3, steps=5), "steps=5")
    run("c", config("control", lr=1e-4, steps=5), "steps=5")
    assert {*listed(capsys, tmp_path)["a"]} == {"run", "state", "stage", "lr", "steps"}
    rows = listed(capsys, tmp_path, "--columns", "stage,data,model")
    assert {name: row["stage"] for name, row in rows.items()} == {"a": "autoencoder", "b": "control", "c": "control"}
    assert {row["data"] for row in rows.values()} == {"folder"}
    assert len(listed(capsys, tmp_path, "--where", "stage=control")) == 2
    assert main(["runs", str(tmp_path), "--columns", "words"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) < 80


def test_a_reader_that_has_enough_ends_the_command(place):
    command = f"{sys.executable} -m cldm runs {place} | true"
    done = subprocess.run(["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_key_that_no_run_has_is_named(place, capsys):
    for typo in (["--where", "optimizer.lrr=1"], ["--columns", "steps,optimizer.lrr"], ["--sort", "optimizer.lrr"]):
        assert main(["runs", str(place), *typo]) == 1
        assert "no run has 'optimizer.lrr'; did you mean optimizer.lr" in capsys.readouterr().err


def test_in_the_terminal_names_are_whole_and_reasons_a_line(place, capsys):
    name = "control-canny-batch_size-8-condition-canny-" + "x" * 120
    folder(place, name, FAILED_json=json.dumps({"reason": "ValueError: " + "very " * 40 + "long"}))
    assert main(["runs", str(place)]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert "failed: ValueError: very" in line
    assert "long" not in line
    assert listed(capsys, place)[name]["state"].endswith("very long")


def test_runs_are_chosen_and_sorted_by_figures_and_keys(place, capsys):
    assert [*listed(capsys, place, "--where", "optimizer.lr=0.0001")] == ["b", "c", "d"]
    assert [*listed(capsys, place, "--sort", "edge_f1_1px")][-1] == "a"
    assert listed(capsys, place, "--columns", "optimizer.lr")["b"] == {
        "run": "b", "state": "failed: ValueError: no", "optimizer.lr": 1e-4,
    }  # fmt: skip
    assert main(["runs", str(place)]) == 0
    assert "6 runs" in capsys.readouterr().out


def test_runs_are_chosen_sorted_and_shown_by_state(place, capsys):
    assert [*listed(capsys, place, "--where", "state=done")] == ["a"]
    assert [*listed(capsys, place, "--where", "state=failed")] == ["b"]
    assert [*listed(capsys, place, "--where", "state=failed: ValueError: no")] == ["b"]
    assert [*listed(capsys, place, "--where", "state=cut off")] == ["c"]
    states = [row["state"] for row in listed(capsys, place, "--sort", "state").values()]
    assert states == sorted(states)
    assert listed(capsys, place, "--columns", "state")["a"] == {"run": "a", "state": "done"}


def test_json_is_what_every_reader_accepts(place, capsys):
    results = {"steps": 10, "fidelity": {"edge_f1_1px": {"control": float("nan")}}}
    (place / "a" / "results.json").write_text(json.dumps(results))
    (place / "c" / "config.yaml").write_text("since: 2026-11-25\n")
    assert main(["runs", str(place), "--columns", "edge_f1_1px,since", "--sort", "edge_f1_1px", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    told = {row["run"]: (row["edge_f1_1px"], row["since"]) for row in rows}
    assert (told["a"], told["c"]) == ((None, None), (None, "2026-11-25"))


def test_figures_of_evaluations_are_columns_like_others(tmp_path, capsys):
    column = "eval/quick/perfect/edge_f1_1px"
    for name, quality in (("a", 0.8), ("b", 0.3), ("c", 0.6)):
        run_folder(tmp_path / name, steps=20, pictures=False)
        evaluation(tmp_path / name, quality, name="quick", items=1)
    run_folder(tmp_path / "d", steps=20, pictures=False)
    (tmp_path / "c" / "evaluation" / "quick" / "results.json").write_text('{"metrics": ')
    rows = listed(capsys, tmp_path, "--columns", f"steps,{column}", "--sort", column)
    assert [*rows] == ["c", "d", "b", "a"]
    results = json.loads((tmp_path / "a" / "evaluation" / "quick" / "results.json").read_text())
    assert rows["a"][column] == results["metrics"]["perfect"]["edge_f1_1px"]
    assert rows["c"][column] is rows["d"][column] is None
    assert [*listed(capsys, tmp_path, "--where", f"{column}={rows['b'][column]}")] == ["b"]
    assert main(["runs", str(tmp_path), "--columns", "eval/quick/perfect/edge_f1_1p"]) == 1
    assert f"did you mean {column}" in capsys.readouterr().err


def test_figures_of_weights_that_are_gone_are_no_figures_of_the_run(tmp_path, capsys):
    name = "eval/scenes/perfect/edge_f1_1px"
    evaluation(run_folder(tmp_path / "a", steps=20, pictures=False), 0.8, items=1)
    old = evaluation(run_folder(tmp_path / "b", steps=20, pictures=False), 0.9, items=1) / "results.json"
    old.write_text(json.dumps(json.loads(old.read_text()) | {"steps": 10}))  # evaluated, then trained on
    found = listed(capsys, tmp_path, "--columns", f"state, {name}", "--sort", name)
    assert [(run, row[name] is None) for run, row in found.items()] == [("b", True), ("a", False)]
    assert [*listed(capsys, tmp_path, "--columns", "run,steps", "--sort", "run")] == ["a", "b"]


def test_evaluations_are_read_only_where_they_are_asked_for(tmp_path, capsys, monkeypatch):
    run_folder(tmp_path / "a", steps=20, pictures=False)
    monkeypatch.setattr(RunFolder, "evaluated", property(lambda _: pytest.fail("evaluations were read")))
    assert [*listed(capsys, tmp_path, "--where", "state=done", "--sort", "edge_f1_1px")] == ["a"]


def test_a_folder_named_wandb_above_hides_no_run_and_one_within_a_run_holds_none(tmp_path, capsys):
    place = tmp_path / "wandb" / "runs"
    run = run_folder(place / "a", steps=20, pictures=False)
    run_folder(run / "wandb" / "offline-run-1" / "files", steps=20, pictures=False)
    assert [*listed(capsys, place)] == ["a"]


@pytest.mark.parametrize("typed", ["optimizer.lr=1e-4", "optimizer.lr=1.0e-4", "optimizer.lr=.0001"])
def test_values_are_understood_as_train_py_understands_them(place, capsys, typed):
    assert [*listed(capsys, place, "--where", typed)] == ["b", "c", "d"]


def test_truths_and_nothing_are_values_too(tmp_path, capsys):
    for name, cosine, cache in (("a", True, None), ("b", False, "runs/cache")):
        run_folder(tmp_path / name, steps=20, config={"cosine": cosine, "cache": cache})
    assert [*listed(capsys, tmp_path, "--where", "cosine=true")] == ["a"]
    assert [*listed(capsys, tmp_path, "--where", "cache=null")] == ["a"]
    assert [*listed(capsys, tmp_path, "--where", "cache=runs/cache")] == ["b"]
    assert [*listed(capsys, tmp_path, "--where", "cosine=1")] == []


def test_mistakes_are_said_in_one_sentence(place, capsys):
    assert main(["runs", str(place / "nothing")]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["runs", str(place), "--where", "lr"]) == 1
    assert "--where takes KEY=VALUE" in capsys.readouterr().err
    assert main(["runs", str(place), "--where", "seed=0,1"]) == 1
    assert "--where takes one value of a key, got 0,1" in capsys.readouterr().err


def test_curves_leave_out_what_a_given_up_attempt_logged_and_nothing_else(tmp_path):
    head = "samples_seen,step,train/loss,train_seconds"
    first = [f"{8 * s},{s},{99 if s > 80 else 1},{s}" for s in range(5, 101, 5)]
    second = ["640,80,,80", *(f"{8 * s},{s},2,{s}" for s in (90, 100))]  # an attempt's first row is where it begins
    (tmp_path / "metrics.1.csv").write_text("\n".join([head, *first]))
    (tmp_path / "metrics.csv").write_text("\n".join([head, *second]))
    loss = metrics.curves(tmp_path, ["train/loss"])["train/loss"]
    assert dict(zip(loss.steps, loss.values, strict=True)) == dict.fromkeys(range(5, 81, 5), 1) | {90: 2, 100: 2}


def test_rows_after_the_checkpoint_that_an_attempt_went_on_from_are_given_up_whenever_it_logs_first(tmp_path):
    (tmp_path / "metrics.1.csv").write_text("step,train/loss\n5,.5\n10,.4\n15,9\n20,9\n")
    (tmp_path / "metrics.csv").write_text("step,train/loss\n30,.3\n40,.2\n")
    starts = [
        {"step": 0, "metrics": 0},
        {"step": 10, "metrics": 1},
        {"step": 25, "metrics": 1},
    ]  # the second logged none
    (tmp_path / "attempts.jsonl").write_text("\n".join(json.dumps({"event": "start", **told}) for told in starts))
    loss = metrics.curves(tmp_path)["train/loss"]
    assert dict(zip(loss.steps, loss.values, strict=True)) == {5: 0.5, 10: 0.4, 30: 0.3, 40: 0.2}
