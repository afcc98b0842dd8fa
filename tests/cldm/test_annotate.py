"""Promises of `python -m cldm annotate`: what is usable is annotated once, the rest is named, kills are safe."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cldm.commands import cli
from cldm.conditions import get_condition
from cldm.data.decoding import read_photo
from cldm.data.folder import FolderDataset
from cldm.data.listing import list_items
from ldm.files import locked

ROOT = Path(__file__).resolve().parents[2]


def photo(number: int = 0, height: int = 80, width: int = 112) -> Image.Image:
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))


def annotate(*arguments: object) -> int:
    return cli.main(["annotate", *map(str, arguments), "--workers", "0"])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def zoo(tmp_path) -> Path:
    """One of every kind of file that users have."""
    folder = tmp_path / "zoo"
    (folder / "sub").mkdir(parents=True)
    image = photo()
    image.save(folder / "plain.png")
    image.save(folder / "plain.jpg", quality=95)
    image.save(folder / "copy.png")
    image.convert("CMYK").save(folder / "cmyk.tif")
    image.convert("P").save(folder / "palette.png")
    image.convert("L").save(folder / "sub" / "grey.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "sixteen.png")
    alpha = image.copy()
    alpha.putalpha(0)
    alpha.save(folder / "glass.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder / "turned.jpg", exif=turned, quality=95)
    image.resize((40, 40)).save(folder / "tiny.png")
    image.save(folder / "animated.gif", save_all=True, append_images=[image.rotate(90)])
    (folder / "empty.png").touch()
    (folder / "page.jpg").write_text("<html>not found</html>")
    image.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "plain.txt").write_text("a photo\n")
    (folder / "notes.md").write_text("not a picture")
    return folder


SKIPPED = {"tiny.png": "64 at least", "animated.gif": "2 frames", "empty.png": "it is empty",
           "page.jpg": "not a readable picture", "cut.jpg": "not a readable picture"}  # fmt: skip


def test_what_can_be_used_is_converted_and_the_rest_is_listed_with_reasons(zoo, tmp_path, capsys):
    out = tmp_path / "out"
    assert annotate(zoo, out, "--preview", 4) == 0
    skipped = {line["file"]: line["reason"] for line in lines(out / "skipped.jsonl")}
    assert skipped.keys() == SKIPPED.keys()
    assert all(SKIPPED[name] in skipped[name] for name in SKIPPED)
    kept = lines(out / "prompt.json")
    assert all(line.keys() == {"source", "target", "prompt"} for line in kept)
    targets = {line["target"] for line in kept}
    assert {"target/plain.jpg", "target/plain.png", "target/cmyk.tif.png", "target/sub/grey.png"} <= targets
    canny = get_condition("canny")
    for line in kept:
        target = Image.open(out / line["target"])
        assert target.mode == "RGB"
        assert np.array_equal(np.asarray(Image.open(out / line["source"]).convert("RGB")), canny(np.asarray(target)))
    assert (out / "target/plain.jpg").read_bytes() == (zoo / "plain.jpg").read_bytes()  # not encoded again
    assert np.asarray(Image.open(out / "target/glass.png")).min() == 255  # transparent is white
    assert Image.open(out / "target/turned.jpg.png").size == (80, 112)
    assert {line["prompt"] for line in kept if "plain" in line["target"]} == {"a photo"}
    report = json.loads((out / "report.json").read_text())
    assert report["pictures"] == 14
    assert (report["annotated"], report["skipped"]) == (9, 5)
    assert report["duplicates"] == 3  # the copy, the CMYK one, the 16-bit one
    assert report["grey_share"] == pytest.approx(3 / 9, abs=1e-3)  # grey, 16 bits, and the white one
    assert report["empty_captions"] == 7
    assert report["suspicious_maps"] == 3  # blank maps of the faint grey ones and the white one
    assert report["short_side"] == {"0..127": 9}
    assert "annotated        9" in capsys.readouterr().out
    assert Image.open(out / "preview.png").size[0] > 400
    assert len(FolderDataset(list_items(out), 64, canny).__getitems__(range(9))["caption"]) == 9


def test_a_second_run_does_nothing_and_a_third_only_what_is_new(zoo, tmp_path):
    out = tmp_path / "out"
    annotate(zoo, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "source").rglob("*.png")}
    prompts = (out / "prompt.json").read_text()
    annotate(zoo, out)
    assert (out / "prompt.json").read_text() == prompts
    photo(9).save(zoo / "new.png")
    annotate(zoo, out)
    assert len(lines(out / "prompt.json")) == len(before) + 1
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_a_picture_that_was_edited_is_done_again_and_a_new_caption_is_taken(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for i in range(3):
        photo(i).save(folder / f"{i}.png")
    assert annotate(folder, out) == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "source").iterdir()}
    photo(7).save(folder / "0.png")
    (folder / "1.png").touch()  # another time, the same picture
    (folder / "2.txt").write_text("a caption")
    assert annotate(folder, out) == 0
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (out / "source").iterdir()}
    assert after["0.png"][0] != before["0.png"][0]
    assert (after["1.png"], after["2.png"]) == (before["1.png"], before["2.png"])
    assert [line["prompt"] for line in lines(out / "prompt.json")] == ["", "", "a caption"]


def test_a_picture_that_took_the_place_of_one_of_equal_size_and_time_is_done_again(tmp_path):
    """As cp -p and rsync -t leave it."""
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    picture = folder / "0.bmp"
    photo(0).save(picture)
    assert annotate(folder, out) == 0
    [drawn] = (out / "source").iterdir()
    before, stat = drawn.read_bytes(), picture.stat()
    photo(7).save(tmp_path / "other.bmp")
    os.utime(tmp_path / "other.bmp", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(tmp_path / "other.bmp", picture)
    assert (picture.stat().st_size, picture.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert annotate(folder, out) == 0
    assert drawn.read_bytes() != before


def test_two_processes_do_not_annotate_into_one_folder(tmp_path, capsys):
    photo().save(tmp_path / "a.png")
    with locked(tmp_path / "out"):
        assert annotate(tmp_path / "a.png", tmp_path / "out") == 1
    assert "is in use by another process; wait for it" in capsys.readouterr().err


def test_a_torn_journal_line_is_done_again_and_partial_files_go(zoo, tmp_path):
    out = tmp_path / "out"
    annotate(zoo, out)
    expected, journal = (out / "prompt.json").read_bytes(), out / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    (out / "source" / "x.png.99.partial").touch()
    annotate(zoo, out)
    assert (out / "prompt.json").read_bytes() == expected
    assert len(lines(journal)) == 14
    assert not [*out.rglob("*.partial")]


def test_other_settings_in_the_same_folder_are_refused(zoo, tmp_path, capsys):
    out = tmp_path / "out"
    annotate(zoo, out, "--set", "low=50")
    assert json.loads((out / "params.json").read_text())["params"] == {"low": 50, "high": 200}
    assert annotate(zoo, out) == 1
    assert "'low': 50" in capsys.readouterr().err
    assert annotate(zoo, out, "--condition", "sobel") == 1
    assert "choose another output folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{zoo}"], "INPUT and OUTPUT"),
        (["{zoo}", "{zoo}/out"], "lies inside INPUT"),
        (["{zoo}", "{out}", "--condition", "cany"], "unknown condition 'cany'"),
        (["{zoo}", "{out}", "--set", "lo=3"], "no parameter 'lo'"),
        (["{zoo}", "{out}", "--set", "low"], "KEY=VALUE"),
        (["{zoo}", "{out}", "--condition", "depth", "--set", "folder=/no/such"], "lacks config.json"),
        (["{zoo}", "{out}", "--condition", "pose"], "needs condition.extractor"),
        (["/no/such", "{out}"], "there is no such"),
        (["--fill50k", "3", "a", "b"], "--fill50k takes"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(zoo, tmp_path, capsys, arguments, complaint):
    out = tmp_path / "out"
    assert annotate(*(text.format(zoo=zoo, out=out) for text in arguments)) == 1
    assert complaint in capsys.readouterr().err
    assert not (out / "journal.jsonl").exists()


def test_a_resolution_sets_the_short_side_and_keeps_the_aspect(tmp_path):
    photo(1, 200, 300).save(tmp_path / "a.png")
    annotate(tmp_path / "a.png", tmp_path / "out", "--resolution", 96)
    (line,) = lines(tmp_path / "out" / "prompt.json")
    for key in ("source", "target"):
        assert Image.open(tmp_path / "out" / line[key]).size == (144, 96)


def test_holes_of_inpainting_are_kept_in_the_alpha_channel(tmp_path):
    photo(1).save(tmp_path / "a.png")
    annotate(tmp_path / "a.png", tmp_path / "out", "--condition", "inpaint")
    assert Image.open(tmp_path / "out/source/a.png").mode == "RGBA"
    hint = FolderDataset(list_items(tmp_path / "out"), 64, get_condition("inpaint"))[0]["hint"]
    assert (hint == -1).any()


def test_one_picture_with_several_captions_gives_several_items(tmp_path):
    photo(2).save(tmp_path / "a.png")
    (tmp_path / "list.jsonl").write_text('{"image": "a.png", "text": "one"}\n{"image": "a.png", "text": "two"}\n')
    annotate(tmp_path / "list.jsonl", tmp_path / "out", "--link")
    assert [line["prompt"] for line in lines(tmp_path / "out/prompt.json")] == ["one", "two"]
    assert (tmp_path / "out/target/a.png").stat().st_ino == (tmp_path / "a.png").stat().st_ino


def test_reading_agrees_with_plain_decoding(tmp_path):
    image = photo(3)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_photo(tmp_path / "a.png"), np.asarray(image))


def test_fill50k_is_drawn_by_the_command(tmp_path, capsys):
    folder = tmp_path / "a set"
    assert annotate("--fill50k", 2, folder, "--resolution", 64) == 0
    assert len(lines(folder / "prompt.json")) == 2
    line = capsys.readouterr().out.strip().partition("train with: ")[2]  # to be pasted
    assert shlex.split(line) == ["python", "train.py", "data=fill50k", f'data.path="{folder}"']


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_complete_and_identical():
    """The full size is `python benchmarks/annotate_kills.py --files 2000 --kills 20`."""
    command = [sys.executable, "benchmarks/annotate_kills.py", "--files", "80", "--kills", "2", "--side", "96"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "80 files, 4 broken: 2 kills, identical" in done.stdout


def test_what_was_missing_or_has_been_deleted_is_made_on_the_next_run(tmp_path):
    for name in "abc":
        photo(1).save(tmp_path / f"{name}.png")
    (tmp_path / "list.jsonl").write_text("".join(f'{{"image": "{name}.png", "text": "{name}"}}\n' for name in "abc"))
    held = tmp_path / "c.held"
    (tmp_path / "c.png").rename(held)
    annotate(tmp_path / "list.jsonl", tmp_path / "out")
    made = [line["source"] for line in lines(tmp_path / "out" / "prompt.json")]
    assert len(made) == 2
    held.rename(tmp_path / "c.png")
    (tmp_path / "out" / made[0]).unlink()
    (tmp_path / "b.png").unlink()  # its maps stay
    annotate(tmp_path / "list.jsonl", tmp_path / "out")
    now = [line["source"] for line in lines(tmp_path / "out" / "prompt.json")]
    assert len(now) == 3
    assert all((tmp_path / "out" / source).is_file() for source in now)
