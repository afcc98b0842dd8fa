"""Every malformed input of tests/malformed.py comes to its right end: read right, replaced with a warning, or refused
in one sentence that names it."""

import dataclasses
import itertools
import json
import os
import warnings
from pathlib import Path

import cv2
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict
from PIL import Image

from cldm.commands import cli
from cldm.conditions import Condition, get_condition
from cldm.conditions.pose import read_openpose
from cldm.data.datamodule import DataModule
from cldm.data.decoding import PictureError, read_photo
from cldm.data.folder import FolderDataset
from cldm.data.listing import Item, list_items
from cldm.data.transforms import bucket_sizes
from cldm.data.webdataset import ShardDataset, webdataset_data
from cldm.runs.configs import refuse_mistakes
from cldm.sampling.jobs import read_jobs
from ldm.interop.published import read
from tests.conftest import ROOT
from tests.malformed import JOBS, PICTURES, READ, REFUSED, REPLACED, TABLE, Case, evil, photo, png, tar

SIZE = (64, 64)
SOBEL = get_condition("sobel")
DEFAULTS = {"hint": "h.png", "photo": None, "prompt": "a star", "negative": "", "count": 1, "seed": 0, "size": 64,
            "scale": 1.0, "scales": None, "start": 0.0, "end": 1.0, "mode": "balanced", "weighting": None,
            "pool": False, "region": None, "image": None, "strength": 0.75, "mask": None}  # fmt: skip


def good(path: Path) -> Path:
    Image.fromarray(photo()).save(path)
    return path


def dataset(case: Case, folder: Path) -> FolderDataset:
    """The malformed item, and a good one after it."""
    path = folder / "malformed.png"
    case.make(path)
    fine = good(folder / "good.png")
    items = [
        Item("bad", path, "bad") if case.kind == "picture" else Item("bad", fine, "bad", path),
        Item("good", fine, "good"),
    ]
    return FolderDataset(items, SIZE, SOBEL)


def cases(*kinds: str) -> list:
    return [pytest.param(case, id=f"{case.kind}: {case.name}") for case in TABLE if case.kind.startswith(kinds)]


def sentence(text: str, *names: str) -> None:
    assert text
    assert "\n" not in text.strip()
    assert len(text) < 600
    for name in names:
        assert name in text


def test_the_table_has_about_a_hundred_inputs():
    assert 100 <= len(TABLE) <= 200


@pytest.mark.parametrize("case", cases("picture", "map"))
def test_a_picture_or_map_is_read_or_replaced(case, tmp_path):
    data = dataset(case, tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch = data[0]
    replaced = [str(one.message) for one in told if "takes its place" in str(one.message)]
    assert batch["caption"] == (["good"] if case.outcome == REPLACED else ["bad"])
    assert len(replaced) == (case.outcome == REPLACED)
    for message in replaced:
        sentence(message, case.says)
    assert bool(batch["image"].isfinite().all() and batch["hint"].isfinite().all())


def test_a_run_in_buckets_starts_whatever_a_picture_is(tmp_path):
    """One picture over the decoder's limit kept it from starting."""
    items = []
    for i, case in enumerate(PICTURES):
        case.make(tmp_path / f"{i}.png")
        items.append(Item(case.name, tmp_path / f"{i}.png"))
    data = FolderDataset(items, SIZE, SOBEL, buckets=bucket_sizes(64, 32))
    assert len(data.groups) == len(PICTURES)


def test_a_condition_that_fails_on_one_picture_costs_that_picture_only(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Picky(Condition):
        name = "picky"
        polarity = "color"

        def extract(self, image):
            if image.mean() > 200:
                raise cv2.error("assertion failed")
            return image

    Image.new("RGB", (64, 64), "white").save(tmp_path / "white.png")
    items = [Item("white", tmp_path / "white.png", "bad"), Item("good", good(tmp_path / "a.png"), "good")]
    with pytest.warns(UserWarning, match=r"white\.png: condition picky failed: .*takes its place"):
        assert FolderDataset(items, SIZE, Picky())[0]["caption"] == ["good"]


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in PICTURES])
def test_a_picture_is_read_or_refused_in_one_sentence(case, tmp_path):
    path = tmp_path / "malformed.png"
    case.make(path)
    if case.outcome == READ:
        assert min(read_photo(path).shape[:2]) >= 8
        return
    with pytest.raises(PictureError) as caught:
        read_photo(path)
    sentence(str(caught.value), "malformed.png", case.says)


