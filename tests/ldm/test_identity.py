"""Promises of identities: what decides a content changes its key, and nothing else does."""

import functools
import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from cldm.conditions import get_condition
from cldm.conditions.canny import Canny
from ldm import files
from ldm.files import content
from ldm.identity import decisive, key


@dataclass(frozen=True)
class Extractor:
    """Parameters of which some are files, functions and further parameters."""

    weights: str = ""
    threshold: float = 0.5
    network: Any = None
    edges: Any = None


def test_a_file_is_known_by_what_it_holds_not_by_name_size_or_time(tmp_path):
    path, copy = tmp_path / "a", tmp_path / "deep" / "b"
    path.write_text("one")
    before, times = content(path), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    path.write_text("two")  # of the same size
    os.utime(path, ns=times)  # and, as it seems, of the same time
    assert content(path) != before
    copy.parent.mkdir()
    copy.write_text("two")
    assert content(copy) == content(path)


def test_a_large_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "base"
    path.write_text("weights")
    before = content(path)
    files._read.cache_clear()  # another process
    with monkeypatch.context() as patch:
        patch.setattr(files, "_digest", lambda _: pytest.fail("it was read before"))
        assert content(path) == before
    path.write_text("others!")
    assert content(path) != before


def test_a_folder_is_known_by_its_files_and_their_names(tmp_path):
    for place in ("one", "two"):
        (tmp_path / place / "deep").mkdir(parents=True)
        (tmp_path / place / "deep" / "weights").write_text("w")
    (tmp_path / "two" / ".lock").touch()
    assert content(tmp_path / "one") == content(tmp_path / "two")
    (tmp_path / "two" / "deep" / "weights").rename(tmp_path / "two" / "weights")
    assert content(tmp_path / "one") != content(tmp_path / "two")


@pytest.mark.slow
def test_parameters_decide_and_so_do_the_weights_that_they_name(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("weights")
    a, b = Extractor(str(tmp_path / "a")), Extractor(str(tmp_path / "b"))
    assert key(a) == key(b)
    (tmp_path / "b").write_text("others!")
    assert key(a) != key(b)
    assert key(Extractor(threshold=0.25)) != key(Extractor())
    assert key(Extractor(edges=Canny(low=1))) != key(Extractor(edges=Canny(low=2)))
    assert key(get_condition("canny")) == key(Canny()) != key(Canny(high=199))


def test_the_version_of_a_condition_decides(monkeypatch):
    before = key(Canny())
    monkeypatch.setattr(Canny, "version", 2)
    assert key(Canny()) != before


@pytest.mark.slow
def test_functions_are_known_by_name_and_never_by_address():
    assert decisive(Extractor(network=nn.Identity))["network"] == "torch.nn.modules.linear.Identity"
    assert key(Extractor(network=key)) != key(Extractor(network=content))
    narrow, wide = (Extractor(network=functools.partial(nn.Conv2d, 3, width)) for width in (1, 2))
    assert key(narrow) == key(Extractor(network=functools.partial(nn.Conv2d, 3, 1))) != key(wide)
    with pytest.raises(ValueError, match="has no name that outlives this process"):
        key(Extractor(network=lambda: None))


def test_modules_are_known_by_their_weights():
    torch.manual_seed(0)
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert key(one) != key(other)
    other.load_state_dict(one.state_dict())
    assert key(one) == key(other)
