"""Class maps, depth, normals and keypoints of pictures of scenes, by the exact reader: what it reads is rendered again.

The reader finds kind, place, size and angle of every object from pixels; a scene of these objects has exact maps. The
floor on which an object stands cannot be seen in a picture, so it is taken from the true object nearest to it: the
depth scores say whether the right shapes lie in the right places, not whether shadows are painted right.
"""

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cldm.worlds.agreement import Keypoints, class_scores, depth_scores, keypoint_scores, normal_angle
from cldm.worlds.scenes import ReadScene, Scene, SceneObject, render
from cldm.worlds.scenes.maps import keypoint_positions
from cldm.worlds.scenes.segmenter import kinds_of
from cldm.worlds.scenes.world import RADII

TOLERANCE = 1 / 32  # of the image's side, within which a keypoint counts as found: 4 px at 128
UNKNOWN_FLOOR = 0.5  # of an object where the scene has none left
LARGEST = RADII["large"][1]


def geometry_rows(reads: Sequence[ReadScene], scenes: Sequence[Scene], size: int) -> dict[str, np.ndarray]:
    """Columns (n,) for images of `size` px: seg_miou, seg_accuracy (of kinds and background), depth_rmse,
    depth_absrel, depth_delta1, normal_angle (degrees, on the true objects), keypoint_error_px, keypoint_found."""
    drawn = [redrawn(read, scene) for read, scene in zip(reads, scenes, strict=True)]
    ours, theirs = (render(one, size, ("depth", "normals")) for one in (drawn, scenes))
    depth = depth_scores(_given(ours.depth)[:, 0], _given(theirs.depth)[:, 0])
    angle = normal_angle(_given(ours.normals) * 2 - 1, _given(theirs.normals) * 2 - 1, theirs.labels > 0)
    classes = class_scores(kinds_of(ours.labels, drawn), kinds_of(theirs.labels, scenes))
    points = [
        keypoint_scores(_points(_objects(read, scene), size), _points(scene.objects, size), TOLERANCE * size)
        for read, scene in zip(reads, scenes, strict=True)
    ]
    return {
        "seg_miou": classes.miou.numpy(),
        "seg_accuracy": classes.accuracy.numpy(),
        "depth_rmse": depth.rmse.numpy(),
        "depth_absrel": depth.absrel.numpy(),
        "depth_delta1": depth.delta1.numpy(),
        "normal_angle": angle.numpy(),
        "keypoint_error_px": np.array([found.error for found in points]),
        "keypoint_found": np.array([found.found for found in points]),
    }


def _given(found: Tensor | None) -> Tensor:
    assert found is not None  # asked for
    return found


def redrawn(read: ReadScene, scene: Scene) -> Scene:
    """The scene that was read, on the floors of the true one."""
    return Scene(tuple(_objects(read, scene)), scene.background, scene.light, scene.gradient)


def _objects(read: ReadScene, scene: Scene) -> list[SceneObject]:
    left = [*scene.objects]
    found = []
    for o in sorted(read.objects, key=lambda o: -o.score):
        nearest = min(left, key=lambda true: math.dist((o.x, o.y), (true.x, true.y)), default=None)
        if nearest is not None:
            left.remove(nearest)
        radius, floor = min(max(o.radius, 0.05), LARGEST), UNKNOWN_FLOOR if nearest is None else nearest.depth
        found.append(SceneObject(o.kind, o.color, "large", o.x, o.y, radius, o.angle, floor))
    return found


def _points(objects: Sequence[SceneObject], size: int) -> Keypoints:
    """In pixels; of two objects of one kind the larger one's."""
    return {
        (obj.kind, number): (x * size / 2, y * size / 2)
        for obj in sorted(objects, key=lambda o: o.radius)
        for number, (x, y) in enumerate(keypoint_positions(obj))
    }
