"""Promises of conditions: what a hint is, and what becomes of a picture that someone drew."""

import dataclasses
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cldm.conditions import (
    Condition,
    HintWarning,
    apply_batch,
    get_condition,
    warn_if_blank,
)
from cldm.conditions.canny import Canny
from cldm.data.decoding import PictureError
from cldm.data.hints import load_hint


@dataclasses.dataclass(frozen=True)
class Depth(Condition):
    """A stand-in for grey maps with near = white."""

    name = "depth"
    polarity = "near_white"

    def extract(self, image):
        return image


@dataclasses.dataclass(frozen=True)
class SoftEdge(Depth):
    """A stand-in for line maps with shades of grey."""

    name = "softedge"
    polarity = "white_on_black"


@dataclasses.dataclass(frozen=True)
class Labels(Depth):
    """A stand-in for label maps."""

    name = "labels"
    polarity = "color"


def photo(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A coloured, smooth (h, w, 3) uint8 image with edges in some channels only."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def drawing(height: int = 64, width: int = 64) -> np.ndarray:
    """A box of one-pixel white lines on black, (h, w) uint8."""
    lines = np.zeros((height, width), dtype=np.uint8)
    cv2.rectangle(lines, (width // 4, height // 4), (3 * width // 4, 3 * height // 4), 255, 1)
    return lines


@pytest.fixture
def save(tmp_path: Path):
    def write(picture: Image.Image | np.ndarray, name: str = "sketch.png", **options) -> Path:
        path = tmp_path / name
        picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        picture.save(path, **options)
        return path

    return write


def quiet(path: Path, size=None, **options) -> torch.Tensor:
    """`load_hint` where any warning is an error and notes are dropped."""
    options.setdefault("notify", lambda line: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HintWarning)
        return load_hint(path, size, **options)


# ---- the registry and the objects in it


def test_an_unknown_condition_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match=r"'cany'.*canny"):
        get_condition("cany")


def test_a_condition_cannot_be_changed_after_it_was_made():
    canny = get_condition("canny", low=50)
    assert canny == Canny(low=50, high=200)
    with pytest.raises(dataclasses.FrozenInstanceError):
        canny.low = 10


def test_a_condition_refuses_what_is_not_an_rgb_image_of_bytes():
    with pytest.raises(TypeError, match="float32"):
        Canny()(photo().astype(np.float32))
    for wrong in (photo()[:, :, 0], np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"\(h, w, 3\)"):
            Canny()(wrong)


def test_hydra_builds_a_condition_from_its_config():
    from hydra.utils import instantiate

    config = {"_target_": "cldm.conditions.canny.Canny", "low": 30, "high": 60}
    assert instantiate(config) == Canny(30, 60)


# ---- canny


@pytest.mark.parametrize(("low", "high"), [(100, 200), (0, 0), (20, 300)])
def test_canny_equals_opencv_on_the_rgb_image_bit_for_bit(low, high):
    image = photo(seed=3)
    hint = Canny(low, high)(image)
    for channel in range(3):
        assert np.array_equal(hint[:, :, channel], cv2.Canny(image, low, high))
    assert set(np.unique(hint)) == {0, 255}


def test_canny_sees_edges_between_colors_that_look_alike_in_grey():
    image = np.full((32, 32, 3), (200, 0, 0), np.uint8)
    image[:, 16:] = (0, 102, 0)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    assert not cv2.Canny(grey, 100, 200).any()
    assert Canny()(image).any()


def test_canny_takes_views_of_an_image():
    image = photo()
    assert np.array_equal(Canny()(image[:, ::-1]), Canny()(image[:, ::-1].copy()))


@pytest.mark.parametrize(("low", "high"), [(200, 100), (-1, 5), (float("nan"), 5)])
def test_canny_refuses_thresholds_out_of_order(low, high):
    with pytest.raises(ValueError, match="low <= high"):
        Canny(low, high)


# ---- batches


def test_the_hint_of_a_batch_is_the_hint_of_each_saved_image():
    pictures = np.stack([photo(seed=seed) for seed in range(3)])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    jitter = 0.4 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.2
    hints = apply_batch(Canny(), images + jitter / 127.5)  # less than half a level: the saved PNG is the same
    assert hints.dtype == torch.float32
    for hint, picture in zip(hints, pictures, strict=True):
        expected = torch.from_numpy(Canny()(picture)).permute(2, 0, 1).float() / 255
        assert torch.equal(hint, expected)


def test_a_batch_out_of_range_is_clamped_as_when_it_is_saved():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 4 - 2
    assert torch.equal(apply_batch(Canny(), images), apply_batch(Canny(), images.clamp(-1, 1)))


def test_a_batch_of_another_shape_or_with_nan_is_refused():
    with pytest.raises(ValueError, match=r"\(b, 3, h, w\)"):
        apply_batch(Canny(), torch.zeros(3, 16, 16))
    with pytest.raises(ValueError, match="not finite"):
        apply_batch(Canny(), torch.full((1, 3, 16, 16), float("nan")))


# ---- warnings


@pytest.mark.parametrize(
    ("value", "polarity", "word"),
    [(0.0, "white_on_black", "blank"), (1.0, "near_white", "blank"), (0.5, "color", "blank")],
)
def test_a_blank_map_is_warned_about(value, polarity, word):
    with pytest.warns(HintWarning, match=word):
        messages = warn_if_blank(torch.full((3, 16, 16), value), polarity)
    assert len(messages) == 1


def test_saturated_and_inverted_maps_are_warned_about_and_good_ones_are_not():
    lines = torch.from_numpy(drawing()).float().expand(3, -1, -1) / 255
    with pytest.warns(HintWarning, match="inverted"):
        assert warn_if_blank((1 - lines) * 0.9)
    with pytest.warns(HintWarning, match="saturated"):
        assert warn_if_blank(1 - lines * 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_blank(lines) == ()
        assert warn_if_blank((1 - lines) * 0.9, "near_white") == ()
        assert warn_if_blank(1 - lines * 0.5, "color") == ()


def test_a_batch_of_maps_gets_one_warning_with_a_count():
    lines = torch.from_numpy(drawing()).float().expand(3, -1, -1) / 255
    batch = torch.stack([lines, torch.zeros_like(lines), torch.zeros_like(lines)])
    with pytest.warns(HintWarning, match="2 of 3 maps in validation hints: blank") as caught:
        warn_if_blank(batch, what="validation hints")
    assert len(caught) == 1


# ---- drawn pictures: every mode gives the same hint


def as_mode(lines: np.ndarray, mode: str) -> Image.Image:
    """The drawing (white on black, uint8) in one of the pixel formats that programs save."""
    grey = Image.fromarray(lines)
    clear = np.zeros_like(lines)
    if mode == "16-bit":
        return Image.fromarray(lines.astype(np.uint16) * 257)
    if mode == "RGBA white ink":
        return Image.fromarray(np.dstack([clear + 255, clear + 255, clear + 255, lines]))
    if mode == "RGBA black ink":
        return Image.fromarray(np.dstack([clear, clear, clear, lines]))
    if mode == "RGBA red ink":
        return Image.fromarray(np.dstack([clear + 255, clear, clear, lines]))
    if mode == "LA black ink":
        return Image.merge("LA", [Image.fromarray(clear), grey])
    if mode == "black on white":
        return Image.fromarray(255 - lines)
    if mode == "blue on white":
        return Image.fromarray(np.dstack([255 - lines, 255 - lines, clear + 255]))
    if mode == "palette with a clear entry":
        picture = Image.fromarray((lines > 0).astype(np.uint8)).convert("P")
        picture.putpalette([255, 255, 255, 255, 255, 255])  # the ground is clear, whatever its colour
        picture.info["transparency"] = 0
        return picture
    return grey.convert(mode)


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "16-bit", "RGBA white ink", "RGBA black ink", "RGBA red ink"]
MODES += ["LA black ink", "black on white", "blue on white", "palette with a clear entry"]


@pytest.mark.parametrize("mode", MODES)
def test_one_drawing_gives_one_hint_whatever_the_pixel_format(mode, save):
    lines = drawing()
    hint = quiet(save(as_mode(lines, mode)))
    assert hint.dtype == torch.float32
    assert torch.equal(hint, (torch.from_numpy(lines).float() / 255).expand(3, -1, -1))


def test_soft_lines_keep_their_shades_and_lose_their_color(save):
    lines = drawing() // 2
    blue = np.dstack([np.zeros_like(lines), np.zeros_like(lines), lines])
    hint = quiet(save(blue), condition=SoftEdge())
    assert torch.equal(hint, (torch.from_numpy(lines).float() / 255).expand(3, -1, -1))


def test_an_inverted_drawing_is_announced_and_a_good_one_is_not(save):
    notes: list[str] = []
    quiet(save(drawing()), notify=notes.append)
    assert notes == []
    quiet(save(255 - drawing()), notify=notes.append)
    assert len(notes) == 1
    assert "dark lines on a light ground, inverted" in notes[0]
    assert "sketch.png" in notes[0]


def test_inversion_can_be_forced_and_forbidden(save):
    lines = torch.from_numpy(drawing()).float() / 255
    light = save(255 - drawing())
    with pytest.warns(HintWarning, match="white"):
        kept = load_hint(light, invert=False, notify=lambda line: None)
    assert torch.equal(kept[0], 1 - lines)
    assert torch.equal(quiet(light, condition=Depth(), invert=True)[0], lines)


def test_a_blank_file_is_warned_about_by_name(save):
    with pytest.warns(HintWarning, match="blank") as caught:
        load_hint(save(np.zeros((32, 32), np.uint8), "empty.png"))
    assert "empty.png" in str(caught[0].message)


def test_a_scan_with_pencil_lines_on_uneven_paper_becomes_binary(save):
    lines = drawing() > 0
    paper = np.linspace(215, 245, 64, dtype=np.uint8)[None].repeat(64, axis=0)
    hint = quiet(save(np.where(lines, 150, paper).astype(np.uint8)))
    assert torch.equal(hint[0], torch.from_numpy(lines).float())


def test_a_picture_in_the_place_of_a_map_of_lines_is_told_and_drawings_are_not(save):
    rng = np.random.default_rng(0)
    photo = cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), (0, 0), 6)
    photo = cv2.normalize(photo, None, 0, 255, cv2.NORM_MINMAX)
    paper = np.linspace(215, 245, 64, dtype=np.uint8)[None].repeat(64, axis=0)
    pencil = np.where(drawing() > 0, 150, paper).astype(np.uint8)
    soft = cv2.resize(drawing(256, 256), (64, 64), interpolation=cv2.INTER_AREA)
    for picture, told in ((photo, True), (pencil, False), (soft, False), (255 - soft, False), (drawing(), False)):
        notes: list[str] = []
        quiet(save(picture), notify=notes.append)
        assert any("looks like a picture, not like a map of lines" in note for note in notes) == told


