"""sample.py: finds the newest run, takes hints of any kind, names images by seed, refuses in one sentence."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from cldm.conditions.canny import Canny
from cldm.conditions.softedge import Sobel
from cldm.data.hints import Origin
from cldm.pictures import to_pil
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.configs import register_resolvers
from cldm.runs.recorded import FILE
from cldm.runs.trained import built_for, guidance_filled_in
from cldm.sampling import drawing as sample
from cldm.sampling import opening
from ldm.files import InUse, locked, read_lines
from ldm.weights import fingerprint, load_weights

CONFIGS = str(REPOSITORY / "configs")
register_resolvers()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Path:
    """A run folder with the weights of a tiny base and of a branch that is no longer silent."""
    return make_run(tmp_path_factory.mktemp("work") / "runs" / "a")


def draw(run: Path, *overrides: str) -> Path:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("sample", overrides=["sampler.steps=2", f"base={run}/base.safetensors", *overrides])
        return sample.sample(cfg)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_a_run_is_sampled_with_the_values_that_it_recorded(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "seed-0"
    shutil.copytree(run, own, ignore=shutil.ignore_patterns("samples"))
    (own / "config.yaml").write_text("size: 64\ncondition: {low: 50}\n")
    image = draw(run, f"checkpoint={tmp_path}", f"base={run / 'base.safetensors'}", "count=1") / "seed_0.png"
    assert image.parent == own / "samples"  # of the only seed that there is
    assert Image.open(image).size == (64, 64)


def test_guidance_is_what_suits_the_model_unless_it_is_typed(run: Path, tmp_path: Path) -> None:
    few = [f"checkpoint={run}", "count=1"]
    by_itself = draw(run, *few, f"out={tmp_path / 'own'}")
    typed = draw(run, *few, f"out={tmp_path / 'typed'}", "sampler.guidance=1.5")
    told = [read_lines(folder / "manifest.jsonl")[0]["sampler"]["guidance"] for folder in (by_itself, typed)]
    assert told == [7.5, 1.5]
    assert np.abs(pixels(by_itself / "seed_0.png") - pixels(typed / "seed_0.png")).max() > 0


@pytest.mark.parametrize(
    ("model", "guidance"), [("stickers", 2.0), ("scenes", 2.0), ("sd15", 7.5), ("pretrained", 7.5)]
)
def test_each_model_has_its_guidance(model: str, guidance: float) -> None:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("sample")
        training = compose("train", overrides=[f"model={model}"])
    assert guidance_filled_in(cfg, training).sampler.guidance == training.sampler.guidance == guidance


def test_a_random_base_is_the_one_that_the_branch_was_trained_on() -> None:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("train", overrides=["model=tiny"])
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(fingerprint(built_for(cfg, None)))
        assert torch.initial_seed() == seed
    assert found[0] == found[1]


def test_a_map_of_another_condition_is_drawn_from_with_a_word(run: Path, tmp_path: Path, capsys) -> None:
    picture = Image.open(REPOSITORY / "docs" / "hint.png").convert("RGB").resize((64, 64))
    for condition, told in ((Canny(), False), (Sobel(), True)):
        picture.save(tmp_path / "map.png", pnginfo=Origin.of(condition, (64, 64)).info())
        draw(run, f"checkpoint={run}", "count=1", f"hint={tmp_path}/map.png", f"out={tmp_path}/out")
        assert ("a map of sobel, for a ControlNet of canny" in capsys.readouterr().out) == told


def test_of_several_seeds_one_has_to_be_named(run: Path, tmp_path: Path) -> None:
    for seed in ("seed-0", "seed-1"):
        shutil.copytree(run, tmp_path / seed, ignore=shutil.ignore_patterns("samples"))
    with pytest.raises(SystemExit, match=r"has several seeds: name one of .*seed-0/control.*seed-1/control"):
        draw(run, f"checkpoint={tmp_path}")


@pytest.mark.slow
def test_values_of_the_example_that_stay_in_force_are_told(run: Path, tmp_path: Path, capsys) -> None:
    picture = str(REPOSITORY / "docs" / "hint.png")
    few = [f"checkpoint={run}", "count=1", f"out={tmp_path}"]
    draw(run, *few)
    assert "example's" not in capsys.readouterr().out
    draw(run, *few, f"image={picture}")
    told = capsys.readouterr().out
    assert "the hint is the example's" in told
    assert "the prompt is the example's: a strawberry on" in told
    draw(run, *few, f"photo={picture}", "prompt=mine")
    assert "example's" not in capsys.readouterr().out


def test_a_sheet_that_is_missing_is_made_of_the_images_that_are_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"name": "one"}\n')
    told = [f"checkpoint={run}", f"jobs={tmp_path / 'jobs.jsonl'}", "count=2", f"out={tmp_path / 'out'}"]
    sheet = draw(run, *told) / "one" / "sheet.png"
    before = sheet.read_bytes()
    sheet.unlink()
    draw(run, *told)
    assert sheet.read_bytes() == before


@pytest.mark.slow
def test_images_of_other_settings_are_not_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(run, tmp_path / "run")
    quick = [f"checkpoint={tmp_path / 'run'}", "sampler.steps=1"]
    first = draw(run, *quick, "count=2")
    assert first == tmp_path / "run" / "samples"
    before = (first / "seed_1.png").read_bytes()
    other = draw(run, *quick, "count=2", "prompt=a red star")
    assert other == tmp_path / "run" / "samples-2"
    assert (first / "seed_1.png").read_bytes() == before
    assert draw(run, *quick, "count=2") == first  # the same again
    assert draw(run, *quick, "count=1", "prompt=a blue star") == tmp_path / "run" / "samples-3"
    assert draw(run, *quick, "count=1", "seed=7", "prompt=a blue star") == tmp_path / "run" / "samples-3"
    monkeypatch.chdir(tmp_path)  # the same weights by another path
    assert draw(run, "checkpoint=run", *quick[1:], "count=1", "seed=3").resolve() == first
    (first / "seed_9.png").touch()
    assert draw(run, *quick, "count=1", "seed=9") == tmp_path / "run" / "samples-4"  # whose picture that is nobody says


@pytest.mark.slow
@pytest.mark.parametrize("name", ["seed_1.png", "sheet.png"])
def test_a_file_of_somebody_else_is_not_replaced_in_a_folder_that_was_typed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    quick = [f"checkpoint={run}", "sampler.steps=1", "count=2", f"out={tmp_path}"]
    Image.new("RGB", (8, 8)).save(tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(SystemExit, match=f"{name} is in the place of an image to draw, and was not drawn here"):
        draw(run, *quick)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".png"} == {name: before}
    (tmp_path / name).unlink()
    draw(run, *quick)
    assert "drawn again" not in capsys.readouterr().out
    draw(run, *quick, "prompt=a red star")
    assert f"2 images in {tmp_path} will be drawn again, with these settings" in capsys.readouterr().out


def test_a_sheet_shows_the_images_that_were_asked_for_last(run: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"name": "one"}\n')
    told = [f"checkpoint={run}", f"jobs={tmp_path / 'jobs.jsonl'}", f"out={tmp_path / 'out'}"]
    three = Image.open(draw(run, *told, "count=3") / "one" / "sheet.png").size
    one = Image.open(draw(run, *told, "count=1", "seed=2") / "one" / "sheet.png").size
    assert one[0] < three[0] or one[1] < three[1]


def test_a_seed_names_an_image_whatever_the_batch(run: Path, tmp_path: Path) -> None:
    many = draw(run, f"checkpoint={run}", "count=3", f"out={tmp_path}/many")
    one = draw(run, f"checkpoint={run}", "count=1", "seed=2", f"out={tmp_path}/one")
    # batched kernels may round differently, by one grey level at most
    assert np.abs(pixels(many / "seed_2.png") - pixels(one / "seed_2.png")).max() <= 1
    assert np.abs(pixels(many / "seed_0.png") - pixels(many / "seed_1.png")).max() > 1


def test_the_newest_run_is_taken_and_images_tell_how_they_were_made(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = run.parent / "older" / FILE
    older.parent.mkdir(exist_ok=True)
    older.write_bytes(b"not weights")
    os.utime(older, (0, 0))
    monkeypatch.chdir(run.parent.parent)
    folder = draw(run, "count=1")
    assert folder.resolve() == run / "samples"
    settings = json.loads(Image.open(folder / "seed_0.png").text["settings"])  # type: ignore[attr-defined]
    assert settings["seed"] == 0
    assert "strawberry" in settings["prompt"]
    assert (folder / "sheet.png").exists()


def test_without_any_run_it_says_what_to_run_first(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"run `python train.py` first"):
        draw(run)


def test_a_missing_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="there is no"):
        draw(run, f"checkpoint={tmp_path}/nothing")


@pytest.mark.parametrize(("mode", "size"), [("RGBA", (90, 70)), ("L", (40, 60)), ("P", (64, 64)), ("1", (100, 100))])
def test_a_drawn_hint_of_any_mode_and_size_works(run: Path, tmp_path: Path, mode: str, size: tuple[int, int]) -> None:
    drawing = Image.new("L", size, 0)
    drawing.paste(255, (10, 10, 30, 12))
    drawing.convert(mode).save(tmp_path / "drawing.png")
    folder = draw(run, f"checkpoint={run}", "count=1", f"hint={tmp_path}/drawing.png", f"out={tmp_path}/out")
    assert pixels(folder / "seed_0.png").shape == (64, 64, 3)


def test_what_is_no_picture_is_refused_before_weights_are_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hint.png").write_text("not a picture")
    monkeypatch.setattr(opening, "load_models", lambda *_: pytest.fail("weights were read first"))
    with pytest.raises(SystemExit, match=r"hint.png"):
        draw(run, f"checkpoint={run}", f"hint={tmp_path}/hint.png")


@pytest.mark.slow
def test_scale_zero_draws_what_the_base_alone_draws(run: Path, tmp_path: Path) -> None:
    words = "a large red star left of a small blue ring on a mint background"
    silent = draw(
        run,
        f"checkpoint={run}",
        "count=1",
        "scale=0",
        f"prompt={words}",
        "sampler.guidance=2",
        f"out={tmp_path}/silent",
    )
    loud = draw(run, f"checkpoint={run}", "count=1", "scale=1", f"out={tmp_path}/loud")
    assert np.abs(pixels(silent / "seed_0.png") - pixels(loud / "seed_0.png")).max() > 1
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("sample", overrides=["sampler.steps=2", "sampler.guidance=2"])
        model_cfg = compose("train", overrides=["model=tiny"])
    base = instantiate(model_cfg.model, _convert_="all")
    load_weights(base, run / "base.safetensors")
    image = instantiate(cfg.sampler, _convert_="all")(base.eval(), [words], [0], (64, 64))[0]
    expected = np.asarray(to_pil(image)).astype(int)
    assert np.array_equal(pixels(silent / "seed_0.png"), expected)


def test_a_job_list_is_drawn_into_folders_and_not_drawn_twice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = Image.new("RGB", (80, 60))
    photo.paste((200, 30, 30), (20, 20, 60, 40))
    photo.save(tmp_path / "cat.png")
    cat = str(tmp_path / "cat.png")
    (tmp_path / "jobs.jsonl").write_text(
        f'{{"photo": "{cat}", "prompt": "a (red:1.2) cat", "count": 2, "size": [64, 72]}}\n'
        f'{{"name": "over", "image": "{cat}", "mask": "{cat}", "count": 1, "mode": "control", "strength": 1.0}}\n'
    )
    arguments = (f"checkpoint={run}", f"jobs={tmp_path}/jobs.jsonl", f"out={tmp_path}/out", "sampler=unipc")
    folder = draw(run, *arguments)
    assert pixels(folder / "cat/seed_1.png").shape == (64, 72, 3)
    found = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert found == {"cat/seed_0.png", "cat/seed_1.png", "cat/sheet.png", "over/seed_0.png", "over/sheet.png"}
    monkeypatch.setattr(opening, "load_models", lambda *_: pytest.fail("everything was there already"))
    draw(run, *arguments)


@pytest.mark.slow
def test_an_edited_hint_draws_its_own_images_anew_and_no_others(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        drawing = Image.new("RGB", (64, 64))
        drawing.paste((255, 255, 255), (20, 20, 60, 22))
        drawing.save(tmp_path / f"{name}.png")
    (tmp_path / "jobs.jsonl").write_text("".join(f'{{"hint": "{tmp_path}/{name}.png", "count": 1}}\n' for name in "ab"))
    arguments = (f"checkpoint={run}", f"jobs={tmp_path}/jobs.jsonl", f"out={tmp_path}/out", "sampler.steps=1")
    folder = draw(run, *arguments)
    before = {name: (folder / name / "seed_0.png").stat().st_mtime_ns for name in "ab"}
    Image.open(tmp_path / "a.png").rotate(90).save(tmp_path / "a.png")
    draw(run, *arguments)
    after = {name: (folder / name / "seed_0.png").stat().st_mtime_ns for name in "ab"}
    assert after["a"] != before["a"]
    assert after["b"] == before["b"]


def test_a_folder_that_another_process_fills_is_left_to_it(run: Path, tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(InUse, match="is in use by another process"):
        draw(run, f"checkpoint={run}", f"out={tmp_path}", "sampler.steps=1")
    assert not [*tmp_path.glob("*.png")]


@pytest.mark.slow
def test_two_controlnets_of_half_scale_draw_what_one_draws(run: Path, tmp_path: Path) -> None:
    one = draw(run, f"checkpoint={run}", "count=1", f"out={tmp_path}/one")
    hint = str(REPOSITORY / "docs/hint.png")
    two = draw(run, f"checkpoint={run}", "count=1", f"out={tmp_path}/two", "scale=0.5",
               f"more=[{{checkpoint: '{run}', hint: '{hint}', scale: 0.5}}]")  # fmt: skip
    assert np.abs(pixels(one / "seed_0.png") - pixels(two / "seed_0.png")).max() <= 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("size=[64,70]", "multiples of 8"),
        ("sampler.steps=1001", r"1\.\.1000"),
        ("sampler.steps=2.5", "sampler.steps must be a whole number, got 2.5"),
        ("sampler.guidance=abc", "sampler.guidance must be a number, got 'abc'"),
        ("sampler.sampler.eta=x", "sampler.sampler.eta must be a number, got 'x'"),
        ("device=tpu", "device must be cpu, cuda"),
        ("sampler.spacing=log", "spacing"),
        ("mode=strong", "control mode"),
        ("photo=none.jpg", "none.jpg"),
        ("precision=fp8", "precision must be one of"),
        ("count=0", "count must be at least 1"),
        ("jobs=none.jsonl", "no such file or folder"),
    ],
)
def test_bad_settings_are_refused_before_weights_are_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.setattr(opening, "load_models", lambda *_: pytest.fail("weights were read first"))
    with pytest.raises(SystemExit, match=message):
        draw(run, f"checkpoint={run}", override)


@pytest.mark.slow
def test_a_job_may_have_a_sampler_of_its_own_and_residuals_of_their_own_scale(run: Path, tmp_path: Path) -> None:
    lines = [
        {"name": "shared"},
        {"name": "own", "sampler": {"name": "unipc", "steps": 3, "guidance": 1.0, "order": 3}},
        {"name": "deep", "scales": [0.0] * 12 + [30.0]},
        {"name": "none", "scales": [0] * 13},
        {"name": "silent", "scale": 0},
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps({"count": 1, **line}) + "\n" for line in lines))
    folder = draw(run, f"checkpoint={run}", f"jobs={tmp_path}/jobs.jsonl", f"out={tmp_path}/out", "sampler.steps=2")
    images = {line["name"]: pixels(folder / line["name"] / "seed_0.png") for line in lines}
    assert np.array_equal(images["none"], images["silent"])
    for a, b in (("shared", "own"), ("shared", "deep"), ("deep", "none")):
        assert np.abs(images[a] - images[b]).max() > 1
    told = {line["name"]: json.loads(line["settings"]) for line in (
        {"name": name, **Image.open(folder / name / "seed_0.png").text} for name in images  # type: ignore[attr-defined]
    )}  # fmt: skip
    assert told["own"]["sampler"]["sampler"] == {"_target_": "ldm.samplers.unipc", "_partial_": True, "order": 3}
    assert (told["own"]["sampler"]["steps"], told["own"]["sampler"]["guidance"]) == (3, 1.0)
    assert (told["shared"]["sampler"]["steps"], told["shared"]["sampler"]["sampler"]["eta"]) == (2, 0.0)
    alone = draw(run, f"checkpoint={run}", "count=1", f"out={tmp_path}/alone", "sampler=unipc", "sampler.steps=3",
                 "sampler.guidance=1", "sampler.sampler.order=3")  # fmt: skip
    assert np.abs(pixels(alone / "seed_0.png") - images["own"]).max() <= 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"sampler": "unipc"}, "line 1: sampler must be an object"),
        ({"sampler": {"name": "../evil"}}, "sampler must be one of ddim, ddpm"),
        ({"sampler": {"_target_": "os.system"}}, "unknown setting '_target_' of sampler; known: name, steps"),
        ({"sampler": {"low_memory": "cpu"}}, "unknown setting 'low_memory'"),
        ({"sampler": {"steps": "many"}}, "steps of sampler must be a int, got 'many'"),
        ({"sampler": {"steps": 0}}, r"sampler.steps must be at least 1"),
        ({"sampler": {"steps": True}}, "steps of sampler must be a int, got True"),
        ({"sampler": {"eta": 2.0}}, r"eta must be in \[0, 1\], got 2.0"),
        ({"sampler": {"name": "unipc", "order": 9}}, "the order of unipc must be 1, 2 or 3, got 9"),
        ({"sampler": {"clip_skip": 99}}, r"sampler.clip_skip must be in 0\.\."),
        ({"sampler": {"rescale": 5.0}}, r"sampler.rescale must be in \[0, 1\], got 5.0"),
        ({"sampler": {"guidance": float("inf")}}, "guidance"),
        ({"size": 800000}, "more than 128 million pixels"),
        ({"sampler": {"name": "pndm", "eta": 1.0}}, "unknown setting 'eta'"),
        ({"scales": [1.0] * 12}, "12 control scales, the branch has 13"),
        ({"scales": ["a"] * 13}, "scales must be numbers"),
    ],
)
def test_a_job_with_settings_that_cannot_be_is_refused_before_weights_are_read(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: dict, message: str
) -> None:
    monkeypatch.setattr(opening, "load_models", lambda *_: pytest.fail("weights were read first"))
    (tmp_path / "jobs.jsonl").write_text(json.dumps(line))
    with pytest.raises(SystemExit, match=message):
        draw(run, f"checkpoint={run}", f"jobs={tmp_path}/jobs.jsonl")


def test_of_several_jobs_the_one_that_cannot_be_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.jsonl").write_text('{"name": "good"}\n{"name": "short", "scales": [1, 2]}\n')
    with pytest.raises(SystemExit, match=r"short: got 2 control scales"):
        draw(run, f"checkpoint={run}", f"jobs={tmp_path}/jobs.jsonl")


@pytest.mark.parametrize("says", [True, False])
def test_pool_null_is_what_the_checkpoint_says_wherever_it_is_written(tmp_path: Path, says: bool) -> None:
    """On the command line, in a line of a job list, and in entries of more."""
    lines = [{}, {"pool": None}, {"pool": not says}, {"more": [{"pool": None}]}, {"more": [{"pool": not says}]}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps({"hint": "a.png", **line}) + "\n" for line in lines))

    def pools(*overrides: str) -> list[tuple[bool | None, ...]]:
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            cfg = compose("sample", overrides=["sampler.guidance=2", f"jobs={tmp_path}/jobs.jsonl", *overrides])
        return [tuple(unit.pool for unit in job.units) for job in sample.jobs_of(cfg, 64, [says, says])]

    told, other = (says, says), (says, not says)
    for unit in ("{checkpoint: b, hint: b.png}", "{checkpoint: b, hint: b.png, pool: null}"):
        assert pools(f"more=[{unit}]") == [told, told, (not says, says), told, other]
    assert pools("more=[{checkpoint: b, hint: b.png}]", f"pool={not says}")[:2] == [(not says, says), told]


@pytest.mark.slow
def test_region_and_pooling_are_reached_from_the_command_line(run: Path, tmp_path: Path) -> None:
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(tmp_path / "half.png")
    found = {
        name: pixels(draw(run, f"checkpoint={run}", "count=1", f"out={tmp_path}/{name}", *more) / "seed_0.png")
        for name, more in {
            "whole": [], "pooled": ["pool=true"], "half": [f"region={tmp_path}/half.png"],
            "both": [f"region={tmp_path}/half.png", "pool=true"],
        }.items()
    }  # fmt: skip
    names = list(found)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            assert np.abs(found[a] - found[b]).max() > 1, (a, b)


@pytest.mark.slow
def test_an_inpainting_branch_gets_the_picture_with_its_hole(run: Path, tmp_path: Path) -> None:
    """From image and mask, or from the transparency of one picture."""
    room = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    hole = Image.new("L", (64, 64), 0)
    hole.paste(255, (16, 16, 48, 48))
    room.save(tmp_path / "room.png")
    hole.save(tmp_path / "hole.png")
    room.putalpha(hole.point(lambda v: 255 - v))
    room.save(tmp_path / "holed.png")
    seen: dict[str, torch.Tensor] = {}
    control = f"checkpoint={run}"
    with pytest.raises(SystemExit, match="has no hole to paint in: give mask"):
        draw(run, control, "trained.condition=inpaint", f"photo={tmp_path}/room.png")
    original = sample.ControlUnit
    for name, more in {
        "mask": [f"photo={tmp_path}/room.png", f"image={tmp_path}/room.png", f"mask={tmp_path}/hole.png"],
        "alpha": [f"hint={tmp_path}/holed.png"],
    }.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                sample, "ControlUnit", lambda *a, name=name, **k: seen.update({name: a[1]}) or original(*a, **k)
            )
            draw(run, control, "trained.condition=inpaint", "count=1", f"out={tmp_path}/{name}", *more)
    assert torch.equal(seen["mask"], seen["alpha"])
    assert (seen["mask"] == -1).float().mean() == 0.25
    assert (seen["mask"][..., 16:48, 16:48] == -1).all()
