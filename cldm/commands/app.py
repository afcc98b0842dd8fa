"""python -m cldm app: a page to draw on, in the browser."""

import argparse
import errno
import socket
from importlib.util import find_spec

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


def check_address(host: str, port: int | None) -> None:
    """ValueError where nothing can listen there; without a port, any will do."""
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"--port must be from 1 to 65535, got {port}")
    try:
        kind = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port or 0), family=kind).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"--port {port} is taken: name another one, or none for the first that is free") from None
        raise ValueError(f"--host {host}: this machine cannot listen there ({error.strerror})") from None


def run(args: argparse.Namespace) -> None:
    """Open the page and wait until it is closed."""
    if find_spec("gradio") is None:
        raise ValueError("the page needs gradio: pip install -e '.[app]'")
    check_address(args.host, args.port)
    from cldm.app.server import serving  # late: every command of `python -m cldm` imports this file
    from cldm.app.studio import Studio

    with serving(Studio(args.overrides), args.host, args.port) as page:
        print(f"the page is at {page.local_url}; Ctrl-C closes it")
        page.block_thread()
