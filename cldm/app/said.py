"""Refusals on the page: a sentence that gradio shows, and API clients get."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from cldm.runs.folder import Refused

BEGINS = re.compile(r"<(?=[a-z/!?])|&(?=[a-z#])", re.IGNORECASE)
"""What HTML takes for the beginning of a tag or of a named letter; any other < and & stands for itself."""


@contextmanager
def said() -> Iterator[None]:
    """A refusal is shown on the page."""
    try:
        yield
    except Refused as error:
        raise gr.Error(for_html(str(error)), duration=None, print_exception=False, title="Not drawn") from None


def for_html(text: str) -> str:
    """The text as HTML that shows it. A sentence without tags stays as it is: API clients show what they get."""
    return BEGINS.sub(lambda found: {"<": "&lt;", "&": "&amp;"}[found[0]], text)
