"""Lists of images to draw: lines of JSON or a folder of pictures, checked before any weights are read."""

import json
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cldm.conditions import Condition, HintWarning
from cldm.conditions.inpaint import with_mask
from cldm.data.decoding import PictureError, as_mask, decode, picture_size
from cldm.data.hints import image_tensor, load_hint, load_photo, made_hint, map_tensor
from cldm.data.listing import SUFFIXES, is_picture, text_beside
from cldm.data.text import has_half_characters, numbered_lines, read_text
from cldm.data.transforms import Size, check_alike, cover
from cldm.sampling.control import check_settings

MANIFEST = "manifest.jsonl"
"""In a folder of samples: a line for each image."""


@dataclass(frozen=True)
class UnitSettings:
    """What one ControlNet gets: a ready map (`hint`) or a picture to make it of (`photo`), and how it is applied."""

    hint: str | None = None
    photo: str | None = None
    scale: float = 1.0
    scales: list[float] | None = None  # a factor for each residual, see ControlUnit
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    weighting: str | None = None
    pool: bool | None = None  # None: as the checkpoint says
    region: str | None = None  # a picture: where in the image the control applies

    def __post_init__(self) -> None:
        if (self.hint is None) == (self.photo is None):
            raise ValueError("give each control either hint (a ready map) or photo (to run the condition on)")
        check_settings(self.start, self.end, self.mode, self.weighting)

    def load(
        self,
        size: Size,
        condition: Condition,
        notify: Callable[[str], None] = print,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The hint (1, 3, h, w) in [0, 1]; for an inpainting branch -1 in the hole, which is the job's `mask`
        (1, 1, h, w) or, without one, where the picture is transparent."""
        path = self.hint or self.photo or ""
        if condition.reads_alpha and mask is not None:
            hole = mask[0, 0].numpy() > 0.5
            return map_tensor(condition.to_hint(with_mask(load_photo(path, size), hole)))[None]
        if self.hint is not None or condition.reads_alpha:
            return load_hint(path, size, condition=condition, notify=notify)[None]
        photo = load_photo(path, size)
        try:
            return made_hint(photo, condition)[None]
        except PictureError as error:
            raise PictureError(f"photo {path}: {error}") from error

    def load_region(self, size: Size) -> Tensor | None:
        """Where the control applies (1, 1, h, w); None for everywhere."""
        return None if self.region is None else load_mask(self.region, size, "region")


@dataclass(frozen=True)
class Job:
    """One or more images of a prompt: seeds seed, seed + 1, ...; `units` in the order of the checkpoints."""

    name: str
    units: tuple[UnitSettings, ...]
    size: tuple[int, int]
    prompt: str = ""
    negative: str = ""
    seed: int = 0
    count: int = 1
    image: str | None = None  # a picture to draw over
    strength: float = 0.75  # how much of the way, with an image
    mask: str | None = None  # a picture, white where `image` is to be painted anew
    sampler: dict[str, Any] = field(default_factory=dict)  # its own settings, over those that all jobs share

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_IMAGES:
            limit = "at least 1" if self.count < 1 else f"at most {MOST_IMAGES}"
            raise ValueError(f"count must be {limit}, got {self.count}")
        if not 0 <= self.seed <= 2**63 - self.count:
            raise ValueError(f"seed must be at least 0, and its last one below 2^63, got {self.seed}")
        if self.mask is not None and self.image is None:
            raise ValueError("mask needs image: the picture to paint on")
        if self.image is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")

    def pictures(self) -> list[str]:
        """The files that it names."""
        named = [self.image, self.mask, *(path for unit in self.units for path in (unit.hint, unit.photo, unit.region))]
        return [path for path in named if path is not None]


def load_image(path: str | Path, size: Size) -> Tensor:
    """A picture as (1, 3, h, w) in [-1, 1]."""
    return image_tensor(load_photo(path, size, "image"))[None]


def load_mask(path: str | Path, size: Size, what: str = "mask") -> Tensor:
    """A picture as a mask (1, 1, h, w), 1 where it is white, see `as_mask`. Warns (HintWarning) if that is nowhere."""
    white = cover(as_mask(decode(path, what)).astype(np.float32), size) > 0.5
    if not white.any():
        warnings.warn(f"{what} {path} is black everywhere; white says where", HintWarning, stacklevel=2)
    return torch.from_numpy(white.astype(np.float32))[None, None]


def check_pictures(job: Job, conditions: Sequence[Condition]) -> None:
    """Read the pictures of a job, but run no condition. Raises PictureError for what cannot be used: photos, image,
    mask and regions lie over each other, so they must have one shape. (A ready hint is a canvas of its own.)"""
    for unit, condition in zip(job.units, conditions, strict=True):
        if unit.photo and not condition.computable:
            raise ValueError(f"photo={unit.photo}: {condition.name} maps are not computed from pictures; give a ready "
                             "map, hint=FILE")  # fmt: skip
    paths = {"image": job.image, "mask": job.mask}
    for i, unit in enumerate(job.units):
        number = f" {i + 1}" if len(job.units) > 1 else ""
        paths |= {f"photo{number}": unit.photo, f"region{number}": unit.region}
    there = {f"{name} {path}": picture_size(path, name.split()[0]) for name, path in paths.items() if path}
    if there:
        check_alike(there)
    mask = load_mask(job.mask, job.size) if job.mask else None
    if job.image:
        load_photo(job.image, job.size, "image")
    for unit, condition in zip(job.units, conditions, strict=True):
        unit.load_region(job.size)
        if unit.photo and not condition.reads_alpha:
            load_photo(unit.photo, job.size)
        else:
            unit.load(job.size, condition, mask=mask)


def read_jobs(source: str | Path, defaults: Mapping[str, Any], extra: Sequence[Mapping[str, Any]] = ()) -> list[Job]:
    """Jobs of a JSONL file (one object a line, any of the keys of `defaults`) or of a folder of pictures.

    A folder's pictures are hints, or photos where `defaults["photo"]` is set; NAME.txt beside NAME.png is its
    prompt. extra: further controls, merged with a line's "more", entry by entry. ValueError names file and line.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        kind = "photo" if defaults.get("photo") else "hint"
        pictures = sorted(path for path in source.iterdir() if is_picture(path, source))
        lines = [{"name": path.stem, kind: str(path)} | _prompt_beside(path) for path in pictures]
        places = [str(path) for path in pictures]
    elif source.is_file():
        numbered = numbered_lines(read_text(source))
        places = [f"{source} line {i}" for i, _ in numbered]
        lines = [_object(line, place) for (_, line), place in zip(numbered, places, strict=True)]
    else:
        raise ValueError(f"jobs={source}: there is no such file or folder")
    if not lines:
        raise ValueError(f"jobs={source}: nothing to draw; expected lines of JSON, or pictures ({' '.join(SUFFIXES)})")
    jobs = []
    for line, place in zip(lines, places, strict=True):
        try:
            jobs.append(make_job(line, defaults, extra))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return _named_apart(jobs)


def make_job(given: Mapping[str, Any], defaults: Mapping[str, Any], extra: Sequence[Mapping[str, Any]] = ()) -> Job:
    """A job from what is given, over the defaults. Giving a hint replaces a default photo, and the other way round.

    ValueError for keys that are not known and for values that are not of their kind (KINDS).
    """
    _refuse_unknown(given, {"name", "more", "sampler", *defaults})
    given, defaults, more = of_kind(given), of_kind(defaults), given.get("more", [])
    if len(more) > len(extra):
        raise ValueError(f"{len(more)} entries in more, but more= names {len(extra)} checkpoints")
    units = [_unit(given, defaults)]
    for i, settings in enumerate(extra):
        try:
            units.append(_added_unit(more[i] if i < len(more) else {}, settings))
        except ValueError as error:
            raise ValueError(f"entry {i + 1} of more: {error}") from error
    merged = {**defaults, **given}
    own = {f.name: merged[f.name] for f in fields(Job) if f.name in merged and f.name not in ("units", "size", "name")}
    size = merged["size"]
    name = str(given.get("name") or Path(units[0].hint or units[0].photo or "image").stem)
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"name must be a plain file name, got {name!r}")
    if name == MANIFEST or len(name.encode()) > LONGEST_NAME:
        most = f"{LONGEST_NAME} letters (bytes of UTF-8)"
        raise ValueError(f"name must have at most {most} and not be {MANIFEST}, got {name!r}")
    return Job(name, tuple(units), (size, size) if isinstance(size, int) else (size[0], size[1]), **own)