@pytest.mark.parametrize("case", cases("caption", "list", "metadata"))
def test_a_caption_or_list_is_read_or_refused_with_its_name(case, tmp_path, capsys):
    good(tmp_path / "a.png")
    name = "a.txt" if case.kind == "caption" else case.kind
    case.make(tmp_path / name)
    source = tmp_path if case.kind == "caption" or case.kind.startswith("metadata") else tmp_path / name
    if case.outcome == READ:
        (item,) = list_items(source)
        assert item.image == tmp_path / "a.png"
        assert item.caption == case.says
        return
    assert cli.main(["annotate", str(source), str(tmp_path.parent / f"{tmp_path.name}-out"), "--workers", "0"]) == 1
    sentence(capsys.readouterr().err, "error: ", name, case.says)


@pytest.mark.filterwarnings("ignore:.*ReadError")
@pytest.mark.parametrize("case", cases("shard"))
def test_a_shard_is_read_replaced_or_refused(case, tmp_path):
    case.make(tmp_path / "a.tar")
    tar(a_png=png())(tmp_path / "good.tar")
    (tmp_path / "good.tar").write_bytes((tmp_path / "good.tar").read_bytes() + bytes(512))  # no copy of the other
    urls, good = str(tmp_path / "a.tar"), str(tmp_path / "good.tar")

    def data(train: str, held_out: str) -> DataModule:
        return webdataset_data(SOBEL, None, train, held_out, 64, 2, val_count=2, shuffle=0)

    if case.outcome in (REFUSED, REPLACED):  # what is measured on is never replaced
        with pytest.raises(ValueError, match=case.says) as caught:
            data(good, urls)
        sentence(str(caught.value), "a.tar")
    if case.outcome == REFUSED:
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        batch = next(iter(data(urls, good).train.batches(2)))
    replaced = [str(one.message) for one in told if "takes its place" in str(one.message)]
    expected = "the good one" if case.outcome == REPLACED else case.says
    assert set(batch["caption"]) == {expected, "the good one"}
    assert bool(replaced) == (case.outcome == REPLACED)
    for message in replaced:
        sentence(message, case.says, "a.tar")


@pytest.mark.filterwarnings("ignore:.*ReadError")
def test_training_on_shards_without_samples_ends_and_does_not_wait_for_ever(tmp_path):
    (tmp_path / "a.tar").write_text("not a tar")
    shards = ShardDataset(str(tmp_path / "a.tar"), 64, SOBEL, shuffle=0)
    with pytest.raises(ValueError, match="hold no readable samples"):
        list(itertools.islice(shards.batches(2), 1))


@pytest.mark.parametrize("case", cases("checkpoint", "folder"))
def test_a_checkpoint_is_refused_in_one_sentence(case, tmp_path, capsys):
    path = tmp_path / "malformed"
    case.make(path)
    assert cli.main(["inspect", str(path)]) == 1
    sentence(capsys.readouterr().err, "error: ", "malformed", case.says)
    assert os.listdir(tmp_path) in (["malformed"], [])


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in JOBS])
def test_a_job_line_is_read_or_refused_with_its_number(case, tmp_path):
    path = tmp_path / "jobs.jsonl"
    case.make(path)
    if case.outcome == READ:
        assert read_jobs(path, DEFAULTS)[0].prompt == case.says
        return
    with pytest.raises(ValueError) as caught:
        read_jobs(path, DEFAULTS)
    sentence(str(caught.value), "jobs.jsonl", case.says)


@pytest.mark.parametrize("case", cases("sample", "train"))
def test_an_override_is_refused_in_one_sentence(case, monkeypatch):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(case.kind, overrides=[case.name], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        with pytest.raises(SystemExit) as caught:
            refuse_mistakes(cfg)
    sentence(str(caught.value), case.says)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(evil())
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("the pickle ran a command"))
    with pytest.raises(ValueError, match="could run code"):
        read(tmp_path / "x")


BODY = [value for i in range(25) for value in (10.0 + i, 20.0 + i, 0.9)]


def test_poses_of_openpose_itself_are_read(tmp_path):
    """25 points of a body, no canvas, null points, a list of one frame."""
    own = {"version": 1.3, "people": [{"pose_keypoints_2d": BODY, "hand_left_keypoints_2d": []}]}
    (tmp_path / "own.json").write_text(json.dumps(own))
    (person,), size = read_openpose(tmp_path / "own.json", (64, 96))
    assert size == (64, 96)
    assert len(person.body) == 18
    assert (person.body[7], person.body[8], person.body[17]) == ((17, 27), (19, 29), (28, 38))  # without the mid hip
    with pytest.raises(ValueError, match=r"own\.json does not say its canvas .*size=\(height, width\)"):
        read_openpose(tmp_path / "own.json")
    frame = {"canvas_width": 96, "canvas_height": 64, "people": [{"pose_keypoints_2d": [None] * 54}]}
    (nobody,), size = read_openpose([frame])
    assert size == (64, 96)
    assert set(nobody.body) == {None}
    with pytest.raises(ValueError, match="holds 2 frames"):
        read_openpose([frame, frame])
    assert read_openpose({**frame, "people": None})[0] == []
