"""Promises of data on disk: what is listed, how it is cut, in which order it comes, and that nothing is lost."""

import io
import itertools
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from cldm.conditions import get_condition
from cldm.conditions.canny import Canny
from cldm.conditions.scribble import Scribble
from cldm.data.datamodule import DataModule, StepSampler
from cldm.data.fill50k import draw, write_fill50k
from cldm.data.folder import FolderDataset, folder_data, split
from cldm.data.listing import Item, list_items
from cldm.data.transforms import (
    Augment,
    bucket_sizes,
    check_alike,
    check_size,
    cover,
    cover_map,
    may_flip,
    nearest_bucket,
)
from cldm.data.webdataset import ShardDataset, expand, webdataset_data
from cldm.evaluation.held_out import folder_items
from ldm.batch import Batch
from ldm.files import json_lines


def photo(number: int, height: int = 72, width: int = 96) -> np.ndarray:
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A plain folder of twelve pictures in two shapes, captions beside some."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(12):
        path = folder / f"part{i % 2}" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(i, *((72, 96) if i % 3 else (120, 64)))).save(path)
        if i % 4:
            path.with_suffix(".txt").write_text(f"picture {i}\n")
    return folder


# ------------------------------------------------------------------ listings


def test_a_plain_folder_is_listed_through_its_subfolders_with_sidecar_captions(photos):
    items = list_items(photos)
    assert [item.name for item in items] == sorted(f"part{i % 2}/{i:02d}.png" for i in range(12))
    captions = {item.name: item.caption for item in items}
    assert captions["part1/05.png"] == "picture 5"
    assert captions["part0/04.png"] == ""


def test_captions_in_files_that_are_not_read_are_told(tmp_path, recwarn):
    for i, (ending, text) in enumerate([(".TXT", "one"), (".caption", "two"), (".json", '{"caption": "three"}')]):
        folder = tmp_path / str(i)
        folder.mkdir()
        Image.fromarray(photo(0)).save(folder / "a.png")
        (folder / f"a{ending}").write_text(text)
    assert [item.caption for item in list_items(tmp_path / "0")] == ["one"]
    assert not recwarn
    for i in (1, 2):
        with pytest.warns(UserWarning, match=r"no picture has a caption, and 1 have a \.\w+ file beside"):
            list_items(tmp_path / str(i))


