"""The page itself, asked by gradio's client and by bare requests: what it answers, and what it keeps to itself."""

import json
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the page needs gradio: pip install -e '.[app]'")
import gradio as gr
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from cldm.app.answers import Answers, fields_of, settings_of, visitors_own
from cldm.app.asked import CANVAS, MAP, PHOTO, Asked
from cldm.app.canvas import WHITE
from cldm.app.server import LARGEST, MOST_BYTES, serving
from cldm.app.studio import Studio
from cldm.app.wish import wish_of
from cldm.runs.checkout import REPOSITORY
from ldm.files import read_lines

HINT = REPOSITORY / "docs" / "hint.png"


@dataclass
class Open:
    """A page that is open: its address, its studio, a client, and the machines that were spoken to meanwhile."""

    url: str
    studio: Studio
    client: Client
    spoken_to: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, make_run: Callable[..., Path]) -> Iterator[Open]:
    work = tmp_path_factory.mktemp("page")
    run = make_run(work / "runs" / "a")
    connect, spoken_to = socket.socket.connect, set[str]()

    def heard(self: socket.socket, address: Any) -> None:
        spoken_to.add(str(address[0]) if isinstance(address, tuple) else "a local file")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(socket.socket, "connect", heard)
        studio = Studio([f"checkpoint={run}", f"base={run}/base.safetensors", "count=1", "sampler.steps=2"])
        with serving(studio) as page:
            yield Open(page.local_url, studio, Client(page.local_url, verbose=False), spoken_to)


def draw(opened: Open, **values: Any) -> tuple[Any, ...]:
    """What the Draw button gives: a ready map, and nothing in the other fields but what is given."""
    endpoint = next(one for one in opened.client.endpoints.values() if one.api_name == "/draw")
    empty = [p["parameter_name"] for p in endpoint.parameters_info if not p["parameter_has_default"]]
    given = {**dict.fromkeys(empty), "source": MAP, "picture": handle_file(str(HINT)), **values}
    return opened.client.predict(api_name="/draw", **given)


def folders(opened: Open) -> set[Path]:
    return {path.parent for path in opened.studio.folder.glob("*/manifest.jsonl")}


@pytest.mark.slow
def test_the_page_gives_the_pixels_of_the_command_that_it_shows(opened: Open, tmp_path: Path) -> None:
    before = folders(opened)
    gallery, slider, settings, line, told, *_ = draw(opened, prompt="a red star", seed=5, count=2)
    (folder,) = folders(opened) - before
    command = [*shlex.split(line.removeprefix("python ")), f"out={tmp_path}"]
    command[0] = str(REPOSITORY / command[0])
    subprocess.run([sys.executable, *command], check=True, cwd=opened.studio.path.parents[2], capture_output=True)
    assert [shown["caption"] for shown in gallery] == ["seed 5", "seed 6"]
    for shown, name in zip(gallery, ("seed_5.png", "seed_6.png"), strict=True):
        ours, theirs = (np.asarray(Image.open(path)) for path in (shown["image"], tmp_path / name))
        assert np.array_equal(ours, theirs)
        assert (folder / name).read_bytes() == Path(shown["image"]).read_bytes()  # settings inside and all
    assert (folder / "sheet.png").is_file()
    assert "seed 5 · ddim, 2 steps" in settings
    assert str(folder) in told
    assert np.array_equal(np.asarray(Image.open(slider[1])), np.asarray(Image.open(gallery[0]["image"])))


def test_a_picture_shows_its_map_before_anything_is_drawn(opened: Open) -> None:
    before = folders(opened)
    seen = opened.client.predict(PHOTO, handle_file(str(HINT)), api_name="/map")
    assert np.asarray(Image.open(seen)).shape == (64, 64, 3)
    assert np.asarray(Image.open(seen)).any()
    assert folders(opened) == before


