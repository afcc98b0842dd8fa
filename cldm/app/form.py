"""The fields of the page, from top to bottom."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components.image_editor import EditorData
from PIL import Image

from cldm.app.asked import CANVAS, MAP, PHOTO, within
from cldm.app.canvas import BLACK, PENS, WHITE, Editor, canvas_size, paper_of, read_layer
from cldm.app.folders import named
from cldm.app.said import said
from cldm.app.studio import Studio
from cldm.app.wish import shown_name
from cldm.runs.configs import MOST as MOST_SEED
from cldm.runs.configs import mistakes_refused
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


def map_of(label: str, **options: Any) -> gr.Image:
    """The map of a picture, to look at."""
    return gr.Image(label=label, interactive=False, format="png", buttons=[], min_width=160, **options)


def sheet(label: str, what: str, **options: Any) -> gr.ImageEditor:
    """A field to draw in, whose pictures cldm.data.decoding reads: what is none is refused in one sentence."""
    field = gr.ImageEditor(
        label=label, type="pil", transforms=(), layers=False, format="png", height=430, buttons=[], **options
    )

    def preprocess(payload: Any) -> Editor | None:
        if payload is None:
            return None
        held = payload if payload.id is None else field.blob_storage.pop(payload.id, None)
        held = EditorData(background=None, layers=[], composite=None) if held is None else held
        layers = [_layer(layer, what) for layer in held.layers or [] if layer is not None]
        return {
            "background": _layer(held.background, what),
            "layers": layers,
            "composite": _layer(held.composite, what),
        }

    field.preprocess = preprocess  # type: ignore[method-assign, assignment]
    return field


def _layer(held: Any, what: str) -> Image.Image | None:
    if held is None:
        return None
    source, path = (held, Path()) if isinstance(held, bytes) else (held.path, Path(held.path))
    with said(), named({path: path.name}), mistakes_refused():
        return read_layer(source, what, "of the editor")


def number(field: Any, name: str) -> Any:
    """A field for a number: what is none, or out of its bounds, is refused in one sentence with this name."""

    def preprocess(payload: Any) -> float:
        with said():
            return within(payload, name, field.minimum, field.maximum, field.precision == 0)

    field.preprocess = preprocess
    return field


@dataclass
class Form:
    """The fields by name; `asked` are those whose values an Asked has, in its order.

    further: for each further ControlNet its checkpoint, picture, kind of hint, and where its map is shown.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    others: list[Any] = field(default_factory=list)
    further: list[tuple[Any, ...]] = field(default_factory=list)

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
        with gr.Tab("ControlNets"):
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
        form.fields["canvas"] = sheet(
            "Draw here", "drawing", sources=(), elem_id="canvas", canvas_size=canvas_size(studio.size),
            fixed_canvas=True, **editor(studio, paper),
        )  # fmt: skip
        form.fields["paper"] = gr.Radio(
            [("black on white", WHITE), ("white on black", BLACK)], value=paper, label="Pen and paper",
            visible=studio.condition.polarity == "white_on_black",
        )  # fmt: skip
    with gr.Row(elem_classes=[AWAY]) as form.fields["upload"]:
        form.fields["picture"] = upload("Your picture", height=260, elem_id="picture")
        with gr.Column(min_width=160):
            form.fields["seen"] = map_of(f"Its {made} map: what the ControlNet gets", height=220, elem_id="seen")
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
        seed = gr.Number(cfg.seed, precision=0, minimum=0, maximum=MOST_SEED, label="First seed")
        fields["seed"] = number(seed, "First seed")
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
            start = gr.Slider(0, 1, cfg.start, step=0.05, label="The hint acts from", info="share of the steps")
            fields["start"] = number(start, "The start of the hint")
            fields["end"] = number(gr.Slider(0, 1, cfg.end, step=0.05, label="to"), "The end of the hint")


def _over(form: Form, studio: Studio) -> None:
    gr.Markdown("Image to image: the drawing starts from this picture. Paint the part to be redrawn (inpainting); "
                "without paint, all of it changes. An empty hint takes the map of this picture.")  # fmt: skip
    form.fields["image"] = sheet(
        "Picture", "image", sources=("upload", "clipboard"), canvas_size=canvas_size(studio.size), elem_id="image",
        brush=gr.Brush(24, colors=["#e03131"], color_mode="fixed"),
    )  # fmt: skip
    strength = gr.Slider(0.05, 1, studio.cfg.strength, step=0.05, label="Strength: how much changes")
    form.fields["strength"] = number(strength, "Strength")


def _further(form: Form, studio: Studio) -> None:
    gr.Markdown("These are used together with the hint of the first tab: their effects are added.")
    choices = joining(studio)
    for name in (f"ControlNet {i}" for i in range(2, 2 + FURTHER)):
        with gr.Group():
            checkpoint = gr.Dropdown(choices, value="", label=name)
            with gr.Row():
                picture = upload("Its picture", height=200)
                seen = map_of("Its map", height=200)
            source = gr.Radio([PHOTO, MAP], value=PHOTO, label="Its hint is")
            form.others += [checkpoint, picture, source, *_acts(name)]
            form.further.append((checkpoint, picture, source, seen))


def joining(studio: Studio) -> list[tuple[str, str]]:
    """(name, checkpoint) of the ControlNets that may join, none first."""
    return [("none", ""), *((shown_name(known), known) for known in studio.others())]


def _acts(name: str) -> list[Any]:
    scale = number(gr.Slider(0, 2, 1, step=0.05, label="Scale"), f"The scale of {name}")
    with gr.Row():
        start = number(gr.Slider(0, 1, 0, step=0.05, label="From"), f"The start of {name}")
        end = number(gr.Slider(0, 1, 1, step=0.05, label="to"), f"The end of {name}")
        return [scale, start, end, gr.Dropdown([*MODES], value="balanced", label="Mode")]
