"""The words that a small base knows, offered while a prompt is typed."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

BEGUN = re.compile(r"[^\W\d_]+$")
"""The word at the end of a text, while it is typed."""


def offers(text: str, vocabulary: Sequence[str], most: int = 8) -> list[str]:
    """The known words that the last one may become: what begins like it, then what is spelt like it."""
    found = BEGUN.search(text)
    if found is None:
        return []
    begun = found[0].lower()
    known = [word for word in vocabulary if word.isalpha()]
    longer = [word for word in known if word.startswith(begun) and word != begun]
    alike = [] if begun in known else get_close_matches(begun, known, n=3)
    return [*dict.fromkeys([*longer, *alike])][:most]


def completed(text: str, word: str) -> str:
    """The text with its last, unfinished word replaced by the chosen one, ready for the next."""
    return BEGUN.sub("", text) + word + " "
