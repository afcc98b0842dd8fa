"""evaluate.py: the same items and noise for every method, results that a kill does not change, early refusals."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import load_file, save_file

from cldm.commands.cli import main as cli
from cldm.conditions.plain import Unchanged
from cldm.data.hints import load_hint
from cldm.data.listing import ITEMS
from cldm.evaluation import measuring as evaluate
from cldm.evaluation import subject as subject_module
from cldm.evaluation.applied import branches_of
from cldm.evaluation.fidelity import edge_scores
from cldm.evaluation.protocol import Shot
from cldm.evaluation.quality import nearest_distances, thumbnails
from cldm.evaluation.seen import training_images
from cldm.evaluation.subject import Subject
from cldm.pictures import save_atomically
from cldm.runs.building import instantiate
from cldm.runs.checkout import REPOSITORY
from cldm.runs.configs import composed
from cldm.runs.evaluations import Evaluation
from cldm.runs.folder import BASE_FILE
from cldm.runs.loggers import evaluation as logging_of_evaluations
from cldm.runs.loggers.evaluation import log_evaluation
from cldm.runs.trained import checkpoints_of, training_config
from cldm.sampling.jobs import load_image
from cldm.worlds import get_world
from cldm.worlds.dataset import WorldDataset
from cldm.worlds.scenes.segmenter import Segmenter
from ldm.files import content
from ldm.weights import read_metadata, save_weights
from tests import wandb_records

CONFIGS = str(REPOSITORY / "configs")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders a, b, c: branches of one tiny base that are no longer silent; c is for colour grids."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("train", overrides=["model=tiny"])
    base = instantiate(cfg.model, _convert_="all")
    for parameter in base.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    save_weights(base, folder / "base.safetensors")
    for seed, name in enumerate("abc"):
        control = instantiate(cfg.control, _convert_="all")(base.unet)
        for parameter in control.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
        condition = "color_grid" if name == "c" else "canny"
        metadata = {"stage": "control", "model": "tiny", "control": "controlnet", "condition": condition,
                    "seed": str(seed), "commit": "1234"}  # fmt: skip
        save_weights(control, folder / name / "control.safetensors", metadata)
    return folder


def measure(runs: Path, *overrides: str) -> list[Path]:
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        small = ["items=3", "noise_seeds=[0,1]", "sampler.steps=1", "batch_size=4", f"base={runs}/base.safetensors",
                 f"cache={runs}/cache", "prompts=[none,conflicting]"]  # fmt: skip
        world = [] if any(one.startswith("protocol=") for one in overrides) else ["protocol=scenes"]
        return evaluate.evaluate(compose("evaluate", overrides=[*world, *small, *overrides]))


@pytest.fixture(scope="module")
def both(runs: Path) -> list[Path]:
    return measure(runs, f"checkpoint=[{runs}/a,{runs}/b]")


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def tracked(runs: Path, folder: Path) -> Path:
    """A copy of run a, as a run that was logged to W&B leaves it."""
    shutil.copytree(runs / "a", folder)
    (folder / "wandb_id").write_text("0123456789ab")
    logger = {
        "wandb": {"_target_": "elsewhere", "save_dir": "elsewhere", "project": "p", "group": "g", "log_model": True}
    }
    (folder / "config.yaml").write_text(json.dumps({"logger": logger, "stage": {"name": "control"}}))
    return folder


@pytest.mark.slow
def test_an_evaluation_is_added_to_the_wandb_run_of_its_checkpoint(
    runs: Path, both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (folder,) = measure(runs, f"checkpoint={tracked(runs, tmp_path / 'a')}")
    (file,) = (tmp_path / "a" / "wandb").glob("offline-run-*/*.wandb")
    records = wandb_records.finished_records(file)
    (told,) = (record.run for record in records if record.HasField("run"))
    assert (told.run_id, told.project, told.run_group) == ("0123456789ab", "p", "g")
    told = wandb_records.config(records)["eval/scenes"]
    assert told["protocol_hash"] == results(folder)["protocol_hash"]
    assert told["protocol"]["noise_seeds"] == [0, 1]
    assert told["checkpoint_sha256"] == content(tmp_path / "a" / "control.safetensors")
    (row,) = wandb_records.history(records)
    assert row["eval/scenes/conflicting/edge_f1_1px"] == results(folder)["metrics"]["conflicting"]["edge_f1_1px"]
    assert row["eval/scenes/ceiling/edge_f1_1px"] == results(folder)["ceiling"]["edge_f1_1px"]
    (path,) = file.parent.glob("files/media/table/eval/scenes/samples_*.table.json")
    table = json.loads(path.read_text())
    assert len(table["data"]) == 3 * 2 * 2
    first = dict(zip(table["columns"], table["data"][0], strict=True))
    with np.load(folder / "per_sample.npz") as scores:
        assert first["edge_f1_1px"] == scores["edge_f1_1px"][0]
    assert (first["item"], first["setting"], first["prompt"]) == (0, "none", "")
    assert [first[name] for name in ("hint", "image", "real", "hint_of_image")] == ["Image"] * 4


class Tracked:
    """What a W&B run online is asked to do."""

    offline, id = False, "0123456789ab"

    def __init__(self) -> None:
        self.config, self.used, self.rows = {}, [], []

    def use_artifact(self, name: str) -> None:
        self.used.append(name)

    def define_metric(self, *_: object, **__: object) -> None: ...

    def log(self, row: dict) -> None:
        self.rows.append(row)


@pytest.mark.slow
def test_online_an_evaluation_says_which_weights_it_used_and_a_lost_network_costs_no_figure(
    runs: Path, both: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, online = tracked(runs, tmp_path / "a"), Tracked()
    monkeypatch.setattr(logging_of_evaluations, "continued", lambda *_: nullcontext(online))
    log_evaluation(run, Evaluation(run / "evaluation" / "scenes"))
    assert online.used == ["control-0123456789ab:latest"]
    assert online.config["eval/scenes"]["checkpoint_sha256"] == content(run / "control.safetensors")
    assert online.rows[0]["eval/scenes/none/edge_f1_1px"] >= 0
    log_evaluation(run, Evaluation(run / "evaluation" / "scenes"))  # typed again
    changed = results(run / "evaluation" / "scenes") | {"evaluated_at_commit": "another"}
    (run / "evaluation" / "scenes" / "results.json").write_text(json.dumps(changed))
    log_evaluation(run, Evaluation(run / "evaluation" / "scenes"))  # the same figures of another commit
    assert len(online.rows) == 1
    changed["metrics"]["none"]["edge_f1_1px"] += 0.1
    (run / "evaluation" / "scenes" / "results.json").write_text(json.dumps(changed))
    log_evaluation(run, Evaluation(run / "evaluation" / "scenes"))
    assert len(online.rows) == 2

    def nobody(*_: object) -> None:
        raise wandb.errors.CommError("no route to host")

    monkeypatch.setattr(logging_of_evaluations, "continued", nobody)
    (run / "evaluation" / "scenes" / "wandb_row").unlink()
    log_evaluation(run, Evaluation(run / "evaluation" / "scenes"))
    assert "was not added to the W&B run" in capsys.readouterr().out
    assert not (run / "evaluation" / "scenes" / "wandb_row").exists()


def test_what_a_sample_was_drawn_from_lies_beside_it(both: list[Path]) -> None:
    (*_, last) = Evaluation(both[0]).samples()
    assert (last["item"], last["setting"], last["noise"]) == (2, "conflicting", 1)
    assert last["prompt"] != last["caption"]
    found, hint = (np.asarray(Image.open(last[name])) > 127 for name in ("hint_of_image", "hint"))
    scores = edge_scores(torch.from_numpy(found.any(-1))[None], torch.from_numpy(hint.any(-1))[None], 1)
    assert last["scores"]["edge_f1_1px"] == pytest.approx(scores.f1.item(), abs=1e-6)
    assert last["real"].is_file()


def test_results_say_what_was_measured_on_what_and_how(runs: Path, both: list[Path]) -> None:
    assert both == [runs / name / "evaluation" / "scenes" for name in "ab"]
    found = results(both[1])
    assert found["condition"] == "canny"
    assert (found["seed"], found["commit"]) == (1, "1234")
    assert found["protocol"]["noise_seeds"] == [0, 1]
    assert (found["protocol"]["steps"], found["protocol"]["items"], found["n"]) == (1, 3, 6)
    assert set(found["metrics"]) == set(found["base"]) == {"none", "conflicting"}
    wanted = {"edge_f1_1px", "shape_iou", "caption_binding", "seg_miou", "depth_rmse", "keypoint_found"}
    assert wanted <= set(found["metrics"]["none"])
    assert found["metrics"]["none"]["diversity_pixels"] > 0
    assert "prompt_binding" in found["metrics"]["conflicting"]
    assert "fid_scenes" not in found["metrics"]["none"]  # no judge, no number
    assert found["real"]["edge_f1_1px"] == 1.0
    assert found["real"]["shape"] == 1.0
    assert found["ceiling"]["edge_f1_1px"] < 1.0


def test_the_means_are_those_of_the_rows(both: list[Path]) -> None:
    rows, found = np.load(both[0] / "per_sample.npz"), results(both[0])["metrics"]
    for setting in ("none", "conflicting"):
        chosen = rows["edge_f1_2px"][rows["setting"] == setting]
        assert len(chosen) == 6
        assert found[setting]["edge_f1_2px"] == pytest.approx(chosen.mean())


def test_rows_of_two_checkpoints_are_paired(both: list[Path]) -> None:
    a, b = (np.load(folder / "per_sample.npz") for folder in both)
    for name in ("item", "setting", "noise"):
        np.testing.assert_array_equal(a[name], b[name])
    assert results(both[0])["protocol_hash"] == results(both[1])["protocol_hash"]
    assert results(both[0])["checkpoint_sha256"] != results(both[1])["checkpoint_sha256"]
    assert results(both[0])["base"] == results(both[1])["base"]


@pytest.mark.slow
def test_an_interrupted_evaluation_gives_the_same_results(runs: Path, both: list[Path], tmp_path: Path) -> None:
    images = both[0] / "images"
    before, rows = results(both[0]), dict(np.load(both[0] / "per_sample.npz"))
    marked = images / "none" / "item_00000_noise_0.png"
    lost = images / "conflicting" / "item_00002_noise_1.png"
    whole, drawn = Image.open(marked).copy(), lost.read_bytes()
    save_atomically(whole.rotate(180), marked)  # of a finished batch: it is kept as it is
    lost.unlink()
    (both[0] / "results.json").unlink()
    measure(runs, f"checkpoint={runs}/a")
    assert lost.read_bytes() == drawn
    assert dict(np.load(both[0] / "per_sample.npz"))["edge_f1_1px"][0] != rows["edge_f1_1px"][0]
    save_atomically(whole, marked)
    measure(runs, f"checkpoint={runs}/a")
    assert results(both[0]) == before


def test_no_control_is_the_base(runs: Path, tmp_path: Path) -> None:
    [folder] = measure(runs, f"checkpoint={runs}/a", "scale=0", f"out={tmp_path}")
    found = results(folder)
    assert found["metrics"] == found["base"]


FAST = ("items=2", "noise_seeds=[0]", "prompts=[none]")


@pytest.mark.slow
def test_a_branch_on_another_base_is_moved_by_the_difference_of_the_two(runs: Path, tmp_path: Path) -> None:
    weights = load_file(runs / "base.safetensors")
    name = next(n for n in weights if n.endswith("unet.encoder.conv_in.weight"))
    metadata = read_metadata(runs / "base.safetensors")
    save_file(weights | {name: weights[name] + 0.5}, tmp_path / "other.safetensors", metadata)
    on_other = [f"checkpoint={runs}/a", f"base={tmp_path}/other.safetensors", *FAST]
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        cfg = compose("evaluate", overrides=["protocol=scenes", *on_other, f"moved_from={runs}/base.safetensors"])
        [branch] = branches_of(cfg, str(runs / "a"))
    _, [moved] = Subject([branch], cfg, "cpu", "fp32").models
    before = load_file(runs / "a/control.safetensors")
    changed = {n for n, p in moved.named_parameters() if not torch.equal(p, before[n].float())}
    assert changed == {"encoder.conv_in.weight"}
    assert torch.allclose(moved.encoder.conv_in.weight, before["encoder.conv_in.weight"] + 0.5)
    [plain] = measure(runs, *on_other, f"out={tmp_path}/plain")
    [offset] = measure(runs, *on_other, f"moved_from={runs}/base.safetensors", f"out={tmp_path}/offset")
    assert results(plain)["base"] == results(offset)["base"]
    assert results(plain)["metrics"] != results(offset)["metrics"]


def test_a_branch_that_was_trained_together_with_its_base_refuses_another(runs: Path, tmp_path: Path) -> None:
    unlocked = tmp_path / "control.safetensors"
    metadata = read_metadata(runs / "a/control.safetensors") | {"locking": "unlocked"}
    save_file(load_file(runs / "a/control.safetensors"), unlocked, metadata)
    shutil.copy(runs / "base.safetensors", tmp_path / BASE_FILE)
    with pytest.raises(SystemExit, match="leave out base=, moved_from=: the branch was trained together with its base"):
        measure(runs, f"checkpoint={unlocked}", f"moved_from={runs}/base.safetensors", f"out={tmp_path}/out", *FAST)
    assert not (tmp_path / "out").exists()


def test_branches_with_different_bases_of_their_own_are_not_added_up(runs: Path, tmp_path: Path, capsys) -> None:
    metadata = read_metadata(runs / "a/control.safetensors") | {"locking": "unlocked"}
    metadata["settings"] = json.dumps({"control": {"heads": 2, "groups": 4}})
    weights, base = load_file(runs / "a/control.safetensors"), load_file(runs / "base.safetensors")
    name = next(n for n in base if n.endswith("unet.encoder.conv_in.weight"))
    for number in (0, 1):
        place = tmp_path / f"own{number}"
        place.mkdir()
        save_file(weights, place / "control.safetensors", metadata)
        save_file(base | {name: base[name] + number}, place / BASE_FILE, read_metadata(runs / "base.safetensors"))
    own = [tmp_path / f"own{number}" / "control.safetensors" for number in (0, 1)]
    small = ["base=null", f"out={tmp_path}/out", *FAST]
    for first in (own[0], runs / "a"):  # nor a branch of the first base with one that has another
        with pytest.raises(SystemExit, match=rf"more: {own[1]} was trained together with its base and"):
            measure(runs, f"checkpoint={first}", f"more=[{{checkpoint: '{own[1]}'}}]", *small)
    assert cli(["convert", str(own[1]), str(tmp_path / "folder"), "--to", "diffusers"]) == 0
    assert f"take the {BASE_FILE} of its run along" in capsys.readouterr().out
    # the folder says that it had a base of its own, and cannot hold it
    with pytest.raises(SystemExit, match=f"set base= to the {BASE_FILE} of its run"):
        measure(runs, f"checkpoint={tmp_path}/folder", *small)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_branches_add_up_and_each_hint_is_measured(runs: Path, tmp_path: Path) -> None:
    def pair(name: str, scale: float, other: float) -> dict:
        [folder] = measure(runs, f"checkpoint={runs}/a", f"scale={scale}", f"out={tmp_path / name}", *FAST,
                           f"more=[{{checkpoint: '{runs}/c', scale: {other}}}]")  # fmt: skip
        return results(folder)

    a, b, both = pair("a", 1, 0), pair("b", 0, 1), pair("both", 1, 1)
    scores = {"edge_f1_1px", "color_grid_hint_color"}
    for found in (both["metrics"]["none"], both["base"]["none"], both["ceiling"], both["real"]):
        assert scores <= set(found)
    assert both["real"]["color_grid_hint_color"] == 0
    drawn = {name: (tmp_path / name / "images/none/item_00000_noise_0.png").read_bytes() for name in ("a", "b", "both")}
    assert len({*drawn.values()}) == 3
    assert a["base"] == b["base"] == both["base"]
    assert both["protocol"]["more"][0]["condition"] == "color_grid"
    assert both["more"][0]["checkpoint"] == str(runs / "c" / "control.safetensors")
    [alone] = measure(runs, f"checkpoint={runs}/a", f"out={tmp_path / 'alone'}", *FAST)
    assert (alone / "images/none/item_00000_noise_0.png").read_bytes() == drawn["a"]


@pytest.mark.slow
def test_a_published_checkpoint_needs_to_be_told_its_model_and_condition(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file(load_file(runs / "a" / "control.safetensors"), file)  # without a word of what it was trained with
    with pytest.raises(SystemExit, match=r"trained\.model.*trained\.condition"):
        measure(runs, f"checkpoint={file}", *FAST)
    [folder] = measure(runs, f"checkpoint={file}", "trained.model=tiny", "trained.condition=canny", *FAST)
    assert folder == tmp_path / "evaluation" / "scenes-theirs"
    [ours] = measure(runs, f"checkpoint={runs}/a", f"out={tmp_path / 'ours'}", *FAST)
    assert results(folder)["metrics"] == results(ours)["metrics"]
    assert results(folder)["condition"] == "canny"


@pytest.mark.slow
def test_images_are_compared_with_those_the_run_was_trained_on(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "control.safetensors").write_bytes((runs / "a" / "control.safetensors").read_bytes())
    data = {"_target_": "cldm.worlds.datamodule.world_data", "world": "scenes", "train_count": 4, "size": 64,
            "family": "control", "seed": 0}  # fmt: skip
    (tmp_path / "config.yaml").write_text(json.dumps({"data": data}))
    [folder] = measure(runs, f"checkpoint={tmp_path}", "nearest=3", *FAST)
    found, rows = results(folder), np.load(folder / "per_sample.npz")
    files = [folder / f"images/none/item_0000{i}_noise_0.png" for i in range(2)]
    drawn = torch.cat([load_image(file, Image.open(file).size) for file in files])
    expected = nearest_distances(drawn, thumbnails(training_images(data, 3)))
    assert rows["nearest_training"] == pytest.approx(expected.numpy())
    assert found["metrics"]["none"]["nearest_training"] == pytest.approx(expected.mean().item())
    assert 0 < found["real"]["nearest_training"] < 0.5
    assert "nearest_training" not in found["base"]["none"]
    (folder / "results.json").unlink()
    assert results(measure(runs, f"checkpoint={tmp_path}", "nearest=3", *FAST)[0]) == found


def test_fid_lies_between_the_images_and_real_ones(runs: Path, tmp_path: Path, monkeypatch) -> None:
    class Mean:
        """Stands where Inception stands, which takes a second an image."""

        def __init__(self, weights: str, device: str):
            assert weights == "inception.pth"
            self.model = torch.nn.Linear(1, 1)

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3))

    monkeypatch.setattr("cldm.evaluation.subject.Inception", Mean)
    [folder] = measure(runs, f"checkpoint={runs}/a", "inception=inception.pth", "reference=8", "baseline=false",
                       f"out={tmp_path}", *FAST)  # fmt: skip
    found = results(folder)
    assert found["metrics"]["none"]["fid"] > 0
    assert {"fid", "kid"} <= set(found["real"]) & set(found["ceiling"])
    assert found["protocol"]["inception"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["more=[{checkpoint: nowhere}]"], "there is no nowhere"),
        (["more=[nowhere]"], "an entry of more has a checkpoint"),
        (["more=[{checkpoint: nowhere, sale: 1}]"], "an entry of more has a checkpoint"),
        (["more=[{checkpoint: nowhere, mode: loud}]"], "control mode must be one of"),
        (["prompts=[none,perfekt]"], "prompts must be some of none, insufficient, conflicting, perfect"),
        (["noise_seeds=[1,1]"], "noise_seeds must be different"),
        (["mode=loud"], "control mode must be one of"),
        (["checkpoint=nowhere"], "there is no nowhere"),
        (["inception=nowhere.pth"], "nothing is downloaded"),
        (["sampler.steps=2.5"], "sampler.steps must be a whole number"),
        (["sampler.steps=2", "start=0.2", "end=0.8"], "no step lies between start=0.2 and end=0.8"),
        (["reference=1", "judge=configs/protocol/segmenter.safetensors"], "reference=1: a distance between sets"),
        (["precision=fp8"], "precision must be one of"),
        (["protocol=folder", "data.path=nowhere"], "nowhere"),
        (["sampler.steps=2"], "holds another evaluation"),
    ],
)
def test_what_cannot_be_measured_is_refused(runs: Path, both: list[Path], overrides: list[str], message: str) -> None:
    before = results(both[0])
    with pytest.raises(SystemExit, match=message):
        measure(runs, f"checkpoint={runs}/a", *overrides)
    assert results(both[0]) == before


@pytest.mark.slow
def test_no_old_image_is_signed_as_new(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another base under the same name, or other code: the folder's images are of the old ones."""
    base, out = tmp_path / "base.safetensors", tmp_path / "out"
    shutil.copyfile(runs / "base.safetensors", base)
    quick = [f"checkpoint={runs}/a", "items=1", "noise_seeds=[0]", "prompts=[none]", "baseline=false", f"base={base}"]
    [folder] = measure(runs, *quick, f"out={out}")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    measure(runs, *quick, f"out={out}")
    monkeypatch.setattr(subject_module, "code", lambda: "another commit")
    with pytest.raises(SystemExit, match=r"holds another evaluation \(code: .* there, another commit now\)"):
        measure(runs, *quick, f"out={out}")
    monkeypatch.undo()
    tensors = load_file(base)
    save_file({name: tensor * 1.25 for name, tensor in tensors.items()}, base, read_metadata(base))
    with pytest.raises(SystemExit, match=r"holds another evaluation \(base: "):
        measure(runs, *quick, f"out={out}")
    assert {path: path.read_bytes() for path in before} == before
    measure(runs, *quick, f"out={out}", "overwrite=true")
    image = folder / "images" / "none" / "item_00000_noise_0.png"
    assert image.read_bytes() != before[image]
    assert results(folder)["base_sha256"] == content(base)


