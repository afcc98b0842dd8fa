"""Published checkpoints (original layout, diffusers layout) <-> the modules of ldm; strict both ways."""

from ldm.interop.model import load_base, pretrained

__all__ = ["load_base", "pretrained"]
