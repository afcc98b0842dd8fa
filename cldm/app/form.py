"""The fields of the page, from top to bottom."""

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from cldm.app.asked import CANVAS, MAP, PHOTO, within
from cldm.app.canvas import BLACK, PENS, WHITE, canvas_size, paper_of
from cldm.app.said import said
from cldm.app.studio import Studio
from cldm.data.decoding import PictureError, picture_size
from cldm.runs.configs import MOST as LAST_SEED
from cldm.runs.folder import Refused
from cldm.sampling.control import MODES
from cldm.sampling.drawing import SAMPLERS

AWAY = "away"  # the class of what is out of sight, see cldm.app.server.CSS
FURTHER = 2  # ControlNets beside the page's own
MOST = 16  # images of a drawing


def upload(label: str, **options: Any) -> gr.Image:
    """A picture that is handed on as the file that it is: cldm.data.decoding is the one reader of pictures."""
    field = gr.Image(label=label, sources=["upload", "clipboard"], type="filepath", min_width=160, **options)
    field.preprocess = lambda payload: None if payload is None else payload.path  # type: ignore[method-assign]
    return field


def pictures_checked(field: gr.ImageEditor) -> gr.ImageEditor:
    """An editor whose files are refused in one sentence where they are no pictures, before they are decoded."""
    read = field.preprocess

    def preprocess(payload: Any) -> Any:
        with said():
            files = [] if payload is None else [payload.background, *(payload.layers or []), payload.composite]
            try:
                for file in filter(None, files):
                    picture_size(file.path, "picture", file.orig_name or "")
                return read(payload)
            except (PictureError, OSError, SyntaxError) as error:  # as PIL complains of a broken file
                raise Refused(str(error)) from error

    field.preprocess = preprocess  # type: ignore[method-assign]
    return field


def number(field: Any, name: str) -> Any:
    """A field for a number: what is none, or out of its bounds, is refused in one sentence with this name."""

    def preprocess(payload: Any) -> float:
        with said():
            return within(payload, name, field.minimum, field.maximum, field.precision == 0)

    field.preprocess = preprocess
    return field


@dataclass
class Form:
    """The fields by name; `asked` are those whose values an Asked has, in its order."""

    fields: dict[str, Any] = field(default_factory=dict)
    others: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return self.fields[name]

    @property
    def asked(self) -> list[Any]:
        """The fields that say what to draw."""
        names = ("source", "paper", "canvas", "picture", "prompt", "negative", "count", "seed", "sampler", "steps",
                 "guidance", "scale", "start", "end", "mode", "image", "strength")  # fmt: skip
        return [*(self.fields[name] for name in names), *self.others]


def ask(studio: Studio) -> Form:
    """All fields, in the column that is being built."""
    form = Form()
    with gr.Tabs():
        with gr.Tab("Hint"):
            _hint(form, studio)
        with gr.Tab("Image to image"):
            _over(form, studio)
        with gr.Tab("More ControlNets"):
            _further(form, studio)
    _words(form, studio)
    with gr.Row():
        form.fields["draw"] = gr.Button("Draw", variant="primary", scale=3, elem_id="draw")
        form.fields["stop"] = gr.Button("Stop", scale=1)
    form.fields["live"] = gr.Checkbox(label="Live: one image of few steps after every stroke")
    _settings(form, studio)
    return form


def editor(studio: Studio, paper: str, value: Any = None) -> dict[str, Any]:
    """The options of the canvas: its paper, and pens to draw on it with."""
    width, height = canvas_size(studio.size)
    pens = PENS[studio.condition.polarity] if studio.condition.polarity != "white_on_black" else None
    ink = pens or [BLACK if paper == WHITE else WHITE]
    radius = max(round(max(width, height) / max(studio.size) / 2), 1)  # a line as wide as a pixel of the map
    return {"value": value, "brush": gr.Brush(radius, colors=ink, color_mode="fixed" if pens is None else "defaults")}


def _hint(form: Form, studio: Studio) -> None:
    made = studio.condition.name
    form.fields["source"] = gr.Radio([CANVAS, PHOTO, MAP], value=CANVAS, label="The hint is", elem_id="source")
    with gr.Column() as form.fields["drawing"]:
        paper = paper_of(studio.condition)
        canvas = gr.ImageEditor(
            label="Draw here", type="pil", sources=(), transforms=(), layers=False, format="png", elem_id="canvas",
            canvas_size=canvas_size(studio.size), fixed_canvas=True, height=430, buttons=[], **editor(studio, paper),
        )  # fmt: skip
        form.fields["canvas"] = pictures_checked(canvas)
        form.fields["paper"] = gr.Radio(
            [("black on white", WHITE), ("white on black", BLACK)], value=paper, label="Pen and paper",
            visible=studio.condition.polarity == "white_on_black",
        )  # fmt: skip
    with gr.Row(elem_classes=[AWAY]) as form.fields["upload"]:
        form.fields["picture"] = upload("Your picture", height=260, elem_id="picture")
        with gr.Column(min_width=160):
            form.fields["seen"] = gr.Image(
                label=f"Its {made} map: what the ControlNet gets",
                interactive=False,
                format="png",
                height=220,
                buttons=[],
                elem_id="seen",
            )
            form.fields["edit"] = gr.Button("Draw on this map", size="sm", interactive=False)


