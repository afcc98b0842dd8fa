"""The segmenter learns, ships as a small file with its score, and maps scenes to the kinds that are visible."""

from pathlib import Path

import pytest
import torch

from cldm.commands.cli import main
from cldm.worlds.scenes import KINDS, Scene, SceneObject
from cldm.worlds.scenes.segmenter import CLASSES, Segmenter, kind_labels, load_segmenter
from ldm.weights import read_metadata


def test_labels_are_the_kinds_that_are_visible():
    star = SceneObject("star", "red", "large", -0.4, 0.0, 0.45, 0.0, 0.25)
    ring = SceneObject("ring", "blue", "large", 0.4, 0.0, 0.45, 0.0, 0.75)
    found = kind_labels([Scene((star, ring), "mint"), Scene((), "mint")])
    assert found.shape == (2, 64, 64)
    assert set(found[0].unique().tolist()) == {0, 1 + KINDS.index("star"), 1 + KINDS.index("ring")}
    assert not found[1].any()


def test_it_works_on_pictures_of_any_size():
    net = Segmenter().eval()
    with torch.no_grad():
        assert net(torch.zeros(2, 3, 128, 96)).shape == (2, CLASSES, 64, 64)
    assert net.features(torch.zeros(2, 3, 64, 64)).shape == (2, 96)


def test_the_command_writes_a_small_file_with_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "segmenter.safetensors"
    assert main(["segmenter", "--steps", "3", "--scenes", "16", "--out", str(file)]) == 0
    assert file.stat().st_size < 2**20
    assert 0 < float(read_metadata(file)["miou"]) < 1
    assert "held-out renders" in capsys.readouterr().out
    assert not load_segmenter(file).training


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["segmenter", "--steps", "0"]) == 1
    assert "--steps" in capsys.readouterr().err
