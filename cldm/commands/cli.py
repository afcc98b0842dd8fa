"""python -m cldm: the tools around training and sampling.

A command is a module of cldm.commands, named here, with SUMMARY and EXAMPLES (texts), arguments(parser), which
declares what it takes, and run(args), which does it and raises ValueError or OSError for what a user can mend.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from cldm.runs.checkout import commit

COMMANDS: tuple[str, ...] = (
    "annotate",
    "cache",
    "convert",
    "figure",
    "inspect",
    "judge",
    "segmenter",
    "table",
    "transfer",
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(prog="python -m cldm", description="Tools around training and sampling.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        _add_command(commands, name, import_module(f"cldm.commands.{name}"))
    return parser


def _add_command(commands: "argparse._SubParsersAction", name: str, command: ModuleType) -> None:
    parser = commands.add_parser(
        name,
        help=command.SUMMARY,
        description=command.SUMMARY,
        epilog=f"examples:\n{command.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.arguments(parser)
    parser.set_defaults(run=command.run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0, or 1 with one clear message on stderr."""
    given = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(given or ["--help"])
    commit()  # of the code that runs, whatever is committed while it does
    try:
        args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