def _words(form: Form, studio: Studio) -> None:
    known = [word for word in studio.vocabulary if word.isalpha()]
    info = f"This base knows {len(known)} words; they are offered as you type." if known else None
    form.fields["prompt"] = gr.Textbox(
        studio.prompt, label="What the picture shows (prompt)", info=info, lines=1, elem_id="prompt"
    )
    form.fields["words"] = gr.Dataset(
        components=["textbox"], samples=[], type="values", show_label=False, visible=bool(known), elem_id="words"
    )


def _settings(form: Form, studio: Studio) -> None:
    cfg, fields = studio.cfg, form.fields
    with gr.Row():
        count = gr.Slider(1, MOST, min(cfg.count, MOST), step=1, precision=0, label="Images")
        fields["count"] = number(count, "Images")
        fields["seed"] = number(
            gr.Number(cfg.seed, precision=0, minimum=0, maximum=LAST_SEED, label="First seed"), "First seed"
        )
        scale = gr.Slider(0, max(2, cfg.scale), cfg.scale, step=0.05, label="Scale")
        fields["scale"] = number(scale, "Scale")
    with gr.Accordion("More settings", open=False):
        fields["negative"] = gr.Textbox(cfg.negative, label="What it does not show (negative prompt)")
        with gr.Row():
            fields["sampler"] = gr.Dropdown(SAMPLERS, value=studio.sampler, label="Sampler")
            steps, guidance = cfg.sampler.steps, cfg.sampler.guidance  # as typed, whatever is usual
            fields["steps"] = number(gr.Slider(1, max(100, steps), steps, step=1, precision=0, label="Steps"), "Steps")
            span = min(1, guidance), max(15, guidance)
            pull = gr.Slider(*span, guidance, step=0.5, label="Guidance (by the prompt)")
            fields["guidance"] = number(pull, "Guidance")
        with gr.Row():
            fields["mode"] = gr.Dropdown([*MODES], value=cfg.mode, label="Mode")
            start = gr.Slider(0, 1, cfg.start, step=0.05, label="The hint acts from (share of the steps)")
            fields["start"] = number(start, "The start of the hint")
            fields["end"] = number(gr.Slider(0, 1, cfg.end, step=0.05, label="to"), "The end of the hint")


def _over(form: Form, studio: Studio) -> None:
    gr.Markdown("Image to image: the drawing starts from this picture. Paint the part to be redrawn (inpainting); "
                "without paint, all of it changes. An empty hint takes the map of this picture.")  # fmt: skip
    image = gr.ImageEditor(
        label="Picture", type="pil", sources=("upload", "clipboard"), transforms=(), layers=False, format="png",
        canvas_size=canvas_size(studio.size), fixed_canvas=False, height=430, buttons=[], elem_id="image",
        brush=gr.Brush(24, colors=["#e03131"], color_mode="fixed"),
    )  # fmt: skip
    form.fields["image"] = pictures_checked(image)
    strength = gr.Slider(0.05, 1, studio.cfg.strength, step=0.05, label="Strength: how much changes")
    form.fields["strength"] = number(strength, "Strength")


def _further(form: Form, studio: Studio) -> None:
    gr.Markdown("These are used together with the hint of the first tab: their effects are added.")
    choices = [("none", ""), *((known, known) for known in studio.others())]
    for name in (f"ControlNet {i}" for i in range(2, 2 + FURTHER)):
        with gr.Group():
            form.others.append(gr.Dropdown(choices, value="", label=name))
            with gr.Row():
                form.others.append(upload("Its picture", height=200))
                with gr.Column():
                    form.others.append(gr.Radio([PHOTO, MAP], value=PHOTO, label="Its hint is"))
                    form.others.append(number(gr.Slider(0, 2, 1, step=0.05, label="Scale"), f"The scale of {name}"))
            with gr.Row():
                form.others.append(number(gr.Slider(0, 1, 0, step=0.05, label="From"), f"The start of {name}"))
                form.others.append(number(gr.Slider(0, 1, 1, step=0.05, label="to"), f"The end of {name}"))
                form.others.append(gr.Dropdown([*MODES], value="balanced", label="Mode"))
