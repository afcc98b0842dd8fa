"""Promises of the caption and scene scores: 1 for the truth, and each falls for its own kind of mistake."""

import dataclasses
import math

import pytest

from cldm.worlds import by_image, pooled, rows
from cldm.worlds.scenes import Scene, SceneObject, caption, read_scenes, render, sample_scene
from cldm.worlds.scenes.judge import caption_scores, relation_holds, scene_scores

SEED = 7


def caption_fidelity(images, captions):
    return pooled(caption_scores(read_scenes(images), captions))


def scene_fidelity(images, scenes):
    return pooled(scene_scores(images, scenes, render(scenes, images.shape[-1]).labels))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def truth():
    scenes = [sample_scene(SEED, index) for index in range(60)]
    captions = [caption(scene, SEED, index) for index, scene in enumerate(scenes)]
    return scenes, captions, render(scenes, 128).image


TEXT = "a large red star left of a large blue ring on a mint background"


def scene_of(first: str = "red star", second: str | None = "blue ring", background: str = "mint") -> Scene:
    objects = []
    for k, (words, x) in enumerate(((first, -0.45), (second, 0.45))):
        if words is not None:
            color, kind = words.split()
            objects.append(SceneObject(kind, color, "large", x, 0.05, 0.40, 0.0, 0.25 + 0.5 * k))
    return Scene(tuple(objects), background)


def scores(scene: Scene, text: str = TEXT) -> dict[str, float]:
    return caption_fidelity(render([scene], 128).image, [text])


def placed(scene: Scene) -> dict[str, float]:
    """Scores of a picture of `scene` where the scene of TEXT was asked for."""
    return scene_fidelity(render([scene], 128).image, [scene_of()])


def test_captions_agree_with_the_scene_reader(truth):
    _, captions, images = truth
    found = caption_fidelity(images, captions)
    assert found == pytest.approx(dict.fromkeys(found, 1.0), abs=0.002)


def test_renders_agree_with_their_scenes(truth):
    scenes, _, images = truth
    found = scene_fidelity(images, scenes)
    assert found.pop("shape_iou") > 0.97
    assert found == dict.fromkeys(found, 1.0)


def test_captions_of_other_scenes_score_low(truth):
    scenes, captions, images = truth
    moved = images.roll(1, 0)
    by_caption, by_scene = caption_fidelity(moved, captions), scene_fidelity(moved, scenes)
    assert max(by_caption[name] for name in ("binding", "binding_one", "color_recall")) < 0.5
    assert max(by_scene[name] for name in ("shape_iou", "shape", "color_binding")) < 0.3


def test_swapped_colors_lower_binding_and_nothing_else():
    found = scores(scene_of("blue star", "red ring"))
    assert found["binding"] == 0
    assert found["shape"] == found["color_recall"] == found["background"] == found["objects"] == 1
    assert math.isnan(found["binding_one"])


def test_swapped_places_lower_the_relation_and_nothing_else():
    found = scores(scene_of("blue ring", "red star"))
    assert found["relation"] == 0
    assert found["binding"] == found["shape"] == found["color_recall"] == found["objects"] == 1


def test_a_missing_object_lowers_recall_shape_and_the_count():
    found = scores(scene_of("red star", None))
    assert found["color_recall"] == found["shape"] == found["binding"] == 0.5
    assert found["objects"] == 0
    assert found["color_precision"] == 1
    assert math.isnan(found["relation"])


def test_a_color_that_nobody_asked_for_lowers_precision():
    found = scores(scene_of(), "a large red star on a mint background")
    assert 0.3 < found["color_precision"] < 0.7
    assert found["color_recall"] == found["binding_one"] == 1
    assert found["objects"] == 0


def test_a_wrong_background_is_noticed():
    assert scores(scene_of(background="peach"))["background"] == 0


def test_a_wrong_kind_in_the_right_color_lowers_shape_and_binding():
    found = scores(scene_of("red heart"))
    assert found["shape"] == found["binding"] == 0.5
    assert found["color_recall"] == found["relation"] == 1


def test_a_picture_without_objects_scores_nothing():
    empty = dataclasses.replace(scene_of(), objects=())
    found = scores(empty)
    assert [found[n] for n in ("color_recall", "color_precision", "shape", "binding", "objects")] == [0] * 5
    assert found["background"] == 1
    found = placed(empty)
    assert [found[n] for n in ("shape_iou", "shape", "color_binding")] == [0] * 3


def test_swapped_colors_under_a_known_scene_keep_the_shape_and_lose_the_color():
    found = placed(scene_of("blue star", "red ring"))
    assert found["shape"] == found["background"] == 1
    assert found["color_binding"] == found["color_binding_many"] == 0
    assert found["shape_iou"] < 0.1


def test_swapped_kinds_under_a_known_scene_keep_the_color_and_lose_the_shape():
    found = placed(scene_of("red ring", "blue star"))
    assert found["shape"] == 0
    assert found["color_binding"] == found["color_binding_many"] == 1


@pytest.mark.parametrize(
    ("relation", "dx", "dy", "holds"),
    [
        ("left of", -1.0, 0.0, True),
        ("left of", -1.0, 1.5, True),
        ("left of", -1.0, 2.0, False),
        ("right of", -1.0, 0.0, False),
        ("above", 0.1, -1.0, True),
        ("below", 0.1, -1.0, False),
        ("below", 0.0, 0.0, False),
    ],
)
def test_a_relation_holds_within_sixty_degrees(relation, dx, dy, holds):
    assert relation_holds(relation, dx, dy) is holds


def test_wrong_counts_shapes_and_captions_are_refused(truth):
    scenes, captions, images = truth
    with pytest.raises(ValueError, match="4 images came with 3 captions"):
        caption_fidelity(images[:4], captions[:3])
    with pytest.raises(ValueError, match="4 images came with 3 scenes"):
        scene_fidelity(images[:4], scenes[:3])
    with pytest.raises(ValueError, match="images must have shape"):
        caption_fidelity(images[0], captions[:1])
    with pytest.raises(ValueError, match="caption 'a blob'"):
        caption_fidelity(images[:1], ["a blob"])


def test_a_report_weighs_images_alike_as_evaluate_py_does():
    scores = [{"concept": [1.0]}, {"concept": [0.0, 0.0, 1.0], "other": [math.nan]}]
    assert by_image(scores) == pytest.approx({"concept": (1 + 1 / 3) / 2, "other": math.nan}, nan_ok=True)
    assert by_image(scores)["concept"] == pytest.approx(float(rows(scores)["concept"].mean()))
    assert pooled(scores)["concept"] == 0.5
