"""python -m cldm table: the runs, the evaluations and the numbers of a table in git."""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cldm.runs.checkout import REPOSITORY

if TYPE_CHECKING:
    from cldm.tables.records import Record
    from cldm.tables.spec import Row, Spec

EXAMPLES = """\
  python -m cldm table architecture                            what is there -> Markdown, LaTeX, CSV, figure
  python -m cldm table architecture --train --evaluate         make what is missing first; the same again goes on
  python -m cldm table architecture --train --evaluate --jobs 4
  python -m cldm table architecture --commands                 what --train would run, a line each, for a cluster
  python -m cldm table my/own.yaml results/ --allow missing
It refuses missing seeds, mixed commits, mixed protocols and inputs that changed between runs, unless told to allow
them; the table then says so."""

TABLES = REPOSITORY / "configs" / "table"


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("table", metavar="TABLE", help="a name of configs/table, or a file")
    parser.add_argument("runs", nargs="?", default="runs", metavar="RUNS", help="where run folders lie (default: runs)")
    parser.add_argument("--train", action="store_true", help="train what is missing, or cut off")
    parser.add_argument("--evaluate", action="store_true", help="evaluate what is missing, or cut off")
    parser.add_argument("--commands", action="store_true", help="only print the commands of the missing runs")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run N jobs at a time (default: 1)")
    kinds = ("missing", "commits", "protocols", "inputs")
    parser.add_argument("--allow", nargs="+", default=[], choices=kinds, metavar="WHAT",
                        help=f"make the table in spite of what is missing or mixed: {', '.join(kinds)}")  # fmt: skip
    parser.add_argument("--publish", type=Path, metavar="FOLDER",
                        help="also copy the results that the table was made of, without weights, for git")  # fmt: skip
    parser.add_argument("--into", type=Path, metavar="PAGE",
                        help="also put the Markdown into a page, at its mark <!-- table TABLE: ... -->")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the files (default: RUNS/tables/TABLE)")


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, write the table; ValueError for what it must not mix."""
    from cldm.tables.records import records
    from cldm.tables.spec import read_spec

    spec = read_spec(spec_file(args.table))
    out = args.out or Path(args.runs) / "tables" / spec.name
    if args.commands:
        for _, command in missing_runs(spec, args.runs).values():
            print(shlex.join(["python", "train.py", *command]))
        return
    if args.train or args.evaluate:
        check_commits(spec, args)
    if args.train:
        train_missing(spec, args, out)
    found = records(spec, plan(spec, args.runs))
    if args.evaluate:
        evaluate_missing(found, spec, args, out)
        found = records(spec, {(record.row.title, record.seed): record.runs for record in found})
    write(spec, found, args, out)
    if args.publish:
        from cldm.tables.publishing import publish

        print(f"{publish(spec.name, found, args.runs, args.publish)} runs in {args.publish}")


def spec_file(name: str) -> Path:
    """The table file that a name or a path means."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if not (TABLES / f"{name}.yaml").is_file():
        known = ", ".join(sorted(path.stem for path in TABLES.glob("*.yaml")))
        raise ValueError(f"there is no table {name!r}; configs/table has {known}")
    return TABLES / f"{name}.yaml"


def training(overrides: Sequence[str], seed: int, runs: str) -> list[str]:
    """Arguments of train.py."""
    return [*overrides, f"seed={seed}", f"runs={runs}"]


def plan(spec: "Spec", runs: str) -> dict[tuple[str, int], list[Path]]:
    """{(row title, seed): run folders} of every run of the table, whether it exists or not: the row's own, then those
    of the branches it adds.

    A folder of another name counts if it holds the same configuration, which the hash in its name tells.
    """
    from cldm.runs.configs import planned
    from cldm.tables.publishing import published_plan

    if (published := published_plan(spec.name, runs)) is not None:
        return published
    trainings = {overrides for row in spec.rows for overrides in row.trainings}
    parents = {t: Path(planned(training(t, spec.seeds[0], runs)).run_dir).parent for t in trainings}
    return {
        (row.title, seed): [_folder(parents[overrides], seed, runs) for overrides in row.trainings]
        for row in spec.rows
        for seed in spec.seeds
    }


def _folder(parent: Path, seed: int, runs: str) -> Path:
    digest = parent.name.rsplit("-", 1)[-1]
    same = [parent, *sorted(Path(runs).glob(f"*-{digest}"))]
    return next((one for one in same if (one / f"seed-{seed}" / "DONE.json").exists()), parent) / f"seed-{seed}"


def missing_runs(spec: "Spec", runs: str) -> dict[Path, tuple[str, list[str]]]:
    """{run folder: (title, arguments of train.py)} of every run that is not finished, once each."""
    folders = plan(spec, runs)
    found: dict[Path, tuple[str, list[str]]] = {}
    for row in spec.rows:
        for seed in spec.seeds:
            for i, folder in enumerate(folders[row.title, seed]):
                if not (folder / "DONE.json").exists():
                    branch = f", branch {i + 1}" if row.more else ""
                    title = f"train {row.title}{branch}, seed {seed}"
                    found.setdefault(folder, (title, training(row.trainings[i], seed, runs)))
    return found


