"""Promises of each condition: what its map shows, in which colours, and that it can be trusted on real photographs."""

import hashlib
import json
import warnings

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from cldm.conditions import (
    HintWarning,
    apply_batch,
    get_condition,
    known_conditions,
    warn_if_blank,
)
from cldm.conditions import depth as depth_module
from cldm.conditions import segmentation as segmentation_module
from cldm.conditions.depth import Depth, near_white, near_white_from_metric
from cldm.conditions.inpaint import Inpaint, random_mask, with_mask
from cldm.conditions.lines import LineartStandard, LineSegments
from cldm.conditions.maps import import_depth, import_normals
from cldm.conditions.normal import Normal, encode_normals, normals_from_depth
from cldm.conditions.plain import Threshold
from cldm.conditions.pose import BODY_COLORS, Person, Pose, read_openpose, render_pose, write_openpose
from cldm.conditions.scribble import Scribble, ScribbleXDoG, ridges
from cldm.conditions.segmentation import ADE20K, Segmentation, colors_to_labels, labels_to_colors
from cldm.conditions.softedge import HED, Sobel, SoftEdge
from cldm.data.decoding import read_values

WITH_FILES = {"depth", "normal", "segmentation", "softedge"}
FREE = sorted({*known_conditions()} - WITH_FILES - {"pose"})


