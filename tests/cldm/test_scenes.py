"""Promises of the rendered world: scenes, pictures, maps, captions, reader."""

import dataclasses
import itertools
import math

import cv2
import numpy as np
import pytest
import torch

from cldm.worlds import get_world
from cldm.worlds.scenes import (
    BACKGROUNDS,
    BASE,
    COLORS,
    CONTROL,
    HELD_OUT,
    KINDS,
    MAPS,
    WORDS,
    Scene,
    SceneObject,
    caption,
    color_map,
    get_family,
    parse_caption,
    read_scene,
    read_scenes,
    render,
    sample_scene,
)
from cldm.worlds.scenes.captions import describe, format_caption
from cldm.worlds.scenes.maps import DOT_COLORS, PALETTE, keypoint_positions, ranks
from cldm.worlds.scenes.shapes import sdf
from cldm.worlds.scenes.world import CLOSENESS, COUNT_SHARES, HELD_OUT_KINDS, HELD_OUT_PAIRS, MARGIN, RADII

SEED = 2024
FAMILIES = (BASE, CONTROL, HELD_OUT)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes():
    return [sample_scene(SEED, index) for index in range(64)]


@pytest.fixture(scope="module")
def rendered(scenes):
    return render(scenes, 128, MAPS)


def overlapping_scene(near: str = "circle", far: str = "square") -> Scene:
    return Scene(
        objects=(
            SceneObject(near, "red", "large", -0.1, 0.0, 0.40, 0.0, depth=0.75),
            SceneObject(far, "blue", "large", 0.3, 0.0, 0.40, 0.0, depth=0.25),
        ),
        background="white",
    )


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(o.kind, o.color) for o in scene.objects}


def held_out(scene: Scene) -> bool:
    return bool(pairs_of(scene) & HELD_OUT_PAIRS) or any(o.kind in HELD_OUT_KINDS for o in scene.objects)


# --- world -------------------------------------------------------------------------------------------------


def test_other_pictures_have_another_version():
    """Caches go by the version: whoever changes what is drawn counts Scenes.version up, then the numbers below."""
    scenes = get_world("scenes")
    drawn = scenes.draw([scenes.sample(0, i, "control") for i in range(3)], 64)["image"]
    quarters = ((torch.nn.functional.avg_pool2d(drawn, 32) + 1) * 127.5).flatten(1)
    expected = [
        [242, 219, 233, 231, 242, 201, 233, 231, 242, 229, 233, 231],
        [158, 160, 160, 188, 175, 182, 199, 197, 231, 229, 237, 132],
        [242, 242, 232, 226, 242, 242, 232, 208, 242, 242, 232, 192],
    ]
    assert scenes.version == 1
    torch.testing.assert_close(quarters, torch.tensor(expected).float(), rtol=0, atol=1.0)


def test_a_scene_depends_on_its_arguments_alone():
    first = [sample_scene(1, index, CONTROL) for index in range(20)]
    assert [sample_scene(1, index, CONTROL) for index in reversed(range(20))] == first[::-1]


def test_seed_index_and_family_each_change_the_scene():
    scene = sample_scene(1, 2, BASE)
    assert scene not in (sample_scene(2, 2, BASE), sample_scene(1, 3, BASE), sample_scene(1, 2, CONTROL))


def test_one_two_and_three_objects_come_in_the_promised_shares():
    counts = np.bincount([len(sample_scene(SEED, i).objects) for i in range(2000)], minlength=4)
    assert counts[1:] / counts.sum() == pytest.approx(COUNT_SHARES, abs=0.03)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_objects_are_distinct_inside_the_frame_and_apart(family):
    for index in range(400):
        objects = sample_scene(SEED, index, family).objects
        assert len({o.kind for o in objects}) == len({o.color for o in objects}) == len(objects)
        assert len({o.depth for o in objects}) == len(objects)
        for k, o in enumerate(objects):
            assert RADII[o.size][0] <= o.radius <= RADII[o.size][1]
            assert max(abs(o.x), abs(o.y)) + o.radius <= 1 - MARGIN + 1e-9
            for other in objects[:k]:
                distance = math.hypot(o.x - other.x, o.y - other.y)
                assert distance >= CLOSENESS * (o.radius + other.radius)


def test_three_object_scenes_have_at_most_one_large_object():
    triples = [s for s in (sample_scene(SEED, i) for i in range(600)) if len(s.objects) == 3]
    assert triples
    assert max(sum(o.size == "large" for o in s.objects) for s in triples) == 1


