"""python -m cldm app: a page to draw on, in the browser."""

import argparse
import signal
import socket
import sys
from importlib.util import find_spec
from typing import Any

EXAMPLES = """\
  python -m cldm app
  python -m cldm app checkpoint=runs/R/seed-0 sampler=unipc sampler.steps=10
  python -m cldm app checkpoint=control_v11p_sd15_canny.pth trained.model=sd15 trained.condition=canny \\
    base=sd15.safetensors
What is given holds for every drawing. The page is open to this machine alone; --host opens it to others."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="as for sample.py; the newest run if none is given"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 lets the network in")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")


def run(args: argparse.Namespace) -> None:
    """Open the page and wait until it is closed."""
    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install -e '.[app]'")
    check_address(args.host, args.port)
    from cldm.app.server import serving  # late: every command of `python -m cldm` imports this file
    from cldm.app.studio import Studio

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was uploaded goes with the page, however it ends
    with serving(Studio(args.overrides), args.host, args.port) as page:
        print(f"the page is at {page.local_url}; Ctrl-C closes it")
        page.block_thread()


def check_address(host: str, port: int | None) -> None:
    """ValueError where the page cannot listen there, before anything is loaded."""
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(f"--port must be from 1 to 65535, got {port}")
    try:
        place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        _try_to_listen(place, 0)
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--host {host} is no address of this machine") from error
    try:
        _try_to_listen(place, port or 0)
    except PermissionError as error:
        raise ValueError(f"--port {port} is not allowed to this user; take one from 1024 on") from error
    except OSError as error:
        raise ValueError(f"--port {port} is in use; take another, or none for the first free one") from error


def _try_to_listen(place: tuple[Any, ...], port: int) -> None:
    family, kind, protocol, _, address = place
    with socket.socket(family, kind, protocol) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port just left is free
        trial.bind((address[0], port, *address[2:]))