def test_sixteen_bit_depth_keeps_more_than_256_levels(save):
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    hint = quiet(save(ramp), condition=Depth())
    assert len(hint[0].unique()) > 4000
    assert hint.max() == 1


# ---- drawn pictures: every size


def test_a_picture_is_scaled_to_cover_and_cropped_at_the_centre_with_one_note(save):
    ramp = np.linspace(0, 255, 200, dtype=np.uint8)[None].repeat(100, axis=0)
    notes: list[str] = []
    hint = quiet(save(ramp), 50, condition=Depth(), notify=notes.append)
    expected = cv2.resize(ramp[:, 50:150], (50, 50), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    assert hint.shape == (3, 50, 50)
    assert np.allclose(hint[0].numpy(), expected, atol=1 / 255)
    assert len(notes) == 1
    assert notes[0].endswith("sketch.png: 200x100 resized to cover 50x50, 50% of its width cropped")


def test_size_is_height_then_width(save):
    assert quiet(save(drawing(64, 96)), (32, 48)).shape == (3, 32, 48)
    assert quiet(save(drawing(64, 96))).shape == (3, 64, 96)


@pytest.mark.parametrize("side", [65, 80, 96, 127, 200, 1024])
def test_thin_lines_survive_shrinking_binary_without_gaps_and_in_place(side, save):
    picture = np.zeros((side, side), np.uint8)
    cv2.circle(picture, (side // 2, side // 2), side // 3, 255, 1)
    cv2.line(picture, (side // 2, 0), (side // 2, side - 1), 255, 1)
    hint = quiet(save(picture), 64)[0].numpy()
    assert set(np.unique(hint)) == {0.0, 1.0}
    parts, _ = cv2.connectedComponents(hint.astype(np.uint8), connectivity=8)
    assert parts == 2  # the ground, and one drawing without gaps
    rows, columns = (np.indices((64, 64)) + 0.5) * side / 64 - side // 2 - 0.5  # where the new pixels lie in the old
    from_circle = np.abs(np.hypot(rows, columns) - side // 3)
    drawn = np.minimum(from_circle, np.abs(columns)) * 64 / side
    assert not hint[drawn > 1.4].any()  # a pixel apart at most, diagonally
    assert hint.sum() < 1.5 * (2 * np.pi * 64 / 3 + 64)


def test_a_binary_map_stays_binary_when_enlarged_and_a_soft_one_stays_smooth(save):
    path = save(drawing(32, 32))
    assert set(quiet(path, 80).unique().tolist()) == {0.0, 1.0}
    assert len(quiet(path, 80, condition=Depth()).unique()) > 2


def test_resizing_a_label_map_invents_no_colors(save):
    colors = np.random.default_rng(0).integers(0, 256, (5, 3), dtype=np.uint8)
    labels = colors[np.random.default_rng(1).integers(0, 5, (60, 60))]
    hint = quiet(save(labels), 37, condition=Labels())
    found = {tuple(color) for color in (hint.flatten(1).T * 255).round().int().tolist()}
    assert found <= {tuple(color) for color in colors.tolist()}


def test_a_phone_picture_is_turned_upright(save):
    lines = drawing(64, 96)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees to see it right
    hint = quiet(save(lines, exif=exif))
    assert torch.equal(hint[0], torch.from_numpy(np.rot90(lines, -1).copy()).float() / 255)


# ---- pictures that are refused, each with one sentence that names the file


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that cannot be hints, by the words that the refusal must contain."""
    good = Image.fromarray(drawing())
    good.save(folder / "whole.png")
    (folder / "truncated.png").write_bytes((folder / "whole.png").read_bytes()[:90])
    (folder / "text.png").write_text("not a picture")
    (folder / "zero.png").touch()
    good.save(folder / "moving.gif", save_all=True, append_images=[Image.fromarray(255 - drawing())])
    Image.fromarray(drawing(16, 400)).save(folder / "banner.png")
    Image.fromarray(drawing(7, 9)).save(folder / "dot.png")
    Image.fromarray(np.full((16, 16), 3.5, np.float32)).save(folder / "metres.tiff")
    return {
        "no such file": folder / "missing.png",
        "not a readable picture": folder / "truncated.png",
        "it is not a readable picture": folder / "text.png",
        "it is empty": folder / "zero.png",
        "2 frames": folder / "moving.gif",
        "too wide": folder / "banner.png",
        "9x7 pixels": folder / "dot.png",
        "outside": folder / "metres.tiff",
    }


def test_an_unusable_file_is_refused_in_one_sentence_that_names_it(tmp_path):
    for words, path in bad_files(tmp_path).items():
        with pytest.raises(PictureError, match=words) as caught:
            load_hint(path, notify=lambda line: None)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_long_picture_is_refused_only_for_a_shape_it_does_not_fit(save):
    path = save(drawing(64, 320))
    with pytest.raises(PictureError, match="too wide for 64x64"):
        quiet(path, 64)
    assert quiet(path, (64, 256)).shape == (3, 64, 256)
