"""python -m cldm: the tools around training and sampling.

A command is a module of cldm.commands, named here with its summary. It has EXAMPLES (a text), arguments(parser), which
declares what it takes, and run(args), which does it and raises ValueError or OSError for what a user can mend.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from cldm.runs.checkout import commit

COMMANDS = {
    "annotate": "Make the hints of one picture, a folder or a JSON-lines list: source/, target/, prompt.json.",
    "app": "Open a page in the browser to draw hints on, and see the images that obey them.",
    "batch": "Print the sbatch file of a run or a sweep; nothing is submitted.",
    "cache": "Encode a data set's images and captions once, so that training never runs the VAE or the text encoder.",
    "convert": "Convert a checkpoint: original layout <-> diffusers folder, whole or in parts.",
    "figure": "Draw the samples of a table's runs side by side, or those of one run over its steps.",
    "inspect": "Say what a file or folder of weights is: layout, parts, sizes, family, metadata, problems.",
    "judge": "Train the small network that judges pictures of stickers (concept, category, fid_stickers).",
    "report": "Write one HTML page that compares runs: what differs, curves, pictures, figures, samples.",
    "runs": "List run folders: state, figures, and what differs between them.",
    "segmenter": "Train the small segmenter that judges scenes (segmenter_miou, fid_scenes of evaluate.py).",
    "table": "Fill a table of configs/table from run folders; make the runs and evaluations that are missing.",
    "transfer": "Move a ControlNet to another base of the same family: control + (new base - old base).",
}


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands. Only the module of the chosen one is loaded."""
    parser = argparse.ArgumentParser(prog="python -m cldm", description="Tools around training and sampling.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name == chosen:
            module = import_module(f"cldm.commands.{name}")
            command.epilog = f"examples:\n{module.EXAMPLES}"
            module.arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 1 with one clear message on stderr."""
    given = sys.argv[1:] if argv is None else argv
    args = build_parser(next(iter(given), None)).parse_args(given or ["--help"])
    commit()  # of the code that runs, whatever is committed while it does
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
