"""The page: what lies where, and which function answers which button."""

import tempfile
import threading
from pathlib import Path
from typing import Any

import gradio as gr

from cldm.app.canvas import PAPERS, canvas_size, save_map
from cldm.app.studio import Studio
from cldm.app.wish import Control, Wish
from cldm.runs.folder import Refused
from cldm.sampling.control import MODES
from cldm.sampling.drawing import SAMPLERS


def page(studio: Studio) -> gr.Blocks:
    """The page of a studio; cldm.app.server opens it."""
    cfg, (width, height) = studio.cfg, canvas_size(studio.size)
    with gr.Blocks(title="Draw", analytics_enabled=False) as blocks:
        gr.Markdown(f"**{studio.path}** · {studio.condition.name} · {studio.size[1]} x {studio.size[0]}")
        with gr.Row():
            with gr.Column():
                with gr.Tabs():
                    with gr.Tab("Draw"):
                        canvas = gr.ImageEditor(
                            label="Canvas", type="pil", sources=(), transforms=(), layers=False, format="png",
                            canvas_size=(width, height), fixed_canvas=True, brush=gr.Brush(default_size=3, colors=["#000000"]),
                        )  # fmt: skip
                    with gr.Tab("Upload"):
                        upload = gr.Image(label="Picture", type="filepath")
                        kind = gr.Radio(["make its map", "it is a map"], value="make its map", show_label=False)
                        seen = gr.Image(label="The map", interactive=False, format="png")
                prompt = gr.Textbox(label="Prompt", lines=2)
                draw = gr.Button("Draw", variant="primary")
                count = gr.Slider(1, 16, 4, step=1, label="Images")
            with gr.Column():
                gallery = gr.Gallery(label="Images", format="png", columns=2)
                told = gr.Markdown()

        def drawn(sheet: Any, picture: str | None, use: str, text: str, number: int, progress=gr.Progress()) -> Any:
            with tempfile.TemporaryDirectory() as folder:
                if picture:
                    control = Control(photo=Path(picture)) if use == "make its map" else Control(hint=Path(picture))
                else:
                    path = Path(folder, "hint.png")
                    control = Control(
                        hint=save_map(sheet, PAPERS["black on white"][0], studio.size, studio.condition, path)
                    )
                wish = Wish(control, text, count=number)
                try:
                    done = studio.draw(
                        wish, lambda step, steps: progress((step, steps), unit="steps"), threading.Event()
                    )
                except Refused as error:
                    raise gr.Error(str(error), print_exception=False) from None
            return [str(path) for path in done.images], done.line

        draw.click(drawn, [canvas, upload, kind, prompt, count], [gallery, told], api_name="draw")
    return blocks
