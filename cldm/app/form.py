"""The fields of the page, from top to bottom."""

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from cldm.app.asked import CANVAS, MAP, PHOTO
from cldm.app.canvas import BLACK, PENS, WHITE, canvas_size, paper_of
from cldm.app.studio import Studio
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
        with gr.Tab("Picture to draw over"):
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
        form.fields["canvas"] = gr.ImageEditor(
            label="Draw here", type="pil", sources=(), transforms=(), layers=False, format="png", elem_id="canvas",
            canvas_size=canvas_size(studio.size), fixed_canvas=True, height=430, buttons=[], **editor(studio, paper),
        )  # fmt: skip
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
        fields["count"] = gr.Slider(1, MOST, min(cfg.count, MOST), step=1, label="Images")
        fields["seed"] = gr.Number(cfg.seed, precision=0, minimum=0, label="First seed")
        fields["scale"] = gr.Slider(0, max(2, cfg.scale), cfg.scale, step=0.05, label="Scale")
    with gr.Accordion("More settings", open=False):
        fields["negative"] = gr.Textbox(cfg.negative, label="What it does not show (negative prompt)")
        with gr.Row():
            fields["sampler"] = gr.Dropdown(SAMPLERS, value=studio.sampler, label="Sampler")
            steps, guidance = cfg.sampler.steps, cfg.sampler.guidance  # as typed, whatever is usual
            fields["steps"] = gr.Slider(1, max(100, steps), steps, step=1, label="Steps")
            span = min(1, guidance), max(15, guidance)
            fields["guidance"] = gr.Slider(*span, guidance, step=0.5, label="Guidance (by the prompt)")
        with gr.Row():
            fields["mode"] = gr.Dropdown([*MODES], value=cfg.mode, label="Mode")
            fields["start"] = gr.Slider(0, 1, cfg.start, step=0.05, label="The hint acts from (share of the steps)")
            fields["end"] = gr.Slider(0, 1, cfg.end, step=0.05, label="to")


def _over(form: Form, studio: Studio) -> None:
    gr.Markdown("Joins the hint: the drawing starts from this picture. Paint on it where it is to be new; "
                "without paint, all of it changes. An empty hint takes the map of this picture.")  # fmt: skip
    form.fields["image"] = gr.ImageEditor(
        label="Picture", type="pil", sources=("upload", "clipboard"), transforms=(), layers=False, format="png",
        canvas_size=canvas_size(studio.size), fixed_canvas=True, height=430, buttons=[], elem_id="image",
        brush=gr.Brush(24, colors=["#e03131"], color_mode="fixed"),
    )  # fmt: skip
    form.fields["strength"] = gr.Slider(0.05, 1, studio.cfg.strength, step=0.05, label="How much of it is drawn anew")


def _further(form: Form, studio: Studio) -> None:
    gr.Markdown("These join the hint of the first tab: what the ControlNets say adds up.")
    choices = [("none", ""), *((name, name) for name in studio.others())]
    for number in range(2, 2 + FURTHER):
        with gr.Group():
            form.others.append(gr.Dropdown(choices, value="", label=f"ControlNet {number}"))
            with gr.Row():
                form.others.append(upload("Its picture", height=200))
                with gr.Column():
                    form.others.append(gr.Radio([PHOTO, MAP], value=PHOTO, label="Its hint is"))
                    form.others.append(gr.Slider(0, 2, 1, step=0.05, label="Scale"))
            with gr.Row():
                form.others.append(gr.Slider(0, 1, 0, step=0.05, label="From"))
                form.others.append(gr.Slider(0, 1, 1, step=0.05, label="to"))
                form.others.append(gr.Dropdown([*MODES], value="balanced", label="Mode"))