def test_the_base_family_shows_every_kind_in_every_color():
    seen = set().union(*(pairs_of(sample_scene(SEED, i, BASE)) for i in range(2000)))
    assert seen == {(kind, color) for kind in KINDS for color in COLORS}


def test_the_control_family_never_shows_what_is_held_out_and_shows_the_rest():
    scenes = [sample_scene(SEED, i, CONTROL) for i in range(2000)]
    assert not any(held_out(scene) for scene in scenes)
    allowed = {(k, c) for k in KINDS for c in COLORS if k not in HELD_OUT_KINDS} - HELD_OUT_PAIRS
    assert set().union(*map(pairs_of, scenes)) == allowed


def test_every_held_out_scene_contains_something_held_out():
    scenes = [sample_scene(SEED, i, HELD_OUT) for i in range(1000)]
    assert all(held_out(scene) for scene in scenes)
    assert set().union(*map(pairs_of, scenes)) >= HELD_OUT_PAIRS


def test_families_are_known_by_name_and_an_unknown_one_lists_them():
    assert [get_family(name) for name in ("base", "control", "held_out")] == list(FAMILIES)
    with pytest.raises(ValueError, match=r"unknown scene family 'contrl'.*base, control, held_out"):
        get_family("contrl")


# --- renderer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_fits_its_circle_and_has_true_distances(kind):
    axis = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64)
    u, v = torch.meshgrid(axis, axis, indexing="xy")
    d = sdf(kind, u, v)
    assert torch.hypot(u, v)[d < 0].max() <= 1.002
    for step in (d.diff(dim=0), d.diff(dim=1)):
        assert step.abs().max() <= 0.005 * 1.001  # a distance never changes faster than the place does
    slope = torch.hypot(*torch.gradient(d, spacing=0.005))
    assert slope.median() == pytest.approx(1.0, abs=0.01)


def test_images_and_maps_have_the_promised_shapes_types_and_ranges(rendered, scenes):
    b = len(scenes)
    channels = {"edges": 1, "segmentation": 3, "depth": 1, "normals": 3, "lines": 1, "keypoints": 3}
    assert rendered.image.shape == (b, 3, 128, 128)
    assert rendered.image.dtype == torch.float32
    assert rendered.image.abs().max() <= 1
    assert rendered.labels.shape == (b, 128, 128)
    assert rendered.labels.dtype == torch.int64
    for name, count in channels.items():
        values = getattr(rendered, name)
        assert values.shape == (b, count, 128, 128), name
        assert values.dtype == torch.float32, name
        assert values.min() >= 0, name
        assert values.max() <= 1, name


def test_maps_are_made_only_when_asked_for(scenes):
    only_depth = render(scenes[:2], 64, ["depth"])
    assert [name for name in MAPS if getattr(only_depth, name) is not None] == ["depth"]


@pytest.mark.parametrize("size", [0, -8, 12, 127])
def test_sizes_that_are_no_multiple_of_8_are_refused(scenes, size):
    with pytest.raises(ValueError, match=f"multiple of 8, got {size}"):
        render(scenes[:1], size)


def test_unknown_maps_are_refused_by_name(scenes):
    with pytest.raises(ValueError, match="unknown maps canny; known maps: edges"):
        render(scenes[:1], 64, ["canny"])


def test_any_multiple_of_8_renders(scenes):
    for size in (8, 24, 200):
        assert render(scenes[:3], size, MAPS).image.shape == (3, 3, size, size)


def test_the_render_of_a_scene_does_not_depend_on_its_batch(rendered, scenes):
    for index in (0, 9, 40):
        alone = render([scenes[index]], 128, MAPS)
        for name in ("image", "labels", *MAPS):
            assert torch.equal(getattr(alone, name)[0], getattr(rendered, name)[index]), name


def test_an_empty_batch_renders_to_empty_tensors():
    empty = render([], 64, MAPS)
    assert empty.image.shape == (0, 3, 64, 64)
    assert empty.keypoints.shape == (0, 3, 64, 64)


def test_every_object_is_visible_and_labels_say_where(rendered, scenes):
    for label, scene in zip(rendered.labels, scenes, strict=True):
        assert label.unique().tolist() == list(range(len(scene.objects) + 1))
        for k, o in enumerate(scene.objects, start=1):
            row, col = (t.float().mean().item() / 64 - 1 for t in torch.nonzero(label == k, as_tuple=True))
            assert math.hypot(col - o.x, row - o.y) < 0.2 * o.radius


