"""Figures of the shipped base models in the docs are those in the files."""

import json
import re

from cldm.runs.checkout import REPOSITORY
from ldm.weights import read_metadata


def test_the_docs_state_the_figures_of_the_scenes_base_model() -> None:
    metrics = json.loads(read_metadata(REPOSITORY / "configs/model/scenes.safetensors")["metrics"])
    table = (REPOSITORY / "docs" / "scenes.md").read_text().split("<!-- base -->")[1].split("<!-- /base -->")[0]
    stated = {name: float(value) for name, value in re.findall(r"\| `(\w+)` \| ([\d.]+) \|", table)}
    assert stated == {name: round(metrics[name], 3) for name in stated}
    assert {"color_recall", "color_precision", "background", "shape", "binding"} <= stated.keys()


def test_the_shipped_base_model_is_small_and_tells_where_it_comes_from() -> None:
    path = REPOSITORY / "configs/model/scenes.safetensors"
    assert path.stat().st_size <= 16_000_000
    assert {"command", "commit", "steps", "seed", "metrics"} <= read_metadata(path).keys()


def test_the_base_of_the_stickers_is_small_and_names_its_artists() -> None:
    path = REPOSITORY / "configs/model/stickers.safetensors"
    assert path.stat().st_size <= 24_000_000
    told = read_metadata(path)
    assert {"commit", "steps", "metrics"} <= told.keys()
    assert "OpenMoji" in told["artwork"]
