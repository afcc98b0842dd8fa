"""Promises of the map scores, on cases whose answers are known."""

import math

import pytest
import torch

from cldm.conditions import get_condition
from cldm.evaluation.scores import hint_scores
from cldm.worlds import rows as columns
from cldm.worlds.agreement import (
    class_scores,
    color_difference,
    depth_scores,
    keypoint_scores,
    normal_angle,
    structural_similarity,
)
from cldm.worlds.scenes import Scene, SceneObject, read_scenes, render, sample_scene
from cldm.worlds.scenes.geometry import geometry_scores
from ldm.random import generator


def test_miou_of_relabelled_maps():
    target = torch.zeros(4, 4, 8, dtype=torch.int64)
    target[:, :, 4:] = 1
    prediction = target.clone()
    prediction[1] = 1 - target[1]  # swapped
    prediction[2, :, :2] = 1  # class 0 keeps 8 of its 16 pixels, class 1 has 8 too many
    prediction[3, :, :4] = 2  # a third class in place of class 0
    found = class_scores(prediction, target)
    assert found.miou.tolist() == pytest.approx([1.0, 0.0, (8 / 16 + 16 / 24) / 2, (0 + 1 + 0) / 3])
    assert found.accuracy.tolist() == pytest.approx([1.0, 0.0, 0.75, 0.5])


def test_unlabelled_pixels_do_not_count():
    target = torch.tensor([[[0, 1], [-1, -1]], [[-1, -1], [-1, -1]]])
    found = class_scores(torch.tensor([[[0, 1], [5, 6]], [[0, 0], [0, 0]]]), target)
    assert found.miou[0] == found.accuracy[0] == 1.0
    assert found.miou[1].isnan()


def test_depth_scores_of_scaled_and_shifted_maps():
    target = torch.full((3, 4, 4), 0.5)
    prediction = torch.stack([target[0], target[1] * 1.2, target[2] + 0.25])
    found = depth_scores(prediction, target)
    assert found.rmse.tolist() == pytest.approx([0.0, 0.1, 0.25])
    assert found.absrel.tolist() == pytest.approx([0.0, 0.2, 0.5])
    assert found.delta1.tolist() == [1.0, 1.0, 0.0]


def test_depth_ratios_leave_the_background_out():
    target = torch.zeros(1, 2, 2)
    target[0, 0, 0] = 0.5
    found = depth_scores(torch.full((1, 2, 2), 0.5), target)
    assert (found.absrel.item(), found.delta1.item()) == (0.0, 1.0)
    assert found.rmse.item() == pytest.approx(math.sqrt(0.75 * 0.25))


@pytest.mark.parametrize("degrees", [0.0, 10.0, 90.0, 180.0])
def test_rotated_normals_are_off_by_their_rotation(degrees: float):
    turn = math.radians(degrees)
    front = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    turned = torch.tensor([math.sin(turn), 0.0, math.cos(turn)]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert normal_angle(2 * turned, front).item() == pytest.approx(degrees, abs=1e-3)
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert normal_angle(turned, front, mask).isnan()


def test_moved_keypoints():
    target = {("star", 0): (10.0, 10.0), ("star", 1): (20.0, 10.0), ("ring", 0): (0.0, 0.0)}
    found = keypoint_scores({("star", 0): (13.0, 14.0), ("star", 1): (20.0, 10.0)}, target, tolerance=4.0)
    assert found.error == 2.5
    assert found.found == pytest.approx(1 / 3)
    assert math.isnan(keypoint_scores({}, target, 4.0).error)
    assert keypoint_scores({}, target, 4.0).found == 0


def test_colours_by_lab_and_structure():
    black, white = torch.zeros(1, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert color_difference(black, white).item() == pytest.approx(100, abs=0.1)
    assert color_difference(white, white).item() == 0
    noise = torch.rand(1, 3, 32, 32, generator=generator(0))
    assert structural_similarity(noise, noise).item() == pytest.approx(1, abs=1e-4)
    assert structural_similarity(noise, 1 - noise).item() < 0


def test_maps_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape of 3 dimensions"):
        depth_scores(torch.zeros(1, 2, 2), torch.zeros(1, 2, 3))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene(3, index) for index in range(12)]


def geometry_rows(images, scenes):
    true = render(scenes, images.shape[-1], ("depth", "normals"))
    return columns(geometry_scores(read_scenes(images), scenes, true))


def test_the_geometry_of_real_renders_is_read_almost_exactly(scenes: list[Scene]):
    images = render(scenes, 128).image
    rows = geometry_rows(images, scenes)
    means = {name: values.mean() for name, values in rows.items()}
    assert means["depth_rmse"] < 0.06
    assert means["depth_delta1"] > 0.95
    assert means["normal_angle"] < 6
    assert means["keypoint_error_px"] < 2
    assert means["keypoint_found"] > 0.95


def test_a_moved_and_a_missing_object_are_seen():
    star = SceneObject("star", "red", "large", -0.3, 0.0, 0.45, 0.0, 0.5)
    moved = SceneObject("star", "red", "large", 0.2, 0.0, 0.45, 0.0, 0.5)
    images = render([Scene((star,), "mint"), Scene((moved,), "mint"), Scene((), "mint")], 128).image
    rows = geometry_rows(images, [Scene((star,), "mint")] * 3)
    assert rows["keypoint_error_px"][1] == pytest.approx(0.5 * 64, abs=1.5)
    assert rows["keypoint_found"].tolist() == [1.0, 0.0, 0.0]
    assert rows["depth_rmse"][0] < 0.05 < rows["depth_rmse"][1]
    assert rows["depth_delta1"][2] == 0


def test_each_kind_of_hint_is_measured_in_its_own_way(scenes: list[Scene]):
    images = render(scenes[:2], 128).image
    wanted = {
        "canny": {"edge_f1_1px", "edge_f1_2px", "edge_precision_1px", "edge_precision_2px", "edge_recall_1px",
                  "edge_recall_2px"},
        "blur": {"hint_error", "hint_ssim", "hint_color"},
    }  # fmt: skip
    for name, scores in wanted.items():
        condition = get_condition(name)
        hints = condition.batch(((images + 1) * 127.5).round().byte())
        same, other = (hint_scores(x, hints, condition) for x in (images, images.flip(0)))
        assert set(same) == scores
        for score, values in same.items():
            perfect = 0 if score in ("hint_error", "hint_color") else 1
            assert values == pytest.approx(perfect, abs=1e-3)
            assert (abs(other[score] - perfect) > 0.01).all()
