"""Training and sampling give the network the same pixels for the same file, bit for bit, and annotate is no detour."""

import io
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cldm.branches.controlnet import ControlNet
from cldm.commands import cli
from cldm.conditions import Condition, HintWarning, get_condition
from cldm.conditions.depth import Depth
from cldm.data.decoding import as_mask, decode, read_photo
from cldm.data.folder import FolderDataset
from cldm.data.hints import load_hint, restored, stored
from cldm.data.listing import Item, list_items
from cldm.data.webdataset import ShardDataset
from cldm.evaluation.held_out import folder_items
from cldm.evaluation.scores import hint_scores
from cldm.sampling.control import ControlUnit
from cldm.sampling.jobs import UnitSettings, load_mask
from cldm.training.control_ldm import ControlLDM
from cldm.worlds import get_world
from cldm.worlds.dataset import WorldDataset

SIZE = (64, 96)
FREE = ("canny", "sobel", "scribble", "lineart_standard", "color_grid", "blur", "tile", "recolor", "shuffle")

Save = Callable[..., Path]


def scenery(height: int = 120, width: int = 150, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def strokes(height: int = 120, width: int = 150) -> np.ndarray:
    """White lines on black, (h, w) uint8."""
    lines = np.zeros((height, width), dtype=np.uint8)
    cv2.circle(lines, (width // 2, height // 2), 40, 255, 2)
    cv2.line(lines, (5, 5), (width - 9, height - 20), 255, 1)
    return lines


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(picture: np.ndarray | Image.Image, name: str = "map.png", **options: object) -> Path:
        path = tmp_path / name
        picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
        picture.save(path, **options)
        return path

    return write


def trained_on(photo: Path, hint: Path | None, condition: Condition, on_the_fly: bool = False) -> torch.Tensor:
    """The hint that training gives the branch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FolderDataset([Item("a", photo, "", hint)], SIZE, condition, on_the_fly)[0]["hint"][0]


def sampled_with(condition: Condition, size: tuple[int, int] = SIZE, **given: str) -> torch.Tensor:
    """The hint that sample.py gives the branch."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return UnitSettings(**given).load(size, condition, lambda _: None)[0]


def shown(lines: np.ndarray, mode: str) -> Image.Image:
    """The drawing as programs save it."""
    clear, grey = np.zeros_like(lines), Image.fromarray(lines)
    light = np.full_like(lines, 255)
    made = {
        "white ink on glass": lambda: Image.fromarray(np.dstack([light, light, light, lines])),
        "black ink on glass": lambda: Image.fromarray(np.dstack([clear, clear, clear, lines])),
        "red ink on glass": lambda: Image.fromarray(np.dstack([light, clear, clear, lines])),
        "grey ink on glass": lambda: Image.merge("LA", [Image.fromarray(clear), grey]),
        "ink on paper": lambda: Image.fromarray(255 - lines),
        "blue ink on paper": lambda: Image.fromarray(np.dstack([255 - lines, 255 - lines, light])),
        "16 bits": lambda: Image.fromarray(lines.astype(np.uint16) * 257),
        "palette": lambda: grey.convert("P"),
        "one bit": lambda: grey.convert("1"),
        "CMYK": lambda: grey.convert("CMYK"),
        "grey": lambda: grey,
    }
    return made[mode]()


MODES = ("white ink on glass", "black ink on glass", "red ink on glass", "grey ink on glass", "ink on paper",
         "blue ink on paper", "16 bits", "palette", "one bit", "CMYK", "grey")  # fmt: skip


# ------------------------------------------------------------------ ready hints


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["canny", "sobel"])
def test_a_ready_map_is_the_same_hint_in_training_and_in_sampling(mode, name, save):
    suffix = "tif" if mode == "CMYK" else "png"
    path, photo = save(shown(strokes(), mode), f"map.{suffix}"), save(scenery(), "photo.png")
    plain = sampled_with(get_condition(name), hint=str(save(strokes(), "plain.png")))
    ours, theirs = trained_on(photo, path, get_condition(name)), sampled_with(get_condition(name), hint=str(path))
    assert torch.equal(ours, theirs)
    assert torch.allclose(theirs, plain, atol=0.01)  # white lines on black, whatever the ink was
    assert 0 < plain.mean() < 0.2


@pytest.mark.parametrize("name", [*FREE, "none"])
def test_a_ready_map_of_every_condition_in_odd_sizes_is_the_same_hint(name, save):
    condition, photo = get_condition(name), save(scenery(), "photo.png")
    for made in (
        scenery(60, 75, 1),
        scenery(239, 299, 2),
        np.repeat(strokes()[:, :, None], 3, 2),
        scenery(64, 80) // 64,
    ):
        path = save(made)
        assert torch.equal(trained_on(photo, path, condition), sampled_with(condition, hint=str(path)))


def test_sixteen_bits_and_holes_are_the_same_hint_through_files_and_caches(save):
    photo = save(scenery(), "photo.png")
    ramp = np.linspace(0, 65535, 120 * 150).astype(np.uint16).reshape(120, 150)
    deep = Depth("unused")
    item = Item("a", photo, "", save(ramp, "depth.png"))
    hint = FolderDataset([item], SIZE, deep)[0]["hint"][0]
    assert torch.equal(hint, load_hint(item.hint, SIZE, condition=deep, notify=lambda _: None))
    assert len(hint.unique()) > 3000
    rgba = np.dstack([scenery(), np.full((120, 150), 255, np.uint8)])
    rgba[30:70, 40:90, 3] = 0
    inpaint, holed = get_condition("inpaint"), save(rgba, "holed.png")
    hole = trained_on(photo, holed, inpaint)
    assert torch.equal(hole, sampled_with(inpaint, hint=str(holed)))
    assert set(hole[:, hole[0] < 0].unique().tolist()) == {-1.0}
    for one in (hint, hole, trained_on(photo, None, get_condition("sobel"))):
        assert torch.equal(restored(stored(one)), one)  # caches lose nothing


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mode", ["grey", "RGB"])
def test_the_colour_that_a_png_calls_transparent_is_transparent_in_any_depth(bits, mode):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size, channels = 16, 3 if mode == "RGB" else 1
    key, other = (160, 4) if bits == 8 else (40000, 1000)
    row = np.repeat(np.where(np.arange(size) < 8, key, other), channels).astype(f">u{bits // 8}").tobytes()
    head = struct.pack(">IIBBBBB", size, size, bits, 2 if mode == "RGB" else 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"tRNS", struct.pack(">H", key) * channels)]
    parts += [(b"IDAT", zlib.compress((b"\0" + row) * size)), (b"IEND", b"")]
    picture = decode(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    assert picture.alpha is not None
    assert picture.alpha.tolist() == [[0.0] * 8 + [1.0] * 8] * size


def test_shards_and_evaluation_read_as_folders_do(tmp_path, save):
    photo, path = save(scenery(), "photo.png"), save(shown(strokes(), "black ink on glass"))
    expected = trained_on(photo, path, get_condition("canny"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, file in (("a.png", photo), ("a.hint.png", path)):
            tar.add(file, name)
    shards = ShardDataset(str(tmp_path / "a.tar"), SIZE, get_condition("canny"), shuffle=0)
    raw = next(iter(shards.stream(0, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(
            ShardDataset(str(tmp_path / "a.tar"), SIZE, get_condition("canny")).decode(raw, 0)[1], expected
        )
        (tmp_path / "list.jsonl").write_text('{"image": "photo.png", "hint": "map.png"}')
        measured = folder_items(get_condition("canny"), SIZE, 1, str(tmp_path / "list.jsonl"))
        assert torch.equal(measured[0]["hint"][0], expected)


def test_training_says_once_that_it_inverts(save):
    photo = save(scenery(), "photo.png")
    items = [Item(str(i), photo, "", save(shown(strokes(), "ink on paper"), f"{i}.png")) for i in range(3)]
    with pytest.warns(UserWarning, match=r"0\.png: dark lines on a light ground, inverted; the same") as told:
        FolderDataset(items, SIZE, get_condition("canny")).__getitems__([0, 1, 2])
    assert len([one for one in told if "inverted" in str(one.message)]) == 1


# ------------------------------------------------------------------ photos


def photographs() -> dict[str, tuple[Image.Image, str, dict]]:
    image = scenery()
    turned = Image.Exif()
    turned[0x0112] = 6
    cut = Image.fromarray(np.dstack([image, (strokes() > 0).astype(np.uint8) * 255]))
    return {
        "plain": (Image.fromarray(image), "png", {}),
        "jpeg, turned": (Image.fromarray(image), "jpg", {"exif": turned}),
        "cut out": (cut, "png", {}),
        "16 bits": (Image.fromarray(image[:, :, 0].astype(np.uint16) * 257), "png", {}),
        "CMYK": (Image.fromarray(image).convert("CMYK"), "tif", {}),
        "palette": (Image.fromarray(image).convert("P"), "png", {}),
    }


@pytest.mark.parametrize("kind", list(photographs()))
@pytest.mark.parametrize("name", ["canny", "color_grid"])
def test_a_photo_becomes_the_same_hint_on_the_fly_in_sampling_and_by_annotate(kind, name, tmp_path, save):
    picture, suffix, options = photographs()[kind]
    path, condition = save(picture, f"photo.{suffix}", **options), get_condition(name)
    expected = sampled_with(condition, photo=str(path))
    assert torch.equal(trained_on(path, None, condition), expected)
    # annotated at the size of the drawing, and at its own: training must not see the difference
    for number, more in enumerate((["--size", "64", "96"], [], ["--resolution", "96"])):
        out = tmp_path / f"set{number}"
        told = ["annotate", str(path), str(out), "--condition", name, "--workers", "0", *more]
        assert cli.main(told) == 0
        (item,) = list_items(out)
        assert item.hint is not None
        ours = trained_on(item.image, item.hint, condition)
        if "--resolution" not in more:  # which resizes the picture twice
            assert torch.equal(ours, expected)
        at = ours.shape[-2:]
        assert torch.equal(ours, sampled_with(condition, (at[0], at[1]), photo=str(item.image)))


def test_a_photo_is_what_it_shows_in_every_format():
    grey = Image.fromarray(np.full((16, 16), 32639, np.uint16))
    buffer = io.BytesIO()
    grey.save(buffer, format="PNG")
    assert abs(int(read_photo(buffer.getvalue()).mean()) - 127) <= 1  # 16 bits
    glass = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    buffer = io.BytesIO()
    glass.save(buffer, format="PNG")
    assert read_photo(buffer.getvalue()).min() == 255  # a cut-out lies on white


def test_a_set_of_another_condition_is_refused_and_a_bright_map_of_annotate_stays(tmp_path, save):
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    photo, out = save(noise, "photo.png"), tmp_path / "set"
    assert cli.main(["annotate", str(photo), str(out), "--condition", "sobel", "--workers", "0"]) == 0
    (item,) = list_items(out)
    sobel = get_condition("sobel")
    made = load_hint(item.hint, SIZE, condition=sobel, notify=lambda _: None)
    assert made.mean() > 0.5  # so dense that it would pass for ink on paper
    assert torch.equal(trained_on(item.image, item.hint, sobel), sampled_with(sobel, photo=str(photo)))
    with pytest.raises(ValueError, match=r"is a map of sobel .* the configuration says canny .*data\.on_the_fly=true"):
        FolderDataset([item], SIZE, get_condition("canny"))[0]


# ------------------------------------------------------------------ the network itself


def test_the_branch_itself_sees_the_same_pixels_while_it_trains_and_while_it_draws(diffusion, save):
    photo, path = save(scenery(64, 64), "photo.png"), save(shown(strokes(64, 64), "ink on paper"))
    control, condition = ControlNet.from_unet(diffusion.unet, hint_widths=(4, 4, 8, 8)), get_condition("canny")
    seen: list[torch.Tensor] = []
    control.hint_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = FolderDataset([Item("a", photo, "", path)], 64, condition)[0]
        hint = UnitSettings(hint=str(path)).load((64, 64), condition, lambda _: None)
    stage = ControlLDM(diffusion, control, torch.optim.SGD)
    stage.branch(batch)(torch.zeros(1, 4, 8, 8), torch.zeros(1, dtype=torch.long), torch.zeros(1, 24, 16))
    control.encode_hint(ControlUnit(control, hint).hint)
    trained, drawn = seen
    assert torch.equal(trained, drawn)


# ------------------------------------------------------------------ masks, depth, inpainting worlds


def test_a_mask_is_what_is_white_and_opaque(save):
    white = strokes() > 0
    drawn = {"grey": white, "white ink on glass": white, "black ink on glass": white, "ink on paper": ~white}
    for mode, expected in drawn.items():
        assert np.array_equal(as_mask(decode(save(shown(strokes(), mode)))), expected)
    with pytest.warns(HintWarning, match="black everywhere"):
        load_mask(save(np.zeros((64, 64), np.uint8)), (64, 64))


def test_normals_of_a_smooth_bowl_are_smooth(monkeypatch):
    """Of a depth map of 8 bits they were 9.5 degrees off."""
    rows, columns = np.mgrid[-1:1:128j, -1:1:128j]
    bowl = (rows**2 + columns**2).astype(np.float32)
    monkeypatch.setattr("cldm.conditions.depth._predict", lambda *_: (bowl, False))
    found = get_condition("normal", folder="unused")(np.zeros((128, 128, 3), np.uint8)).astype(np.float32) / 127.5 - 1
    slope = 3.0 * 128 / 2 * np.stack([2 * columns, 2 * rows], axis=2) * (2 / 127)
    expected = np.dstack([slope, np.ones((128, 128))])
    expected /= np.linalg.norm(expected, axis=2, keepdims=True)
    inside = (slice(4, -4), slice(4, -4))
    cosine = (found * expected).sum(2)[inside] / np.linalg.norm(found, axis=2)[inside]
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).mean() < 1.0


def test_holes_of_scenes_are_minus_one_each_has_its_own_and_real_images_obey_them():
    inpaint = get_condition("inpaint")
    scenes = WorldDataset(get_world("scenes"), 4, 64, "base", keep=("image", "hint"), condition=inpaint)
    batch = scenes.__getitems__(range(4))
    holes = batch["hint"][:, 0] < 0
    assert set(batch["hint"][batch["hint"] < 0].tolist()) == {-1.0}
    assert all(0.2 < hole.float().mean() < 0.7 for hole in holes)
    assert not any(torch.equal(holes[i], holes[j]) for i in range(4) for j in range(i))
    assert hint_scores(batch["image"], batch["hint"], inpaint)["hint_error"].max() < 0.005
    assert hint_scores(-batch["image"], batch["hint"], inpaint)["hint_error"].min() > 0.1