def test_shading_keeps_the_hue_of_every_object(rendered, scenes):
    for image, label, scene in zip(rendered.image, rendered.labels, scenes, strict=True):
        hue = cv2.cvtColor(image.add(1).div(2).permute(1, 2, 0).numpy(), cv2.COLOR_RGB2HSV)[..., 0]
        for k, o in enumerate(scene.objects, start=1):
            inside = cv2.erode((label == k).numpy().astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            own = cv2.cvtColor(np.float32([[COLORS[o.color]]]), cv2.COLOR_RGB2HSV)[0, 0, 0]
            assert np.abs((hue[inside] - own + 180) % 360 - 180).max() < 3


def test_shadows_only_darken():
    scene = overlapping_scene()
    empty = dataclasses.replace(scene, objects=())
    with_objects, without = render([scene, empty], 128).image
    background = render([scene], 128).labels[0] == 0
    inner = cv2.erode(background.numpy().astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    change = (with_objects - without)[:, torch.from_numpy(inner)]
    assert change.max() <= 1e-6
    assert change.min() < -0.2


# --- maps --------------------------------------------------------------------------------------------------


def test_edges_lie_on_label_borders_and_on_all_of_them(rendered):
    labels, edges = rendered.labels, rendered.edges[:, 0] > 0
    for axis in (1, 2):
        n = labels.shape[axis] - 1
        differ = labels.narrow(axis, 0, n) != labels.narrow(axis, 1, n)
        marked = edges.narrow(axis, 0, n) | edges.narrow(axis, 1, n)
        assert torch.all(marked[differ])
    wide = torch.nn.functional.max_pool2d(labels[:, None].float(), 3, 1, 1)
    narrow = -torch.nn.functional.max_pool2d(-labels[:, None].float(), 3, 1, 1)
    assert not torch.any(edges & (wide == narrow)[:, 0])


def test_segmentation_matches_the_labels(rendered, scenes):
    for colors, label, scene in zip(rendered.segmentation, rendered.labels, scenes, strict=True):
        assert colors[:, label == 0].max() == 0
        for k, o in enumerate(scene.objects, start=1):
            assert torch.equal(colors[:, label == k].unique(dim=1)[:, 0], torch.tensor(PALETTE[o.kind]))
            assert colors[:, label == k].unique(dim=1).shape[1] == 1


def test_nearer_objects_have_higher_depth_and_the_background_none(rendered, scenes):
    for depth, label, rank in zip(rendered.depth[:, 0], rendered.labels, ranks(scenes), strict=True):
        assert depth[label == 0].max() == 0
        order = sorted(range(1, int(rank.max()) + 1), key=lambda k, r=rank: r[k])
        spans = [(depth[label == k].min(), depth[label == k].max()) for k in order]
        assert all(low > 0 for low, _ in spans)
        assert all(near[0] > far[1] for far, near in itertools.pairwise(spans))


def test_the_nearer_object_wins_where_two_overlap():
    scene = overlapping_scene()
    swapped = dataclasses.replace(scene, objects=(dataclasses.replace(scene.objects[0], depth=0.2), scene.objects[1]))
    over, under = render([scene, swapped], 128, MAPS).labels
    both = (over == 1) & (under == 2)
    assert both.sum() > 400  # the overlap goes to whichever is nearer
    alone = render([dataclasses.replace(scene, objects=scene.objects[:1])], 128).labels[0]
    assert torch.equal(over == 1, alone == 1)


def test_normals_equal_the_gradient_of_depth_inside_objects(rendered):
    label, depth = rendered.labels, rendered.depth[:, 0]
    core = torch.zeros_like(label, dtype=torch.bool)
    middle = label[:, 1:-1, 1:-1]
    core[:, 1:-1, 1:-1] = (
        (middle > 0)
        & (label[:, 1:-1, 2:] == middle)
        & (label[:, 1:-1, :-2] == middle)
        & (label[:, 2:, 1:-1] == middle)
        & (label[:, :-2, 1:-1] == middle)
    )
    gx, gy = torch.zeros_like(depth), torch.zeros_like(depth)
    gx[:, :, 1:-1] = (depth[:, :, 2:] - depth[:, :, :-2]) * 32  # two pixels are 1/32 units
    gy[:, 1:-1] = (depth[:, 2:] - depth[:, :-2]) * 32
    steep = (1 + gx**2 + gy**2).sqrt()
    expected = torch.stack((gx, gy, torch.ones_like(gx)), 1) / steep[:, None] / 2 + 0.5
    error = (expected - rendered.normals).abs().amax(1)
    assert core.sum() > 10000
    assert error[core].max() < 1e-3


def test_normals_use_red_for_left_green_for_top_blue_for_the_viewer():
    ball = Scene((SceneObject("circle", "red", "large", 0.0, 0.0, 0.45, 0.0, 0.5),), "gray")
    normals = render([ball], 128, ["normals"]).normals[0]
    left, right = normals[:, 64, 40], normals[:, 64, 87]
    top, bottom = normals[:, 40, 64], normals[:, 87, 64]
    assert left[0] > 0.7 > 0.3 > right[0]
    assert top[1] > 0.7 > 0.3 > bottom[1]
    assert normals[2].min() > 0.5
    assert normals[:, 64, 64].tolist() == pytest.approx([0.5, 0.5, 1.0], abs=1e-3)
    assert normals[:, 2, 2].tolist() == [0.5, 0.5, 1.0]


def test_lines_draw_every_outline_and_keep_to_objects(rendered):
    lines, edges = rendered.lines[:, 0], rendered.edges[:, 0] > 0
    beside = torch.nn.functional.max_pool2d(lines[:, None], 3, 1, 1)[:, 0]
    assert beside[edges].min() > 0.5
    near_objects = torch.nn.functional.max_pool2d((rendered.labels > 0).float()[:, None], 7, 1, 3)[:, 0] > 0
    assert lines[~near_objects].max() == 0


def test_keypoints_are_dots_at_the_corners_of_visible_objects():
    scene = Scene((SceneObject("triangle", "red", "large", 0.1, -0.2, 0.45, 15.0, 0.5),), "sky")
    image = render([scene], 128, ["keypoints"]).keypoints[0]
    corners = keypoint_positions(scene.objects[0])
    assert len(corners) == 3
    for index, (x, y) in enumerate(corners):
        pixel = image[:, int((y + 1) * 64), int((x + 1) * 64)]
        assert pixel.tolist() == pytest.approx(DOT_COLORS[index], abs=1e-6)
    count, _ = cv2.connectedComponents((image.amax(0) > 0.5).numpy().astype(np.uint8))
    assert count - 1 == 3


def test_keypoints_hidden_by_a_nearer_object_are_not_shown():
    scene = overlapping_scene()
    x, y = keypoint_positions(scene.objects[1])[3]  # a left corner of the square behind
    hidden = dataclasses.replace(scene.objects[0], x=x, y=y)
    scene = dataclasses.replace(scene, objects=(hidden, scene.objects[1]))
    image = render([scene], 128, ["keypoints"]).keypoints[0]
    assert image[:, int((y + 1) * 64), int((x + 1) * 64)].max() == 0


# --- captions ----------------------------------------------------------------------------------------------


def test_captions_survive_the_round_trip_through_the_parser():
    for index in range(500):
        scene = sample_scene(SEED, index)
        text = caption(scene, SEED, index)
        spec = parse_caption(text)
        assert spec == describe(scene, SEED, index)
        assert format_caption(spec) == text


def test_captions_use_the_vocabulary_and_nothing_else():
    texts = [caption(sample_scene(SEED, i), SEED, i) for i in range(1500)]
    used = {word for text in texts for word in text.replace(",", " ,").split()}
    assert used == set(WORDS)
    assert list(WORDS) == sorted(WORDS)


def test_captions_tell_the_truth_about_their_scene():
    for index in range(300):
        scene = sample_scene(SEED, index)
        spec = parse_caption(caption(scene, SEED, index))
        by_kind = {o.kind: o for o in scene.objects}
        assert spec.background == scene.background
        assert {(o.kind, o.color) for o in spec.objects} == pairs_of(scene)
        assert all(o.size in (None, by_kind[o.kind].size) for o in spec.objects)
        if spec.relation is not None:
            first, second = (by_kind[o.kind] for o in spec.objects)
            dx, dy = first.x - second.x, first.y - second.y
            along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}
            assert max(along, key=along.__getitem__) == spec.relation


def test_captions_drop_sizes_and_relations_in_the_promised_shares():
    specs = [parse_caption(caption(sample_scene(SEED, i), SEED, i)) for i in range(1500)]
    sizes = [o.size is None for spec in specs for o in spec.objects]
    relations = [spec.relation is None for spec in specs if len(spec.objects) == 2]
    assert np.mean(sizes) == pytest.approx(0.25, abs=0.04)
    assert np.mean(relations) == pytest.approx(0.25, abs=0.05)


def test_a_caption_depends_on_its_arguments_alone():
    scene = sample_scene(SEED, 3)
    assert caption(scene, 1, 2) == caption(scene, 1, 2)
    assert len({caption(scene, 1, index) for index in range(20)}) > 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red star",
        "a red star on a red background",
        "a red blob on a mint background",
        "a huge red star on a mint background",
        "red star on a mint background",
        "a red star, a blue ring on a mint background",
        "a red star and a blue ring and a green cross on a mint background",
        "a red star left of a blue ring and a green cross on a mint background",
        "a red star, a blue ring, a green cross and a yellow heart on a mint background",
        "a red star on a mint background, please",
    ],
)
def test_text_outside_of_the_grammar_is_refused_with_the_text(text):
    with pytest.raises(ValueError, match="caption") as error:
        parse_caption(text)
    assert repr(text) in str(error.value)


