"""Class maps, depth, normals and keypoints of pictures of scenes, by the exact reader: what it reads is rendered again.

The reader finds kind, place, size and angle of every object from pixels; a scene of these objects has exact maps. The
floor on which an object stands cannot be seen in a picture, so it is taken from the true object nearest to it: the
depth scores say whether the right shapes lie in the right places, not whether shadows are painted right.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cldm.worlds import Scores
from cldm.worlds.agreement import Keypoints, class_scores, depth_scores, keypoint_scores, normal_angle
from cldm.worlds.scenes import ReadScene, Scene, SceneObject, render
from cldm.worlds.scenes.maps import keypoint_positions
from cldm.worlds.scenes.renderer import Render
from cldm.worlds.scenes.segmenter import kinds_of
from cldm.worlds.scenes.world import RADII

TOLERANCE = 1 / 32  # of the image's side, within which a keypoint counts as found: 4 px at 128
UNKNOWN_FLOOR = 0.5  # of an object where the scene has none left
LARGEST = RADII["large"][1]


def geometry_scores(reads: Sequence[ReadScene], scenes: Sequence[Scene], true: Render) -> list[Scores]:
    """For each image: seg_miou, seg_accuracy (of kinds and background), depth_rmse, depth_absrel, depth_delta1,
    normal_angle (degrees, on the true objects), keypoint_error_px, keypoint_found.

    true: the scenes drawn at the size of the images, with depth and normals.
    """
    size = true.image.shape[-1]
    drawn = [redrawn(read, scene) for read, scene in zip(reads, scenes, strict=True)]
    ours = render(drawn, size, ("depth", "normals"))
    depth = depth_scores(_given(ours.depth)[:, 0], _given(true.depth)[:, 0])
    angle = normal_angle(_given(ours.normals) * 2 - 1, _given(true.normals) * 2 - 1, true.labels > 0)
    classes = class_scores(kinds_of(ours.labels, drawn), kinds_of(true.labels, scenes))
    points = [
        keypoint_scores(_points(_objects(read, scene), size), _points(scene.objects, size), TOLERANCE * size)
        for read, scene in zip(reads, scenes, strict=True)
    ]
    columns: dict[str, Any] = {
        "seg_miou": classes.miou,
        "seg_accuracy": classes.accuracy,
        "depth_rmse": depth.rmse,
        "depth_absrel": depth.absrel,
        "depth_delta1": depth.delta1,
        "normal_angle": angle,
        "keypoint_error_px": [found.error for found in points],
        "keypoint_found": [found.found for found in points],
    }
    return [{name: [float(column[i])] for name, column in columns.items()} for i in range(len(scenes))]


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
