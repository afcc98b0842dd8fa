"""python -m cldm report: one page that compares runs."""

import argparse
from pathlib import Path

EXAMPLES = """\
  python -m cldm report runs                                   every run below runs/ -> report.html
  python -m cldm report runs/a runs/b --out comparison.html
  python -m cldm report runs --spec report.yaml                what to show; keys: see cldm/reports/spec.py
  python -m cldm report runs --spec report.yaml --wandb ENTITY/PROJECT     the same as a W&B report and a saved view
The page holds its pictures and needs no network. Runs that differ in their seed alone are one line with a band."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUNS", help="run folders, or folders that hold them")
    parser.add_argument("--spec", type=Path, metavar="FILE", help="YAML: title, curves, items, scores, ...")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="default: report.html")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="save a W&B report and view instead; needs a key")


def run(args: argparse.Namespace) -> None:
    """Read the runs, write the page."""
    from cldm.reports.content import content
    from cldm.reports.page import page
    from cldm.reports.spec import read_spec
    from ldm.files import write_text

    if args.out.is_dir():
        raise ValueError(f"--out {args.out} is a folder; it takes the name of a file")
    if file := next((parent for parent in args.out.parents if parent.is_file()), None):
        raise ValueError(f"--out {args.out} lies in {file}, which is a file")
    spec = read_spec(args.spec)
    if args.wandb:
        from cldm.reports.workspace import save

        print("\n".join(save(args.runs, spec, args.wandb)))
        return
    text = page(content(args.runs, spec))
    try:
        write_text(args.out, text)
    except OSError as error:
        raise ValueError(f"--out {args.out} cannot be written: {error.strerror}") from error
    print(f"{args.out} ({len(text) / 1e6:.1f} MB)")
