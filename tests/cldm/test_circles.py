"""Promises of the world of circles: drawn where the truth says, and judged exactly from pixels."""

import dataclasses
import itertools

import pytest
import torch

from cldm.data.fill50k import COLORS, Circle, outline, picture
from cldm.worlds import get_world, pooled
from cldm.worlds.circles.judge import disc_of, palette

CIRCLES = get_world("circles")
JUDGE = CIRCLES.judge()


@pytest.fixture(scope="module")
def truths():
    return [CIRCLES.sample(0, i, "control") for i in range(60)]


@pytest.fixture(scope="module")
def drawn(truths):
    return CIRCLES.draw(truths, 64, ["outline", "labels"])


def test_a_real_picture_gets_full_marks(truths, drawn):
    reading = JUDGE.read(drawn["image"])
    found = pooled(JUDGE.scores(reading, truths))
    assert found["circle_iou"] > 0.97
    assert found["inside"] == found["outside"] == 1.0
    assert pooled(JUDGE.prompt_scores(reading, [t.caption for t in truths])) == {"inside": 1.0, "outside": 1.0}


@pytest.mark.parametrize("side", [64, 128, 512])
def test_a_circle_is_as_large_as_its_truth_at_every_size(side):
    circle = Circle("white", "black", 0.45, 0.6, 0.2)
    filled = (torch.from_numpy(picture(circle, side))[:, :, 0] / 255).sum()
    assert filled / side**2 == pytest.approx(torch.pi * 0.2**2, rel=0.03)
    assert (filled / disc_of(circle, side, side).sum()).item() == pytest.approx(1.0, abs=0.03)


def test_the_outline_is_the_border_of_the_circle(truths, drawn):
    for truth, hint in zip(truths, drawn["outline"], strict=True):
        line = hint[0] > 0.5
        y, x = ((torch.arange(64) + 0.5) / 64 for _ in range(2))
        off = (((y[:, None] - truth.y) ** 2 + (x[None] - truth.x) ** 2).sqrt() - truth.radius)[line]
        assert line.any()
        assert off.abs().max() < 2 / 64
        assert off.mean().abs() < 1 / 64
        assert torch.equal(hint, torch.from_numpy(outline(truth, 64)).permute(2, 0, 1) / 255)


def test_a_shifted_circle_loses_its_overlap_and_another_colour_its_mark(truths):
    shifted = [dataclasses.replace(t, x=(t.x + 0.5) % 1) for t in truths]
    elsewhere = pooled(JUDGE.scores(JUDGE.read(CIRCLES.draw(shifted, 64)["image"]), truths))
    assert elsewhere["circle_iou"] < 0.2
    assert elsewhere["inside"] < 0.5

    captions = [t.caption for t in truths]
    other = [Circle(*_colors(text), t.x, t.y, t.radius)
             for text, t in zip(CIRCLES.prompts("conflicting", captions), truths, strict=True)]  # fmt: skip
    reading = JUDGE.read(CIRCLES.draw(other, 64)["image"])
    assert pooled(JUDGE.scores(reading, truths))["circle_iou"] > 0.97  # the place is right, the colours are not
    assert pooled(JUDGE.prompt_scores(reading, captions)) == {"inside": 0.0, "outside": 0.0}


def test_a_picture_without_a_circle_shows_none(truths):
    reading = JUDGE.read(torch.full((1, 3, 64, 64), 0.3) + 0.01 * torch.randn(1, 3, 64, 64))
    assert not reading.seen.any()
    assert pooled(JUDGE.scores(reading, truths[:1]))["circle_iou"] == 0.0
    assert pooled(JUDGE.prompt_scores(reading, [truths[0].caption]))["inside"] == 0.0


def test_all_colours_are_told_apart():
    distances = torch.cdist(palette(), palette()) + 1e3 * torch.eye(len(COLORS))
    assert distances.min() > 8


def test_labels_name_both_colours(truths, drawn):
    names = ["", *COLORS]
    for truth, (circle, ground) in zip(truths, drawn["labels"], strict=True):
        assert {names[i] for i in circle.unique()} <= {"", truth.inside}
        assert {names[i] for i in ground.unique()} == {truth.outside, *([""] if circle.any() else [])}
        assert torch.equal(circle > 0, ground == 0)


def test_items_are_numbered_and_families_have_other_circles():
    assert CIRCLES.sample(0, 7, "control") == CIRCLES.sample(0, 7, "control")
    numbers = itertools.product((0, 1), (7, 8), ("base", "control"))
    assert len({CIRCLES.sample(*number) for number in numbers}) == 8
    with pytest.raises(ValueError, match="unknown family 'unseen' of circles; known: base, control"):
        CIRCLES.sample(0, 0, "unseen")


def test_prompts_contradict_or_say_nothing_of_colours(truths):
    captions = [t.caption for t in truths]
    for text, other in zip(captions, CIRCLES.prompts("conflicting", captions), strict=True):
        assert all(a != b for a, b in zip(_colors(text), _colors(other), strict=True))
    assert {*CIRCLES.prompts("insufficient", captions)} == {"circle with background"}
    with pytest.raises(ValueError, match="captions of circles read"):
        CIRCLES.prompts("conflicting", ["a mauve circle"])


def test_the_model_knows_every_word_of_the_captions(composed):
    known = {*composed("model=circles", "data=circles").model.conditioner.vocabulary}
    assert known >= {word for name in COLORS for word in name.split()} | {"circle", "with", "background"}


def _colors(caption: str) -> tuple[str, str]:
    inside, outside = caption.removesuffix(" background").split(" circle with ")
    return inside, outside
