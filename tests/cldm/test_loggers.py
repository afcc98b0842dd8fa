"""Promises of the optional loggers: what was logged can be read back, and a resumed run goes on as the same one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cldm.runs.checkout import REPOSITORY

RUN = """
import sys
from pathlib import Path
import torch
from omegaconf import OmegaConf
from cldm.runs.building import instantiate
from cldm.runs.tracking import describe_run, log_look, log_outcome
from PIL import Image

name, runs, root = sys.argv[1:]
cfg = OmegaConf.load(f"{root}/configs/logger/{name}.yaml")
cfg = OmegaConf.merge({"runs": runs, "run_dir": f"{runs}/method/seed-0", "group": "mine"}, {"logger": cfg})
columns = {"hint": torch.zeros(2, 3, 8, 8), "controlled": torch.ones(2, 3, 8, 8)}
for first, steps in ((1, 2), (2, 4)):  # begun, killed after its last checkpoint, and gone on with from that
    loggers = [*instantiate(cfg.logger, _convert_="all").values()]
    describe_run(loggers, {"steps": steps, "optimizer": {"lr": 1e-3}, "parts": {"control": {"trainable": 7}}})
    for logger in loggers:
        for step in range(first, steps + 1):
            logger.log_metrics({"train/loss": 1.0 / step, "train/lr": 0.1 * first, "samples_seen": 8.0 * step}, step)
        log_look(logger, Image.new("RGB", (8, 8)), columns, ["a", "b"], steps, steps == 2)
        logger.finalize("success")
    log_outcome(loggers, Path(cfg.run_dir), {"stage": "control", "steps": steps,
                "fidelity": {"edge_f1_1px": {"base": 0.1, "control": 0.75}}})
"""


def logged(name: str, runs: Path) -> None:
    """Log a short run, and go on with it, in a process of its own: these libraries keep state."""
    (runs / "method" / "seed-0").mkdir(parents=True, exist_ok=True)
    done = subprocess.run([sys.executable, "-c", RUN, name, str(runs), str(REPOSITORY)], cwd=runs,
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_trackio_gives_back_figures_settings_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("trackio", reason="needs trackio: pip install -e '.[trackio]'")
    monkeypatch.delenv("TRACKIO_DIR", raising=False)
    logged("trackio", tmp_path)
    read = """
import json, sys
from trackio.sqlite_storage import SQLiteStorage as db
(run,) = db.get_run_records("controlnet")
print(json.dumps([run["name"], db.get_run_config("controlnet", run["name"]), db.get_logs("controlnet", run["name"])]))
"""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    done = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, timeout=300, check=True)
    name, config, rows = json.loads(done.stdout.splitlines()[-1])
    assert name == f"method/seed-0-{(tmp_path / 'method' / 'seed-0' / 'trackio_id').read_text()}"
    assert config["optimizer"] == {"lr": 1e-3}
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    rates = [(row["step"], row["train/lr"]) for row in rows if "train/lr" in row]
    assert rates == [(1, 0.1), (2, 0.1), (2, 0.2), (3, 0.2), (4, 0.2)]  # what was done again otherwise is not hidden
    assert [row["result/edge_f1_1px"] for row in rows if "result/edge_f1_1px" in row] == [0.75, 0.75]
    shown = [row for row in rows if "val/000/sample" in row]
    assert [row["step"] for row in shown] == [2, 4]
    assert shown[0]["val/001/sample"]["caption"] == "step 2: b"
    files = {path.name for path in (tmp_path / "trackio" / "media").rglob("*.png")}
    assert len(files) == 2 + 2 + 2  # hints once


@pytest.mark.slow
def test_mlflow_gives_back_figures_settings_and_pictures(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="needs mlflow: pip install -e '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    logged("mlflow", tmp_path)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("controlnet")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (tmp_path / "method" / "seed-0" / "mlflow_id").read_text()
    assert (run.info.run_name, run.info.status) == ("method/seed-0", "FINISHED")
    assert (run.data.params["optimizer.lr"], run.data.params["parts.control.trainable"]) == ("0.001", "7")
    assert (run.data.params["steps"], run.data.tags["changed.steps"]) == ("2", "4")
    losses = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")]
    assert losses == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
    rates = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/lr")]
    assert rates == [(1, 0.1), (2, 0.1), (2, 0.2), (3, 0.2), (4, 0.2)]  # what was done again otherwise is not hidden
    assert run.data.metrics["result/edge_f1_1px"] == 0.75
    pictures = {path.name for path in (tmp_path / "mlflow").rglob("*.png")}
    assert len([name for name in pictures if name.startswith("val~000~sample")]) == 2
    assert len([name for name in pictures if "hint" in name]) == 2


@pytest.mark.slow
def test_a_run_that_was_deleted_in_mlflow_is_begun_anew_there(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mlflow", reason="needs mlflow: pip install -e '.[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    from mlflow.tracking import MlflowClient

    from cldm.runs.loggers.mlflow import mlflow_logger

    def attempt() -> str:
        logger = mlflow_logger(str(tmp_path), str(tmp_path))
        logger.log_metrics({"loss": 1.0}, 1)
        logger.finalize("success")
        return str(logger.run_id)

    first = attempt()
    assert attempt() == first
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    client.delete_run(first)
    second = attempt()
    assert second != first
    assert f"MLflow has no run {first} any more" in capsys.readouterr().out
    (tmp_path / "mlflow_id").write_text("0" * 32)  # of another database
    third = attempt()
    assert len({first, second, third}) == 3
    for run in (second, third):
        assert [one.value for one in client.get_metric_history(run, "loss")] == [1.0]


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_logger_that_is_not_installed_is_asked_for_by_its_extra(composed, tmp_path, monkeypatch, name):
    from pytorch_lightning.loggers import mlflow as lightnings

    from cldm.runs.building import instantiate

    monkeypatch.setitem(sys.modules, "trackio", None)
    monkeypatch.setattr(lightnings, "_MLFLOW_AVAILABLE", False)
    cfg = composed("model=tiny", f"logger={name}", f"run_dir={tmp_path}", f"runs={tmp_path}")
    with pytest.raises(Exception, match=rf"logger={name} needs {name} \(pip install -e '\.\[{name}\]'\)"):
        instantiate(cfg.logger[name])