def test_the_parser_does_not_mind_case_and_spaces():
    assert parse_caption("A Large  RED star on a mint background ") == parse_caption(
        "a large red star on a mint background"
    )


# --- reader ------------------------------------------------------------------------------------------------


def blurred(images: torch.Tensor, sigma: float) -> torch.Tensor:
    pixels = [cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (0, 0), sigma) for image in images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def read_share(images: torch.Tensor, scenes: list[Scene]) -> float:
    """Share of objects that are read, once, with their own kind and colour."""
    hits = []
    for read, scene in zip(read_scenes(images), scenes, strict=True):
        found = [(o.kind, o.color) for o in read.objects]
        hits += [found.count(pair) == 1 for pair in pairs_of(scene)]
    return float(np.mean(hits))


def test_the_reader_is_exact_on_clean_renders_of_all_families():
    scenes = [sample_scene(SEED + 1, i, family) for family in FAMILIES for i in range(40)]
    reads = read_scenes(render(scenes, 128).image)
    for scene, read in zip(scenes, reads, strict=True):
        assert read.background == scene.background
        assert {(o.kind, o.color) for o in read.objects} == pairs_of(scene)
        assert len(read.objects) == len(scene.objects)
        by_color = {o.color: o for o in scene.objects}
        for o in read.objects:
            true = by_color[o.color]
            assert math.hypot(o.x - true.x, o.y - true.y) < 0.02
            assert o.radius == pytest.approx(true.radius, abs=0.03)
            assert o.score > 0.8