def test_a_picture_of_a_further_controlnet_shows_its_map_too(opened: Open) -> None:
    (known,) = opened.studio.others()
    maps = [opened.client.predict("", handle_file(str(HINT)), PHOTO, api_name="/map_2")]
    maps += [opened.client.predict(known, handle_file(str(HINT)), kind, api_name="/map_2") for kind in (PHOTO, MAP)]
    assert maps[0] is None
    assert [np.asarray(Image.open(seen)).any() for seen in maps[1:]] == [True, True]
    with pytest.raises(AppError, match="not in the list of choices"):
        opened.client.predict("/etc/passwd", handle_file(str(HINT)), PHOTO, api_name="/map_3")


def test_a_bad_picture_gives_one_sentence(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    for answer in (
        lambda: draw(opened, picture=handle_file(str(tmp_path / "words.png"))),
        lambda: opened.client.predict(PHOTO, handle_file(str(tmp_path / "words.png")), api_name="/map"),
    ):
        with pytest.raises(AppError) as refusal:
            answer()
        assert re.fullmatch(r"cannot use (hint|photo) words\.png: it is not a readable picture", refusal.value.message)


def over(path: Path) -> dict[str, Any]:
    """What the field for a picture to draw over holds of a file."""
    return {"background": handle_file(str(path)), "layers": [], "composite": None}


def test_a_picture_to_draw_over_keeps_its_own_shape_and_values(opened: Open, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (40, 100, 4), dtype=np.uint8)
    values[..., 3] = 255
    Image.fromarray(values).save(tmp_path / "wide.png")
    before = folders(opened)
    draw(opened, image=over(tmp_path / "wide.png"))
    (folder,) = folders(opened) - before
    assert np.array_equal(np.asarray(Image.open(folder / "image.png")), values[..., :3])


def test_no_picture_to_draw_over_is_refused_in_one_sentence(opened: Open, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "whole.png")
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(np.full((64, 64), 7, dtype=np.float32)).save(tmp_path / "far.tiff")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "huge.png")
    texts = {"fake.png": b"no picture", "empty.png": b"", "page.html": b"<html>", "drawn.svg": b"<svg xmlns=''/>",
             "cut.png": (tmp_path / "whole.png").read_bytes()[:60]}  # fmt: skip
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
    reasons = {
        "fake.png": "it is not a readable picture", "page.html": "it is not a readable picture",
        "drawn.svg": "it is not a readable picture", "cut.png": "it is not a readable picture",
        "empty.png": "it is empty", "moving.gif": "it has 2 frames or layers; save the one to use as a PNG",
        "far.tiff": "its values lie outside [0, 1]; rescale them first",
        "huge.png": "it has 12000x12000 pixels, more than 128 million",
    }  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(AppError) as refusal:
            draw(opened, image=over(tmp_path / name))
        assert refusal.value.message == f"cannot use image {name}: {reason}"


def answer_to(opened: Open, picture: dict[str, Any]) -> str:
    """What a bare request for the map of a picture gets, without the client, which would upload it."""
    asked = f"{opened.url}gradio_api/call/map"
    event = httpx.post(asked, json={"data": [PHOTO, picture]}).json()["event_id"]
    return httpx.get(f"{asked}/{event}", timeout=60).text


def test_a_file_that_was_not_uploaded_cannot_be_read_through_the_page(opened: Open) -> None:
    kind = {"meta": {"_type": "gradio.FileData"}, "orig_name": "hint.png"}
    uploaded = httpx.post(f"{opened.url}gradio_api/upload", files={"files": ("hint.png", HINT.read_bytes())}).json()[0]
    assert "event: complete" in answer_to(opened, {"path": uploaded, **kind})
    for path in (HINT, opened.studio.path.resolve()):
        answer = answer_to(opened, {"path": str(path), **kind})
        assert "event: error" in answer
        assert "was not uploaded by a user" in answer


