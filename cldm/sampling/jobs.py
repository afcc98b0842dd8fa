"""Lists of images to draw: lines of JSON or a folder of pictures, checked before any weights are read."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cldm.conditions import Condition
from cldm.conditions.files import load_hint
from cldm.conditions.inpaint import Inpaint
from cldm.sampling.control import check_settings, inpaint_hint

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


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
    pool: bool = False
    region: str | None = None  # a picture: where in the image the control applies

    def __post_init__(self) -> None:
        if (self.hint is None) == (self.photo is None):
            raise ValueError("give each control either hint (a ready map) or photo (to run the condition on)")
        check_settings(self.start, self.end, self.mode, self.weighting)
        if self.scales is not None and not all(isinstance(scale, int | float) for scale in self.scales):
            raise ValueError(f"scales must be numbers, one for each residual, got {self.scales}")

    def load(
        self,
        size: tuple[int, int],
        condition: Condition,
        notify: Callable[[str], None] = print,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The hint (1, 3, h, w) in [0, 1]; for an inpainting branch -1 in the hole, which is the job's `mask`
        (1, 1, h, w) or, without one, where the picture is transparent."""
        if isinstance(condition, Inpaint):
            path = self.hint or self.photo or ""
            return inpaint_hint(load_image(path, size), load_hole(path, size) if mask is None else mask)
        if self.hint is not None:
            return load_hint(self.hint, size, condition=condition, notify=notify)[None]
        hint = condition(load_picture(self.photo or "", size))
        return torch.from_numpy(hint.copy()).permute(2, 0, 1)[None].float() / 255

    def load_region(self, size: tuple[int, int]) -> Tensor | None:
        return None if self.region is None else load_mask(self.region, size)


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
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")
        if self.mask is not None and self.image is None:
            raise ValueError("mask needs image: the picture to paint on")
        if self.image is not None and not 0 < self.strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")

    def pictures(self) -> list[str]:
        """The files that it names."""
        named = [self.image, self.mask, *(path for unit in self.units for path in (unit.hint, unit.photo, unit.region))]
        return [path for path in named if path is not None]


def load_picture(path: str | Path, size: tuple[int, int]) -> np.ndarray:
    """A picture of any mode as (h, w, 3) uint8, scaled until it covers the size (h, w), the rest cut off evenly."""
    with Image.open(Path(path).expanduser()) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    return np.asarray(ImageOps.fit(upright, size[::-1], Image.Resampling.LANCZOS))


def load_image(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A picture as (1, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(load_picture(path, size).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def load_mask(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A picture as a mask (1, 1, h, w): 1 where it is brighter than middle grey."""
    grey = load_picture(path, size).astype(np.float32).mean(axis=2)
    return torch.from_numpy((grey > 127.5).astype(np.float32))[None, None]


def load_hole(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Where a picture is transparent, as a mask (1, 1, h, w); ValueError where it is nowhere."""
    with Image.open(Path(path).expanduser()) as picture:
        alpha = ImageOps.exif_transpose(picture).convert("RGBA").getchannel("A")
    hole = np.asarray(ImageOps.fit(alpha, size[::-1], Image.Resampling.NEAREST)) < 128
    if not hole.any():
        raise ValueError(f"{path} has no hole to paint in: give mask (and image), or make its hole transparent")
    return torch.from_numpy(hole.astype(np.float32))[None, None]


def read_jobs(source: str | Path, defaults: Mapping[str, Any], extra: Sequence[Mapping[str, Any]] = ()) -> list[Job]:
    """Jobs of a JSONL file (one object a line, any of the keys of `defaults`) or of a folder of pictures.

    A folder's pictures are hints, or photos where `defaults["photo"]` is set; NAME.txt beside NAME.png is its
    prompt. extra: further controls, merged with a line's "more", entry by entry. ValueError names file and line.
    """
    source = Path(source).expanduser()
    if source.is_dir():
        kind = "photo" if defaults.get("photo") else "hint"
        pictures = sorted(path for path in source.iterdir() if path.suffix.lower() in PICTURES)
        lines = [{"name": path.stem, kind: str(path)} | _prompt_beside(path) for path in pictures]
        places = [str(path) for path in pictures]
    elif source.is_file():
        numbered = [(i, line) for i, line in enumerate(source.read_text().splitlines(), 1) if line.strip()]
        places = [f"{source} line {i}" for i, _ in numbered]
        lines = [_object(line, place) for (_, line), place in zip(numbered, places, strict=True)]
    else:
        raise ValueError(f"jobs={source}: there is no such file or folder")
    if not lines:
        raise ValueError(f"jobs={source}: nothing to draw; expected lines of JSON, or pictures ({' '.join(PICTURES)})")
    jobs = []
    for line, place in zip(lines, places, strict=True):
        try:
            jobs.append(make_job(line, defaults, extra))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{place}: {error}") from error
    return _named_apart(jobs)


def make_job(given: Mapping[str, Any], defaults: Mapping[str, Any], extra: Sequence[Mapping[str, Any]] = ()) -> Job:
    """A job from what is given, over the defaults. Giving a hint replaces a default photo, and the other way round."""
    more = given.get("more", [])
    _refuse_unknown(given, {"name", "more", "sampler", *defaults})
    _refuse_words(given, defaults)
    if not isinstance(given.get("sampler", {}), dict):
        raise ValueError(f'sampler must be an object, such as {{"name": "unipc", "steps": 10}}; got {given["sampler"]}')
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
    return Job(name, tuple(units), (size, size) if isinstance(size, int) else tuple(size), **own)


def _refuse_unknown(given: Mapping[str, Any], known: Collection[str]) -> None:
    if unknown := set(given).difference(known):
        raise ValueError(f"unknown key {', '.join(sorted(unknown))}; known: {', '.join(sorted(known))}")


def _refuse_words(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """ValueError for what is no number where the default is one. A size may also be a pair."""
    for key in given.keys() - {"size"}:
        kind = type(defaults.get(key))
        if kind in (int, float) and (isinstance(given[key], bool) or not isinstance(given[key], int | kind)):
            wanted = "a whole number" if kind is int else "a number"
            raise ValueError(f"{key} must be {wanted}, got {given[key]!r}")


def _added_unit(given: Mapping[str, Any], settings: Mapping[str, Any]) -> UnitSettings:
    """A further control: what `more` of the command line says of it, with what a job's own entry says on top."""
    usual = {f.name: f.default for f in fields(UnitSettings)}
    for entry in (settings, given):
        _refuse_unknown(entry, usual.keys())
        _refuse_words(entry, usual)
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
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place} is not an object: {line[:60]}")
    return found


def _prompt_beside(path: Path) -> dict[str, str]:
    text = path.with_suffix(".txt")
    return {"prompt": text.read_text().strip()} if text.is_file() else {}


def _named_apart(jobs: list[Job]) -> list[Job]:
    seen: dict[str, int] = {}
    for i, job in enumerate(jobs):
        seen[job.name] = seen.get(job.name, 0) + 1
        if seen[job.name] > 1:
            jobs[i] = replace(job, name=f"{job.name}-{seen[job.name]}")
    if len({job.name for job in jobs}) < len(jobs):
        raise ValueError("job names coincide; give each line a name of its own")
    return jobs
