"""The values of the page's fields, and the wish that they make."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cldm.app.canvas import BLACK, WHITE, Editor, flat, painted, save_map
from cldm.app.studio import Studio
from cldm.app.wish import Control, Wish
from cldm.runs.folder import Refused
from cldm.sampling.drawing import SAMPLERS

CANVAS, PHOTO, MAP = "drawn here", "made from a picture", "a ready map"
"""Where the hint comes from."""


@dataclass(frozen=True)
class Asked:
    """One value for each field of the page, in its order.

    source: CANVAS, PHOTO or MAP. picture: an uploaded file. image: a picture to draw over, painted where it is to be
    new. others: for each further ControlNet its checkpoint, picture, PHOTO or MAP, scale, start, end, mode.
    """

    source: str
    paper: str
    canvas: Editor | None
    picture: str | None
    prompt: str
    negative: str
    count: int
    seed: int
    sampler: str
    steps: int
    guidance: float
    scale: float
    start: float
    end: float
    mode: str
    image: Editor | None
    strength: float
    others: Sequence[Any] = ()

    def wish(self, studio: Studio, folder: Path) -> Wish:
        """What is asked for, drawings written to files in `folder`. Refused where a picture is missing."""
        choices = {"sampler": SAMPLERS, "source": (CANVAS, PHOTO, MAP), "paper": (WHITE, BLACK)}
        for name, known in choices.items():
            if (given := getattr(self, name)) not in known:
                raise Refused(f"{name} must be one of {', '.join(known)}, got {given!r}")
        image, mask = self._image(folder)
        more = [self.others[i : i + 7] for i in range(0, len(self.others), 7)]
        return Wish(
            self.control(studio, folder, image), self.prompt or "", self.negative or "", self.count, self.seed,
            self.sampler, self.steps, self.guidance, tuple(further(unit, studio.others()) for unit in more if unit[0]),
            image, self.strength, mask,
        )  # fmt: skip

    def control(self, studio: Studio, folder: Path, image: Path | None) -> Control:
        """What the page's own ControlNet gets; an empty canvas beside a picture to draw over is that picture's map."""
        settings = (self.scale, self.start, self.end, self.mode)
        if self.source == CANVAS:
            if image is not None and not drawn_on(self.canvas, self.paper):
                return Control(None, image, *settings)
            hint = save_map(self.canvas, self.paper, studio.size, studio.condition, folder / "hint.png")
            return Control(hint, None, *settings)
        return _pictured(self.picture, self.source, settings, "the hint")

    def _image(self, folder: Path) -> tuple[Path | None, Path | None]:
        ground = (self.image or {}).get("background")
        if ground is None or ground.getextrema()[-1][1] == 0:  # an editor without a picture is a transparent sheet
            return None, None
        flat({"composite": ground}, "#ffffff", (8, 8)).save(folder / "image.png")
        mask = painted(self.image)
        if mask is not None:
            mask.save(folder / "mask.png")
        return folder / "image.png", None if mask is None else folder / "mask.png"


def within(given: Any, name: str, low: float, high: float | None, whole: bool) -> float:
    """The number that was given. Refused where it is none, not finite, or out of bounds."""
    counts = isinstance(given, int | float) and not isinstance(given, bool) and given != math.inf
    if counts and low <= given <= (math.inf if high is None else high) and (not whole or given == int(given)):
        return int(given) if whole else given
    kind, to = "whole number" if whole else "number", "" if high is None else f" to {high:.10g}"
    raise Refused(f"{name} must be a {kind} from {low:g}{to}, got {'nothing' if given is None else f'{given!r:.40}'}")


def drawn_on(canvas: Editor | None, paper: str) -> bool:
    """Whether there is a stroke on the canvas, or a map that was put there."""
    return flat(canvas, paper, (8, 8)).getcolors(1) is None


def further(unit: Sequence[Any], known: Mapping[str, Mapping[str, Any]]) -> Control:
    """What one of `others` asks for. Refused for a checkpoint that is not known, and where a picture is missing."""
    checkpoint, picture, source, *settings = unit
    if checkpoint not in known:
        raise Refused(f"there is no ControlNet {checkpoint} to add")
    return _pictured(picture, source, settings, f"the ControlNet {checkpoint}", **known[checkpoint])


def _pictured(picture: str | None, source: str, settings: Sequence[Any], whose: str, **of: Any) -> Control:
    if not picture:
        raise Refused(f"there is no picture for {whose} yet: upload one")
    scale, start, end, mode = settings
    hint, photo = (None, Path(picture)) if source == PHOTO else (Path(picture), None)
    return Control(hint, photo, scale, start, end, mode, **of)