def check_commits(spec: "Spec", args: argparse.Namespace) -> None:
    """Refuse to add runs of this commit to finished ones of another: before hours are spent."""
    from cldm.runs.checkout import commit
    from cldm.tables.records import commits, records

    found = records(spec, plan(spec, args.runs))
    others = {name: who for name, who in commits(found).items() if name != commit()}
    if others and "commits" not in args.allow:
        told = "; ".join(f"{name[:12]}: {', '.join(who)}" for name, who in others.items())
        raise ValueError(
            f"this checkout is at {commit()[:12]}, but part of the table was made by other commits ({told}). Delete "
            "those folders, choose another RUNS folder, check that commit out, or say --allow commits"
        )


def train_missing(spec: "Spec", args: argparse.Namespace, out: Path) -> None:
    """Run train.py for every run that is not finished, once for each folder."""
    from cldm.runs.parallel import Task, run_all

    program = (sys.executable, str(REPOSITORY / "train.py"))
    tasks = [
        Task(title, (*program, *command), out / "logs" / f"{_file_name(title)}.log")
        for title, command in missing_runs(spec, args.runs).values()
    ]
    print(f"{len(tasks)} runs to train", flush=True)
    if failed := run_all(tasks, args.jobs):
        raise ValueError(f"{len(failed)} of {len(tasks)} runs failed ({'; '.join(failed)}); the same command goes on")


def evaluate_missing(found: Sequence["Record"], spec: "Spec", args: argparse.Namespace, out: Path) -> None:
    """Run evaluate.py for every evaluation that finished runs lack."""
    from cldm.runs.parallel import Task, run_all

    tasks: dict[Path, Task] = {}
    for record in (record for record in found if all(record.trained)):
        for name, overrides in spec.evaluations.items():
            if record.evaluated[name] is None:
                folder = record.evaluations[name]
                title = f"evaluate {record.row.title}, seed {record.seed}, {name}"
                command = (sys.executable, str(REPOSITORY / "evaluate.py"), f"checkpoint='{record.run}'",
                           *overrides, *record.row.evaluate, *added(record.row, record.runs[1:]),
                           f"out='{folder}'", "overwrite=true")  # fmt: skip
                tasks.setdefault(folder, Task(title, command, out / "logs" / f"{_file_name(title)}.log"))
    print(f"{len(tasks)} evaluations to make", flush=True)
    if failed := run_all([*tasks.values()], args.jobs):
        raise ValueError(f"{len(failed)} of {len(tasks)} evaluations failed ({'; '.join(failed)}); the same goes on")


def added(row: "Row", runs: Sequence[Path]) -> list[str]:
    """The override of evaluate.py for the branches that a row adds, which these runs have made."""
    entries = [
        ", ".join(f"{key}: {value!r}" for key, value in {"checkpoint": str(run), **branch.settings}.items())
        for branch, run in zip(row.more, runs, strict=True)
    ]
    return [f"more=[{', '.join(f'{{{entry}}}' for entry in entries)}]"] if entries else []


def _file_name(title: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in title)


def put_into(page: str, name: str, text: str) -> str:
    """The page with the table's text between its marks; ValueError where it has none."""
    place = re.compile(rf"(<!-- table {re.escape(name)}: [^\n]* -->\n).*?(<!-- /table -->)", re.S)
    if not place.search(page):
        raise ValueError(f"the page has no place for the table {name!r}: a line <!-- table {name}: COMMAND --> and, "
                         "below it, <!-- /table -->")  # fmt: skip
    return place.sub(lambda found: f"{found[1]}{text.strip()}\n{found[2]}", page)


def write(spec: "Spec", found: Sequence["Record"], args: argparse.Namespace, out: Path) -> None:
    """Check, print the Markdown, write all forms of the table."""
    from cldm.pictures import save_atomically
    from cldm.tables.records import problems, refuse_unknown_scores
    from cldm.tables.rendering import latex, markdown, picture, to_csv
    from cldm.tables.writing import lines
    from ldm.files import write_text

    refuse_unknown_scores(spec, found)
    seen = {kind: told for kind, told in problems(spec, found).items() if told}
    refused = {kind: told for kind, told in seen.items() if kind not in args.allow}
    if refused:
        told = "\n".join(f"  {kind}:\n" + "\n".join(f"    {line}" for line in list_) for kind, list_ in refused.items())
        raise ValueError(f"no table {spec.name!r}:\n{told}\n--allow {' '.join(refused)} makes it in spite of that"
                         + ("; --train --evaluate make what is missing" if "missing" in refused else ""))  # fmt: skip
    made = lines(spec, found)
    command = shlex.join(["python", "-m", "cldm", "table", *sys.argv[2:]])
    text = markdown(spec, made, found, command, [f"{kind}: {'; '.join(told)}" for kind, told in seen.items()])
    forms = {"md": text, "tex": latex(spec, made), "csv": to_csv(spec, made, found)}
    if args.into:
        write_text(args.into, put_into(args.into.read_text(), spec.name, text))
    for suffix, content in forms.items():
        write_text(out / f"table.{suffix}", content)
    save_atomically(picture(spec, made), out / "table.png")
    print(f"\n{text}\n{out}/table.md, .tex, .csv, .png")
