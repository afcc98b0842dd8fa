"""Tables: every file in git can be run, numbers are those of the runs, and what does not belong together is refused."""

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from cldm.commands.cli import main
from cldm.commands.table import TABLES, added, plan, put_into, training
from cldm.runs.checkout import REPOSITORY
from cldm.tables.publishing import publish, published_plan
from cldm.tables.records import problems, records, refuse_unknown_scores
from cldm.tables.rendering import latex, markdown, picture, to_csv
from cldm.tables.spec import evaluation_folder, read_spec
from cldm.tables.writing import lines

FILES = sorted(path.stem for path in TABLES.glob("*.yaml"))

TABLE = """
title: Two | three
about: What it asks.
train: [condition=canny]
seeds: [0, 1, 2]
rows: {one: {}, other: {train: [steps=3]}, half: {evaluate: [end=0.5]}}
reference: one
evaluations: {main: [protocol=scenes, items=4]}
columns:
  - {title: edge F1, from: main, metric: edge, setting: none, better: higher, digits: 2}
  - {title: step, from: run, metric: convergence_step, better: lower, digits: 0}
"""
EDGES = {"one": [0.70, 0.72, 0.74], "other": [0.50, 0.53, 0.53], "half": [0.10, 0.80, 0.90]}


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "mine.yaml").write_text(TABLE)
    return read_spec(tmp_path / "mine.yaml")


@pytest.fixture
def found(spec, tmp_path):
    """Records of finished runs with EDGES as means; images of item i lie i / 100 off, equally in all rows."""
    folders = {(row.title, s): tmp_path / row.title / f"seed-{s}" for row in spec.rows for s in spec.seeds}
    for (title, seed), folder in folders.items():
        row = next(row for row in spec.rows if row.title == title)
        write_run(folder, EDGES[title][seed], [*spec.evaluations["main"], *row.evaluate])
    return records(spec, {key: [folder] for key, folder in folders.items()})


def write_run(folder: Path, edge: float, overrides: list[str], **changed) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "control.safetensors").write_bytes(folder.parent.name.encode())
    (folder / "DONE.json").write_text("{}")
    (folder / "results.json").write_text(json.dumps({"commit": "abc", "convergence_step": None}))
    out = evaluation_folder(folder, overrides)
    out.mkdir(parents=True, exist_ok=True)
    offsets = np.repeat((np.arange(4) - 1.5) / 100, 2)
    np.savez(out / "per_sample.npz", item=np.repeat(np.arange(4), 2), noise=np.tile([0, 1], 4),
             setting=np.full(8, "none"), edge=edge + offsets)  # fmt: skip
    protocol = {"name": "scenes", "items": 4, "noise_seeds": [0, 1], "steps": 20, "guidance": 3.0, "scale": 1.0,
                "end": 0.5 if "end=0.5" in overrides else 1.0}  # fmt: skip
    digest = hashlib.sha256((folder / "control.safetensors").read_bytes()).hexdigest()
    results = {"checkpoint_sha256": digest, "evaluated_at_commit": "abc", "protocol": protocol, "protocol_hash": "1f",
               "metrics": {"none": {"edge": edge}}, "base": {"none": {"edge": 0.05}},
               "ceiling": {"edge": 0.9}}  # fmt: skip
    (out / "results.json").write_text(json.dumps({**results, **changed}))


