"""What the page asks for is what sample.py is asked for: the same words, the same pixels, refused in one sentence."""

import math
import os
import re
import shlex
import shutil
import signal
import socket
import threading
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor, ImageDraw

from cldm.app.answers import Answers
from cldm.app.asked import CANVAS, MAP, PHOTO, Asked, drawn_on, within
from cldm.app.canvas import BLACK, WHITE, blank, on_paper, painted, save_map, with_map
from cldm.app.studio import Drawn, Studio, noted
from cldm.app.wish import Control, Wish, summary, wish_of
from cldm.app.words import completed, offers
from cldm.commands import app, cli
from cldm.conditions import get_condition
from cldm.data.hints import load_hint
from cldm.runs.configs import composed, configs_at_hand
from cldm.runs.folder import Refused
from cldm.runs.quoting import written
from cldm.sampling import opening
from cldm.sampling.drawing import sample
from ldm.conditioner import Conditioner
from ldm.text_encoder import TextEncoder

Make = Callable[..., Path]


GIVEN = ("checkpoint=runs/a", "base=runs/a/base.safetensors")


@pytest.fixture(scope="module", autouse=True)
def _work(tmp_path_factory: pytest.TempPathFactory, make_run: Make) -> Iterator[None]:
    """The tests stand in a folder with two runs of one base."""
    folder = tmp_path_factory.mktemp("app")
    for seed, name in enumerate("ab"):
        make_run(folder / "runs" / name, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


@pytest.fixture(scope="module")
def studio() -> Studio:
    return Studio(GIVEN)


@pytest.fixture
def strokes(tmp_path: Path) -> Path:
    """A ready map: a white box on black."""
    picture = Image.new("RGB", (64, 64))
    ImageDraw.Draw(picture).rectangle((16, 16, 48, 48), outline="white")
    picture.save(tmp_path / "strokes.png")
    return tmp_path / "strokes.png"


def asked(**values) -> Asked:
    usual = {"source": CANVAS, "paper": WHITE, "canvas": None, "picture": None, "prompt": "", "negative": "",
             "count": 1,
             "seed": 0, "sampler": "ddim", "steps": 2, "guidance": 3.0, "scale": 1.0, "start": 0.0, "end": 1.0,
             "mode": "balanced", "image": None, "strength": 0.75}  # fmt: skip
    return Asked(**{**usual, **values})


def drawn(studio: Studio, wish: Wish, report=lambda *_: None, place: str | None = None) -> Drawn:
    return studio.draw(wish, report, threading.Event(), place)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def typed(line: str, out: Path) -> Path:
    """The folder that sample.py fills when the line is typed."""
    _, program, *overrides = shlex.split(line)
    assert program == "sample.py"
    cfg = composed([*overrides, f"out={out}"], "sample")
    with configs_at_hand():
        return sample(cfg)


# ------------------------------------------------------------------ words


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@example("(a ${seed}:1.2), 'q' \\")
@example('\\${x} \\" null')
@example("null")
@example("1e5")
@example(".0")
@example(".é")
@given(st.text(alphabet="ab $\"'\\{}:,=[]()#~!é中%@&*|<>?`-.0").filter(lambda text: text != "???"))
def test_any_text_reaches_sample_py_as_it_was_typed(text: str) -> None:
    assert composed([f"prompt={written(text)}"], "sample").prompt == text


def test_a_list_of_controls_reaches_sample_py_as_it_was_given() -> None:
    more = [{"checkpoint": "runs/it's, {a}", "scale": 0.5}, {"checkpoint": "b", "hint": None, "on": [1, 2]}]
    assert composed([f"more={written(more)}"], "sample").more == more


def test_known_words_are_offered_while_one_is_typed() -> None:
    known = ["a", "octopus", "on", "owl", "pear", "left", ","]
    assert offers("an o", known) == ["octopus", "on", "owl"]
    assert offers("an octupus", known) == ["octopus"]  # misspelt
    assert offers("an octopus", known) == []
    assert offers("an octopus ", known) == []
    assert completed("an oc", "octopus") == "an octopus "


# ------------------------------------------------------------------ canvas


def test_a_drawing_is_white_on_black_whatever_its_paper(tmp_path: Path) -> None:
    canny = get_condition("canny")
    found = []
    for paper, pen in ((WHITE, BLACK), (BLACK, WHITE)):
        sheet = Image.new("RGBA", (512, 512))  # what the editor holds is transparent where nothing was drawn
        ImageDraw.Draw(sheet).line((100, 100, 400, 300), fill=pen, width=4)
        found.append(pixels(save_map({"composite": sheet}, paper, (64, 64), canny, tmp_path / "map.png")))
    assert np.array_equal(found[0], found[1])
    assert set(np.unique(found[0])) == {0, 255}
    assert found[0].mean() < 128


@pytest.mark.parametrize(("paper", "pen"), [(WHITE, BLACK), (WHITE, "#e03131"), (BLACK, WHITE)])
@pytest.mark.parametrize("name", ["canny", "sobel"])
def test_a_drawing_of_more_ink_than_paper_is_not_inverted_again(
    tmp_path: Path, name: str, paper: str, pen: str
) -> None:
    condition = get_condition(name)
    sheet = Image.new("RGBA", (512, 512))
    ImageDraw.Draw(sheet).rectangle((0, 0, 511, 400), fill=pen)
    path = save_map({"composite": sheet}, paper, (64, 64), condition, tmp_path / "map.png")
    notes: list[str] = []
    hint = load_hint(path, (64, 64), condition=condition, notify=notes.append)
    assert hint[:, :48].min() > 0.5
    assert hint[:, 52:].max() == 0
    assert not [note for note in notes if "inverted" in note]


def test_colours_of_a_map_stay_and_an_empty_canvas_is_black(tmp_path: Path) -> None:
    colours = get_condition("color_grid")
    sheet = Image.new("RGBA", (512, 256), "#e03131")
    assert tuple(pixels(save_map({"composite": sheet}, BLACK, (64, 128), colours, tmp_path / "map.png"))[0, 0]) == (
        224,
        49,
        49,
    )
    assert pixels(save_map(None, WHITE, (64, 128), get_condition("canny"), tmp_path / "map.png")).shape == (256, 512, 3)
    assert not pixels(tmp_path / "map.png").any()


@pytest.mark.parametrize("paper", [WHITE, BLACK])
def test_what_the_page_put_on_the_canvas_is_drawn_before_the_first_stroke(paper: str, tmp_path: Path) -> None:
    ground = Image.new("RGB", (512, 512), paper)
    ImageDraw.Draw(ground).rectangle((100, 100, 300, 300), fill=BLACK if paper == WHITE else WHITE)
    canvas = {"background": ground, "layers": [], "composite": None}
    assert drawn_on(canvas, paper)
    assert (
        pixels(save_map(canvas, paper, (64, 64), get_condition("canny"), tmp_path / "map.png"))[200, 200].min() == 255
    )
    assert not drawn_on(blank(paper, (64, 64)), paper)


@pytest.mark.parametrize(("paper", "other"), [(WHITE, BLACK), (BLACK, WHITE)])
def test_a_drawing_keeps_its_map_and_its_strokes_on_the_other_paper(paper: str, other: str, tmp_path: Path) -> None:
    canny, size = get_condition("canny"), (64, 64)
    stroke = Image.new("RGBA", (512, 512))
    ImageDraw.Draw(stroke).line((100, 100, 400, 300), fill=other, width=4)
    canvas = {**blank(paper, size), "layers": [stroke], "composite": stroke}
    turned = on_paper(canvas, other, size)
    maps = [
        pixels(save_map(held, on, size, canny, tmp_path / "map.png")) for held, on in ((canvas, paper), (turned, other))
    ]
    assert np.array_equal(*maps)
    assert maps[0].any()
    assert np.array_equal(turned["layers"][0].getchannel("A"), stroke.getchannel("A"))
    assert turned["background"].convert("RGB").getcolors() == [(512 * 512, ImageColor.getrgb(other))]


@pytest.mark.parametrize(("paper", "other"), [(WHITE, BLACK), (BLACK, WHITE)])
def test_a_drawing_that_the_page_has_not_turned_yet_keeps_its_map(paper: str, other: str, tmp_path: Path) -> None:
    canny, size = get_condition("canny"), (64, 64)
    stroke = Image.new("RGBA", (512, 512))
    ImageDraw.Draw(stroke).line((100, 100, 400, 300), fill=other, width=4)
    canvas = {**blank(paper, size), "layers": [stroke]}
    maps = [pixels(save_map(canvas, said, size, canny, tmp_path / "map.png")) for said in (paper, other)]
    assert np.array_equal(*maps)
    assert 0 < maps[0].mean() < 20
    twice = on_paper(on_paper(canvas, other, size), other, size)  # as where both of two switches found the old canvas
    assert np.array_equal(pixels(save_map(twice, paper, size, canny, tmp_path / "map.png")), maps[0])


@pytest.mark.parametrize(
    ("name", "paper"), [("canny", WHITE), ("canny", BLACK), ("sobel", WHITE), ("depth", BLACK), ("color_grid", BLACK)]
)
@pytest.mark.parametrize("size", [(64, 64), (96, 64), (384, 192)])
def test_a_map_on_the_canvas_comes_back_as_it_is_and_can_be_erased(
    name: str, paper: str, size: tuple[int, int], tmp_path: Path
) -> None:
    condition = get_condition(name, **({"folder": str(tmp_path)} if name == "depth" else {}))
    random = np.random.default_rng(0)
    values = random.integers(0, 256, (*size, 3 if condition.polarity == "color" else 1), dtype=np.uint8)
    values = np.where(random.random(values.shape) < 0.3, values, 0)
    seen = np.repeat(values > 0, 3, axis=2) * np.uint8(255) if condition.binary else np.broadcast_to(values, (*size, 3))
    canvas = with_map(Image.fromarray(np.ascontiguousarray(seen, dtype=np.uint8)), paper, size, condition)

    def hint() -> np.ndarray:
        path = save_map(canvas, paper, size, condition, tmp_path / "map.png")
        found = load_hint(path, size, condition=condition, notify=lambda _: None)
        return np.rint(found.permute(1, 2, 0).numpy() * 255)

    assert np.array_equal(hint(), seen)
    (strokes,) = canvas["layers"]
    strokes.paste((0, 0, 0, 0), (0, 0, *strokes.size))  # as the eraser does
    assert not hint().any()


def test_what_is_painted_is_the_mask() -> None:
    layer = Image.new("RGBA", (64, 64))
    assert painted({"layers": [layer]}) is None
    ImageDraw.Draw(layer).rectangle((0, 0, 31, 63), fill="#e03131")
    mask = painted({"layers": [layer, None]})
    assert mask is not None
    assert np.asarray(mask)[:, :32].min() == 255
    assert not np.asarray(mask)[:, 32:].any()


# ------------------------------------------------------------------ drawing


@pytest.mark.slow
def test_the_line_of_a_drawing_gives_its_pixels_again(studio: Studio, strokes: Path, tmp_path: Path) -> None:
    done = drawn(
        studio, Wish(Control(strokes, scale=0.8, end=0.5), 'a (red:1.2) "star", it\'s', count=2, seed=7, steps=2)
    )
    again = typed(done.line, tmp_path / "again")
    assert [path.name for path in done.images] == ["seed_7.png", "seed_8.png"]
    assert all(np.array_equal(pixels(path), pixels(again / path.name)) for path in done.images)
    assert {path.name for path in done.folder.iterdir()} >= {"hint.png", "manifest.jsonl", "sheet.png"}


@pytest.mark.slow
def test_pictures_masks_and_further_controlnets_are_in_the_line_too(
    studio: Studio, strokes: Path, tmp_path: Path
) -> None:
    ground = Image.new("RGBA", (64, 64), "#2f9e44")
    paint = Image.new("RGBA", (64, 64))
    ImageDraw.Draw(paint).rectangle((0, 0, 31, 63), fill="#e03131")
    other = ["runs/b/control.safetensors", str(strokes), MAP, 0.5, 0.0, 1.0, "balanced"]
    wish = asked(image={"background": ground, "layers": [paint]}, strength=0.9, others=other).wish(studio, tmp_path)
    assert wish.control.photo == tmp_path / "image.png"  # an empty canvas takes the map of the picture
    done = drawn(studio, wish)
    again = typed(done.line, tmp_path / "again")
    assert np.array_equal(pixels(done.images[0]), pixels(again / "seed_0.png"))
    for changed in (replace(wish, more=()), replace(wish, mask=None)):
        assert np.abs(pixels(drawn(studio, changed).images[0]) - pixels(done.images[0])).max() > 1


@pytest.mark.slow
def test_the_settings_of_an_image_are_the_wish_for_it(studio: Studio, strokes: Path) -> None:
    control = Control(strokes, None, 0.8, 0.1, 0.9, "prompt")
    other = Control(None, strokes, 0.5, checkpoint="runs/b/control.safetensors")
    wish = Wish(control, "a star", "a cat", 1, 3, "unipc", 6, 2.0, (other,), strokes, 0.5, strokes)
    done = drawn(studio, wish)
    found = wish_of(done.settings[0])
    copies = {"control": replace(control, hint=done.folder / "hint.png"), "image": done.folder / "image.png",
              "mask": done.folder / "mask.png",
              "more": (replace(other, photo=done.folder / "photo-2.png"),)}  # fmt: skip
    assert found == replace(wish, **copies)
    assert "seed 3 · unipc, 6 steps, guidance 2 · scale 0.8, prompt" in summary(found)


def test_each_controlnet_is_told_by_a_name_of_its_own() -> None:
    runs = ("runs/a/seed-0/control.safetensors", "runs/b/seed-0/control.safetensors", "pose.safetensors")
    told = summary(Wish(Control(), more=tuple(Control(checkpoint=run) for run in runs)))
    assert told.endswith("with runs/a/seed-0 at 1 · with runs/b/seed-0 at 1 · with pose.safetensors at 1")


def test_a_blank_canvas_is_drawn_and_told_of(studio: Studio, tmp_path: Path) -> None:
    done = drawn(studio, asked().wish(studio, tmp_path))
    assert len(done.images) == 1
    assert any("blank" in note for note in done.notes)


def test_a_drawing_ends_at_the_step_where_it_is_stopped(strokes: Path) -> None:
    studio = Studio([*GIVEN, "batch_size=1"])
    stop, steps = threading.Event(), []

    def report(done: int, total: int) -> None:
        steps.append((done, total))
        if done == 3:  # in the second image
            stop.set()

    done = studio.draw(Wish(Control(strokes), count=3, steps=2), report, stop)
    assert done.stopped
    assert [path.name for path in done.images] == ["seed_0.png"]
    assert steps == [(0, 6), (1, 6), (2, 6), (3, 6)]


@pytest.mark.slow
def test_weights_are_read_once_and_again_only_for_other_checkpoints(
    strokes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = Studio(GIVEN)
    reads, read = [], opening.load_models
    monkeypatch.setattr(opening, "load_models", lambda *given: reads.append(1) or read(*given))
    wish = Wish(Control(strokes), steps=1)
    other = Control(strokes, checkpoint="runs/b/control.safetensors")
    counts = []
    for one in (wish, replace(wish, seed=1), replace(wish, more=(other,)), wish):
        drawn(studio, one)
        counts.append(len(reads))
    assert counts == [1, 1, 2, 3]


def test_live_drawings_take_one_folder_and_others_one_each(studio: Studio, strokes: Path) -> None:
    wish = Wish(Control(strokes), steps=1)
    first, second = (drawn(studio, replace(wish, seed=seed), place="live").folder for seed in (0, 1))
    assert first == second
    assert [path.name for path in first.glob("seed_*.png")] == ["seed_1.png"]
    assert drawn(studio, wish).folder != drawn(studio, wish).folder


# ------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"source": PHOTO}, "there is no picture for the hint yet"),
        ({"source": MAP, "picture": "words.png"}, "^cannot use hint words.png: it is not a readable picture$"),
        ({"source": PHOTO, "picture": "words.png"}, "^cannot use photo words.png: it is not a readable picture$"),
        ({"count": 0}, "count must be whole and at least 1"),
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 2**32}, "seed must be a whole number from 0 to 4294967295, got 4294967296"),
        ({"seed": 2**32 - 3, "count": 4}, "the last of 4 seeds must be at most 4294967295, got 4294967296"),
        ({"seed": None}, "seed must be a whole number"),
        ({"steps": 2000}, r"1\.\.1000"),
        ({"start": 0.5, "end": 0.5}, "a control acts from start to end"),
        ({"sampler": "../../x"}, "sampler must be one of ddim"),
        ({"source": "elsewhere"}, "source must be one of drawn here, made from a picture, a ready map, got .elsewhere"),
        ({"paper": "foo"}, "paper must be one of #ffffff, #000000, got .foo"),
        ({"others": ["/etc/passwd", "words.png", MAP, 1, 0, 1, "balanced"]}, "there is no ControlNet /etc/passwd"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused_in_one_sentence_and_leaves_nothing(
    studio: Studio, tmp_path: Path, values: dict, sentence: str
) -> None:
    (tmp_path / "words.png").write_text("no picture")
    if "picture" in values:
        values = {**values, "picture": str(tmp_path / values["picture"])}
    before = sorted(studio.folder.glob("*"))
    with pytest.raises(Refused, match=sentence) as refusal:
        drawn(studio, asked(**values).wish(studio, tmp_path))
    assert "\n" not in str(refusal.value)
    assert sorted(studio.folder.glob("*")) == before


@pytest.mark.parametrize("given", [None, "abc", "1", True, math.nan, math.inf, -math.inf, [1], -0.01, 2.01])
def test_only_a_finite_number_within_its_bounds_is_one(given: object) -> None:
    assert [within(one, "Scale", 0, 2, whole=False) for one in (0, 0.5, 2)] == [0, 0.5, 2]
    with pytest.raises(Refused, match=r"^Scale must be a number from 0 to 2, got \S+$"):
        within(given, "Scale", 0, 2, whole=False)


def test_a_whole_number_is_not_rounded() -> None:
    assert within(5.0, "First seed", 0, None, whole=True) == 5
    for number in (1.5, math.inf):
        with pytest.raises(Refused, match=f"^First seed must be a whole number from 0, got {number}$"):
            within(number, "First seed", 0, None, whole=True)


def test_a_refused_drawing_leaves_the_last_live_one_where_it_is(studio: Studio, strokes: Path) -> None:
    last = drawn(studio, Wish(Control(strokes), steps=1), place="live").images[0]
    with pytest.raises(Refused, match="count must be whole and at least 1"):
        drawn(studio, Wish(Control(strokes), count=0), place="live")
    assert last.is_file()


def test_what_is_not_seen_of_a_picture_is_told_by_its_own_name(studio: Studio, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    for control in (Control(tmp_path / "words.png"), Control(photo=tmp_path / "words.png")):
        with pytest.raises(Refused, match=r"^cannot use (hint|photo) words.png: it is not a readable picture$"):
            studio.hint(control)


def test_each_unknown_word_of_a_drawing_is_told_of_once_without_the_list_of_known_ones() -> None:
    known = ["a", "red", "star"]
    small = Conditioner(TextEncoder(vocab_size=len(known) + 2, width=4, layers=1, heads=1), known)
    with noted() as notes:
        for prompt in ("a qwertz b b stair", "b", "a red b", "a red star"):
            small.tokenize([prompt])
    assert notes == ["not known to this base, left out: qwertz, b, stair (nearest: star)"]


def test_a_note_gives_a_picture_its_own_name(studio: Studio, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "night.png")
    (note,) = drawn(studio, Wish(Control(tmp_path / "night.png"), steps=1)).notes
    assert note.startswith("night.png: blank")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["checkpoint=nothing"], "there is no nothing"),
        (["checkpoint=runs/a", "colour=red"], "colour"),
        (["checkpoint=runs/a", "jobs=list.jsonl"], r"python sample.py jobs=list.jsonl"),
        (["checkpoint=runs/a", "hint=x.png", "mask=y.png"], "leave out hint=, mask=: pictures are given on the page"),
        (["checkpoint=runs/a", "more=[{checkpoint: runs/b, scale: 0.5}]"], "more: leave out scale: how a further"),
    ],
)
def test_a_page_that_cannot_open_says_why(overrides: list[str], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        Studio(overrides)


def test_runs_that_are_done_while_the_page_is_open_join_when_it_is_loaded_again(studio: Studio) -> None:
    answers, late = Answers(studio), Path("runs") / "late"
    names = [[name for name, _ in field["choices"]] for field in answers.further()]
    assert names == [["none", "runs/b", "runs/a"]] * len(names) or names == [["none", "runs/a", "runs/b"]] * len(names)
    late.mkdir()
    shutil.copy("runs/b/control.safetensors", late)
    try:
        assert all(("runs/late", "runs/late/control.safetensors") in field["choices"] for field in answers.further())
    finally:
        shutil.rmtree(late)


def test_a_page_that_is_told_to_end_takes_uploads_along(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = []

    @contextmanager
    def serving(*_: Any) -> Iterator[SimpleNamespace]:
        try:
            yield SimpleNamespace(local_url="here", block_thread=lambda: os.kill(os.getpid(), signal.SIGTERM))
        finally:
            gone.append(True)

    monkeypatch.setattr("cldm.app.server.serving", serving)
    monkeypatch.setattr("cldm.app.studio.Studio", lambda _: None)
    usual = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            app.run(Namespace(overrides=[], host="127.0.0.1", port=None))
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert gone == [True]


def test_a_run_that_cannot_be_read_is_not_offered(studio: Studio) -> None:
    for name, content in (("empty", b""), ("cut", Path("runs/b/control.safetensors").read_bytes()[:100])):
        folder = Path("runs") / name
        folder.mkdir()
        (folder / "control.safetensors").write_bytes(content)
    try:
        assert {*studio.others()} == {"runs/a/control.safetensors", "runs/b/control.safetensors"}
    finally:
        for name in ("empty", "cut"):
            shutil.rmtree(Path("runs") / name)


def test_values_of_the_command_fit_on_the_sliders() -> None:
    gradio = pytest.importorskip("gradio")
    from cldm.app.form import ask

    typed = ["sampler.guidance=20", "scale=2.5", "sampler.steps=150"]
    with gradio.Blocks():
        form = ask(Studio([*GIVEN, *typed]))
    for name, value in (("guidance", 20), ("scale", 2.5), ("steps", 150)):
        slider = form.fields[name]
        assert slider.minimum <= slider.value == value <= slider.maximum


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--port", "99999"], "error: --port must be from 1 to 65535, got 99999"),
        (["--port", "0"], "error: --port must be from 1 to 65535, got 0"),
        (["--host", "10.9.9.9"], "error: --host 10.9.9.9 is no address of this machine"),
        (["--host", "no such host"], "error: --host no such host is no address of this machine"),
    ],
)
def test_a_page_that_cannot_listen_says_why_in_one_sentence(given: list[str], sentence: str, capsys) -> None:
    pytest.importorskip("gradio")
    assert cli.main(["app", *GIVEN, *given]) == 1
    assert capsys.readouterr().err.strip() == sentence


