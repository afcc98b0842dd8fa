"""Promises of job lists: read strictly, refused early with the place, resumed exactly, batched without mixing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cldm.conditions import get_condition
from cldm.data.listing import SUFFIXES, list_items
from cldm.sampling.jobs import MANIFEST, load_image, load_mask, make_job, read_jobs
from cldm.sampling.ledger import Ledger, batches, draw_in_batches
from ldm.files import json_lines

DEFAULTS = {
    "hint": "docs/hint.png", "photo": None, "prompt": "a star", "negative": "", "count": 2, "seed": 5, "size": 64,
    "scale": 1.0, "start": 0.0, "end": 1.0, "mode": "balanced", "weighting": None, "pool": False, "region": None,
    "image": None, "strength": 0.75, "mask": None,
}  # fmt: skip


def lines(path, *objects):
    path.write_text("\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects) + "\n")
    return path


def picture(path, size=(80, 60), box=(20, 20, 60, 40)):
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    image.save(path)
    return path


def test_only_a_newline_ends_a_line(tmp_path):
    prompt = "a red house\u2028with a door\u0085and\u2029more"
    (tmp_path / "jobs.jsonl").write_text(json_lines([{"prompt": prompt}] * 2))
    assert [job.prompt for job in read_jobs(tmp_path / "jobs.jsonl", DEFAULTS)] == [prompt] * 2
    for end in ("\r\n", "\r"):  # of other systems
        (tmp_path / "jobs.jsonl").write_bytes(end.join(json.dumps({"prompt": text}) for text in "ab").encode())
        assert [job.prompt for job in read_jobs(tmp_path / "jobs.jsonl", DEFAULTS)] == ["a", "b"]


def test_a_line_overrides_the_defaults_and_names_its_job(tmp_path):
    jobs = read_jobs(
        lines(tmp_path / "jobs.jsonl", {"hint": "a/cat.png", "scale": 0.5}, "", {"name": "b", "photo": "x.jpg"}),
        DEFAULTS,
    )
    assert [(job.name, job.units[0].hint, job.units[0].photo) for job in jobs] == [
        ("cat", "a/cat.png", None),
        ("b", None, "x.jpg"),
    ]
    assert jobs[0].units[0].scale == 0.5
    assert (jobs[1].prompt, jobs[1].count, jobs[1].seed, jobs[1].size) == ("a star", 2, 5, (64, 64))


def test_a_folder_is_a_list_of_hints_with_prompts_beside_them(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.jpg")
    (tmp_path / "b.txt").write_text("a ring\n")
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "._a.png").write_bytes(b"as macOS leaves them in archives")
    jobs = read_jobs(tmp_path, DEFAULTS)
    assert [(job.name, job.prompt) for job in jobs] == [("a", "a star"), ("b", "a ring")]
    photos = read_jobs(tmp_path, DEFAULTS | {"photo": "any"})
    assert [job.units[0].hint for job in photos] == [None, None]
    assert photos[1].units[0].photo.endswith("b.jpg")


def test_a_folder_of_jobs_has_the_pictures_that_a_folder_of_training_has(tmp_path):
    for ending in SUFFIXES:
        picture(tmp_path / f"{ending[1:]}{ending}")
    trained = {item.image.stem for item in list_items(tmp_path)}
    assert {job.name for job in read_jobs(tmp_path, DEFAULTS)} == trained


def test_the_same_hint_twice_gets_two_names(tmp_path):
    jobs = read_jobs(lines(tmp_path / "j.jsonl", {"seed": 1}, {"seed": 2}), DEFAULTS)
    assert [job.name for job in jobs] == ["hint", "hint-2"]


def test_further_controls_merge_entry_by_entry():
    extra = [{"hint": "depth.png", "scale": 0.5, "end": 0.6}]
    job = make_job({"more": [{"hint": "other.png"}]}, DEFAULTS, extra)
    assert [(unit.hint, unit.scale, unit.end) for unit in job.units] == [
        ("docs/hint.png", 1.0, 1.0),
        ("other.png", 0.5, 0.6),
    ]
    with pytest.raises(ValueError, match="1 entries in more, but more= names 0"):
        make_job({"more": [{"hint": "other.png"}]}, DEFAULTS)


@pytest.mark.parametrize(
    ("entry", "settings", "message"),
    [
        ({"scal": 0.5}, {"hint": "a.png"}, r"entry 1 of more: unknown key scal; known: .*photo, .*scale"),
        ({"checkpoint": "runs/other"}, {"hint": "a.png"}, "entry 1 of more: unknown key checkpoint"),
        ({"scale": "half"}, {"hint": "a.png"}, "entry 1 of more: scale must be a number, got 'half'"),
        ({}, {"hint": "a.png", "scale": "half"}, "entry 1 of more: scale must be a number, got 'half'"),
        ({}, {"hint": "a.png", "scal": 0.5}, "entry 1 of more: unknown key scal"),
        ({}, {"hint": "a.png", "photo": "b.png"}, "entry 1 of more: it has both hint and photo"),
        ({}, {}, "entry 1 of more: give each control either hint"),
    ],
)
def test_a_mistake_in_a_further_control_is_refused_with_its_number(entry, settings, message):
    with pytest.raises(ValueError, match=message):
        make_job({"more": [entry]}, DEFAULTS, [settings])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 2 is not JSON"),
        ("[1]", "line 2 is not an object"),
        ({"promt": "x"}, r"line 2: unknown key promt; known: .*name, .*prompt, .*sampler"),
        ({"mode": "strong"}, "line 2: control mode must be one of"),
        ({"start": 0.8, "end": 0.2}, "line 2: a control acts from start to end"),
        ({"count": 0}, "line 2: count must be at least 1"),
        ({"count": "four"}, "line 2: count must be a whole number, got 'four'"),
        ({"seed": 1.5}, "line 2: seed must be a whole number, got 1.5"),
        ({"scale": True}, "line 2: scale must be a number, got True"),
        ({"mask": "m.png"}, "line 2: mask needs image"),
        ({"image": "m.png", "strength": 2}, "line 2: strength must be in"),
        ({"name": "../up"}, "line 2: name must be a plain file name"),
        ({"name": "manifest.jsonl"}, "line 2: name must .* not be manifest.jsonl"),
        ({"name": "ü" * 120}, "line 2: name must have at most 200 letters"),
        ({"prompt": "half \ud83d"}, "line 2: prompt holds half a character"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        read_jobs(lines(tmp_path / "j.jsonl", {}, line), DEFAULTS)


def test_an_empty_or_missing_source_is_refused(tmp_path):
    for source in (tmp_path, lines(tmp_path / "empty.jsonl"), tmp_path / "none"):
        with pytest.raises(ValueError, match=r"nothing to draw|no such file"):
            read_jobs(source, DEFAULTS)


def test_a_photo_goes_through_the_condition_at_the_jobs_size(tmp_path):
    unit = make_job({"photo": str(picture(tmp_path / "p.png"))}, DEFAULTS).units[0]
    hint = unit.load((64, 96), get_condition("canny"))
    assert hint.shape == (1, 3, 64, 96)
    assert hint.unique().tolist() == [0.0, 1.0]


def test_images_and_masks_cover_the_size(tmp_path):
    path = picture(tmp_path / "p.png")
    image, mask = load_image(path, (40, 40)), load_mask(path, (40, 40))
    assert image.shape == (1, 3, 40, 40)
    assert (image.min(), image.max()) == (-1, 1)
    assert mask.shape == (1, 1, 40, 40)
    assert mask.unique().tolist() == [0, 1]


class Brush:
    """Draws an image of one value from seed and prompt; counts, and can be made to stop or to run out of memory."""

    def __init__(self, stop_after=None, holds=None):
        self.drawn, self.sizes, self.stop_after, self.holds = 0, [], stop_after, holds

    def __call__(self, shots):
        if self.stop_after is not None and self.drawn >= self.stop_after:
            raise KeyboardInterrupt
        if self.holds is not None and len(shots) > self.holds:
            raise torch.cuda.OutOfMemoryError
        self.drawn += len(shots)
        self.sizes.append(len(shots))
        values = [((shot.seed * 37 + len(shot.job.prompt)) % 100) / 50 - 1 for shot in shots]
        return torch.tensor(values)[:, None, None, None].expand(-1, 3, 64, 64)


def three_jobs(tmp_path):
    return read_jobs(
        lines(tmp_path / "j.jsonl", {"name": "a"}, {"name": "b", "seed": 9}, {"name": "c", "scale": 0.5}), DEFAULTS
    )


def test_a_stopped_list_goes_on_where_it_stopped_and_ends_the_same(tmp_path):
    jobs, folder = three_jobs(tmp_path), tmp_path / "out"
    whole = Ledger(tmp_path / "whole", {"base": "x"})
    draw_in_batches(whole.missing(jobs), Brush(), whole, 2)
    first = Ledger(folder, {"base": "x"})
    with pytest.raises(KeyboardInterrupt):
        draw_in_batches(first.missing(jobs), Brush(stop_after=2), first, 2)
    with (folder / MANIFEST).open("a") as manifest:
        manifest.write('{"file": "b/seed_9.p')  # the kill came while a line was written
    with (folder / MANIFEST).open("a") as manifest:
        manifest.write("\n")
    again, brush = Ledger(folder, {"base": "x"}), Brush()
    draw_in_batches(again.missing(jobs), brush, again, 2)
    assert brush.drawn == 4
    assert Ledger(folder, {"base": "x"}).missing(jobs) == []
    for job in jobs:
        for shot in whole.shots(job):
            pixels = [np.asarray(Image.open(root / shot.file)) for root in (folder, tmp_path / "whole")]
            assert np.array_equal(*pixels)


def test_other_settings_or_a_lost_file_are_drawn_again(tmp_path):
    jobs, folder = three_jobs(tmp_path), tmp_path / "out"
    ledger = Ledger(folder, {"base": "x"})
    draw_in_batches(ledger.missing(jobs), Brush(), ledger, 4)
    assert len(Ledger(folder, {"base": "y"}).missing(jobs)) == 6
    (folder / "b/seed_9.png").unlink()
    assert [shot.file for shot in Ledger(folder, {"base": "x"}).missing(jobs)] == ["b/seed_9.png"]


def test_a_png_and_the_manifest_hold_the_full_settings(tmp_path):
    jobs, ledger = three_jobs(tmp_path), Ledger(tmp_path / "out", {"base": {"steps": 3}})
    draw_in_batches(ledger.missing(jobs), Brush(), ledger, 4)
    settings = json.loads(Image.open(tmp_path / "out/c/seed_6.png").text["settings"])
    assert settings["seed"] == 6
    assert settings["units"][0]["scale"] == 0.5
    assert settings["base"] == {"steps": 3}
    entries = [json.loads(line) for line in (tmp_path / "out" / MANIFEST).read_text().splitlines()]
    assert {"file": "c/seed_6.png", **settings} in entries
    assert len(entries) == 6


def test_the_sheet_shows_the_hint_and_every_image(tmp_path):
    jobs, ledger = three_jobs(tmp_path), Ledger(tmp_path / "out", {})
    draw_in_batches(ledger.missing(jobs), Brush(), ledger, 4)
    sheet = Image.open(ledger.sheet(jobs[0], {"hint": torch.ones(1, 3, 64, 64)}))
    assert sheet.width > 3 * 64
    assert (tmp_path / "out/a/sheet.png").is_file()


def test_batches_hold_what_can_be_drawn_together(tmp_path):
    ledger = Ledger(tmp_path / "out", {})
    shots = ledger.missing(three_jobs(tmp_path))
    found = [[shot.file for shot in batch] for batch in batches(shots, 3)]
    assert [len(batch) for batch in found] == [3, 1, 2]  # job c has another scale
    assert [file for batch in found for file in batch] == [shot.file for shot in shots]


def test_what_does_not_fit_the_device_is_halved_until_it_does(tmp_path):
    jobs, ledger, brush = three_jobs(tmp_path), Ledger(tmp_path / "out", {}), Brush(holds=1)
    draw_in_batches(ledger.missing(jobs), brush, ledger, 4)
    assert brush.sizes == [1] * 6
    assert ledger.missing(jobs) == []
    with pytest.raises(torch.cuda.OutOfMemoryError):
        draw_in_batches(ledger.missing(jobs) or ledger.shots(jobs[0]), Brush(holds=0), ledger, 4)
