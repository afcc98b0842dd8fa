"""Published checkpoints (original layout, diffusers layout) <-> the modules of ldm; strict both ways."""

from ldm.interop.model import PARTS, load_base, pretrained

__all__ = ["PARTS", "load_base", "pretrained"]
