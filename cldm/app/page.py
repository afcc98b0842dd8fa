"""The page: the fields on the left, what was drawn on the right, and which answer belongs to which button."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from cldm.app.answers import Answers
from cldm.app.asked import CANVAS
from cldm.app.form import AWAY, Form, ask
from cldm.app.studio import Studio
from cldm.app.wish import shown_name

ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "networks"}
DROP_PEN = """() => { delete document.querySelector('#canvas [aria-label="Brush"]')?.dataset.taken }"""
"""So that it is taken up again, see cldm.app.server."""
ASIDE: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Answers that may refuse: gradio shows the sentence of a refusal only where the event was queued."""
AT_ONCE: dict[str, Any] = {"queue": False, **ASIDE}
"""Answers that refuse nothing."""
TO_PROMPT = """() => setTimeout(() => {
  const prompt = document.querySelector('#prompt textarea, #prompt input');
  prompt.focus();
  prompt.setSelectionRange(prompt.value.length, prompt.value.length);
})"""
"""In the browser: one goes on typing after the chosen word."""


@dataclass
class Results:
    """What shows a drawing, in the order of Answers.draw."""

    gallery: gr.Gallery
    slider: gr.ImageSlider
    settings: gr.Markdown
    line: gr.Code
    told: gr.Markdown
    files: gr.State
    number: gr.State
    again: gr.Button

    @property
    def all(self) -> list[Any]:
        """What a drawing fills."""
        return [self.gallery, self.slider, self.settings, self.line, self.told, self.files, self.number]


def page(studio: Studio) -> gr.Blocks:
    """The page of a studio; cldm.app.server opens it."""
    with gr.Blocks(title="Draw a hint", analytics_enabled=False, delete_cache=(3600, 86400)) as blocks:
        gr.Markdown(heading(studio))
        with gr.Row():
            with gr.Column(min_width=420):
                form = ask(studio)
            with gr.Column(min_width=420):
                results = show()
        wire(form, results, Answers(studio), blocks)
    return blocks


def heading(studio: Studio) -> str:
    """What the page is for, and with what it draws."""
    name, (height, width) = shown_name(studio.path), studio.size
    return (
        "### Draw a hint, say what the picture shows, press Draw\n"
        f"ControlNet `{name}`: {studio.condition.name} maps, {width} x {height} pixels"
    )


def show() -> Results:
    """All results, in the column that is being built."""
    told = gr.Markdown("The images will appear here.", elem_id="told")
    slider = gr.ImageSlider(label="Hint | image: drag the divider", format="png", max_height=430, elem_id="slider")
    settings = gr.Markdown(elem_id="settings")
    gallery = gr.Gallery(
        label="Click one to compare it", format="png", columns=4, fit_columns=False, height="auto",
        object_fit="contain", allow_preview=False, interactive=False, buttons=["download"], elem_id="gallery",
    )  # fmt: skip
    again = gr.Button("Take over the settings of this image", size="sm")
    line = gr.Code(
        label="The same images from the command line", language="shell", interactive=False, wrap_lines=True,
        lines=3, max_lines=8, elem_id="line",
    )  # fmt: skip
    return Results(gallery, slider, settings, line, told, gr.State([]), gr.State(0), again)


def wire(form: Form, results: Results, answers: Answers, blocks: gr.Blocks) -> None:
    """Every field and button gets its answer."""
    drawing = form.draw.click(
        answers.draw, form.asked, results.all, api_name="draw", show_progress_on=[results.gallery], **ONE_AT_A_TIME
    )
    form.stop.click(answers.stop, None, results.all, cancels=[drawing], **AT_ONCE)
    gr.on(
        [form.canvas.input, form.canvas.clear, form.prompt.submit, form.scale.release], answers.live,
        [form.live, *form.asked], results.all, trigger_mode="always_last", show_progress="hidden",
        api_visibility="private", **ONE_AT_A_TIME,
    )  # fmt: skip
    chosen = [results.slider, results.settings, results.number]
    results.gallery.select(answers.select, results.files, chosen, trigger_mode="always_last", **ASIDE)
    results.again.click(answers.again, [results.files, results.number], form.asked, **ASIDE)
    _wire_hint(form, answers, blocks)
    for number, (*unit, shows) in enumerate(form.further, 2):
        seeing = gr.on([field.change for field in unit], answers.seen_further, unit, shows, api_name=f"map_{number}")
        seeing.failure(lambda: None, None, shows, **AT_ONCE)
    form.prompt.input(answers.offers, form.prompt, form.words, trigger_mode="always_last", **AT_ONCE)
    completed = form.words.click(answers.complete, [form.prompt, form.words], [form.prompt, form.words], **AT_ONCE)
    completed.then(None, js=TO_PROMPT)


def _wire_hint(form: Form, answers: Answers, blocks: gr.Blocks) -> None:
    form.source.change(
        lambda source: (shown(source == CANVAS), shown(source != CANVAS)),
        form.source, [form.drawing, form.upload], **AT_ONCE,
    )  # fmt: skip
    changes, seen = [form.source.change, form.picture.change], [form.seen, form.edit]
    seeing = gr.on(changes, answers.seen, [form.source, form.picture], seen, api_name="map")
    seeing.failure(lambda: (None, gr.update(interactive=False)), None, seen, **AT_ONCE)
    form.edit.click(answers.edit, [form.seen, form.paper], [form.source, form.canvas], **AT_ONCE)
    form.paper.change(answers.paper, [form.paper, form.canvas], form.canvas, **AT_ONCE)
    blocks.load(answers.further, None, [checkpoint for checkpoint, *_ in form.further], **AT_ONCE)
    blocks.load(answers.sheet, form.paper, form.canvas, **AT_ONCE)
    form.canvas.clear(answers.sheet, form.paper, form.canvas, **AT_ONCE).then(None, js=DROP_PEN)


def shown(yes: bool) -> Any:
    """A part of the form, shown or out of sight; a canvas is asked for its drawing there too."""
    return gr.update(elem_classes=[] if yes else [AWAY])
