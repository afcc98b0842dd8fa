"""Text that people save: UTF-8, with or without the mark of an editor before it, or UTF-16 with it."""

import codecs
import io
from pathlib import Path
from typing import Any

import yaml

MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
         codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # fmt: skip
"""What a file may begin with, and what follows then; the four bytes of UTF-32 begin like the two of UTF-16."""


def decode_text(content: bytes, what: str) -> str:
    """The text of a file, without a byte-order mark. ValueError, beginning with `what`, for any other encoding."""
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{what} is not text: it holds zero bytes")
    return text


def read_text(path: str | Path) -> str:
    """The text in a file, as `decode_text`. ValueError names the file."""
    path = Path(path).expanduser()
    return decode_text(path.read_bytes(), str(path))


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1 on.

    Line feeds and carriage returns end a line. str.splitlines cuts at other signs too, which JSON may hold.
    """
    return [(number, line) for number, line in enumerate(io.StringIO(text, newline=None), 1) if line.strip()]


def has_half_characters(text: str) -> bool:
    """Whether a lone surrogate is in it, as JSON may say one: no file can hold that."""
    return text != text.encode(errors="ignore").decode()


def one_line(text: str) -> str:
    """Text as a caption: its lines, stripped, with a space between them."""
    return " ".join(line.strip() for _, line in numbered_lines(text))


def from_yaml(text: str) -> Any:
    """The content of YAML, plain containers only, by the quick parser where it was built."""
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