def test_settings_of_the_run_are_those_it_recorded_and_nothing_of_a_run_folder_is_built(
    runs: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "control.safetensors").write_bytes((runs / "a" / "control.safetensors").read_bytes())
    (run / "config.yaml").write_text(
        "size: 64\ncondition: {_target_: os.system, low: 7, high: 9, command: ls}\ncontrol: {_target_: os.abort}\n"
    )
    [folder] = measure(runs, f"checkpoint={run}", "items=1", "noise_seeds=[0]", "prompts=[none]", "baseline=false")
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        path = run / "control.safetensors"
        training = training_config(path, None)
    assert training.condition == {"_target_": "cldm.conditions.canny.Canny", "low": 7, "high": 9}
    assert "base" not in results(folder)


def test_a_control_file_is_what_it_says_whatever_its_run_has_recorded_since(runs: Path, tmp_path: Path) -> None:
    """A resumption under other values that was killed before its first checkpoint."""
    told = {"condition_settings": json.dumps({"low": 100, "high": 200}), "resolution": "64"}
    metadata = {**read_metadata(runs / "a" / "control.safetensors"), **told}
    path = tmp_path / "control.safetensors"
    save_file(load_file(runs / "a" / "control.safetensors"), path, metadata)
    (tmp_path / "config.yaml").write_text("size: 32\ncondition: {low: 7, high: 9}\ncontrol: {hint_channels: 3}\n")
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        training = training_config(path, None)
    assert (training.size, training.condition.low, training.condition.high) == (64, 100, 200)


