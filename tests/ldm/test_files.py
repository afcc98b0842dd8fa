"""Promises of files: whole or not at all, and several writers side by side break and lose nothing."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from ldm.files import InUse, append_line, locked, read_lines, remove_partial, whole, write_json, write_text

WRITERS, TIMES = 3, 20


def write_at_once(folder: Path, number: int, barrier) -> None:
    for i in range(TIMES):
        barrier.wait()
        write_text(folder / f"{i}.txt", f"{number}" * 200_000)
        append_line(folder / "lines.jsonl", {"writer": number, "i": i, "text": "x" * 5000})


def test_writers_side_by_side_leave_whole_files_and_every_line(tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier = fork.Barrier(WRITERS)
    writers = [fork.Process(target=write_at_once, args=(tmp_path, n, barrier)) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * WRITERS
    for i in range(TIMES):
        content = (tmp_path / f"{i}.txt").read_text()
        assert len(content) == 200_000
        assert len({*content}) == 1
    lines = [(line["writer"], line["i"]) for line in read_lines(tmp_path / "lines.jsonl")]
    assert sorted(lines) == [(n, i) for n in range(WRITERS) for i in range(TIMES)]
    assert len([*tmp_path.iterdir()]) == TIMES + 1


def test_two_processes_do_not_hold_one_folder(tmp_path):
    with locked(tmp_path):
        with pytest.raises(InUse, match="is in use by another process"), locked(tmp_path):
            pass
        with locked(tmp_path, "other.lock"):
            pass
    with locked(tmp_path):
        pass


def test_a_line_that_a_kill_cut_short_spoils_no_other(tmp_path):
    path = tmp_path / "new" / "lines.jsonl"
    assert read_lines(path) == []
    append_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"a": 2, "b": "cut sho')
    append_line(path, {"a": 3, "b": "ü"})
    assert read_lines(path) == [{"a": 1}, {"a": 3, "b": "ü"}]


def test_a_name_of_255_bytes_can_be_written(tmp_path):
    write_text(tmp_path / ("ü" * 125 + ".json"), "text")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["text"]


def test_a_folder_is_written_whole_or_not_at_all_and_never_over_another(tmp_path):
    def write(complete: bool) -> None:
        with whole(tmp_path / "there", new=True) as partial:
            partial.mkdir()
            (partial / "a").touch()
            if not complete:
                raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write(False)
    assert not [*tmp_path.iterdir()]
    write(True)
    with pytest.raises(FileExistsError, match="there exists; remove it"):
        write(True)
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "a"]


def killed_in(path: Path) -> None:
    with whole(path) as partial:
        partial.write_text("half")
        os._exit(1)


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=killed_in, args=(tmp_path / "a.txt",))
    process.start()
    process.join()
    write_text(tmp_path / "b.txt", "b")
    assert len([*tmp_path.iterdir()]) == 2
    remove_partial(tmp_path, tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


def test_numbers_that_do_not_exist_become_null_at_any_depth(tmp_path):
    nan, inf = float("nan"), float("inf")
    write_json(tmp_path / "new" / "a.json", {"a": nan, "b": [1.5, nan, (nan, 2)], "c": {"d": -inf}, "e": None})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    found = json.loads((tmp_path / "new" / "a.json").read_text(), parse_constant=refuse)
    assert found == {"a": None, "b": [1.5, None, [None, 2]], "c": {"d": None}, "e": None}


def test_json_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}

    def fail(self, text, encoding):
        with open(self, "w") as file:
            file.write(text[:3])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


class FullDisk(Exception):
    """As safetensors raises it."""


def test_a_full_disk_is_told_with_the_file_that_had_no_room(tmp_path):
    for error in (OSError(28, "No space left on device"), FullDisk("I/O error: No space left on device (os error 28)")):
        with (
            pytest.raises(OSError, match=r"No space left on device: '.*weights\.safetensors'"),
            whole(tmp_path / "weights.safetensors"),
        ):
            raise error
    assert [*tmp_path.iterdir()] == []