def test_a_column_tells_the_first_look_that_reached_a_level(spec, found, tmp_path):
    text = (tmp_path / "mine.yaml").read_text()
    column = "  - {title: steps to 0.8, from: run, metric: iou, reaches: 0.8, better: lower, digits: 0}\n"
    (tmp_path / "reach.yaml").write_text(text + column)
    spec = read_spec(tmp_path / "reach.yaml")
    reached = {"one": [0.1, 0.8, 0.7], "other": [0.1, None, 0.79], "half": [0.9, 0.9, 0.9]}
    for record in found:
        looks = {"step": [0, 20, 40], "iou": reached[record.row.title]}
        (record.run / "results.json").write_text(
            json.dumps({"commit": "abc", "convergence_step": None, "looks": looks})
        )
    again = records(spec, {(r.row.title, r.seed): r.runs for r in found})
    cells = {line.title: line.cells[2] for line in lines(spec, again) if not line.bound}
    assert [cells["one"].mean, cells["half"].mean] == [20, 0]
    assert cells["other"].n == 0  # never: no number, and no row of it can win
    assert not any(cell.best for cell in cells.values())

    (tmp_path / "typo.yaml").write_text((tmp_path / "reach.yaml").read_text().replace("metric: iou", "metric: iuo"))
    with pytest.raises(ValueError, match=r"'steps to 0.8': the looks of training have no score 'iuo'; .* iou"):
        refuse_unknown_scores(read_spec(tmp_path / "typo.yaml"), again)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("metric: edge,", "metric: edge, reaches: 0.5,", "'edge F1': reaches is of the looks of training"),
        ("metric: convergence_step,", "metric: iou, reaches: high,", "'step': reaches must be a number, got 'high'"),
        (
            "metric: convergence_step,",
            "metric: convergence_step, setting: none,",
            "'step': setting is of an evaluation",
        ),
    ],
)
def test_a_column_that_cannot_be_is_refused(tmp_path, old, new, told):
    (tmp_path / "mine.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=f"column {told}"):
        read_spec(tmp_path / "mine.yaml")


def test_an_evaluation_without_a_protocol_is_named_by_the_usual_one():
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        usual = compose("evaluate", ["checkpoint=x"]).name
    assert evaluation_folder(Path("run"), ["items=2"]).name.startswith(f"{usual}-")


def overrides_of(spec, title: str) -> list[str]:
    row = next(row for row in spec.rows if row.title == title)
    return [*spec.evaluations["main"], *row.evaluate]


# ------------------------------------------------------------------ the files in git


@cache
def composes(config: str, *overrides: str) -> None:
    """ConfigCompositionException where it does not; rows of several tables are the same runs."""
    compose(config, overrides=[*overrides])


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_table_file_names_only_what_train_and_evaluate_take(name):
    spec = read_spec(TABLES / f"{name}.yaml")
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        for row in spec.rows:
            for overrides in row.trainings:
                composes("train", *training(overrides, spec.seeds[0], "runs"))
            added_runs = added(row, [Path("runs/a b")] * len(row.more))
            for overrides in spec.evaluations.values() if row.evaluation or row == spec.rows[0] else ():
                composes("evaluate", *overrides, *row.evaluate, *added_runs)
    assert spec.figure.get("evaluation") in (None, *spec.evaluations)
    for setting in (column.setting for column in spec.columns if column.source != "run"):
        assert setting in ("none", "insufficient", "conflicting", "perfect")


def test_runs_are_those_that_train_py_would_make_whatever_they_are_called(spec, tmp_path):
    folders = {key: folder for key, [folder] in plan(spec, str(tmp_path / "runs")).items()}
    assert folders["one", 0] == folders["half", 0]
    assert folders["one", 0] != folders["one", 1]
    assert folders["one", 0].parent != folders["other", 0].parent
    own = folders["one", 0].parent
    other = own.with_name("another-name-" + own.name.rsplit("-", 1)[1])
    (other / "seed-0").mkdir(parents=True)
    (other / "seed-0" / "DONE.json").touch()
    assert plan(spec, str(tmp_path / "runs"))["one", 0] == [other / "seed-0"]


COMPOSED = """
title: Composition
train: [steps=3]
seeds: [0, 1]
rows:
  A: {train: [condition=canny], more: [{train: [condition=blur], scale: 0.0}]}
  A + B: {train: [condition=canny], more: [{train: [condition=blur]}]}
evaluations: {main: [protocol=scenes]}
columns: [{title: A, from: main, metric: edge, setting: none}]
"""


def test_rows_of_two_branches_share_their_runs_and_need_both(tmp_path, capsys):
    (tmp_path / "both.yaml").write_text(COMPOSED)
    composed = read_spec(tmp_path / "both.yaml")
    runs = plan(composed, str(tmp_path / "runs"))
    assert runs["A", 1] == runs["A + B", 1]
    a, b = runs["A", 0]
    assert a.parent != b.parent
    first, _, both, _ = records(composed, runs)
    assert first.evaluations != both.evaluations
    assert added(first.row, first.runs[1:]) == [f"more=[{{checkpoint: '{b}', scale: 0.0}}]"]
    assert main(["table", str(tmp_path / "both.yaml"), str(tmp_path / "runs"), "--commands"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert sum("steps=3 condition=blur" in line for line in printed) == 2

    write_run(a, 0.5, [*composed.evaluations["main"], *both.row.evaluation])
    told = problems(composed, records(composed, runs))["missing"]
    assert f"A + B, seed 0: not trained ({b})" in told
    assert f"A + B, seed 0: not trained ({a})" not in told
    write_run(b, 0.5, [])
    fresh = records(composed, runs)[2]
    assert fresh.evaluated["main"] is None  # it measured the first branch alone
    weights = hashlib.sha256((b / "control.safetensors").read_bytes()).hexdigest()
    write_run(a, 0.5, [*composed.evaluations["main"], *both.row.evaluation], more=[{"checkpoint_sha256": weights}])
    assert records(composed, runs)[2].value(composed.columns[0]) == 0.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reference: one", "reference: none", "reference 'none' is none of the rows"),
        ("from: main", "from: mian", "is from 'mian', which is no evaluation"),
        ("better: higher", "better: more", "better must be higher or lower"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "seeds must be different"),
        ("about:", "abuot:", "unknown keys: abuot"),
        ("title: Two | three", "", "'title' is missing"),
    ],
)
def test_a_wrong_table_file_is_refused_with_the_reason(tmp_path, old, new, message):
    (tmp_path / "wrong.yaml").write_text(TABLE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_spec(tmp_path / "wrong.yaml")


# ------------------------------------------------------------------ numbers


def test_cells_are_mean_and_sample_deviation_and_differences_are_paired(spec, found):
    one, other, _, base, ceiling = lines(spec, found)
    assert (one.title, other.title) == ("one", "other")
    assert one.cells[0].mean == pytest.approx(0.72)
    assert one.cells[0].std == pytest.approx(0.02)
    assert one.cells[0].n == 3
    assert one.cells[0].difference is None
    d = other.cells[0].difference
    assert d.mean == pytest.approx(-0.2)  # of -0.20, -0.19, -0.21
    assert d.by_seed == pytest.approx((-0.2 - 4.3027 * 0.01 / 3**0.5, -0.2 + 4.3027 * 0.01 / 3**0.5), abs=1e-5)
    assert d.by_item == pytest.approx((-0.2, -0.2))  # items differ, pairs of items do not
    assert (base.cells[0].mean, ceiling.cells[0].mean) == (0.05, 0.9)
    assert base.cells[1] is None


def test_a_difference_is_of_the_images_that_both_have_the_score_of(spec, found):
    for record in (record for record in found if record.row.title == "other"):
        path = record.evaluations["main"] / "per_sample.npz"
        images = dict(np.load(path))
        images["edge"] = np.where(images["item"] == 3, np.nan, images["edge"])
        np.savez(path, **images)
        results = json.loads((path.parent / "results.json").read_text())
        results["metrics"]["none"]["edge"] = float(np.nanmean(images["edge"]))
        (path.parent / "results.json").write_text(json.dumps(results))
    _, other, *_ = lines(spec, records(spec, {(r.row.title, r.seed): [*r.runs] for r in found}))
    d = other.cells[0].difference
    assert d.mean == pytest.approx(-0.2)
    assert d.by_item == pytest.approx((-0.2, -0.2))


def test_where_rows_have_bases_of_their_own_the_base_without_control_is_the_references(spec, tmp_path):
    folders = {(row.title, seed): tmp_path / row.title / f"seed-{seed}" for row in spec.rows for seed in spec.seeds}
    for (title, _), folder in folders.items():
        name, edge = ("b", 0.3) if title == "other" else ("a", 0.05)
        write_run(folder, 0.5, overrides_of(spec, title), base_sha256=name, base={"none": {"edge": edge}})
    base = lines(spec, records(spec, {key: [folder] for key, folder in folders.items()}))[3]
    assert (base.title, base.cells[0].mean) == ("base of one, no control", 0.05)


def test_bold_needs_a_difference_beyond_the_interval_from_every_row(spec, found):
    assert not any(line.cells[0].best for line in lines(spec, found)[:3])  # "half" varies too much to be told apart
    settled = [record for record in found if record.row.title != "half"]
    two = type(spec)(**{**vars(spec), "rows": spec.rows[:2]})
    assert [line.cells[0].best for line in lines(two, settled)[:2]] == [True, False]
    one_seed = [record for record in settled if record.seed == 0]
    assert not any(line.cells[0].best for line in lines(two, one_seed)[:2])
    lacking = [record for record in settled if (record.row.title, record.seed) != ("one", 2)]
    assert not any(line.cells[0].best for line in lines(two, lacking)[:2])  # no winning by what is left out


def test_a_run_that_never_converged_has_no_number_and_n_says_so(spec, found):
    text = markdown(spec, lines(spec, found), found, "python -m cldm table mine", [])
    assert "– (0 of 3)" in text


def test_every_form_holds_the_numbers_and_markdown_says_how_they_were_made(spec, found):
    made = lines(spec, found)
    text = markdown(spec, made, found, "python -m cldm table mine", [])
    assert "| one | 0.72 ± 0.02 |" in text
    assert "| other | edge F1 | -0.20 | [-0.22, -0.18] | [-0.20, -0.20] | 3 |" in text
    for told in ("`python -m cldm table mine`", "`abc`", "n = 3 training seeds (0, 1, 2)", "protocol `1f`"):
        assert told in text
    assert r"one & 0.72 $\pm$ 0.02 & -- (0 of 3) \\" in latex(spec, made)
    rows = [*csv.DictReader(io.StringIO(to_csv(spec, made, found)))]
    values = [float(row["value"]) for row in rows if row["row"] == "other" and row["column"] == "edge F1"]
    assert values == EDGES["other"]
    assert picture(spec, made).width > 300


def test_a_ceiling_of_its_own_stands_behind_each_number(spec, found, tmp_path):
    for seed in spec.seeds:
        folder = tmp_path / "other" / f"seed-{seed}"
        write_run(folder, EDGES["other"][seed], overrides_of(spec, "other"), ceiling={"edge": 0.6})
    fresh = records(spec, {(r.row.title, r.seed): r.runs for r in found})
    made = lines(spec, fresh)
    assert "0.52 ± 0.02 of 0.60" in markdown(spec, made, fresh, "", [])
    assert not any(line.title.startswith("ceiling") for line in made)


# ------------------------------------------------------------------ refusals


def test_runs_of_one_kind_make_a_table(spec, found):
    assert problems(spec, found) == {
        "missing": [],
        "commits": [],
        "protocols": [],
        "inputs": [],
    }  # `end` differs on purpose


def test_missing_runs_and_outdated_evaluations_are_named(spec, found, tmp_path):
    (tmp_path / "one" / "seed-1" / "DONE.json").unlink()
    (tmp_path / "other" / "seed-2" / "control.safetensors").write_bytes(b"trained again")
    fresh = records(spec, {(r.row.title, r.seed): r.runs for r in found})
    missing = problems(spec, fresh)["missing"]
    assert [re.match(r"(.*?) \(", line).group(1) for line in missing] == [
        "one, seed 1: not trained", "other, seed 2: no evaluation 'main'"]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"metric": "egde"}, "column 'edge F1': evaluation 'main' has no score 'egde'; did you mean edge"),
        ({"setting": "non"}, "column 'edge F1': evaluation 'main' has no setting 'non'; it has none"),
        (
            {"source": "run", "metric": "convergance_step"},
            "no score 'convergance_step'; did you mean convergence_step",
        ),
    ],
)
def test_a_score_that_no_evaluation_has_is_named(spec, found, changed, told):
    refuse_unknown_scores(spec, found)
    wrong = replace(spec, columns=(replace(spec.columns[0], **changed), *spec.columns[1:]))
    with pytest.raises(ValueError, match=told):
        refuse_unknown_scores(wrong, found)


