"""Serving the page: to this machine alone unless asked, without a word to any other."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.middleware import Middleware
from starlette.responses import JSONResponse

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported, which asks for news otherwise

import gradio as gr

from cldm.app.page import page
from cldm.app.studio import Studio

LARGEST = "20mb"  # of an upload
MOST_BYTES = 2 * 10**6  # of any other request
OWN_ONLY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:"
)
"""A browser that shows the page loads nothing from elsewhere, whatever the page says."""

READY = """() => setInterval(() => {
  const pen = document.querySelector('#canvas [aria-label="Brush"]');
  if (pen && !pen.dataset.taken) { pen.dataset.taken = "yes"; pen.click(); }
}, 300)"""
"""In the browser: the pen is taken up wherever a canvas appears."""

CSS = """
footer, .away { display: none !important }
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: auto }
#gallery .grid-container { margin-top: 26px }
#line { max-height: 190px; overflow-y: auto }
#gallery .grid-wrap { height: auto !important; min-height: 0; max-height: 420px }
@media (max-width: 640px) {
  .toolbar-wrap {
    left: 50% !important; top: auto !important; bottom: 6px; transform: translateX(-50%); flex-direction: row;
    width: max-content
  }
  .toolbar-wrap .half-container { flex-direction: row; width: auto; height: auto }
}
"""


class Guarded:
    """Adds the policy of OWN_ONLY to every answer, and refuses requests that are too large or would make gradio fetch
    an address."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        """As ASGI asks for."""

        async def with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", OWN_ONLY.encode())]
            await send(message)

        if scope.get("method") != "POST" or uploads(scope):
            await self.app(scope, receive, with_policy)
            return
        body = await whole(scope, receive)
        refusal = refused(body)
        if refusal is not None:
            await refusal(scope, receive, with_policy)
            return
        replayed = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def again():
            return next(replayed, None) or await receive()

        await self.app(scope, again, with_policy)


def uploads(scope) -> bool:
    """Whether gradio reads the request as files, whose size it limits."""
    kind = dict(scope["headers"]).get(b"content-type", b"")
    return kind.startswith(b"multipart/") and scope["path"].rstrip("/").endswith(("/upload", "/component_server"))


async def whole(scope, receive) -> bytes | None:
    """The body of a request; None, without reading on, where it is larger than MOST_BYTES."""
    told = dict(scope["headers"]).get(b"content-length", b"")
    if told.isdigit() and int(told) > MOST_BYTES:
        return None
    pieces, size, more = list[bytes](), 0, True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        size, more = size + len(pieces[-1]), message.get("more_body", False)
        if size > MOST_BYTES:
            return None
    return b"".join(pieces)


def refused(body: bytes | None) -> JSONResponse | None:
    """The answer to a body that is not handed on; None for one that is."""
    if body is None:
        return JSONResponse({"detail": f"a request has at most {MOST_BYTES // 10**6} MB; pictures are uploaded"}, 413)
    if names_an_address(body):
        return JSONResponse({"detail": "pictures are uploaded here, not fetched from an address"}, 422)
    return None


def names_an_address(body: bytes) -> bool:
    """Whether a file in a request's JSON has an address for its path: gradio would download it."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):  # no JSON: gradio says so
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and str(value.get("path", "")).strip().lower().startswith(("http:", "https:")):
            return True
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
    return False


@contextmanager
def serving(studio: Studio, host: str = "127.0.0.1", port: int | None = None) -> Iterator[gr.Blocks]:
    """The page of a studio at http://host:port, or at the next free port from 7860 on, for this block.

    Uploads lie in a folder of their own, which goes when the block is done.
    """
    with tempfile.TemporaryDirectory(prefix="cldm-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        font = ["ui-sans-serif", "system-ui", "sans-serif"]  # nothing is asked of a server of fonts
        theme = gr.themes.Default(font=font, font_mono=["ui-monospace", "monospace"])
        blocks = page(studio)
        blocks.launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, inbrowser=False,
            allowed_paths=[str(studio.folder)], max_file_size=LARGEST, enable_monitoring=False, footer_links=[],
            ssr_mode=False, mcp_server=False, run_history=False, show_error=True, theme=theme, css=CSS, js=READY,
            app_kwargs={"middleware": [Middleware(Guarded)]},
        )  # fmt: skip
        try:
            yield blocks
        finally:
            blocks.close(verbose=False)