LONGEST_NAME = 200
"""Bytes: file systems take 255, and numbers come to it."""

MOST_IMAGES = 1_000_000
"""Of a job: more is a slip of the hand."""

Kind = tuple[str, Callable[[Any], bool]]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _path(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(value) and "\0" not in value)


def _pair(value: Any) -> bool:
    return _whole(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_whole, value)))


KINDS: dict[str, Kind] = {
    **dict.fromkeys(("prompt", "negative"), ("text (quote it)", lambda v: isinstance(v, str))),
    **dict.fromkeys(("hint", "photo", "region", "image", "mask"), ("a file", _path)),
    **dict.fromkeys(("scale", "start", "end", "strength"), ("a number", _number)),
    **dict.fromkeys(("count", "seed"), ("a whole number", _whole)),
    "size": ("a whole number or [height, width]", _pair),
    "scales": ("numbers", lambda v: v is None or (isinstance(v, list) and all(map(_number, v)))),
    "mode": ("a word", lambda v: isinstance(v, str)),
    "weighting": ("a word", lambda v: v is None or isinstance(v, str)),
    "pool": ("true or false", lambda v: v is None or isinstance(v, bool)),
    "name": ("text", lambda v: isinstance(v, str) and "\0" not in v),
    "more": ("a list of objects", lambda v: isinstance(v, list) and all(isinstance(e, dict) for e in v)),
    "sampler": ('an object, such as {"name": "unipc", "steps": 10}', lambda v: isinstance(v, dict)),
}
"""What each key of a job holds: in words, and as a check. Numbers are finite."""