def test_pictures_of_a_folder_are_measured_with_generic_and_foreign_prompts(runs: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (80, 64, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text(f"picture {i}")
    out = tmp_path / "out"
    [folder] = measure(runs, f"checkpoint={runs}/a", "protocol=folder", f"data.path={tmp_path}", f"out={out}",
                       "noise_seeds=[0]", "prompts=[none,conflicting,insufficient]")  # fmt: skip
    found = results(folder)
    assert found["n"] == 3
    assert "edge_f1_1px" in found["metrics"]["insufficient"]
    assert "shape_iou" not in found["metrics"]["none"]

    trained = tmp_path / "run"
    shutil.copytree(runs / "a", trained, ignore=shutil.ignore_patterns("evaluation"))
    (trained / ITEMS).write_text(json.dumps({"trained": [str(tmp_path / "1.png")], "held_out": []}))
    with pytest.raises(SystemExit, match="was trained on 1 of the 3 pictures to measure on"):
        measure(runs, f"checkpoint={trained}", "protocol=folder", f"data.path={tmp_path}", f"out={tmp_path / 'no'}")


def test_a_run_of_one_world_is_not_measured_on_another(runs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs / "a", run, ignore=shutil.ignore_patterns("evaluation"))
    (run / "config.yaml").write_text("data: {world: stickers}\n")
    with pytest.raises(SystemExit, match="was trained on stickers, this protocol measures on scenes"):
        measure(runs, f"checkpoint={run}", f"out={tmp_path / 'no'}")


def test_distances_of_sets_do_not_depend_on_how_many_noise_seeds_were_drawn(runs: Path, tmp_path: Path) -> None:
    """Real images, n times the same: as far from the reference as once, or "real" and methods could not be compared."""
    file = tmp_path / "segmenter.safetensors"
    save_weights(Segmenter(), file, {"stage": "segmenter"})
    cfg = composed(["protocol=scenes", f"judge={file}", "reference=8", "items=4", "size=64"], "evaluate")
    subject = Subject.__new__(Subject)
    subject.cfg, subject.size = cfg, 64
    subject.data = instantiate(cfg.data, _convert_="all")(condition=Unchanged(), size=64, count=4)
    subject.items = subject.data.__getitems__(range(4))
    subject.world = subject.data.world
    subject.judge = subject.world.judge(str(file))
    subject.inception = None
    once, thrice = (
        subject.distances.by_setting(
            subject.items["image"].repeat(count, 1, 1, 1),
            [Shot(i, "perfect", noise, "a") for noise in range(count) for i in range(4)],
        )["perfect"]
        for count in (1, 3)
    )
    assert once["fid_scenes"] == pytest.approx(thrice["fid_scenes"])
    assert once["kid_scenes"] == pytest.approx(thrice["kid_scenes"])


def test_a_segmenter_judges_and_its_ceiling_stands_beside_it(runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "segmenter.safetensors"
    save_weights(Segmenter(), file, {"stage": "segmenter"})
    [folder] = measure(runs, f"checkpoint={runs}/a", f"judge={file}", "reference=8", f"out={tmp_path / 'out'}",
                       "prompts=[perfect]", "baseline=false")  # fmt: skip
    found = results(folder)
    scores = found["metrics"]["perfect"]
    assert {"segmenter_miou", "fid_scenes", "kid_scenes"} <= set(scores)
    assert {"segmenter_miou", "fid_scenes"} <= set(found["ceiling"]) & set(found["real"])
    assert scores["fid_scenes"] > found["real"]["fid_scenes"]
    with pytest.raises(SystemExit, match="no file of `python -m cldm segmenter`"):
        measure(runs, f"checkpoint={runs}/a", f"judge={runs}/base.safetensors", f"out={tmp_path / 'out2'}")


def annotated(folder: Path, count: int = 3) -> Path:
    """Pictures with ready-made hints, as `python -m cldm annotate` leaves them."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(count):
        for name in ("source", "target"):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        lines.append(json.dumps({"source": f"source/{i}.png", "target": f"target/{i}.png", "prompt": f"picture {i}"}))
    (folder / "prompt.json").write_text("\n".join(lines))
    return folder


ONE = ["protocol=folder", "noise_seeds=[0]", "prompts=[perfect]", "size=64"]


@pytest.mark.slow
def test_hints_that_change_under_an_evaluation_make_another_one(runs: Path, tmp_path: Path) -> None:
    data, out = annotated(tmp_path / "set"), tmp_path / "out"
    command = [f"checkpoint={runs}/a", *ONE, f"data.path={data}", f"out={out}"]
    measure(runs, *command)
    before = results(out)
    images = {path: path.read_bytes() for path in out.glob("images/*/*.png")}
    for path in (data / "source").iterdir():
        Image.new("RGB", (64, 64), "white").save(path)
    with pytest.raises(SystemExit, match=r"holds another evaluation .*hints"):
        measure(runs, *command)
    assert {path: path.read_bytes() for path in out.glob("images/*/*.png")} == images
    measure(runs, *command, "overwrite=true")
    now = results(out)
    assert any(path.read_bytes() != image for path, image in images.items())
    assert now["real"]["edge_f1_1px"] != before["real"]["edge_f1_1px"]  # the shared bounds are of these hints too


@pytest.mark.slow
def test_bounds_of_a_base_are_of_its_noise_schedule(runs: Path, tmp_path: Path) -> None:
    """Two bases of the same weights, of which one predicts the velocity."""
    control = runs / "a" / "control.safetensors"
    other = tmp_path / "v" / "control.safetensors"
    told = {**read_metadata(control), "settings": json.dumps({"schedule": {"prediction": "v"}})}
    other.parent.mkdir()
    save_file(load_file(control), other, told)
    data = annotated(tmp_path / "set")
    for name, path in (("eps", control), ("v", other)):
        measure(runs, f"checkpoint={path}", *ONE, f"data.path={data}", f"out={tmp_path / name / 'out'}")
    eps, v = (results(tmp_path / name / "out") for name in ("eps", "v"))
    assert eps["real"] == v["real"]
    assert eps["base"]["perfect"] != v["base"]["perfect"]


def test_a_picture_that_cannot_be_read_is_not_replaced_by_its_neighbour(runs: Path, tmp_path: Path) -> None:
    data = annotated(tmp_path / "set")
    (data / "target" / "1.png").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"1.png.*mend it or take it out"):
        measure(runs, f"checkpoint={runs}/a", *ONE, f"data.path={data}", f"out={tmp_path / 'out'}")


@pytest.mark.slow
def test_an_evaluation_that_failed_at_once_keeps_no_folder_from_the_next(runs: Path, tmp_path: Path) -> None:
    command = [f"checkpoint={runs}/a", *ONE, f"data.path={annotated(tmp_path / 'set')}", f"out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit):
        measure(runs, *command, "sampler.clip_skip=9")
    measure(runs, *command)


def test_where_the_pictures_lie_is_no_part_of_the_protocol(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = annotated(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    hashes = set()
    for i, path in enumerate(("set", str(data))):
        measure(runs, f"checkpoint={runs}/a", *ONE, f"data.path={path}", f"out={tmp_path / str(i)}")
        hashes.add(results(tmp_path / str(i))["protocol_hash"])
    assert len(hashes) == 1


def test_copies_of_training_pictures_are_not_measured_on(runs: Path, tmp_path: Path) -> None:
    """Under other names, where items.json cannot tell."""
    run, data = tmp_path / "run", annotated(tmp_path / "set", 5)
    shutil.copytree(runs / "a", run, ignore=shutil.ignore_patterns("evaluation"))
    trained = {
        "_target_": "cldm.data.folder.folder_data",
        "path": str(data),
        "val_path": None,
        "val_count": 2,
        "size": 64,
    }
    (run / "config.yaml").write_text(json.dumps({"data": trained}))
    copies = tmp_path / "copies"
    shutil.copytree(data, copies)
    command = [f"checkpoint={run}", *ONE, f"data.path={copies}", "items=5", f"out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit, match="3 of the 5 pictures to measure on look the same"):
        measure(runs, *command)
    measure(runs, *command, "nearest=0")


def test_what_a_run_was_trained_on_is_not_measured_as_unseen(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "a", tmp_path / "run", ignore=shutil.ignore_patterns("evaluation"))
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"data": {"world": "scenes", "family": "base"}}))
    with pytest.raises(SystemExit, match=r"data.family=held_out is what data.family=control leaves out; .* on base"):
        measure(runs, f"checkpoint={tmp_path / 'run'}", "data.family=held_out")
    assert not (tmp_path / "run" / "evaluation").exists()
    assert WorldDataset(get_world("scenes"), 2, 64, "base").unseen(2) is None
    assert len(WorldDataset(get_world("scenes"), 2, 64, "control", condition=Unchanged()).unseen(2)) == 2


@pytest.mark.slow
def test_a_run_is_measured_on_the_base_that_it_recorded_or_on_a_typed_one(runs: Path, tmp_path: Path) -> None:
    run, base = tmp_path / "run", tmp_path / "base.safetensors"
    run.mkdir()
    shutil.copy(runs / "base.safetensors", base)
    told = {**read_metadata(runs / "a" / "control.safetensors"), "base_fingerprint": "0" * 16}
    save_file(load_file(runs / "a" / "control.safetensors"), run / "control.safetensors", told)
    (run / "config.yaml").write_text(json.dumps({"base": str(base)}))
    (run / "inputs.json").write_text(json.dumps({"base": content(base)}))
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        quick = [f"checkpoint={run}", "protocol=scenes", "items=1", "noise_seeds=[0]", "sampler.steps=1",
                 "prompts=[none]", "baseline=false", f"cache={runs}/cache"]  # fmt: skip
        cfg = compose("evaluate", overrides=quick)
        (_, [training]) = checkpoints_of(str(run), cfg)
        assert training.base == str(base)
        with pytest.raises(SystemExit, match=r"was trained on base 0{16}, the base here is .* with base="):
            evaluate.evaluate(cfg)
        assert not (run / "evaluation").exists()
        evaluate.evaluate(compose("evaluate", overrides=[*quick, f"base={base}"]))
        base.write_bytes(b"another")
        (_, [training]) = checkpoints_of(str(run), cfg)
        assert training.base is None


@pytest.mark.slow
def test_maps_of_an_unknown_kind_are_read_as_in_training_and_have_no_score(runs: Path, tmp_path: Path) -> None:
    """condition=none: the ready map is the hint, also of a further branch, and never the picture itself."""
    data = annotated(tmp_path / "set", 4)
    for name in ("own", "more"):
        told = {**read_metadata(runs / "a" / "control.safetensors"), "condition": "none"}
        (tmp_path / name).mkdir()
        save_file(load_file(runs / "a" / "control.safetensors"), tmp_path / name / "control.safetensors", told)
    first, more = f"{runs}/a/control.safetensors", tmp_path / "more"
    told = [*ONE, f"data.path={data}", "items=4", "nearest=0"]
    seen: list[list[torch.Tensor]] = []
    draw = subject_module.Subject.draw

    def spied(self: Any, *arguments: Any) -> torch.Tensor:
        seen.append(self.hints)
        return draw(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subject_module.Subject, "draw", spied)
        measure(runs, f"checkpoint={first}", f"more=[{{checkpoint: {more}}}]", f"out={tmp_path / 'both'}", *told)
    _, of_more = seen[0]
    maps = [load_hint(data / "source" / f"{i}.png", 64, condition="none") for i in range(4)]
    assert torch.equal(of_more, torch.stack(maps))
    [folder] = measure(runs, f"checkpoint={tmp_path / 'own'}", f"out={tmp_path / 'alone'}", *told)
    scores = results(folder)["metrics"]["perfect"]
    assert not [name for name in scores if name.startswith(("hint_", "edge_"))]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("more=[{checkpoint: A, scale: abc}]", "scale must be a number"),
        ("more=[{checkpoint: A, start: null}]", "start must be a number"),
        ("more=[5]", "an entry of more"),
        ("noise_seeds=0", "noise_seeds must be whole numbers"),
        ("noise_seeds=[0.5]", "noise_seeds must be whole numbers"),
        ("scale=null", "scale must be a number"),
        ("checkpoint=[]", "names no checkpoint"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_in_one_sentence(
    runs: Path, tmp_path: Path, given: str, said: str
) -> None:
    checkpoint = [] if given.startswith("checkpoint") else [f"checkpoint={runs}/a"]
    with pytest.raises(SystemExit, match=said):
        measure(runs, *checkpoint, given.replace("A", f"{runs}/b"), f"out={tmp_path / 'out'}")


def test_a_control_file_keeps_the_parameters_of_its_condition_wherever_it_lies(runs: Path, tmp_path: Path) -> None:
    control = runs / "c" / "control.safetensors"
    told = {**read_metadata(control), "condition_settings": json.dumps({"block": 8, "weights": "/etc/passwd"})}
    save_file(load_file(control), tmp_path / "copy.safetensors", told)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        training = training_config(tmp_path / "copy.safetensors", None)
        assert instantiate(training.condition).block == 8
        assert "weights" not in training.condition
        told["condition_settings"] = "[1"
        save_file(load_file(control), tmp_path / "odd.safetensors", told)
        with pytest.raises(SystemExit, match="not a JSON object"):
            training_config(tmp_path / "odd.safetensors", None)


@pytest.mark.slow
def test_a_file_that_only_lies_in_a_run_folder_is_not_measured_as_that_run(runs: Path, tmp_path: Path) -> None:
    run, pictures = tmp_path / "run", annotated(tmp_path / "set", 5)
    shutil.copytree(runs / "a", run, ignore=shutil.ignore_patterns("evaluation"))
    trained = {
        "_target_": "cldm.data.folder.folder_data",
        "path": str(pictures),
        "val_path": None,
        "val_count": 2,
        "size": 64,
    }
    (run / "config.yaml").write_text(json.dumps({"data": trained}))
    (run / "overrides.yaml").write_text("[seed=7]")
    shutil.copy(runs / "b" / "control.safetensors", run / "other.safetensors")
    found = {}
    for name in ("control", "other"):
        measure(runs, f"checkpoint={run / name}.safetensors", f"out={tmp_path / name}")
        found[name] = results(tmp_path / name)
    assert found["control"]["overrides"] == ["seed=7"]
    assert "nearest_training" in found["control"]["metrics"]["none"]
    assert found["other"]["overrides"] == []
    assert "nearest_training" not in found["other"]["metrics"]["none"]


def test_the_record_of_a_run_is_of_its_own_file_alone(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("condition: {low: 7, high: 9}\n")
    for name in ("control.safetensors", "other.safetensors"):
        shutil.copy(runs / "a" / "control.safetensors", tmp_path / name)
    with initialize_config_dir(CONFIGS, version_base="1.3"):
        lows = [
            training_config(path, None).condition.low
            for path in (tmp_path / "control.safetensors", tmp_path / "other.safetensors")
        ]
    assert lows == [7, 100]
