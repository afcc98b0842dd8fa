"""Every table in docs/reproduction.md is made again from the results in docs/results."""

import re
import sys

import pytest

from cldm.commands.cli import main
from cldm.runs.checkout import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reproduction.md").read_text()
TABLES = dict(re.findall(r"<!-- table (\w+): .*? -->\n(.*?)<!-- /table -->", PAGE, re.S))


def test_the_page_has_tables() -> None:
    assert {"convergence", "convergence_architecture"} <= TABLES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_docs_is_what_its_results_say(name, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.chdir(REPOSITORY)
    arguments = ["table", name, "docs/results", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["cldm", *arguments])
    assert main(arguments) == 0, capsys.readouterr().err
    made = (tmp_path / "table.md").read_text()
    assert made.split("Command: ")[0].strip() == TABLES[name].split("Command: ")[0].strip()
