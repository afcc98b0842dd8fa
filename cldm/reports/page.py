"""Content as one HTML file that needs nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.files import to_json

PARTS = Path(__file__).parent


def page(content: Mapping[str, Any]) -> str:
    """The HTML of a report. What comes from runs is data that the page's script shows as text, never markup."""
    data = to_json(content).replace("<", "\\u003c")  # no text of a run can end the element that it stands in
    parts = {"STYLE": _part("page.css"), "SCRIPT": _part("page.js"), "DATA": data}
    html = _part("page.html")
    for name, text in parts.items():
        html = html.replace(f"%{name}%", text, 1)
    return html


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")