def test_mixed_commits_and_protocols_are_named(spec, found, tmp_path):
    write_run(tmp_path / "one" / "seed-2", 0.7, overrides_of(spec, "one"), evaluated_at_commit="def+changes")
    changed = {"name": "scenes", "items": 5, "end": 1.0}
    write_run(tmp_path / "other" / "seed-0", 0.7, overrides_of(spec, "other"), protocol=changed)
    told = problems(spec, records(spec, {(r.row.title, r.seed): r.runs for r in found}))
    assert any("one seed 2 evaluated" in line for line in told["commits"])
    assert any("changes that are in no commit" in line for line in told["commits"])
    assert len(told["protocols"]) == 1
    assert "items: 4 and 5" in told["protocols"][0]


def test_pictures_that_changed_between_the_seeds_of_a_row_are_named(spec, found, tmp_path):
    def inputs() -> list[str]:
        return problems(spec, records(spec, {(r.row.title, r.seed): r.runs for r in found}))["inputs"]

    for r in found:
        for run in r.runs:
            other = "two" if run.parent.name == "other" else "one"  # rows may differ in what they name
            (run / "config.yaml").write_text(f"data: {{path: pictures/{other}}}\nbase: base.safetensors\n")
            (run / "inputs.json").write_text(json.dumps({"data.path": other, "base": "weights"}))
    assert inputs() == []
    (tmp_path / "one" / "seed-2" / "inputs.json").write_text(json.dumps({"data.path": "more", "base": "weights"}))
    (told,) = inputs()
    assert told.startswith("data.path=pictures/one: one for ")
    assert "more for " in told
    assert "one seed 2" in told.split("more for ")[1]


