"""Readers of pictures, lists and checkpoints under bytes that nobody would write: read, or refused in one sentence."""

import json
import struct
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cldm.conditions.pose import read_openpose
from cldm.data.decoding import PictureError, as_mask, decode, on_black, on_white, picture_size
from cldm.data.listing import list_items
from cldm.sampling.jobs import read_jobs
from ldm.interop import schedules
from ldm.interop.published import read
from tests.malformed import GLASS, IMAGE, pickled, png, turned
from tests.test_malformed import DEFAULTS

fuzz = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,  # the same bytes in every run
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SEEDS = [png(), png(GLASS), turned(), png(IMAGE.convert("P")), png(kind="GIF"), png(kind="TIFF"), png(kind="WEBP"),
         png(kind="BMP"), png(IMAGE.convert("CMYK"), "JPEG")]  # fmt: skip
WEIGHTS = [save({"input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}, {"settings": "{}", "prediction": "v"}),
           pickled({"state_dict": {"a": torch.ones(3)}}),
           save({"autoencoder.scale": torch.ones(()), "unet.a": torch.ones(2)})]  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A file in which some bytes are changed, cut out or repeated."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 6))):
        if not content:
            break
        at = draw(st.integers(0, min(len(content) - 1, draw(st.sampled_from([40, 400, 1 << 20])))))
        kind = draw(st.sampled_from(["set", "cut", "drop", "repeat"]))
        if kind == "set":
            content[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + draw(st.integers(1, 30))]
        else:
            content[at:at] = content[at : at + draw(st.integers(1, 30))]
    return bytes(content)


def told(error: Exception, name: str = "") -> None:
    assert str(error)
    assert len(str(error)) < 1000
    assert name in str(error)


@pytest.mark.slow
@fuzz
@given(damaged(SEEDS) | st.binary(max_size=200))
def test_a_picture_is_decoded_or_refused(content):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture = decode(content, name="x.png")
        except PictureError as error:
            told(error)
            return
        finally:
            try:
                picture_size(content, name="x.png")
            except PictureError as error:
                told(error)
    assert on_white(picture).dtype == "uint8"
    assert on_white(picture).shape == on_black(picture).shape == (*as_mask(picture).shape, 3)
    assert 0 <= on_black(picture).min() <= on_black(picture).max() <= 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ("image", "file_name", "text", "prompt", "hint", "source", "size", "seed", "scale", "more", "name", "sampler")
)
SCHEDULER_KEYS = st.sampled_from(("prediction_type", "trained_betas", *schedules.KEYS))
PEOPLE = st.lists(st.fixed_dictionaries({"pose_keypoints_2d": VALUES}), max_size=2)
POSES = st.fixed_dictionaries({"people": VALUES | PEOPLE, "canvas_width": VALUES, "canvas_height": VALUES})
OBJECTS = st.dictionaries(KEYS | st.text(max_size=4), VALUES, max_size=4)


@pytest.mark.slow
@fuzz
@given(st.lists(OBJECTS, max_size=3), st.binary(max_size=30), st.sampled_from(["list.jsonl", "list.csv", "list.json"]))
def test_a_list_is_read_or_refused(tmp_path, objects, more, name):
    path = tmp_path / name
    path.write_bytes("\n".join(map(json.dumps, objects)).encode() + b"\n" + more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            assert all(isinstance(item.caption, str) for item in list_items(path))
        except (ValueError, FileNotFoundError) as error:
            told(error, name)


@pytest.mark.slow
@fuzz
@given(OBJECTS)
def test_a_job_is_read_or_refused(tmp_path, entry):
    (tmp_path / "jobs.jsonl").write_text(json.dumps(entry))
    try:
        (job,) = read_jobs(tmp_path / "jobs.jsonl", DEFAULTS)
        assert isinstance(job.prompt, str)
        assert all(isinstance(side, int) for side in job.size)
    except ValueError as error:
        told(error, "jobs.jsonl")


@fuzz
@given(damaged(WEIGHTS) | st.binary(max_size=200))
def test_a_checkpoint_is_read_or_refused(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    inspected(path)


@fuzz
@given(st.dictionaries(st.sampled_from(["a", "__metadata__", "input_blocks.0.0.weight"]), VALUES, max_size=3))
def test_a_header_of_safetensors_is_read_or_refused(tmp_path, header):
    path, text = tmp_path / "x.safetensors", json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    inspected(path)


@fuzz
@given(st.dictionaries(st.sampled_from(["schedule", "unet", "conditioner", "autoencoder"]), VALUES, max_size=3))
def test_settings_in_metadata_are_read_or_refused(tmp_path, told_settings):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save({"input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}, {"settings": json.dumps(told_settings)}))
    inspected(path)


@fuzz
@given(st.dictionaries(SCHEDULER_KEYS, VALUES, max_size=4))
def test_a_scheduler_is_read_or_refused(tmp_path, config):
    for name, content in (("unet/config.json", {"_class_name": "x"}), ("scheduler/scheduler_config.json", config)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").write_bytes(WEIGHTS[0])
    inspected(tmp_path)


@fuzz
@given(VALUES | POSES)
def test_a_pose_is_read_or_refused(tmp_path, content):
    (tmp_path / "pose.json").write_text(json.dumps(content))
    try:
        read_openpose(tmp_path / "pose.json")
    except ValueError as error:
        told(error)


def inspected(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            published = read(path)
            for name in published.parts:
                published.part(name)
        except (ValueError, OSError) as error:
            told(error)