def test_hugging_face_image_folders_are_read_with_their_hints(tmp_path):
    for name in ("a.png", "b.png", "hint_a.png"):
        Image.fromarray(photo(0)).save(tmp_path / name)
    lines = [{"file_name": "a.png", "text": "first", "conditioning_image": "hint_a.png"}, {"file_name": "b.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second = list_items(tmp_path)
    assert (first.caption, first.hint) == ("first", tmp_path / "hint_a.png")
    assert (second.caption, second.hint) == ("", None)


def test_json_lines_name_pictures_relative_to_themselves_and_may_repeat_them(tmp_path):
    (tmp_path / "list.jsonl").write_text(
        '{"image": "x/a.jpg", "caption": "é"}\n\n{"image": "x/a.jpg", "text": "two"}\n'
    )
    items = list_items(tmp_path / "list.jsonl")
    assert [item.name for item in items] == ["x/a.jpg", "x/a-2.jpg"]
    assert [item.caption for item in items] == ["é", "two"]
    assert items[0].image == items[1].image == tmp_path / "x" / "a.jpg"
    (tmp_path / "up.jsonl").write_text('{"image": "../../etc/a.jpg"}')
    assert list_items(tmp_path / "up.jsonl")[0].name == "etc/a.jpg"  # never leaves an output folder


@pytest.mark.parametrize(("line", "complaint"), [("{oops", "line 1 is no JSON"), ("3", "line 1 must be a JSON object"),
                                                 ('{"text": "a"}', "line 1 names no picture")])  # fmt: skip
def test_a_bad_line_is_named(tmp_path, line, complaint):
    (tmp_path / "list.jsonl").write_text(line)
    with pytest.raises(ValueError, match=complaint):
        list_items(tmp_path / "list.jsonl")


def test_nothing_to_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no pictures"):
        list_items(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such"):
        list_items(tmp_path / "none")


# ------------------------------------------------------------------ fill50k


def test_fill50k_is_drawn_in_the_published_layout_and_the_outline_lies_on_the_circle(tmp_path):
    write_fill50k(3, tmp_path, side=128)
    lines = [json.loads(line) for line in (tmp_path / "prompt.json").read_text().splitlines()]
    assert lines[1].keys() == {"source", "target", "prompt"}
    assert lines[2]["source"] == "source/2.png"
    source, target, prompt = draw(1, 128)
    assert np.array_equal(np.asarray(Image.open(tmp_path / lines[1]["target"])), target)
    assert lines[1]["prompt"] == prompt
    assert " circle with " in prompt
    edges = cv2.dilate(cv2.Canny(target, 20, 40), np.ones((5, 5)))
    assert edges[source[:, :, 0] > 0].mean() > 0.95 * 255
    items = list_items(tmp_path)
    assert len(items) == 3
    assert all(item.hint and item.hint.is_file() for item in items)


def test_drawing_goes_on_after_a_kill_without_drawing_again(tmp_path):
    write_fill50k(3, tmp_path, side=64)
    before = (tmp_path / "target/0.png").stat().st_mtime_ns
    (tmp_path / "target/2.png").unlink()
    write_fill50k(4, tmp_path, side=64)
    assert (tmp_path / "target/0.png").stat().st_mtime_ns == before
    assert len(list_items(tmp_path)) == 4
    assert all(item.image.is_file() for item in list_items(tmp_path))


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize(("size", "near"), [(100, 96), ([64, 65], 64), (4, 8), (0, 8)])
def test_a_size_that_is_no_multiple_of_8_is_refused_early_with_one_that_is(photos, size, near):
    with pytest.raises(ValueError, match=rf"data\.size=.*multiples of 8.*{near} is near"):
        folder_data(Canny(), None, str(photos), size, 2)


def test_buckets_have_the_asked_area_at_most_and_legal_sides():
    buckets = bucket_sizes(512)
    assert (512, 512) in buckets
    assert all(h % 64 == w % 64 == 0 and h * w <= 512**2 and 0.5 <= w / h <= 2 for h, w in buckets)
    assert buckets[nearest_bucket((1000, 1000), buckets)] == (512, 512)
    tall = buckets[nearest_bucket((1500, 1000), buckets)]
    assert tall[0] / tall[1] == pytest.approx(1.5, rel=0.12)
    assert check_size([64, 128]) == (64, 128)


def test_cover_keeps_the_aspect_and_cuts_image_and_hint_alike():
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    cv2.circle(image, (60, 50), 20, (255, 255, 255), -1)
    for at in ((0.5, 0.5), (0.3, 0.1)):
        cut = cover(image, (64, 64), at)
        hint = cover_map(image.astype(np.float32) / 255, (64, 64), get_condition("sobel"), at)
        assert cut.shape == hint.shape == (64, 64, 3)
        assert np.abs(cut / 255 - hint).max() <= 0.51 / 255
        ys, xs = np.nonzero(cut[:, :, 0] > 127)
        assert np.ptp(ys) == pytest.approx(np.ptp(xs), abs=2) or xs.min() == 0  # a circle stays one
    check_alike({"image": (100, 200), "hint": (50, 100)})
    with pytest.raises(ValueError, match="their shapes differ"):
        check_alike({"image": (100, 200), "hint": (100, 150)})


# ------------------------------------------------------------------ samples


@pytest.fixture(scope="module")
def fill(tmp_path_factory):
    return write_fill50k(13, tmp_path_factory.mktemp("fill"), side=64)


def test_samples_keep_the_batch_contract(fill):
    batch = FolderDataset(list_items(fill), 64, Canny()).__getitems__([3, 0])
    assert batch.keys() == {"image", "hint", "caption", "id"}
    assert batch.keys() <= Batch.__annotations__.keys()
    assert batch["image"].shape == batch["hint"].shape == (2, 3, 64, 64)
    assert batch["id"].tolist() == [3, 0]
    source, target, prompt = draw(3, 64)
    assert torch.equal(batch["hint"][0], torch.from_numpy(source).permute(2, 0, 1) / 255.0)
    assert torch.equal(batch["image"][0], torch.from_numpy(target).permute(2, 0, 1).float() / 127.5 - 1)
    assert batch["caption"][0] == prompt


def test_hints_are_made_on_the_fly_where_none_is_ready_or_where_asked_for(fill, photos):
    made = FolderDataset(list_items(photos), 64, Canny())[1]
    assert set(made["hint"].unique().tolist()) == {0, 1}
    ready, fly = (FolderDataset(list_items(fill), 64, Canny(), on_the_fly=f)[1] for f in (False, True))
    assert torch.equal(ready["image"], fly["image"])
    assert not torch.equal(ready["hint"], fly["hint"])
    target = draw(1, 64)[1]
    assert torch.equal(fly["hint"][0], torch.from_numpy(Canny()(target)).permute(2, 0, 1) / 255.0)
    with pytest.raises(ValueError, match="'pose' cannot be computed"):
        FolderDataset(list_items(photos), 64, get_condition("pose"))
    with pytest.raises(ValueError, match=r"set data\.on_the_fly=true"):
        FolderDataset(list_items(fill), 64, Canny(), augment=Augment(vary=True))


def test_a_flip_mirrors_image_and_hint_together_and_only_where_it_may(fill):
    items = list_items(fill)
    plain, flipped = (FolderDataset(items, 64, Canny(), augment=Augment(flip=p))[4] for p in (0.0, 1.0))
    assert torch.equal(flipped["image"], plain["image"].flip(-1))
    assert torch.equal(flipped["hint"], plain["hint"].flip(-1))
    normal = get_condition("normal", folder="unused")
    for augment, same in ((Augment(flip=1.0), True), (Augment(flip=1.0, flip_all=True), False)):
        kept = FolderDataset(items, 64, normal, augment=augment)[4]["image"]
        assert torch.equal(kept, plain["image"]) == same
    assert not may_flip("a star left of a ring", Canny(), False)
    assert not may_flip("a shop with a Sign", Canny(), True)
    assert may_flip("a cleft stick", Canny(), True)
    assert may_flip("a person", get_condition("pose"), ready_made=False)
    assert not may_flip("a person", get_condition("pose"), ready_made=True)


SIDED = """left Left leftmost leftward leftwards lefthand left-hand lefthanded left_of right rightmost rightward
    right-handed clockwise counterclockwise anticlockwise counter-clockwise text texts word words wording letter letters
    lettering writing writings handwriting handwritten written inscription sign signs signage signpost street-sign
    holding_sign signature logo logos caption captions captioned subtitles watermark
    says saying labeled labelled titled number digits numeral licence-plate license-plate number-plate alphabet
    typography font calligraphy east westward o'clock o\u2019clock clock
    'hello' \u2018hello\u2019 "hello" \u201chello\u201d"""
UNSIDED = """bright brightly copyright upright upright-piano leftover leftovers cleft righteous fright design designs
    signal signals resigned swords sword password texture textile context letterbox lettuce captain writer logotherapy
    wordless western beast yeast essays numb don't dogs' fontaine outnumber plate clockwork"""


@pytest.mark.parametrize(("words", "flips"), [(SIDED, False), (UNSIDED, True)])
def test_a_caption_that_names_a_side_or_text_is_not_mirrored_and_one_with_a_word_alike_is(words, flips):
    sentences = {word: f"a house, {word}, and a tree" for word in words.split()}
    assert {word for word, caption in sentences.items() if may_flip(caption, Canny(), False) != flips} == set()


def test_augmentation_is_a_function_of_the_draw_alone(photos):
    augment = Augment(flip=0.5, random_crop=True, vary=True)
    data, again = (FolderDataset(list_items(photos), 32, Scribble(), augment=augment, seed=3) for _ in range(2))
    n = len(data)
    first = data.__getitems__([5, 5 + n, 5 + 2 * n])
    assert first["id"].tolist() == [5, 5, 5]
    assert not torch.equal(first["image"][0], first["image"][1]) or not torch.equal(
        first["image"][0], first["image"][2]
    )
    for i, index in enumerate((5, 5 + n, 5 + 2 * n)):
        one = again[index]
        assert torch.equal(one["image"][0], first["image"][i])
        assert torch.equal(one["hint"][0], first["hint"][i])


def test_an_unreadable_picture_is_replaced_with_a_warning(tmp_path, photos):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    items = [Item("broken.png", broken), *list_items(photos)[:2]]
    data = FolderDataset(items, 32, Canny(), buckets=bucket_sizes(64, 32))
    with pytest.warns(UserWarning, match=r"broken\.png: it is empty.*the next item takes its place"):
        batch = data[0]
    assert batch["caption"] == [items[1].caption]
    with pytest.warns(UserWarning, match="it is empty"), pytest.raises(ValueError, match="20 pictures in a row"):
        FolderDataset([items[0]], 32, Canny())[0]


def test_inpainting_holes_in_files_reach_the_hint_as_minus_one(tmp_path):
    image = photo(1, 64, 64)
    Image.fromarray(image).save(tmp_path / "a.png")
    alpha = np.full((64, 64), 255, dtype=np.uint8)
    alpha[10:30, 20:40] = 0
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "hole.png")
    hint = FolderDataset([Item("a", tmp_path / "a.png", "", tmp_path / "hole.png")], 32, get_condition("inpaint"))[0][
        "hint"
    ]
    assert (hint[0, :, 6:14, 11:19] == -1).all()
    assert hint[0, :, 16:].min() >= 0


def test_what_is_held_out_depends_on_names_alone(photos):
    items = list_items(photos)
    train, held_out = split(items, 4)
    assert len(held_out) == 4
    assert not {i.name for i in train} & {i.name for i in held_out}
    _, reversed_held_out = split(items[::-1], 4)
    assert {i.name for i in held_out} == {i.name for i in reversed_held_out}
    with pytest.raises(ValueError, match=r"data\.val_count=12 must be"):
        split(items, 12)


def test_pictures_that_are_added_hold_out_nothing_that_was_trained_on_before(photos):
    items = list_items(photos)
    for before in range(5, len(items)):
        trained, _ = split(items[:before], 4)
        for after in range(before, len(items)):
            assert not {i.name for i in split(items[: after + 1], 4)[1]} & {i.name for i in trained}


# ------------------------------------------------------------------ order


def global_batches(world: int, batch_size: int, count: int, start: int = 0, **options) -> list[set[int]]:
    ranks = [StepSampler(50, batch_size, 1, rank, world, start, **options) for rank in range(world)]
    return [{i for batch in step for i in batch} for step in itertools.islice(zip(*ranks, strict=True), count)]


@pytest.mark.parametrize("options", [{}, {"groups": [i % 3 for i in range(50)]}, {"numbered": True}])
def test_the_global_batches_are_the_same_whatever_the_number_of_ranks(options):
    alone = global_batches(1, 8, 20, **options)
    assert global_batches(2, 4, 20, **options) == alone
    assert global_batches(4, 2, 20, **options) == alone
    assert global_batches(2, 4, 9, start=11, **options) == alone[11:]


def test_a_bucket_batch_has_one_size_and_numbers_tell_epochs(photos):
    data = FolderDataset(list_items(photos), 64, Canny(), buckets=bucket_sizes(64, 16))
    assert len(set(data.groups)) == 2
    for batch in itertools.islice(StepSampler(12, 2, 0, groups=data.groups), 12):
        assert len({data.groups[i] for i in batch}) == 1
        assert data.__getitems__(batch)["image"].shape[-2:] == data.buckets[data.groups[batch[0]]]
    numbers = list(itertools.chain(*itertools.islice(StepSampler(12, 4, 0, numbered=True), 6)))
    assert {n // 12 for n in numbers[:12]} == {0}
    assert {n // 12 for n in numbers[12:]} == {1}
    with pytest.warns(UserWarning, match="4 of 12 samples are in buckets too small"):
        StepSampler(12, 5, 0, groups=data.groups)


def loaded(data: DataModule, count: int, **where) -> list[Batch]:
    trainer = {"global_rank": 0, "world_size": 1, "global_step": 0, "accumulate_grad_batches": 1, **where}
    data.trainer = SimpleNamespace(**trainer)
    return list(itertools.islice(data.train_dataloader(), count))


def assert_same(a: list[Batch], b: list[Batch]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one["caption"] == other["caption"]
        assert torch.equal(one["id"], other["id"])
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["hint"], other["hint"])


def test_workers_and_resuming_change_nothing_even_with_augmentation(photos):
    augment = Augment(flip=0.5, random_crop=True, vary=True)
    options = {"val_count": 2, "augment": augment, "buckets": True, "bucket_step": 16, "seed": 7}
    alone = folder_data(Canny(), None, str(photos), 64, 2, **options)
    straight = loaded(alone, 11)
    assert_same(loaded(folder_data(Canny(), None, str(photos), 64, 2, workers=2, **options), 11), straight)
    assert_same(loaded(alone, 4, global_step=7), straight[7:])


# ------------------------------------------------------------------ shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(3):
        with tarfile.open(folder / f"{shard:04d}.tar", "w") as tar:
            for i in range(5):
                number, buffer = shard * 5 + i, io.BytesIO()
                Image.fromarray(photo(number)).save(buffer, format="PNG")
                content = b"oops" if number == 7 else buffer.getvalue()
                for ending, data in (("png", content), ("txt", f"picture {number}".encode())):
                    info = tarfile.TarInfo(f"{number:03d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    another(folder / "0000.tar")
    return str(folder / "{0000..0002}.tar")


def another(shard: Path) -> Path:
    """held.tar beside a shard: the same samples in other bytes, for tests that do not care what is measured."""
    path = shard.with_name("held.tar")
    path.write_bytes(shard.read_bytes() + bytes(512))
    return path


def held(shards: str) -> list[str]:
    return [str(Path(shards).with_name("held.tar"))]


def shard_data(shards: str, **options) -> DataModule:
    return webdataset_data(Canny(), None, shards, held(shards), 32, 2, val_count=3, shuffle=4, seed=1, **options)


@pytest.mark.filterwarnings("ignore:cannot use image")
def test_shards_go_round_for_ever_and_every_sample_has_its_turn(shards):
    data = shard_data(shards)
    batches = loaded(data, 40)
    captions = [caption for batch in batches for caption in batch["caption"]]
    assert set(captions) == {f"picture {i}" for i in range(15)} - {"picture 7"}
    assert len(data.validation) == 3
    assert data.validation.__getitems__([1])["caption"] == ["picture 1"]
    assert batches[0]["image"].shape == batches[0]["hint"].shape == (2, 3, 32, 32)


@pytest.mark.filterwarnings("ignore:cannot use image")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_very_same_shard_samples(shards, workers):
    straight = loaded(shard_data(shards, workers=workers), 12)
    assert_same(loaded(shard_data(shards, workers=workers), 5, global_step=7), straight[7:])


def test_ranks_and_workers_read_different_shards(shards):
    data = ShardDataset(shards, 32, Canny(), shuffle=0)
    firsts = [next(data.stream(number, 3))["__url__"] for number in range(3)]
    assert len(set(firsts)) == 3
    assert next(data.stream(5, 7)) is not None  # more streams than shards: none is empty


def test_two_ranks_with_two_workers_see_every_sample_once_an_epoch_and_resume_where_they_were(tmp_path):
    for shard in range(4):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for i in range(4):
                buffer = io.BytesIO()
                Image.fromarray(photo(4 * shard + i)).save(buffer, format="PNG")
                info = tarfile.TarInfo(f"{4 * shard + i:03d}.png")
                info.size = buffer.tell()
                tar.addfile(info, io.BytesIO(buffer.getvalue()))
    urls = str(tmp_path / "{0..3}.tar")

    own = str(another(tmp_path / "0.tar"))

    def seen(rank: int, count: int, **where) -> list[Batch]:
        data = webdataset_data(Canny(), None, urls, [own], 32, 2, val_count=1, shuffle=0, seed=1, workers=2)
        return loaded(data, count, world_size=2, global_rank=rank, **where)

    ranks = [seen(rank, 8) for rank in range(2)]
    for epoch in range(2):  # of 16 samples: 4 batches of 2 on each rank
        ids = [batch["id"].tolist() for batches in ranks for batch in batches[4 * epoch : 4 * epoch + 4]]
        flat = [i for pair in ids for i in pair]
        assert len(flat) == len(set(flat)) == 16
    assert_same(seen(1, 3, global_step=5), ranks[1][5:])


def one_shard(path: Path, count: int, **endings: bytes) -> list[str]:
    """A shard of `count` pictures with captions, and the same content under every other ending (a_b for a.b)."""
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            buffer = io.BytesIO()
            Image.fromarray(photo(i)).save(buffer, format="PNG")
            files = {"png": buffer.getvalue(), "txt": f"picture {i}".encode()}
            for ending, data in {**files, **{name.replace("_", "."): data for name, data in endings.items()}}.items():
                info = tarfile.TarInfo(f"{i:03d}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return [str(path)]


def white(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 72), "white").save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_share_one_shard_without_giving_a_sample_twice_at_a_time_and_resume_where_they_were(tmp_path, workers):
    urls, own = one_shard(tmp_path / "a.tar", 16), one_shard(tmp_path / "b.tar", 1, x=b"")

    def seen(rank: int, count: int, **where) -> list[Batch]:
        data = webdataset_data(Canny(), None, urls, own, 32, 2, val_count=1, shuffle=0, workers=workers)
        return loaded(data, count, world_size=2, global_rank=rank, **where)

    ranks = [seen(rank, 8) for rank in range(2)]
    steps = [{*a["caption"], *b["caption"]} for a, b in zip(*ranks, strict=True)]
    assert [len(step) for step in steps] == [4] * 8
    for epoch in range(2):
        assert set.union(*steps[4 * epoch : 4 * epoch + 4]) == {f"picture {i}" for i in range(16)}
    assert_same(seen(1, 3, global_step=5), ranks[1][5:])


@pytest.mark.parametrize("name", ["hint", "source"])
@pytest.mark.parametrize("form", ["png", "jpg", "jpeg", "webp"])
def test_ready_hints_in_shards_are_read_in_every_format_of_pictures(tmp_path, name, form):
    content = white("JPEG" if form.startswith("jp") else form)
    raw = next(ShardDataset(one_shard(tmp_path / "a.tar", 1, **{f"{name}_{form}": content}), 32, Canny()).stream(0, 1))
    for condition in ("none", "color_grid"):
        data = ShardDataset([str(tmp_path / "a.tar")], 32, get_condition(condition))
        assert data.decode(raw, 0)[1].min() > 0.99


def test_shards_whose_hints_cannot_be_as_asked_for_are_refused_in_a_sentence(tmp_path):
    own = one_shard(tmp_path / "own.tar", 1, x=b"")
    plain = one_shard(tmp_path / "plain.tar", 2)
    ready = one_shard(tmp_path / "ready.tar", 2, hint_jpg=white("JPEG"))
    other = one_shard(tmp_path / "other.tar", 2, hint_npy=b"x")

    def data(urls: list[str], condition: str = "canny", **options) -> DataModule:
        return webdataset_data(get_condition(condition), None, urls, own, 32, 1, val_count=1, **options)

    with pytest.raises(ValueError, match=r"set data\.on_the_fly=true, or vary=false"):
        data(ready, augment=Augment(vary=True))
    data(ready, augment=Augment(vary=True), on_the_fly=True)
    with pytest.raises(ValueError, match=r"000 has a hint that is not read, \.hint\.npy; hints end in hint\.png"):
        data(other)
    with pytest.raises(ValueError, match=r"000 has no ready-made hint, but condition 'pose' cannot be computed"):
        data(plain, "pose")
    with pytest.raises(ValueError, match=r"000 has no ready-made hint, and condition=none makes it its own hint"):
        data(plain, "none").check_hints()
    for meant in (data(plain, "none", on_the_fly=True), data(ready, "none"), data(plain)):
        meant.check_hints()
    with pytest.raises(ValueError, match=r"data.val_count=0 must be at least 1"):
        webdataset_data(Canny(), None, plain, own, 32, 1, val_count=0)


def test_a_folder_of_pictures_that_would_be_their_own_hints_is_refused_for_a_branch(photos, fill):
    none = get_condition("none")
    with pytest.raises(ValueError, match=r"has no ready-made hint, and condition=none makes it its own hint"):
        folder_data(none, None, str(photos), 64, 2, val_count=2).check_hints()
    folder_data(none, None, str(photos), 64, 2, val_count=2, on_the_fly=True).check_hints()
    folder_data(none, None, str(fill), 64, 2, val_count=2).check_hints()
    with pytest.raises(ValueError, match=r"data.val_count=0 must be at least 1"):
        folder_data(none, None, str(fill), 64, 2, val_count=0, val_path=str(photos))


def test_a_broken_sample_is_replaced_and_commands_are_not_run(shards):
    data = ShardDataset(shards, 32, Canny(), shuffle=0)
    raws = [raw for raw in itertools.islice(data.stream(0, 1), 15) if raw["__key__"] in ("006", "007")]
    with pytest.warns(UserWarning, match="another sample of the batch takes its place"):
        batch = data.collate(raws, 0)
    assert batch["caption"] == ["picture 6", "picture 6"]
    with pytest.raises(ValueError, match=r"commands \(pipe:\) are not run"):
        expand("pipe:cat x.tar")


def test_held_out_shards_are_others_and_every_sample_of_theirs_counts(shards):
    def data(val_urls: list[str], count: int) -> DataModule:
        return webdataset_data(Canny(), None, shards, val_urls, 32, 2, val_count=count)

    with pytest.raises(ValueError, match=r"data.val_urls names 1 shards that are trained on"):
        data(expand(shards)[:1], 3)
    with pytest.raises(ValueError, match=r"hold 5 samples, data.val_count=6"):
        data(held(shards), 6)
    renamed = Path(shards).with_name("renamed.tar")
    with pytest.raises(ValueError, match=r"names 1 shards that are trained on \(.*renamed.tar"):
        data([str(shutil.copy(expand(shards)[1], renamed))], 3)
    broken = [str(another(renamed))]  # of which the third cannot be read
    assert len(data(broken, 2).validation) == 2
    with pytest.raises(ValueError, match=r"007.*mend it or take it out"):
        data(broken, 3)


def test_lists_of_an_image_folder_name_a_picture_by_any_way_to_it(photos, tmp_path, monkeypatch):
    """`..` in a name, absolute names below a folder that is given by a relative one, a link: the same picture."""
    for place in ("images", "maps"):
        (tmp_path / "set" / place).mkdir(parents=True)
        for i in range(4):
            shutil.copy(list_items(photos)[i].image, tmp_path / "set" / place / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    os.symlink(tmp_path / "set", tmp_path / "link")
    for folder in ("set", tmp_path / "set", "link"):
        for name in ("{i}.png", f"{tmp_path}/link/images/{{i}}.png", "../images/{i}.png"):
            lines = [{"file_name": name.format(i=i), "text": f"no {i}", "hint": f"../maps/{i}.png"} for i in range(4)]
            (tmp_path / "set" / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
            items = list_items(folder)
            assert [(item.name, item.caption) for item in items] == [(f"images/{i}.png", f"no {i}") for i in range(4)]
            assert [item.hint.resolve() for item in items] == [tmp_path / "set" / "maps" / f"{i}.png" for i in range(4)]
    (tmp_path / "set" / "images" / "metadata.jsonl").write_text('{"file_name": "9.png", "text": "gone"}')
    with pytest.warns(UserWarning, match=r"name 1 pictures that are not there, .*9\.png first"):
        assert len(list_items("set")) == 8


def test_a_folder_has_all_captions_of_a_picture_as_its_list_has(photos, tmp_path):
    for i in range(3):
        shutil.copy(list_items(photos)[i].image, tmp_path / f"{i}.png")
    lines = [{"file_name": f"{i}.png", "text": f"no {i}, said {again}"} for i in range(3) for again in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert list_items(tmp_path) == list_items(tmp_path / "metadata.jsonl")
    assert [item.name for item in list_items(tmp_path)][:2] == ["0.png", "0-2.png"]


def test_items_have_names_of_their_own_whatever_pictures_are_called(photos, tmp_path):
    for name in ("p.png", "p-2.png", "q.png", "r.png"):
        shutil.copy(list_items(photos)[0].image, tmp_path / name)
    lines = [{"file_name": "p.png", "text": "one"}, {"file_name": "p.png", "text": "two"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps({"image": f"{name}.png"}) for name in ("p", "p", "p-2")))
    assert [item.name for item in list_items(tmp_path)] == ["p-2.png", "p.png", "p-3.png", "q.png", "r.png"]
    assert [item.name for item in list_items(tmp_path / "list.jsonl")] == ["p.png", "p-3.png", "p-2.png"]
    for count in (1, 2, 3):
        train, held_out = split(list_items(tmp_path), count)
        assert len(held_out) == count == len({item.image for item in held_out})
        assert not {item.image for item in train} & {item.image for item in held_out}


def test_a_picture_is_measured_once_whatever_its_captions_and_its_names(photos, tmp_path):
    pictures = [item.image for item in list_items(photos)][:3]
    lines = [{"image": str(path), "text": f"said {i} times"} for path in pictures for i in range(3)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "train").mkdir()
    for i, item in enumerate(list_items(photos)[4:8]):
        shutil.copy(item.image, tmp_path / "train" / f"{i}.png")

    def data(count: int) -> DataModule:
        return folder_data(Canny(), None, str(tmp_path / "train"), 64, 2, count, str(tmp_path / "list.jsonl"))

    assert [item.image for item in data(3).validation.items] == pictures
    with pytest.raises(ValueError, match=r"data.val_count=4, data.val_path=.*list.jsonl, but there are 3 pictures"):
        data(4)
    assert len(folder_items(Canny(), 64, 3, str(tmp_path / "list.jsonl"))) == 3
    with pytest.raises(ValueError, match=r"items=4 of .*list.jsonl, but there are 3 pictures"):
        folder_items(Canny(), 64, 4, str(tmp_path / "list.jsonl"))
    shutil.copy(pictures[1], tmp_path / "train" / "renamed.png")
    with pytest.raises(ValueError, match=r"1 held-out pictures are in data.path too"):
        data(3)


def test_of_held_out_pictures_that_cannot_be_read_none_is_measured_in_their_place(photos, tmp_path):
    photos = shutil.copytree(photos, tmp_path / "photos")
    chosen = [item.image for item in folder_data(Canny(), None, str(photos), 64, 2, val_count=4).validation.items]
    chosen[1].write_bytes(b"oops")
    with pytest.warns(
        UserWarning, match=rf"1 of 4 held-out pictures cannot be used \(.*{chosen[1].name}.*left out"
    ) as told:
        data = folder_data(Canny(), None, str(photos), 64, 2, val_count=4)
    assert len(told) == 1
    assert [item.image for item in data.validation.items] == [chosen[0], *chosen[2:]]
    for path in chosen:
        path.write_bytes(b"oops")
    with pytest.raises(ValueError, match="4 of 4 held-out pictures cannot be used"):
        folder_data(Canny(), None, str(photos), 64, 2, val_count=4)


def test_a_picture_is_trained_on_or_held_out_with_all_its_captions(photos, tmp_path):
    pictures = [item.image for item in list_items(photos)][:6]
    lines = [{"image": str(path), "text": f"{path.stem}, said {i} times"} for path in pictures for i in range(5)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = folder_data(Canny(), None, str(tmp_path / "list.jsonl"), 32, 2, val_count=2)
    trained, measured = ([item.image for item in part.items] for part in (data.train, data.validation))
    assert len(trained) == 4 * 5
    assert len(measured) == len({*measured}) == 2
    assert not {*measured} & {*trained}


def test_only_a_newline_ends_a_line_and_half_a_character_is_named(tmp_path):
    text = "a red house\u2028with a door\u0085and\u2029more"
    (tmp_path / "list.jsonl").write_text(json_lines([{"image": "a.png", "text": text}] * 2))
    assert [item.caption for item in list_items(tmp_path / "list.jsonl")] == [text] * 2
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "text": "x\\ud800y"}')
    with pytest.raises(ValueError, match=r"line 1 has text with half a character"):
        list_items(tmp_path / "list.jsonl")


def test_held_out_pictures_that_are_trained_on_are_refused(photos):
    with pytest.raises(ValueError, match=r"2 held-out pictures are in data.path too"):
        folder_data(Canny(), None, str(photos), 64, 2, val_count=2, val_path=str(photos))
