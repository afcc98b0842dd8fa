"""Promises of the fidelity measures."""

import math

import numpy as np
import pytest
import torch

from cldm.conditions.canny import Canny
from cldm.evaluation.fidelity import EdgeScores, edge_fidelity, edge_scores, psnr


def line(column: int | None, side: int = 16) -> torch.Tensor:
    """(1, side, side) bool edge map with one vertical line, or none."""
    edges = torch.zeros(1, side, side, dtype=torch.bool)
    if column is not None:
        edges[:, :, column] = True
    return edges


def values(scores: EdgeScores) -> tuple[float, float, float]:
    mean = scores.mean()
    return mean.precision.item(), mean.recall.item(), mean.f1.item()


def brute_force(prediction: np.ndarray, target: np.ndarray, tolerance: int) -> tuple[float, float]:
    """Precision and recall of one image from all pairwise Chebyshev distances."""
    a, b = np.argwhere(prediction), np.argwhere(target)
    near = np.abs(a[:, None] - b[None]).max(axis=2) <= tolerance
    return near.any(axis=1).mean(), near.any(axis=0).mean()


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3])
def test_scores_equal_a_count_over_all_pairs_of_pixels(tolerance):
    generator = torch.Generator().manual_seed(tolerance)
    prediction = torch.rand(4, 20, 24, generator=generator) < 0.03
    target = torch.rand(4, 20, 24, generator=generator) < 0.05
    scores = edge_scores(prediction, target, tolerance)
    for i in range(4):
        precision, recall = brute_force(prediction[i].numpy(), target[i].numpy(), tolerance)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
        found = (scores.precision[i].item(), scores.recall[i].item(), scores.f1[i].item())
        assert found == pytest.approx((precision, recall, f1), abs=1e-6)


def test_a_shift_counts_in_full_up_to_the_tolerance_and_not_at_all_beyond():
    for shift in range(5):
        for tolerance in range(4):
            expected = 1.0 if shift <= tolerance else 0.0
            assert values(edge_scores(line(5), line(5 + shift), tolerance)) == (expected, expected, expected)


def test_a_diagonal_neighbour_is_at_distance_one():
    prediction, target = torch.zeros(2, 1, 5, 5, dtype=torch.bool)
    prediction[0, 1, 1] = target[0, 2, 2] = True
    assert values(edge_scores(prediction, target, 1)) == (1, 1, 1)


def test_extra_edges_cost_precision_and_missing_ones_cost_recall():
    both = line(3) | line(10)
    assert values(edge_scores(both, line(3), 1)) == pytest.approx((0.5, 1.0, 2 / 3))
    assert values(edge_scores(line(3), both, 1)) == pytest.approx((1.0, 0.5, 2 / 3))


def test_two_empty_maps_agree_and_one_empty_map_fails():
    assert values(edge_scores(line(None), line(None), 1)) == (1, 1, 1)
    assert values(edge_scores(line(None), line(4), 1)) == (0, 0, 0)
    assert values(edge_scores(line(4), line(None), 1)) == (0, 0, 0)


def test_the_mean_f1_is_the_mean_over_images():
    prediction, target = torch.cat([line(3), line(3) | line(10)]), torch.cat([line(3), line(3)])
    scores = edge_scores(prediction, target, 1)
    assert scores.f1.tolist() == pytest.approx([1, 2 / 3])
    assert scores.mean().f1.item() == pytest.approx(5 / 6)


def test_edge_maps_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="bool"):
        edge_scores(line(3).float(), line(3), 1)
    with pytest.raises(ValueError, match="one shape"):
        edge_scores(line(3), line(3)[:, :8], 1)
    with pytest.raises(ValueError, match="tolerance_px"):
        edge_scores(line(3), line(3), -1)


def box(shift: int = 0) -> torch.Tensor:
    """(1, 3, 32, 32) in [-1, 1]: a white box on black, moved right by `shift`."""
    images = torch.full((1, 3, 32, 32), -1.0)
    images[:, :, 8:24, 8 + shift : 20 + shift] = 1
    return images


def hint_of(images: torch.Tensor) -> torch.Tensor:
    """The canny hint (b, 3, h, w) in [0, 1], computed here without the code under test."""
    pixels = ((images + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    return torch.stack([torch.from_numpy(Canny()(one)).permute(2, 0, 1) for one in pixels]).float() / 255


def test_an_image_obeys_its_own_hint_and_not_that_of_a_distant_one():
    own = edge_fidelity(box(), hint_of(box()), Canny())
    assert own == dict.fromkeys(("edge_f1_1px", "edge_f1_2px", "edge_precision_1px", "edge_recall_1px"), 1.0)
    far = edge_fidelity(torch.cat([box(), box(9)]), hint_of(torch.cat([box(9), box()])), Canny())
    assert 0 < far["edge_f1_1px"] < 0.7  # the horizontal sides overlap in part


def test_a_shift_of_two_pixels_passes_at_two_pixels_and_fails_at_one():
    scores = edge_fidelity(box(2), hint_of(box()), Canny())
    assert scores["edge_f1_2px"] == 1
    assert scores["edge_f1_1px"] < 0.8


def test_edges_that_the_hint_lacks_cost_precision_only():
    hint = hint_of(box())
    hint[..., 16:] = 0  # the right half of the box is not asked for
    scores = edge_fidelity(box(), hint, Canny())
    assert scores["edge_recall_1px"] == 1
    assert scores["edge_precision_1px"] < 0.8


def test_edge_fidelity_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="one shape"):
        edge_fidelity(box(), hint_of(box())[:, :, :16], Canny())

    class Colors(Canny):
        name, polarity = "colors", "color"

    with pytest.raises(ValueError, match="'colors'"):
        edge_fidelity(box(), hint_of(box()), Colors())


def test_psnr_is_the_textbook_figure_per_image():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[0] += 0.2
    b[1, :, :4] += 0.02
    expected = [20 * math.log10(2 / 0.2), 10 * math.log10(4 / (0.0004 / 2))]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-5)


def test_psnr_of_equal_images_is_infinite_and_overshoot_is_clamped():
    a = torch.ones(1, 3, 8, 8)
    assert psnr(a, a).item() == math.inf
    assert psnr(a, a * 1.5).item() == math.inf
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, a[:, :1])
