"""Maps of other programs: renderers and game engines write depth and normals by other rules. Bring them to ours."""

import numpy as np

from cldm.conditions.depth import near_white, near_white_from_metric
from cldm.conditions.normal import Order


def import_depth(values: np.ndarray, *, invert: bool = False, metric: bool = False) -> np.ndarray:
    """Depth of 8 or 16 bits or float, (h, w) or (h, w, c) -> (h, w, 3) uint8, near = white, stretched.

    invert: the map has near = dark (Blender's usual mist and Z passes after normalisation). metric: it holds
    metres, where near is small; percentiles are cut off and near becomes white.
    """
    if metric and invert:
        raise ValueError("metric maps are inverted already; give metric or invert, not both")
    grey = values if values.ndim == 2 else values[:, :, 0]
    found = near_white_from_metric(grey) if metric else near_white(-grey.astype(np.float32) if invert else grey)
    return np.repeat(found[:, :, None], 3, axis=2)


def import_normals(
    values: np.ndarray, *, flip_x: bool = False, flip_y: bool = False, flip_z: bool = False, order: Order = "bae"
) -> np.ndarray:
    """Normals of 8 or 16 bits, or float vectors in [-1, 1], (h, w, 3) -> uint8 in `order`'s colours.

    flip_x: red means right (OpenGL and most engines). flip_y: green means down (DirectX). flip_z: blue means back.
    """
    if values.ndim != 3 or values.shape[2] != 3:
        raise ValueError(f"normals must have shape (h, w, 3), got {values.shape}")
    if np.issubdtype(values.dtype, np.floating):
        scaled = (values.astype(np.float32) + 1) * 127.5
    else:
        scaled = values.astype(np.float32) * (255 / np.iinfo(values.dtype).max)
    flips = np.array([flip_x, flip_y, flip_z])
    colors = np.rint(np.where(flips, 255 - scaled, scaled).clip(0, 255)).astype(np.uint8)
    return colors if order == "bae" else np.ascontiguousarray(colors[:, :, ::-1])