def test_only_what_the_page_drew_and_was_given_can_be_read(opened: Open) -> None:
    draw(opened, seed=9)
    (image,) = opened.studio.folder.glob("*/seed_9.png")
    assert httpx.get(f"{opened.url}gradio_api/file={image}").status_code == 200
    weights = opened.studio.path.resolve()
    for path in ("/etc/passwd", REPOSITORY / "pyproject.toml", weights, f"{image.parent}/../../../control.safetensors"):
        answer = httpx.get(f"{opened.url}gradio_api/file={path}")
        assert answer.status_code in (403, 404), path


@pytest.mark.parametrize("kind", ["application/json", "application/problem+json", "text/plain"])
def test_no_request_makes_the_page_fetch_an_address(opened: Open, kind: str) -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        picture = {"path": f"http://127.0.0.1:{server.server_port}/a.png", "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [PHOTO, picture]})
        answer = httpx.post(f"{opened.url}gradio_api/call/map", content=body, headers={"content-type": kind})
        server.shutdown()
    assert answer.status_code == 422
    assert "uploaded here, not fetched from an address" in answer.text
    assert asked == []


def test_an_upload_has_a_limit(opened: Open) -> None:
    most = int(LARGEST.removesuffix("mb")) * 10**6
    sizes = {most // 2: 200, most * 2: 413}
    for size, status in sizes.items():
        answer = httpx.post(f"{opened.url}gradio_api/upload", files={"files": ("a.png", b"0" * size)}, timeout=60)
        assert answer.status_code == status


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("pieces", [1, 30], ids=["told", "as it comes"])
def test_any_other_request_has_a_limit_too(opened: Open, kind: str, pieces: int) -> None:
    asked, headers = f"{opened.url}gradio_api/call/map", {"content-type": kind}
    body = b" " * (MOST_BYTES + 30)
    part = len(body) // pieces
    answer = httpx.post(asked, content=body if pieces == 1 else iter([body[:part]] * pieces + [b" "]), headers=headers)
    assert answer.status_code == 413
    assert answer.json() == {"detail": "a request has at most 2 MB; pictures are uploaded"}
    fitting = httpx.post(asked, json={"data": [PHOTO, None], "more": "a" * (MOST_BYTES // 2)})
    assert fitting.status_code == 200


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"scale": None}, "Scale must be a number from 0 to 2, got nothing"),
        ({"scale": "abc"}, "Scale must be a number from 0 to 2, got 'abc'"),
        ({"scale": "<b>"}, "Scale must be a number from 0 to 2, got '&lt;b>'"),
        ({"seed": 1.5}, "First seed must be a whole number from 0 to 4294967295, got 1.5"),
        ({"seed": -1}, "First seed must be a whole number from 0 to 4294967295, got -1"),
        ({"seed": 4294967296}, "First seed must be a whole number from 0 to 4294967295, got 4294967296"),
        ({"seed": 4294967295, "count": 2}, "the last of 2 seeds must be at most 4294967295, got 4294967296"),
        ({"count": None}, "Images must be a whole number from 1 to 16, got nothing"),
        ({"steps": True}, "Steps must be a whole number from 1 to 100, got True"),
        ({"strength": 0}, "Strength must be a number from 0.05 to 1, got 0"),
        ({"start": 0.5, "end": 0.5}, "a control acts from start to end, 0 <= start < end <= 1; got 0.5 to 0.5"),
    ],
)
def test_a_number_that_is_none_or_does_not_fit_is_refused_in_one_sentence(
    opened: Open, values: dict[str, Any], sentence: str
) -> None:
    before = folders(opened)
    with pytest.raises(AppError) as refusal:
        draw(opened, **values)
    assert refusal.value.message == sentence
    assert folders(opened) == before


def test_the_page_listens_to_this_machine_alone_and_speaks_to_no_other(opened: Open) -> None:
    draw(opened)
    port = httpx.URL(opened.url).port or 0
    with socket.create_connection(("127.0.0.1", port), 2):
        pass
    if sys.platform == "linux":
        with pytest.raises(OSError, match="refused"):  # as from elsewhere: not the address that it listens at
            socket.create_connection(("127.0.0.2", port), 2)
    assert opened.spoken_to <= {"127.0.0.1", "127.0.0.2", "localhost", "::1", "a local file"}


def test_the_page_lets_the_browser_load_nothing_from_elsewhere(opened: Open) -> None:
    answer = httpx.get(opened.url)
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "fonts.googleapis.com" not in httpx.get(f"{opened.url}theme.css").text
    assert '"analytics_enabled":false' in answer.text.replace(" ", "")


def test_the_settings_of_an_image_fill_the_fields_that_draw_it_again(opened: Open, tmp_path: Path) -> None:
    draw(opened, prompt="a star", seed=21, guidance=2.5, scale=0.5, end=0.8, mode="control", sampler="unipc")
    (image,) = opened.studio.folder.glob("*/seed_21.png")
    fields = fields_of(wish_of(settings_of(str(image))))
    fields[1:3] = [WHITE, None]
    wish = Asked(*fields[:17], fields[17:]).wish(opened.studio, tmp_path)
    again = opened.studio.draw(wish, lambda *_: None, threading.Event())
    assert np.array_equal(np.asarray(Image.open(image)), np.asarray(Image.open(again.images[0])))


def test_stop_ends_the_visitors_drawing_and_shows_what_there_is(opened: Open) -> None:
    answers, request = Answers(opened.studio), gr.Request(session_hash="me")
    begun, results = threading.Event(), []
    answers.studio.kept.networks = None
    values = [CANVAS, WHITE, None, None, "", "", 8, 100, "ddim", 400, 3.0, 1.0, 0.0, 1.0, "balanced", None, 0.75]

    def work() -> None:
        results.append(answers.draw(request, *values, lambda *_, **__: begun.set()))

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    *_, told, files, number = answers.stop(request)
    thread.join(60)
    assert told.startswith("Stopped: 0 images")
    assert (files, number) == results[0][-2:] == ([], 0)
    assert "Nothing is being drawn" in answers.stop(gr.Request(session_hash="somebody else"))[4]


def test_live_mode_draws_one_image_of_few_steps_and_only_when_asked(opened: Open) -> None:
    answers, request = Answers(opened.studio), gr.Request(session_hash="me")
    values = [CANVAS, WHITE, None, None, "", "", 8, 100, "ddim", 400, 3.0, 1.0, 0.0, 1.0, "balanced", None, 0.75]
    before = folders(opened)
    answers.live(request, False, *values)
    assert folders(opened) == before
    shown, *_ = answers.live(request, True, *values)
    (line,) = read_lines(next(opened.studio.folder.glob("live/*/manifest.jsonl")))
    assert len(shown) == 1
    assert (line["seed"], line["sampler"]["steps"]) == (100, 10)
    *_, files, number = answers.live(gr.Request(session_hash="you"), True, *values)
    (mine, _), *_ = shown
    assert Path(mine).is_file()  # another visitor's stroke leaves it
    assert files[0] != mine
    Path(files[0]).parent.joinpath("manifest.jsonl").unlink()
    with pytest.raises(gr.Error, match="a later drawing has replaced this image"):
        answers.again(files, number)
    with pytest.raises(gr.Error, match="click the image whose settings"):
        answers.again(files, 3)  # of an earlier drawing of four images


@pytest.mark.parametrize("session", ["--", "../..", "", "/", "a/b"])
def test_no_session_means_the_folders_of_other_visitors(opened: Open, session: str) -> None:
    other = opened.studio.folder / "live" / visitors_own("somebody else")
    other.mkdir(parents=True, exist_ok=True)
    values = [MAP, WHITE, None, str(HINT), "", "", 1, 0, "ddim", 1, 3.0, 1.0, 0.0, 1.0, "balanced", None, 0.75]
    *_, files, _ = Answers(opened.studio).live(gr.Request(session_hash=session), True, *values)
    assert Path(files[0]).parent.parent == opened.studio.folder / "live"
    assert other.is_dir()
