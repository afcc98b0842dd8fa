"""What the page answers: each method belongs to a button or a field. Whatever is refused is said in one sentence."""

import hashlib
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from cldm.app.asked import CANVAS, MAP, PHOTO, Asked, further
from cldm.app.canvas import blank, on_paper, with_map
from cldm.app.form import FURTHER, editor, joining
from cldm.app.said import for_html, said
from cldm.app.studio import Drawn, Studio
from cldm.app.wish import Control, Wish, summary, wish_of
from cldm.app.words import completed, offers
from ldm.files import read_lines

LIVE_STEPS = 10
PROGRESS = gr.Progress()
NOTHING = tuple(gr.skip() for _ in range(7))
"""Leaves all results as they are."""


@dataclass
class Desk:
    """The drawing that one visitor has under way: how to stop it, and what it came to."""

    stop: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)
    drawn: Drawn | None = None


class Answers:
    """The functions behind the page of a studio."""

    def __init__(self, studio: Studio):
        self.studio, self.desks = studio, dict[str, Desk]()

    def draw(
        self, request: gr.Request, source: str, paper: str, canvas: Any, picture: Any, prompt: str, negative: str,
        count: int, seed: int, sampler: str, steps: int, guidance: float, scale: float, start: float, end: float,
        mode: str, image: Any, strength: float, progress: gr.Progress = PROGRESS, *others: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Gallery, slider, settings, command line, what there is to say, the files, and the number of one of them."""
        asked = Asked(source, paper, canvas, picture, prompt, negative, count, seed, sampler, steps, guidance, scale,
                      start, end, mode, image, strength, others)  # fmt: skip
        desk = self.desks[str(request.session_hash)] = Desk()
        return self._drawn(asked, desk, lambda step, total: progress((step, total), unit="steps"), None)

    def live(
        self, request: gr.Request, on: bool, source: str, paper: str, canvas: Any, picture: Any, prompt: str,
        negative: str, count: int, seed: int, sampler: str, steps: int, guidance: float, scale: float, start: float,
        end: float, mode: str, image: Any, strength: float, *others: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """As `draw`, for one image of few steps; nothing while live mode is off."""
        if not on:
            return NOTHING
        asked = Asked(source, paper, canvas, picture, prompt, negative, 1, seed, sampler, min(steps, LIVE_STEPS),
                      guidance, scale, start, end, mode, image, strength, others)  # fmt: skip
        visitor = str(request.session_hash)
        desk = self.desks[visitor] = Desk()
        return self._drawn(asked, desk, lambda *_: None, f"live/{visitors_own(visitor)}")

    def _drawn(self, asked: Asked, desk: Desk, report: Callable[[int, int], Any], place: str | None) -> tuple[Any, ...]:
        try:
            with said(), tempfile.TemporaryDirectory() as folder:
                wish = asked.wish(self.studio, Path(folder))
                desk.drawn = self.studio.draw(wish, report, desk.stop, place)
        finally:
            desk.over.set()
        return self._results(desk.drawn)

    def stop(self, request: gr.Request) -> tuple[Any, ...]:
        """End the visitor's drawing at its next step; shows what there is of it."""
        desk = self.desks.get(str(request.session_hash))
        if desk is None or desk.over.is_set():
            return (*NOTHING[:4], "Nothing is being drawn; what waited in the queue is taken out.", *NOTHING[5:])
        desk.stop.set()
        desk.over.wait()
        return self._results(desk.drawn) if desk.drawn else NOTHING

    def _results(self, drawn: Drawn) -> tuple[Any, ...]:
        files = [str(path) for path in drawn.images]
        shown = [(path, f"seed {told['seed']}") for path, told in zip(files, drawn.settings, strict=True)]
        first = (*self.chosen(files, 0),) if files else (None, "")
        return shown, *first, drawn.line, told(drawn), files, 0

    def chosen(self, files: list[str], number: int) -> tuple[Any, str]:
        """Slider and settings of an image."""
        wish = wish_of(settings_of(files[number]))
        hint = self.studio.hint(wish.control, wish.mask)
        return (hint, Image.open(files[number]).convert("RGB")), summary(wish)

    def select(self, files: list[str], event: gr.SelectData) -> tuple[Any, str, int]:
        """Slider, settings and number of the image that was clicked."""
        return *self.chosen(files, event.index), event.index

    def again(self, files: list[str], number: int) -> list[Any]:
        """The fields, filled with what the chosen image was drawn with."""
        if not files:
            raise gr.Error("there is no image yet whose settings could be taken", print_exception=False)
        if not 0 <= number < len(files):
            raise gr.Error("click the image whose settings are to be taken", print_exception=False)
        return fields_of(wish_of(settings_of(files[number])))

    def seen(self, source: str, picture: str | None) -> tuple[Any, Any]:
        """The map of an uploaded picture, and whether it can be drawn on."""
        if source == CANVAS or not picture:
            return None, gr.update(interactive=False)
        with said():
            control = Control(photo=Path(picture)) if source == PHOTO else Control(hint=Path(picture))
            return self.studio.hint(control), gr.update(interactive=True)

    def seen_further(self, checkpoint: str, picture: str | None, source: str) -> Any:
        """The map of a further ControlNet's picture."""
        if not checkpoint or not picture:
            return None
        with said():
            return self.studio.hint(further((checkpoint, picture, source, 1, 0, 1, "balanced"), self.studio.others()))

    def further(self) -> list[Any]:
        """The ControlNets that may join now, for each field that asks for one."""
        return [gr.update(choices=joining(self.studio)) for _ in range(FURTHER)]

    def edit(self, seen: Any, paper: str) -> tuple[str, Any]:
        """Put a map on the canvas."""
        return CANVAS, with_map(Image.fromarray(seen), paper, self.studio.size, self.studio.condition)

    def offers(self, text: str) -> Any:
        """The words that the last one of the prompt may become."""
        return gr.Dataset(samples=[[word] for word in offers(text, self.studio.vocabulary)])

    def complete(self, text: str, chosen: list[str]) -> tuple[str, Any]:
        """The prompt with the chosen word."""
        return completed(text, chosen[0]), gr.Dataset(samples=[])

    def paper(self, paper: str, canvas: Any) -> Any:
        """The drawing on that paper, with a pen for it."""
        return gr.update(**editor(self.studio, paper, on_paper(canvas, paper, self.studio.size)))

    def sheet(self, paper: str) -> Any:
        """What lies on an empty canvas."""
        return blank(paper, self.studio.size)


def visitors_own(session: str) -> str:
    """The name of a visitor's folder: whatever a request calls its session, another one's is never meant."""
    return hashlib.sha256(session.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def settings_of(file: str) -> dict[str, Any]:
    """The settings of an image of the page's own, from the list beside it; gr.Error where a later drawing has replaced
    it."""
    path = Path(file)
    lines = [line for line in read_lines(path.parent / "manifest.jsonl") if line["file"] == path.name]
    if not lines or not path.is_file():
        raise gr.Error("a later drawing has replaced this image", print_exception=False)
    return lines[-1]


def fields_of(wish: Wish) -> list[Any]:
    """The values of Asked's fields, canvas and paper left alone, that make the wish."""
    control = wish.control
    source, picture = (PHOTO, control.photo) if control.photo else (MAP, control.hint)
    others: list[Any] = []
    for unit in (*wish.more, *(None,) * FURTHER)[:FURTHER]:
        others += _unit(unit) if unit else ["", None, PHOTO, 1.0, 0.0, 1.0, "balanced"]
    return [
        source, gr.skip(), gr.skip(), str(picture), wish.prompt, wish.negative, wish.count, wish.seed, wish.sampler,
        wish.steps, wish.guidance, control.scale, control.start, control.end, control.mode, _editor(wish),
        wish.strength, *others,
    ]  # fmt: skip


def _unit(unit: Control) -> list[Any]:
    source, picture = (PHOTO, unit.photo) if unit.photo else (MAP, unit.hint)
    return [unit.checkpoint, str(picture), source, unit.scale, unit.start, unit.end, unit.mode]


def _editor(wish: Wish) -> Any:
    if wish.image is None:
        return None
    image = Image.open(wish.image).convert("RGBA")
    layers = []
    if wish.mask:
        paint = Image.new("RGBA", image.size, "#e03131")
        paint.putalpha(Image.open(wish.mask).convert("L"))
        layers = [paint]
    return {"background": image, "layers": layers, "composite": None}


def told(drawn: Drawn) -> str:
    """What there is to say of a drawing, as Markdown."""
    done = f"{len(drawn.images)} image{'s' * (len(drawn.images) != 1)} in {drawn.seconds:.1f} s"
    lines = [f"{'Stopped: ' * drawn.stopped}{done}, in `{drawn.folder}`"]
    return "  \n".join([*lines, *(f"⚠ {for_html(note)}" for note in drawn.notes)])