def square(image: np.ndarray, side: int = 128) -> np.ndarray:
    s = min(image.shape[:2])
    return cv2.resize(image[:s, :s], (side, side), interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def photos() -> dict[str, np.ndarray]:
    """Real photographs that ship in scikit-image's wheel."""
    images = {"astronaut": skimage.data.astronaut(), "chelsea": skimage.data.chelsea(), "coffee": skimage.data.coffee()}
    return {name: square(image) for name, image in images.items()}


def disc(inside: int, outside: int, side: int = 96) -> np.ndarray:
    image = np.full((side, side, 3), outside, dtype=np.uint8)
    return cv2.circle(image, (side // 2, side // 2), side // 4, (inside,) * 3, -1)


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", FREE)
def test_a_weight_free_condition_maps_real_photographs_to_maps_of_their_size(photos, name):
    condition = get_condition(name)
    for photo in [*photos.values(), photos["coffee"][:37, :61]]:
        before = photo.copy()
        found = condition(photo)
        assert found.dtype == np.uint8
        assert found.shape == (*photo.shape[:2], 4 if name == "inpaint" else 3)
        assert np.array_equal(photo, before)
        assert np.array_equal(found, condition(photo))  # a pure function
        assert found.std() > 1
        assert condition.name == name
        if condition.polarity == "white_on_black":
            assert np.ptp(found, axis=2).max() == 0 or name == "invert"
        if condition.binary:
            assert set(np.unique(found)) == {0, 255}


@pytest.mark.parametrize("name", FREE)
def test_the_batched_hint_is_the_map_of_each_image(photos, name):
    condition = get_condition(name)
    pixels = torch.stack([torch.from_numpy(photo).permute(2, 0, 1) for photo in photos.values()])
    hints = apply_batch(condition, pixels.float() / 127.5 - 1)
    for hint, photo in zip(hints, photos.values(), strict=True):
        single = torch.from_numpy(condition.to_hint(condition(photo))).permute(2, 0, 1)
        assert torch.allclose(hint, single, atol=0.5 / 255 + 1e-6)  # sobel: before rounding
    assert hints.min() >= (-1 if name == "inpaint" else 0)
    assert hints.max() <= 1


@pytest.mark.parametrize("name", FREE)
def test_varied_parameters_are_drawn_from_the_generator_alone(photos, name):
    condition, photo = get_condition(name), photos["coffee"]
    one, same, other = (condition.vary(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same
    assert np.array_equal(one(photo), same(photo))
    if name in ("canny", "scribble", "scribble_xdog", "blur", "shuffle", "inpaint", "tile"):
        assert one != other
        assert not np.array_equal(one(photo), other(photo))
    else:
        assert one == condition


@pytest.mark.parametrize(
    "name", ["canny", "scribble", "scribble_xdog", "lineart_standard", "lsd", "sobel", "canny_kornia"]
)
def test_a_constant_image_gives_a_black_map_and_a_warning(name):
    found = get_condition(name)(np.full((64, 64, 3), 90, dtype=np.uint8))
    assert found.max() == 0
    with pytest.warns(HintWarning, match="blank"):
        warn_if_blank(torch.from_numpy(found).permute(2, 0, 1) / 255.0)


@pytest.mark.parametrize(
    "name", ["canny", "canny_kornia", "sobel", "scribble", "lineart_standard", "blur", "color_grid"]
)
def test_a_picture_has_the_same_hint_alone_in_a_batch_and_in_a_file(name):
    condition, rng = get_condition(name), np.random.default_rng(0)
    shapes = []
    for _ in range(8):
        shape = np.full((72, 96, 3), rng.integers(0, 255, 3), np.uint8)
        for _ in range(6):
            place, radius, color = rng.integers(0, 90, 2), rng.integers(4, 30), rng.integers(0, 255, 3)
            cv2.circle(shape, place.tolist(), int(radius), color.tolist(), -1)
        shapes.append(cv2.GaussianBlur(shape, (0, 0), 1.0))
    images = torch.from_numpy(np.stack(shapes)).permute(0, 3, 1, 2)
    together = apply_batch(condition, images / 127.5 - 1)
    for shape, hint in zip(shapes, together, strict=True):
        assert torch.equal(torch.from_numpy(condition(shape) / np.float32(255)).permute(2, 0, 1), hint)


def test_an_unknown_parameter_and_a_missing_path_are_named():
    with pytest.raises(ValueError, match=r"'canny' has no parameter 'lo'; it has: low, high"):
        get_condition("canny", lo=3)
    with pytest.raises(ValueError, match="'depth' needs folder, a local path"):
        get_condition("depth")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        get_condition("softedge", weights="/no/such.safetensors")(disc(0, 255))
    with pytest.raises(FileNotFoundError, match=r"lacks config\.json, preprocessor_config\.json, model\.safetensors"):
        get_condition("depth", folder="/no/such")(disc(0, 255))


# ------------------------------------------------------------------ lines and edges


@pytest.mark.parametrize("condition", [ScribbleXDoG(), LineartStandard()], ids=lambda c: c.name)
def test_a_black_disc_on_white_gives_a_white_ring_on_black(condition):
    found = condition(disc(0, 255))[:, :, 0]
    assert found[48, 26] > 100  # just inside the disc's edge at x = 24
    assert found[4, 4] == 0
    assert found.mean() < 128


def test_lsd_finds_the_four_sides_of_a_rectangle():
    image = np.zeros((128, 128, 3), dtype=np.uint8)
    image[30:90, 20:110] = 200
    lines = LineSegments(min_length=40).segments(image)
    lengths = sorted(np.hypot(lines[:, 2] - lines[:, 0], lines[:, 3] - lines[:, 1]))
    assert len(lines) == 4
    assert lengths == pytest.approx([60, 60, 90, 90], abs=4)
    assert LineSegments()(square(np.dstack([skimage.data.grass()] * 3))).mean() < 15


def test_sobel_is_monotone_in_contrast():
    peaks = [int(Sobel()(disc(100, 100 + step)).max()) for step in (0, 10, 20, 40)]
    assert peaks == sorted(set(peaks))


def test_scribble_strokes_get_thicker_and_ridges_are_thin(photos):
    thin, thick = (Scribble(thickness=t)(photos["coffee"]).mean() for t in (1, 6))
    assert thick > 2 * thin > 0
    bar = np.zeros((40, 40), dtype=np.uint8)
    bar[:, 15:26] = 255
    assert (ridges(bar, 64, 2.0)[20] > 0).sum() == 1


def test_threshold_keeps_polarity_and_otsu_splits_two_tones():
    image = disc(180, 60)
    for level in (127, 0, 255):
        found = Threshold(level)(image)
        assert found[48, 48, 0] == 255
        assert found[2, 2, 0] == 0


def test_invert_twice_is_identity(photos):
    invert = get_condition("invert")
    assert np.array_equal(invert(invert(photos["chelsea"])), photos["chelsea"])


# ------------------------------------------------------------------ soft edges by a net from a file


@pytest.fixture(scope="module")
def hed_file(tmp_path_factory):
    """A tiny random net in the layout of ControlNetHED: norm, block1..5.convs.N, block1..5.projection."""
    rng, state, width = torch.Generator().manual_seed(0), {"norm": torch.full((1, 3, 1, 1), 120.0)}, 3
    for number, count in enumerate((2, 2, 3, 3, 3), start=1):
        for i in range(count):
            state[f"block{number}.convs.{i}.weight"] = torch.randn(4, width, 3, 3, generator=rng) / (3 * width**0.5)
            state[f"block{number}.convs.{i}.bias"] = torch.zeros(4)
            width = 4
        state[f"block{number}.projection.weight"] = torch.randn(1, 4, 1, 1, generator=rng) / 8
        state[f"block{number}.projection.bias"] = torch.zeros(1)
    path = tmp_path_factory.mktemp("hed") / "hed.safetensors"
    save_file(state, path)
    return path


class OneConv(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 1, 1)

    def forward(self, image):
        return self.conv(image / 255)


def test_a_net_of_edges_is_read_from_a_local_file_in_the_published_layout(hed_file, photos):
    state = dict(HED(load_file(hed_file)).state_dict().items())
    assert state.keys() == load_file(hed_file).keys()
    found = SoftEdge(str(hed_file))(photos["coffee"])
    assert found.shape == (128, 128, 3)
    assert found.std() > 1
    safe = SoftEdge(str(hed_file), safe=True)(photos["coffee"])
    assert set(np.unique(safe)) <= {0, 127, 255}


def test_any_net_fits_through_the_adapter_and_a_wrong_file_is_refused(tmp_path, photos, hed_file):
    path = tmp_path / "one.pth"
    torch.save(OneConv().state_dict(), path)
    assert SoftEdge(str(path), OneConv)(photos["coffee"]).shape == (128, 128, 3)
    with pytest.raises(ValueError, match=r"does not fit HED"):
        SoftEdge(str(path))(photos["coffee"])
    with pytest.raises(ValueError, match=r"does not fit condition\.network"):
        SoftEdge(str(hed_file), OneConv)(photos["coffee"])
    torch.save(OneConv(), tmp_path / "pickle.pth")  # a whole object: code, not tensors
    with pytest.raises(ValueError, match="no file of plain tensors"):
        SoftEdge(str(tmp_path / "pickle.pth"), OneConv)(photos["coffee"])


# ------------------------------------------------------------------ depth and normals


@pytest.fixture(scope="module")
def disparity() -> np.ndarray:
    return skimage.data.stereo_motorcycle()[2]


def test_true_disparity_becomes_near_white(disparity):
    found = near_white(disparity)
    assert found.shape == disparity.shape
    assert found.max() == 255
    assert found[-60:].mean() > found[:60].mean() + 80  # the floor is near, the wall behind far
    assert near_white(np.full((4, 4), 3.0)).max() == 0
    hint = torch.from_numpy(found)[None].expand(3, -1, -1) / 255
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_blank(hint, "near_white")
    with pytest.warns(HintWarning, match="inverted"):
        warn_if_blank(1 - hint, "near_white")


def test_metres_are_inverted(disparity):
    known = np.isfinite(disparity)
    metres = np.where(known, 1000 / disparity, np.nan)
    assert np.corrcoef(near_white_from_metric(metres)[known], near_white(disparity)[known])[0, 1] > 0.8
    assert near_white_from_metric(np.full((4, 4), 3.0)).max() == 0


def sphere(side: int = 129) -> np.ndarray:
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    return np.sqrt(np.clip(1 - (x**2 + y**2) / 2, 0, None)).astype(np.float32)


def test_normals_of_a_sphere_are_blue_in_front_red_left_green_above():
    found = normals_from_depth(sphere(), strength=1.0).astype(int)
    assert np.abs(found[64, 64] - [127, 127, 255]).max() <= 1
    assert found[64, 20, 0] > found[64, 40, 0] > found[64, 64, 0] > found[64, 100, 0]
    assert found[20, 64, 1] > found[40, 64, 1] > found[64, 64, 1] > found[100, 64, 1]
    legacy = normals_from_depth(sphere(), strength=1.0, order="midas")
    assert np.array_equal(legacy[:, :, ::-1], found)


def test_normals_do_not_depend_on_resolution():
    large, small = (normals_from_depth(sphere(side), strength=1.0) for side in (257, 129))
    assert np.abs(large[::2, ::2].astype(int) - small)[4:-4, 4:-4].max() <= 2


def test_normals_agree_with_the_analytic_ones():
    y, x = np.mgrid[-1:1:129j, -1:1:129j]
    depth = (0.5 - 0.2 * x**2 - 0.1 * y**2).astype(np.float32)  # on a square of side 2: slopes in its half side
    expected = encode_normals(np.dstack([-0.4 * x, -0.2 * y, np.full_like(x, 0.5)]))
    found = normals_from_depth(depth, strength=1.0)
    assert np.abs(found.astype(int) - expected)[2:-2, 2:-2].max() <= 2


def test_maps_of_engines_are_brought_to_our_conventions(tmp_path, disparity):
    known = np.where(np.isfinite(disparity), disparity, 7.0)
    sixteen = ((known - known.min()) / np.ptp(known) * 65535).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "depth.png"), sixteen)
    values = read_values(tmp_path / "depth.png")
    assert values.dtype == np.uint16
    assert np.array_equal(values, sixteen)
    ours = import_depth(values)
    assert np.abs(ours[:, :, 0].astype(int) - near_white(known)).max() <= 1
    inverted = import_depth(65535 - values, invert=True)
    assert np.abs(ours.astype(int) - inverted).max() <= 1
    assert len(np.unique(ours)) > 200  # 16 bits were not cut to 8 first

    normals = normals_from_depth(sphere(), strength=1.0)
    flipped = import_normals(normals, flip_x=True)
    assert np.array_equal(flipped[:, :, 0], 255 - normals[:, :, 0])
    assert np.array_equal(flipped[:, :, 1:], normals[:, :, 1:])
    assert np.array_equal(import_normals(flipped, flip_x=True), normals)
    assert np.array_equal(import_normals(normals, order="midas"), normals[:, :, ::-1])
    wide = normals.astype(np.uint16) * 257
    assert np.array_equal(import_normals(wide), normals)
    vectors = normals.astype(np.float32) / 127.5 - 1
    assert np.array_equal(import_normals(vectors), normals)
    with pytest.raises(ValueError, match="missing or not a readable map"):
        read_values(tmp_path / "none.png")


def save_depth_anything(folder, kind: str) -> str:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=56, patch_size=14,
        out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], reassemble_hidden_size=16, fusion_hidden_size=8,
        head_hidden_size=8, depth_estimation_type=kind, max_depth=20 if kind == "metric" else 1,
    )  # fmt: skip
    model = DepthAnythingForDepthEstimation(config)
    with torch.no_grad():  # a fresh head answers next to nothing
        for p in [*model.neck.parameters(), *model.head.parameters()]:
            p.normal_(std=p[0].numel() ** -0.5) if p.ndim > 1 else p.fill_(0.1)
        model.head.conv3.weight.abs_()
    model.save_pretrained(folder)
    processor = DPTImageProcessor(
        size={"height": 56, "width": 56}, keep_aspect_ratio=True, ensure_multiple_of=14, do_resize=True
    )
    processor.save_pretrained(folder)
    return str(folder)


def test_a_depth_anything_folder_is_read_through_the_public_path(tmp_path, photos):
    folder = save_depth_anything(tmp_path / "relative", "relative")
    photo = photos["coffee"][:100]
    found = get_condition("depth", folder=folder)(photo)
    assert found.shape == (100, 128, 3)
    assert found.min() == 0
    assert found.max() == 255
    inverse = Depth(folder, metric=True)(photo)  # the same answer taken for metres: near and far change places
    assert np.corrcoef(found.ravel(), inverse.ravel())[0, 1] < -0.8
    normals = Normal(folder)(photo)
    assert normals.shape == photo.shape
    assert normals[:, :, 2].mean() > 127
    metric = save_depth_anything(tmp_path / "metric", "metric")
    assert np.array_equal(Depth(metric)(photo), Depth(metric, metric=True)(photo))  # read from config.json


def test_a_zoedepth_folder_answers_in_metres_and_is_inverted(tmp_path, photos):
    from transformers import BeitConfig, ZoeDepthConfig, ZoeDepthForDepthEstimation, ZoeDepthImageProcessor

    torch.manual_seed(0)
    backbone = BeitConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16,
        use_relative_position_bias=True, reshape_hidden_states=False,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, bottleneck_features=8,
        num_relative_features=8, bin_embedding_dim=8, num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"n_bins": 8, "min_depth": 0.001, "max_depth": 10.0, "name": "nyu"}],
    )  # fmt: skip
    ZoeDepthForDepthEstimation(config).save_pretrained(tmp_path)
    ZoeDepthImageProcessor(size={"height": 64, "width": 64}, ensure_multiple_of=32).save_pretrained(tmp_path)
    photo = photos["coffee"][:90]
    found, metres = Depth(str(tmp_path))(photo), depth_module._predict(str(tmp_path), photo)
    assert metres[1]
    assert metres[0].shape == photo.shape[:2]
    assert np.corrcoef(found[:, :, 0].ravel(), metres[0].ravel())[0, 1] < -0.8