@pytest.mark.slow
def test_the_reader_is_exact_on_many_clean_renders():
    scenes = [sample_scene(SEED + 2, i) for i in range(500)]
    assert read_share(render(scenes, 128).image, scenes) >= 0.995


def test_the_reader_forgives_blur():
    scenes = [sample_scene(SEED + 3, i) for i in range(120)]
    assert read_share(blurred(render(scenes, 128).image, 1.0), scenes) >= 0.97


def test_the_reader_works_at_half_the_size():
    scenes = [sample_scene(SEED + 4, i) for i in range(60)]
    assert read_share(render(scenes, 64).image, scenes) >= 0.97


def test_coverage_is_the_share_of_pixels_of_each_color(rendered, scenes):
    for read, label, scene in zip(read_scenes(rendered.image[:16]), rendered.labels, scenes, strict=False):
        true = {o.color: (label == k).float().mean().item() for k, o in enumerate(scene.objects, start=1)}
        assert read.coverage == pytest.approx({c: true.get(c, 0.0) for c in COLORS}, abs=0.006)


def test_the_color_map_names_the_color_of_each_pixel(rendered, scenes):
    names = [None, *COLORS]
    for image, label, scene in zip(rendered.image[:8], rendered.labels, scenes, strict=False):
        for k, o in enumerate(scene.objects, start=1):
            found = color_map(image)[(label == k).numpy()]
            assert (found == names.index(o.color)).mean() > 0.95


def test_one_image_reads_as_in_a_batch(rendered):
    alone, batch = read_scene(rendered.image[5]), read_scenes(rendered.image[:8])[5]
    assert alone.background == batch.background
    assert alone.coverage == batch.coverage
    assert [(o.kind, o.color) for o in alone.objects] == [(o.kind, o.color) for o in batch.objects]


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_an_empty_scene_reads_as_its_background_and_nothing_else(name):
    read = read_scene(render([Scene((), name)], 128).image[0])
    assert read.background == name
    assert read.objects == ()
    assert sum(read.coverage.values()) == 0


def test_the_reader_survives_noise_and_flat_images():
    noise = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    black = torch.full((3, 64, 64), -1.0)
    red = torch.tensor([1.0, -1.0, -1.0]).view(3, 1, 1).expand(3, 64, 64)
    assert len(read_scenes(noise)) == 2
    assert [len(read.objects) for read in read_scenes([black, red])] == [0, 1]
