"""What the page asks for, as the overrides of sample.py: the same words draw the same pixels there."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cldm.runs.quoting import written
from cldm.runs.recorded import FILE


@dataclass(frozen=True)
class Control:
    """One ControlNet and what it gets: a ready map (`hint`) or a picture to make it of (`photo`).

    checkpoint: None for the page's own. condition: its kind, where the checkpoint does not say.
    scale, start, end, mode: see cldm.sampling.control.ControlUnit.
    """

    hint: Path | None = None
    photo: Path | None = None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    checkpoint: str | None = None
    condition: str | None = None

    def settings(self) -> dict[str, Any]:
        """What is given, by the keys of configs/sample.yaml."""
        named = ("checkpoint", "condition", "hint", "photo")
        given = {key: str(value) for key in named if (value := getattr(self, key))}
        own = {key: getattr(self, key) for key in ("scale", "start", "end", "mode")}
        return given | {key: value for key, value in own.items() if value != getattr(Control(), key)}


@dataclass(frozen=True)
class Wish:
    """Images to draw: `count` of them, with seeds seed, seed + 1, ...

    guidance: None is what suits the model.
    image, strength, mask: a picture to draw over, how far, and where (white) it is painted anew.
    """

    control: Control
    prompt: str = ""
    negative: str = ""
    count: int = 1
    seed: int = 0
    sampler: str = "ddim"
    steps: int = 20
    guidance: float | None = None
    more: tuple[Control, ...] = ()
    image: Path | None = None
    strength: float = 0.75
    mask: Path | None = None

    def pictures(self) -> list[Path]:
        """The files that it names."""
        units = [path for unit in (self.control, *self.more) for path in (unit.hint, unit.photo)]
        return [path for path in (*units, self.image, self.mask) if path is not None]

    def overrides(self) -> list[str]:
        """As sample.py takes them; the checkpoint is not among them."""
        first = self.control.settings()
        texts = {"prompt": " ".join(self.prompt.split()), "negative": " ".join(self.negative.split())}
        told = {**first, **{key: text for key, text in texts.items() if text or key == "prompt"}}
        told |= {"count": self.count, "seed": self.seed, "sampler": self.sampler}
        told["sampler.steps"] = self.steps
        told |= {} if self.guidance is None else {"sampler.guidance": self.guidance}
        if self.more:
            told["more"] = [unit.settings() for unit in self.more]
        if self.image:
            told |= {"image": str(self.image), "strength": self.strength}
        if self.mask:
            told["mask"] = str(self.mask)
        return [f"{key}={written(value)}" for key, value in told.items()]


def wish_of(settings: Mapping[str, Any]) -> Wish:
    """The wish for an image alone, from the settings that its PNG holds."""
    files = [checkpoint["file"] for checkpoint in settings["checkpoints"]]
    units = [_control(unit, file) for unit, file in zip(settings["units"], files, strict=True)]
    first, sampler = replace(units[0], checkpoint=None), settings["sampler"]
    image, mask = (Path(settings[key]) if settings[key] else None for key in ("image", "mask"))
    name = sampler["sampler"]["_target_"].split(".")[-1]
    return Wish(
        first, settings["prompt"], settings["negative"], 1, settings["seed"], name, sampler["steps"],
        sampler["guidance"], tuple(units[1:]), image, settings["strength"], mask,
    )  # fmt: skip


def _control(unit: Mapping[str, Any], checkpoint: str) -> Control:
    hint, photo = (Path(unit[key]) if unit[key] else None for key in ("hint", "photo"))
    return Control(hint, photo, unit["scale"], unit["start"], unit["end"], unit["mode"], checkpoint)


def shown_name(checkpoint: str | Path) -> str:
    """What a checkpoint is called: a run by its folder, other files as they are."""
    path = Path(checkpoint)
    return str(path.parent if path.name == FILE else path)


def summary(wish: Wish) -> str:
    """The settings of an image in one line."""
    control = wish.control
    parts = [f"seed {wish.seed}", f"{wish.sampler}, {wish.steps} steps"]
    parts[-1] += "" if wish.guidance is None else f", guidance {wish.guidance:g}"
    parts.append(f"scale {control.scale:g}" + (f", {control.mode}" if control.mode != "balanced" else ""))
    if (control.start, control.end) != (0.0, 1.0):
        parts.append(f"from {control.start:.0%} to {control.end:.0%} of the steps")
    parts += [f"with {shown_name(unit.checkpoint or '')} at {unit.scale:g}" for unit in wish.more]
    if wish.image:
        parts.append(f"over a picture, strength {wish.strength:g}" + (", in the painted part" if wish.mask else ""))
    return " · ".join(parts)


def command_line(overrides: Sequence[str]) -> str:
    """What to type for the same images."""
    return shlex.join(["python", "sample.py", *overrides])