def of_kind(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same keys, with whole numbers as text where text is due. ValueError for what is not of its kind."""
    texts = ("prompt", "negative", "name")
    found = {key: str(value) if key in texts and _whole(value) else value for key, value in given.items()}
    for key, value in found.items():
        words, fits = KINDS[key]
        if key in texts and isinstance(value, str) and has_half_characters(value):
            raise ValueError(f"{key} holds half a character (a lone surrogate), which no file can hold: {value!r}")
        if not fits(value):
            raise ValueError(f"{key} must be {words}, got {'null' if value is None else repr(value)}")
    return found


def _refuse_unknown(given: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := set(given).difference(known):
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")


def _added_unit(given: Mapping[str, Any], settings: Mapping[str, Any]) -> UnitSettings:
    """A further control: what `more` of the command line says of it, with what a job's own entry says on top."""
    usual = {f.name for f in fields(UnitSettings)}
    for entry in (settings, given):
        _refuse_unknown(entry, usual)
        of_kind(entry)
        if entry.get("hint") and entry.get("photo"):
            raise ValueError("it has both hint and photo; give one")
    return _unit(given, settings)


def _unit(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> UnitSettings:
    known = {f.name for f in fields(UnitSettings)}
    merged = {k: v for k, v in {**defaults, **given}.items() if k in known}
    if given.get("hint") and not given.get("photo"):
        merged["photo"] = None
    if merged.get("photo"):
        merged["hint"] = given.get("hint")
    return UnitSettings(**merged)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place} is not an object: {line[:60]}")
    return found


def _prompt_beside(path: Path) -> dict[str, str]:
    text = text_beside(path)
    return {"prompt": read_text(text).strip()} if text else {}


def _named_apart(jobs: list[Job]) -> list[Job]:
    seen: dict[str, int] = {}
    for i, job in enumerate(jobs):
        seen[job.name] = seen.get(job.name, 0) + 1
        if seen[job.name] > 1:
            jobs[i] = replace(job, name=f"{job.name}-{seen[job.name]}")
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError("job names coincide; give each line a name of its own")
    return jobs
