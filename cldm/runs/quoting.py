"""Values as they are typed: Hydra's grammar of overrides."""

import re
from typing import Any

PLAIN = re.compile(r"[A-Za-z_/][\w/.-]*", re.ASCII)
WORDS_OF_YAML = ("null", "true", "false", "yes", "no", "on", "off", "inf", "nan")


def written(value: Any) -> str:
    """A value as Hydra's grammar reads it back: text of any letters, numbers, None, lists and dictionaries of them."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    return _quoted(value) if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    if PLAIN.fullmatch(text) and text.lower() not in WORDS_OF_YAML:
        return text
    text = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)  # else it would name another value
    text = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + (r"\"" if found[2] else ""), text)
    return f'"{text}"'