def test_a_port_in_use_is_told_by_the_words_of_the_command(capsys) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["app", *GIVEN, "--port", str(port)]) == 1
    assert capsys.readouterr().err.strip() == (
        f"error: --port {port} is in use; take another, or none for the first free one"
    )


def test_a_checkpoint_that_breaks_while_the_page_is_open_is_told_by_its_name(strokes: Path) -> None:
    folder = Path("runs/broken")
    shutil.copytree("runs/a", folder)
    try:
        studio, wish = (
            Studio([f"checkpoint={folder}", f"base={folder}/base.safetensors"]),
            Wish(Control(strokes), steps=1),
        )
        for name in ("base.safetensors", "control.safetensors"):
            whole = (folder / name).read_bytes()
            for content in (whole[:5], whole[:100], whole[: len(whole) // 2], None):
                (folder / name).write_bytes(content or b"")
                if content is None:
                    (folder / name).unlink()
                with pytest.raises(Refused, match=f"{folder}/{name}") as refusal:
                    drawn(studio, wish)
                assert "header" not in str(refusal.value)
                assert "Errno" not in str(refusal.value)
            (folder / name).write_bytes(whole)
    finally:
        shutil.rmtree(folder)


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("cldm.commands.app.find_spec", lambda _: None)
    assert cli.main(["app"]) == 1
    assert re.search(r"pip install -e '\.\[app\]'", capsys.readouterr().err)