def test_a_dpt_folder_is_read_as_relative_depth(tmp_path, photos):
    """DPT and MiDaS 3; they answer in inverse depth, near = large."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(0)
    config = DPTConfig(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        reassemble_factors=[4, 2, 1, 0.5],
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(tmp_path)
    DPTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    photo = photos["coffee"][:90]
    found, (values, metric) = Depth(str(tmp_path))(photo), depth_module._predict(str(tmp_path), photo)
    assert not metric
    assert found.shape == photo.shape
    assert (found.min(), found.max()) == (0, 255)
    assert np.corrcoef(found[:, :, 0].ravel(), values.ravel())[0, 1] > 0.99


# ------------------------------------------------------------------ segmentation


def test_the_palette_is_that_of_ade20k():
    digest = hashlib.sha256(ADE20K.tobytes()).hexdigest()
    assert digest == "ce475c9151035eff51f4cf27fd7d906959b1480f6d15b9423ae2417c1b23a0ed"
    assert ADE20K[2].tolist() == [6, 230, 230]  # sky


def test_classes_and_colours_are_one_to_one_but_for_the_shared_one():
    labels = np.arange(150).reshape(10, 15)
    back = colors_to_labels(labels_to_colors(labels))
    assert {(a, b) for a, b in zip(labels.ravel(), back.ravel(), strict=True) if a != b} == {(48, 6)}
    assert labels_to_colors(np.array([[255, -1]])).max() == 0
    assert colors_to_labels(np.array([[[1, 2, 3]]], dtype=np.uint8)).item() == -1


def save_segformer(folder, classes: int) -> str:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(0)
    config = SegformerConfig(
        num_labels=classes, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16, sr_ratios=[8, 4, 2, 1],
    )  # fmt: skip
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return str(folder)


def test_a_segformer_folder_is_read_through_the_public_path(tmp_path, photos):
    photo = photos["astronaut"][:90]
    found = Segmentation(save_segformer(tmp_path / "ade", 150))(photo)
    assert found.shape == photo.shape
    assert len(np.unique(found.reshape(-1, 3), axis=0)) > 1
    assert (colors_to_labels(found) >= 0).all()
    with pytest.raises(ValueError, match="knows 19 classes"):
        Segmentation(save_segformer(tmp_path / "city", 19))(photo)


def tiny_swin():
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip


def save_upernet(folder) -> None:
    from transformers import ConvNextConfig, SegformerImageProcessor, UperNetConfig, UperNetForSemanticSegmentation

    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = UperNetConfig(
        backbone_config=ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=stages),
        hidden_size=16, num_labels=150, auxiliary_channels=8, auxiliary_in_channels=16, pool_scales=[1, 2],
    )  # fmt: skip
    UperNetForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


def save_mask2former(folder) -> None:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessor

    config = Mask2FormerConfig(
        backbone_config=tiny_swin(), num_labels=150, hidden_dim=32, feature_size=32, mask_feature_size=32,
        num_attention_heads=2, dim_feedforward=16, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2,
        num_queries=10,
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)


@pytest.mark.parametrize("save", [save_upernet, save_mask2former])
def test_upernet_and_mask2former_folders_are_read_through_the_public_path(tmp_path, photos, save):
    torch.manual_seed(0)
    save(tmp_path)
    photo = photos["astronaut"][:90]
    found = get_condition("segmentation", folder=str(tmp_path))(photo)
    assert found.shape == photo.shape
    assert (colors_to_labels(found) >= 0).all()


def test_a_oneformer_folder_is_read_without_a_look_at_a_hub(tmp_path, photos, monkeypatch):
    import transformers as tf

    monkeypatch.setattr("huggingface_hub.file_download.http_get", lambda *_, **__: 1 / 0)
    torch.manual_seed(0)
    (tmp_path / "classes.json").write_text(json.dumps({str(i): {"name": f"c{i}", "isthing": 0} for i in range(150)}))
    letters = [letter + end for letter in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {word: i for i, word in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    images = tf.OneFormerImageProcessor(
        size={"height": 64, "width": 64}, repo_path=str(tmp_path), class_info_file="classes.json", num_text=8,
        num_labels=150,
    )  # fmt: skip
    tokens = tf.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tf.OneFormerProcessor(images, tokens, max_seq_length=16, task_seq_length=16).save_pretrained(tmp_path)
    config = tf.OneFormerConfig(
        backbone_config=tiny_swin(), num_labels=150, hidden_dim=32, conv_dim=32, mask_dim=32, num_attention_heads=2,
        dim_feedforward=16, encoder_feedforward_dim=16, encoder_layers=1, decoder_layers=2, num_queries=10,
        text_encoder_width=32, text_encoder_num_layers=1, text_encoder_vocab_size=60, text_encoder_context_length=16,
        text_encoder_n_ctx=2, task_seq_len=16, max_seq_len=16, query_dec_layers=1,
    )  # fmt: skip
    tf.OneFormerForUniversalSegmentation(config).save_pretrained(tmp_path)
    photo = photos["astronaut"][:90]
    found = Segmentation(str(tmp_path))(photo)
    assert found.shape == photo.shape
    assert (colors_to_labels(found) >= 0).all()
    segmentation_module._load.cache_clear()
    (tmp_path / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks classes\.json"):
        Segmentation(str(tmp_path))(photo)


# ------------------------------------------------------------------ pose


def standing() -> Person:
    body = [(64, 20), (64, 36), (50, 36), (44, 54), (40, 70), (78, 36), (84, 54), (88, 70), (56, 72), (54, 94),
            (52, 116), (72, 72), (74, 94), (76, 116), (60, 16), (68, 16), (54, 18), (74, 18)]  # fmt: skip
    return Person(tuple((float(x), float(y)) for x, y in body))


def test_each_point_of_a_skeleton_has_its_colour_and_missing_ones_are_left_out():
    person = standing()
    drawn = render_pose([person], (128, 128))
    for i in (0, 1, 4, 7, 10, 13, 16, 17):
        x, y = person.body[i]
        assert tuple(drawn[int(y), int(x)]) == BODY_COLORS[i]
    half = tuple(int(0.6 * v) for v in BODY_COLORS[0])
    assert half in {tuple(pixel) for pixel in drawn.reshape(-1, 3).tolist()}  # a limb
    without = Person(tuple(None if i == 4 else point for i, point in enumerate(person.body)))
    assert render_pose([without], (128, 128))[70, 40].max() == 0
    hand = Person(left_hand=tuple((20.0 + 3 * i, 64.0) for i in range(21)), face=tuple([(64.0, 100.0)] * 70))
    colors = {tuple(pixel) for pixel in render_pose([hand], (128, 128)).reshape(-1, 3).tolist()}
    assert {(0, 0, 255), (255, 255, 255)} <= colors


def test_openpose_json_goes_round_and_shares_of_the_canvas_are_read(tmp_path):
    person = Person(tuple(None if i == 9 else point for i, point in enumerate(standing().body)))
    content = write_openpose([person], (128, 128))
    (tmp_path / "pose.json").write_text(json.dumps(content))
    assert read_openpose(tmp_path / "pose.json") == ([person], (128, 128))
    shares = json.loads(json.dumps(content))
    flat = shares["people"][0]["pose_keypoints_2d"]
    flat[:] = [v if i % 3 == 2 else v / 128 for i, v in enumerate(flat)]
    assert read_openpose(shares)[0] == [person]
    with pytest.raises(ValueError, match="no OpenPose JSON"):
        read_openpose({"persons": []})
    with pytest.raises(ValueError, match="body must have 18 points, got 1"):
        read_openpose({"people": [{"pose_keypoints_2d": [1, 2, 1]}], "canvas_width": 8, "canvas_height": 8})


def test_pose_runs_the_extractor_it_is_given_and_says_so_without():
    found = Pose(extractor=lambda image: [standing()])(np.zeros((128, 128, 3), dtype=np.uint8))
    assert np.array_equal(found, render_pose([standing()], (128, 128)))
    with pytest.raises(ValueError, match=r"needs condition\.extractor"):
        Pose()(disc(0, 255))


# ------------------------------------------------------------------ colour, place, holes


def test_recolor_keeps_lightness_within_a_level(photos):
    grey = get_condition("recolor")(photos["chelsea"])
    lightness = cv2.cvtColor(photos["chelsea"], cv2.COLOR_RGB2LAB)[:, :, 0]
    assert np.abs(grey[:, :, 0].astype(int) - lightness).max() <= 1
    value = get_condition("recolor", mode="intensity")(photos["chelsea"])
    assert np.array_equal(value[:, :, 1], photos["chelsea"].max(axis=2))
    assert get_condition("recolor", gamma=2.0)(photos["chelsea"]).mean() < grey.mean()


def test_shuffle_is_one_flow_a_seed(photos):
    a, again, b = (get_condition("shuffle", seed=s, scale=64)(photos["coffee"]) for s in (3, 3, 4))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


def test_a_grid_has_one_colour_a_block_and_tile_takes_detail_away(photos):
    found = get_condition("color_grid", block=32)(photos["coffee"])
    assert len(np.unique(found.reshape(-1, 3), axis=0)) <= 16
    assert np.ptp(found[:32, :32].reshape(-1, 3), axis=0).max() == 0
    edges = [cv2.Laplacian(get_condition("tile", rate=r)(photos["coffee"]), cv2.CV_32F).std() for r in (1, 4, 16)]
    assert edges[0] > edges[1] > edges[2]


def test_masked_pixels_of_an_inpainting_hint_are_exactly_minus_one(photos, tmp_path):
    photo = photos["astronaut"]
    mask = random_mask(photo.shape[:2], 0.3, np.random.default_rng(0))
    assert 0.3 <= mask.mean() < 0.6
    rgba = with_mask(photo, mask)
    Image.fromarray(rgba).save(tmp_path / "hole.png")
    hint = Inpaint().to_hint(np.asarray(Image.open(tmp_path / "hole.png")))
    assert hint.dtype == np.float32
    assert (hint[mask] == -1.0).all()
    assert np.array_equal(hint[~mask], photo[~mask].astype(np.float32) / 255)