def test_a_run_whose_attempts_were_of_different_commits_is_mixed(spec, found, tmp_path):
    run = tmp_path / "one" / "seed-2"
    (run / "results.json").write_text(json.dumps({"commit": "abc", "commits": ["older", "abc"]}))
    told = problems(spec, records(spec, {(r.row.title, r.seed): r.runs for r in found}))["commits"]
    assert any(line.startswith("older: one seed 2 trained") for line in told)


def test_the_command_refuses_and_says_what_to_do(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(TABLE)
    command = ["table", str(tmp_path / "mine.yaml"), str(tmp_path / "runs")]
    assert main(command) == 1
    told = capsys.readouterr().err
    assert told.count("not trained") == 9
    assert "--allow missing" in told
    assert not (tmp_path / "runs").exists()
    assert main([*command, "--commands"]) == 0
    assert capsys.readouterr().out.count("python train.py condition=canny") == 6  # two rows share their runs
    assert main(["table", "nowhere"]) == 1
    assert "configs/table has" in capsys.readouterr().err


# ------------------------------------------------------------------ published results


def test_what_is_published_makes_the_table_again_and_commits_do_not_overwrite_each_other(spec, found, tmp_path):
    before = str(lines(spec, found))
    assert publish("mine", found, tmp_path, tmp_path / "results") == 9
    assert not [*(tmp_path / "results").rglob("*.safetensors")]
    for record in found:
        results = json.loads((record.run / "results.json").read_text())
        (record.run / "results.json").write_text(json.dumps({**results, "commit": "later"}))
    again = records(spec, {(r.row.title, r.seed): r.runs for r in found})
    publish("other", again, tmp_path, tmp_path / "results")
    for name, commit in (("mine", "abc"), ("other", "later")):
        rebuilt = records(spec, published_plan(name, tmp_path / "results"))
        assert str(lines(spec, rebuilt)) == before  # as text: no nan equals another
        assert {r.trained[0]["commit"] for r in rebuilt} == {commit}


def test_what_is_published_from_published_results_still_names_its_weights(spec, found, tmp_path):
    """A run that went into git without weights may be part of a later table."""
    publish("mine", found, tmp_path, tmp_path / "results")
    once = records(spec, published_plan("mine", tmp_path / "results"))
    publish("more", once, tmp_path / "results", tmp_path / "again")
    twice = records(spec, published_plan("more", tmp_path / "again"))
    assert [r._weights for r in twice] == [r._weights for r in once]
    assert str(lines(spec, twice)) == str(lines(spec, once))


def test_a_table_is_put_into_its_place_on_a_page():
    page = "a\n<!-- table mine: python -m cldm table mine -->\nold\n<!-- /table -->\nb\n"
    assert put_into(page, "mine", "new\n") == page.replace("old", "new")
    with pytest.raises(ValueError, match="no place for the table 'other'"):
        put_into(page, "other", "new")
