"""What a report shows. A YAML file may say it; what it leaves out is chosen from what the runs have."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

CURVES = ("watch/edge_f1_1px", "watch/hint_error", "watch/shape_iou", "watch/circle_iou", "watch/concept",
          "watch/binding", "watch/psnr", "hint_use", "val/loss", "train/loss")  # fmt: skip
"""The curves of a report whose specification names none, where the runs have them."""

SCORES = ("edge_f1_1px", "hint_error", "hint_miou", "hint_rmse", "hint_angle", "hint_color", "shape_iou", "shape",
          "circle_iou", "inside", "outside",
          "color_binding", "concept", "color_distance", "segmenter_miou", "clip_caption", "fid", "fid_scenes",
          "fid_stickers")  # fmt: skip
"""The scores of a table whose specification names none, where the evaluations have them; at most 12."""


@dataclass(frozen=True)
class ReportSpec:
    """The keys of a report's file.

    title, question: above the page: what is compared, and what is asked.
    curves: names in metrics.csv. items: numbers of the held-out items of the grid runs x steps, of those in the run's
    previews, from 0; the first four if none are named. looks: steps in that grid.
    scores: of evaluations, in the table and in the list of samples.
    samples: items of each evaluation in that list. lines: groups that are shown at first, and have pictures.
    reference: the group that others are compared with, a part of its name; the first without it.
    """

    title: str = "Runs compared"
    question: str = ""
    curves: tuple[str, ...] = ()
    items: tuple[int, ...] = ()
    looks: int = 8
    scores: tuple[str, ...] = ()
    samples: int = 48
    lines: int = 8
    reference: str = ""


def read_spec(path: Path | None) -> ReportSpec:
    """The specification in a YAML file, or the usual one; ValueError names the file, the key, and what it takes."""
    if path is None:
        return ReportSpec()
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"--spec {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--spec {path} is no text file; it takes a YAML file") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError for a date that does not exist
        raise ValueError(f"--spec {path} is no YAML file: {error}") from error
    given = {} if given is None else given  # an empty file
    usual = {field.name: field.default for field in fields(ReportSpec)}
    if not isinstance(given, dict) or {*given} - {*usual}:
        unknown = ", ".join(map(str, {*given} - {*usual})) if isinstance(given, dict) else type(given).__name__
        raise ValueError(f"{path}: a report takes {', '.join(usual)}; got {unknown}")
    return ReportSpec(**{key: _checked(path, key, value, usual[key]) for key, value in given.items()})


def _checked(path: Path, key: str, value: Any, usual: Any) -> Any:
    """The value of a key, of the type of the usual one; `curves`, `items` and `scores` are lists."""
    if isinstance(usual, tuple):
        member, fits = ("numbers from 0", _is_item) if key == "items" else ("texts", _is_text)
        if isinstance(value, list) and all(map(fits, value)):
            return tuple(dict.fromkeys(value))
        raise ValueError(f"{path}: {key} is a list of {member}, got {value!r}")
    least = 1 if isinstance(usual, int) else None
    if not isinstance(value, type(usual)) or isinstance(value, bool) or (least and value < least):
        raise ValueError(f"{path}: {key} is {'a number from 1' if least else 'a text'}, got {value!r}")
    return value


def _is_item(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
