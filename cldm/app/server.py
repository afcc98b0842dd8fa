"""Serving the page: to this machine alone unless asked, without a word to any other."""

import os
import tempfile
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which asks for versions otherwise

import gradio as gr

from cldm.app.page import page
from cldm.app.studio import Studio

LARGEST = "20mb"  # of an upload


def serve(studio: Studio, host: str = "127.0.0.1", port: int | None = None, wait: bool = True) -> gr.Blocks:
    """Open the page of a studio at http://host:port, or the next free port from 7860 on; returns when it is closed."""
    blocks = page(studio)
    blocks.queue(default_concurrency_limit=1)
    blocks.launch(
        server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=not wait,
        allowed_paths=[str(studio.folder)], max_file_size=LARGEST, enable_monitoring=False, footer_links=[], ssr_mode=False,
    )  # fmt: skip
    return blocks
