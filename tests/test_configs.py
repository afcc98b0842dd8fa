"""Promises of the configuration: every file composes and builds its object, and no key is ever ignored."""

import re
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from hydra import initialize_config_dir
from hydra.errors import ConfigCompositionException, InstantiationException
from omegaconf import OmegaConf

import train
from cldm.conditions import Condition
from cldm.data.cache import build_cache
from cldm.data.datamodule import DataModule
from cldm.data.fill50k import write_fill50k
from cldm.runs import configs
from cldm.runs.building import instantiate
from cldm.runs.configs import mistakes_refused, refuse_mistakes
from cldm.runs.folder import Refused
from cldm.sampling.generation import Sampling
from cldm.training import fitting
from cldm.training.callbacks import EMA, Export, Watch
from cldm.worlds import WORLDS
from cldm.worlds.scenes import WORDS
from ldm.batch import Batch
from ldm.diffusion import LatentDiffusion
from ldm.random import generator

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def files(group: str) -> list[str]:
    """Names of the files of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def build(config, **keywords):
    return instantiate(config, _convert_="all", **keywords)


def test_every_group_is_covered_here():
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir() and any(path.glob("*.yaml"))}
    known = {"model", "condition", "data", "control", "sampler", "trainer", "logger", "stage", "experiment"}
    known |= {"sampling"}  # what the samplers share
    known |= {"sweep", "launcher", "resources"}  # tests/test_sweeps.py
    known |= {"table"}  # tests/cldm/test_tables.py
    known |= {"protocol"}  # tests/test_evaluate.py
    assert groups <= known, f"no test builds the configs of {groups - known}"


REAL = {"sd15": (859_520_964, 123_060_480), "sd21": (865_910_724, 354_032_641), "sd21_base": (865_910_724, 354_032_641)}


@pytest.mark.parametrize("name", sorted({*files("model")} - {*REAL, "pretrained"}))
def test_a_model_builds_and_draws_its_size(composed, name):
    cfg = composed(f"model={name}")
    model = build(cfg.model)
    assert isinstance(model, LatentDiffusion)
    c, h, w = model.latent_shape(cfg.size, cfg.size)
    with torch.no_grad():
        out = model.denoise(torch.randn(1, c, h, w), torch.tensor([5]), model.context(["a red star"]))
    assert out.shape == (1, c, h, w)
    assert cfg.base is None or cfg.base.endswith(".safetensors")


@pytest.mark.parametrize("name", REAL)
def test_a_model_of_real_size_has_the_published_parameters(composed, name):
    cfg = composed(f"model={name}", "base=x.safetensors")
    with torch.device("meta"):
        model = build(cfg.model)
        control = build(cfg.control)(model.unet)
    parts = model.unet, model.conditioner.text_encoder, model.autoencoder, control
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert counts == [*REAL[name], 83_653_863, 361_279_120 if name == "sd15" else 364_228_240]
    assert cfg.size == (768 if name == "sd21" else 512)
    assert model.schedule.prediction == ("v" if name == "sd21" else "eps")
    assert model.conditioner.pad == ("end" if name == "sd15" else "zero")
    assert model.latent_shape(cfg.size, cfg.size) == (4, cfg.size // 8, cfg.size // 8)


def test_a_pretrained_model_takes_its_sizes_from_its_folder(composed, reference, tmp_path):
    for sub, kind in (("unet", "unet"), ("vae", "autoencoder"), ("text_encoder", "text")):
        reference(kind, "odd").save_pretrained(tmp_path / sub)
    cfg = composed("model=pretrained", f"model.path={tmp_path}")
    assert build(cfg.model).unet.config.widths == (48, 96, 144)
    assert cfg.base == str(tmp_path)


@pytest.mark.parametrize("name", [*REAL, "pretrained"])
def test_a_model_that_comes_without_weights_asks_for_them(composed, name):
    with pytest.raises(ValueError, match=r"set base=FILE_OR_FOLDER \(model=pretrained: model\.path=\.\.\.\)"):
        train.train(composed(f"model={name}"))


def test_the_scenes_model_knows_exactly_the_words_of_the_captions(composed):
    conditioner = composed("model=scenes").model.conditioner
    assert tuple(conditioner.vocabulary) == WORDS
    built = build(conditioner)  # refuses a vocab_size that is not the number of tokens
    assert conditioner.text_encoder.vocab_size == len(WORDS) + 2
    assert built.text_encoder.token_embedding.num_embeddings == conditioner.text_encoder.vocab_size


@pytest.mark.parametrize("name", files("condition"))
def test_a_condition_builds_and_is_called_like_its_file(composed, name):
    places = {"depth": "folder", "normal": "folder", "segmentation": "folder", "softedge": "weights"}
    own = [f"condition.{places[name]}=/models/mine"] if name in places else []
    condition = build(composed("model=tiny", f"condition={name}", *own).condition)
    assert isinstance(condition, Condition)
    assert condition.name == name


@pytest.mark.parametrize("name", files("control"))
def test_a_branch_builds_on_the_models_unet_and_answers_it(composed, name):
    cfg = composed("model=tiny", f"control={name}")
    model = build(cfg.model)
    branch = build(cfg.control)(model.unet)
    with torch.no_grad():
        z, t, context = torch.randn(1, 4, 8, 8), torch.tensor([5]), model.context(["a red star"])
        residuals = branch(z, t, context, torch.rand(1, cfg.control.hint_channels, 64, 64))
        assert model.unet(z, t, context, residuals).shape == z.shape


@pytest.fixture(scope="module")
def places(composed, tmp_path_factory):
    """For each file of configs/data: the overrides that let it build something small."""
    folder = tmp_path_factory.mktemp("data")
    write_fill50k(4, folder / "fill", side=64)
    with tarfile.open(folder / "0.tar", "w") as tar:
        tar.add(folder / "fill/target/0.png", "0.png")
    held = folder / "held.tar"
    held.write_bytes((folder / "0.tar").read_bytes() + bytes(512))  # another shard, as far as its bytes tell
    pictures = [f"data.path={folder / 'fill'}", "data.val_count=1"]
    cfg = composed("model=tiny", "data=fill50k", *pictures)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(cfg.model)
    data = build(cfg.data)(condition=build(cfg.condition), model=model)
    build_cache(data.train, data.validation, model, folder / "cache")
    few = ["data.train_count=2", "data.val_count=1", "data.cache=null"]
    return {
        **dict.fromkeys(WORLDS, few),
        "folder": pictures,
        "fill50k": pictures,
        "webdataset": [f"data.urls={folder / '0.tar'}", f"data.val_urls={held}", "data.val_count=1"],
        "cached": [f"data.path={folder / 'cache'}"],
    }


@pytest.mark.parametrize("name", files("data"))
def test_data_builds_from_the_condition_and_the_model(composed, places, name):
    cfg = composed("model=tiny", f"data={name}", *places[name], "batch_size=2")
    torch.manual_seed(0)
    data = build(cfg.data)(condition=build(cfg.condition), model=build(cfg.model))
    assert isinstance(data, DataModule)
    assert data.batch_size == 2
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0, accumulate_grad_batches=1)
    batch = next(iter(data.train_dataloader()))
    assert batch.keys() <= Batch.__annotations__.keys()
    assert {"hint", "caption", "id"} <= batch.keys()
    assert {"image", "moments"} & batch.keys()
    assert data.validation.__getitems__([0]).keys() == {"image", "hint", "caption", "id"}
    if "keep" in cfg.data:
        assert {*cfg.data["keep"], "caption", "id"} == batch.keys()


@pytest.mark.parametrize("name", files("sampler"))
def test_a_sampler_draws(composed, diffusion, name):
    cfg = composed("model=tiny", f"sampler={name}", "sampler.steps=2")
    sampling = build(cfg.sampler)
    assert isinstance(sampling, Sampling)
    assert sampling.steps == 2
    assert sampling(diffusion, ["a red star"], [1], (64, 64)).shape == (1, 3, 64, 64)
    assert build(composed(f"sampler={name}", name="sample").sampler).spacing == sampling.spacing


@pytest.mark.parametrize("name", files("trainer"))
def test_a_trainer_builds_with_its_callbacks(composed, tmp_path, name):
    cfg = composed("model=tiny", f"trainer={name}", f"run_dir={tmp_path}", "steps=7")
    settings = build(cfg.trainer, _partial_=True)
    callbacks = [*settings.keywords["callbacks"].values()]
    assert {EMA, Watch, Export} <= {type(callback) for callback in callbacks}
    assert settings.keywords["max_steps"] == 7
    assert settings.keywords["default_root_dir"] == str(tmp_path)
    if settings.keywords["accelerator"] == "cpu" or torch.cuda.is_available():
        trainer = settings(logger=False, callbacks=callbacks)
        assert isinstance(trainer, pl.Trainer)
        assert trainer.max_steps == 7


@pytest.mark.slow
@pytest.mark.parametrize("name", files("logger"))
def test_loggers_build_and_metrics_csv_is_always_among_them(composed, tmp_path, monkeypatch, name):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    if name in ("trackio", "mlflow"):
        pytest.importorskip(name, reason=f"needs {name}: pip install -e '.[{name}]'")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    loggers = build(composed("model=tiny", f"logger={name}", f"run_dir={tmp_path}", f"runs={tmp_path}").logger)
    assert all(isinstance(logger, pl.loggers.Logger) for logger in loggers.values())
    assert isinstance(loggers["csv"], pl.loggers.CSVLogger)


@pytest.mark.parametrize("name", files("stage"))
def test_a_stage_builds_its_module_and_an_optimizer_over_what_it_trains(composed, name):
    cfg = composed("model=tiny", f"stage={name}")
    model = build(cfg.model)
    module = fitting.build_module(cfg, model)
    module.trainer = pl.Trainer(max_steps=cfg.steps, logger=False)
    optimizer = module.configure_optimizers()["optimizer"]
    assert optimizer.defaults["lr"] == cfg.optimizer.lr
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    helpers = module.probe.parameters() if getattr(module, "probe", None) else ()
    assert trained == {id(p) for p in [*module.trained().parameters(), *helpers] if p.requires_grad}
    assert set(cfg.stage.loads) <= {name for name, _ in model.named_children()}
    metrics = build(cfg.trainer.callbacks.watch.metrics)
    assert callable(metrics)
    assert cfg.steps > 0


@pytest.mark.parametrize("name", files("experiment"))
def test_an_experiment_composes_resolves_and_is_short(composed, tmp_path, name):
    cfg = composed(f"experiment={name}", f"run_dir={tmp_path}")
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    for stage in resolved["chain"] or []:
        OmegaConf.resolve(composed(*stage, f"run_dir={tmp_path}"))
    assert len((CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()) <= 20


def test_the_experiment_comes_last_and_names_the_run(composed):
    cfg = composed("experiment=stickers_from_scratch")
    assert cfg.name == "stickers_from_scratch"
    assert cfg.chain


@pytest.mark.parametrize("stage", files("stage"))
def test_the_whole_configuration_resolves(composed, tmp_path, stage):
    cfg = composed("model=tiny", f"stage={stage}", f"run_dir={tmp_path}", "seed=3")
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    facts = resolved["trainer"]["callbacks"]["export"]["metadata"]
    assert facts["model"] == "tiny"
    assert facts["stage"] == stage
    assert resolved["stage"]["module"]["seed"] == 3
    assert resolved["trainer"]["callbacks"]["watch"]["sampling"] == resolved["sampler"]


@pytest.mark.parametrize(
    "override",
    ["foo=1", "data.foo=1", "model.foo=1", "trainer.foo=1", "optimizer.foo=1", "control.foo=1", "stage.foo=1",
     "sampler.foo=1", "trainer.callbacks.watch.foo=1", "no_group=tiny"],
)  # fmt: skip
def test_an_unknown_key_fails(composed, override):
    with pytest.raises(ConfigCompositionException, match="Could not override"):
        composed("model=tiny", override)


def test_a_key_that_was_added_and_that_nothing_reads_is_refused_with_the_nearest_one(composed):
    with pytest.raises(SystemExit, match=r"there is no key stepz; did you mean steps\?"):
        refuse_mistakes(composed("+stepz=3"))
    refuse_mistakes(composed("+trainer.deterministic=true", "steps=3"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=1e-4x", r"optimizer\.lr must be a number, got '1e-4x'"),
        ("stage.module.cosine=maybe", r"stage\.module\.cosine must be true or false, got 'maybe'"),
    ],
)
def test_words_where_numbers_are_due_are_refused(composed, override, message):
    cfg = composed(override, "condition=depth")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"), pytest.raises(SystemExit, match=message):
        refuse_mistakes(cfg)


@pytest.mark.parametrize("override", ["steps=-1", "size=-64", "size=[64,0]", "batch_size=0"])
def test_numbers_that_must_be_positive_are_refused_where_they_are_not(composed, override):
    cfg = composed(override)
    key, value = override.split("=")
    with (
        initialize_config_dir(str(CONFIGS), version_base="1.3"),
        pytest.raises(
            SystemExit, match=re.escape(f"{key} must be whole and at least 1, got {value.replace(',', ', ')}")
        ),
    ):
        refuse_mistakes(cfg)


def test_a_typed_sampler_keeps_its_own_steps_where_a_stage_has_another(composed):
    """A stage that set sampler.steps made 10 of the 100 steps of sampler=ddpm."""
    steps = [composed(*typed).sampler.steps for typed in ([], ["sampler=ddpm"], ["sampler=ddim"], ["sampler.steps=7"])]
    assert steps == [10, 100, 20, 7]
    assert composed("stage=diffusion").sampler.steps == 20


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed must be a whole number from 0 to 4294967295, got -1"),
        ("seed=5000000000", "seed must be a whole number from 0"),
        ("data.val_count=1.5", "data.val_count must be a whole number from 0 to 4294967295, got 1.5"),
        ("stage.report_items=-1", "stage.report_items must be a whole number"),
        ("trainer.callbacks.watch.every=0", "trainer.callbacks.watch.every must be whole and at least 1"),
        ("data=folder data.workers=-1", "data.workers must be a whole number"),
        ("stage.module.warmup_steps=-5", "stage.module.warmup_steps must be a whole number"),
        ("run_dir=1", "run_dir must be a path, got the number 1"),
    ],
)
def test_numbers_that_a_key_does_not_take_are_refused(composed, override, message):
    cfg = composed(*override.split())
    with initialize_config_dir(str(CONFIGS), version_base="1.3"), pytest.raises(SystemExit, match=message):
        refuse_mistakes(cfg)


def test_what_cannot_be_built_is_refused_in_one_sentence(composed):
    for group, override, message in (
        ("condition", "condition=depth", r"^condition\.folder must be given"),
        ("model", "model.path=/nowhere", r"^no weights at /nowhere$"),
    ):
        cfg = composed("model=pretrained", override)
        with pytest.raises(Refused, match=message), mistakes_refused():
            build(cfg[group])


def test_words_and_numbers_in_their_places_pass(composed):
    cfg = composed("condition=depth", "optimizer.lr=1e-4", "trainer.devices=auto", "data.cache=/tmp/x", "base=x")
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        refuse_mistakes(cfg)


@pytest.mark.parametrize("override", ["model=none_such", "data=none_such", "stage=none_such"])
def test_an_unknown_choice_fails(composed, override):
    with pytest.raises(ConfigCompositionException, match="none_such"):
        composed(override)


@pytest.mark.parametrize("group", ["sampler", "condition", "model"])
def test_a_key_that_is_forced_in_fails_at_its_object(composed, group):
    cfg = composed("model=tiny", f"+{group}.foo=1")
    with pytest.raises((InstantiationException, TypeError), match="foo"):
        build(cfg[group])


def test_a_run_folder_is_named_by_what_it_holds_and_resume_takes_the_old_one(composed):
    cfg = composed("model=tiny")
    assert cfg.run_dir == cfg.trainer.default_root_dir == composed("model=tiny").run_dir
    assert re.fullmatch(r"runs/control-canny-model-tiny-[0-9a-f]{8}/seed-0", cfg.run_dir)
    assert composed("model=tiny", "resume=runs/old").run_dir == "runs/old"


def test_the_name_of_a_run_holds_whole_values_only(composed):
    many = [
        "data.train_count=400",
        "data.val_count=16",
        "data.cache=x",
        "trainer.callbacks.watch.every=1000",
        "steps=30",
    ]
    cfg = composed("model=tiny", *many, "stage.report_items=4", "optimizer.lr=0.001")
    name = Path(cfg.run_dir).parent.name.rpartition("-")[0]
    assert name == "control-canny-train_count-400-val_count-16-model-tiny-lr-0.001-report_items-4-steps-30"


@pytest.mark.parametrize(
    "same", ["seed=7", "logger=csv", "threads=1", "data.cache=null", "trainer.callbacks.progress.refresh_rate=0"]
)
def test_what_does_not_change_a_result_does_not_change_its_folder(composed, same):
    assert Path(composed("model=tiny").run_dir).parent == Path(composed("model=tiny", same).run_dir).parent


@pytest.mark.parametrize(
    ("model", "stage", "noisy"),
    [("stickers", "control", 2 / 3), ("scenes", "control", 2 / 3), ("tiny", "control", 1 / 2),
     ("sd15", "control", 1 / 2), ("stickers", "diffusion", 1 / 2)],
)  # fmt: skip
def test_how_much_of_its_controlnets_training_is_at_high_noise_a_model_says(
    composed, make_diffusion, model, stage, noisy
):
    cfg = composed(f"stage={stage}", f"model={model}", *(["base=x"] if model == "sd15" else []))
    module = fitting.build_module(cfg, make_diffusion())
    t = module.timesteps(3000, generator(0))
    assert (t >= 500).float().mean() == pytest.approx(noisy, abs=0.01)


@pytest.mark.parametrize("other", ["steps=7", "optimizer.lr=3e-4", "condition.low=10", "data.train_count=9"])
def test_another_configuration_has_another_folder(composed, other):
    assert Path(composed("model=tiny").run_dir).parent != Path(composed("model=tiny", other).run_dir).parent


@pytest.mark.parametrize(
    ("name", "overrides", "found"),
    [
        ("train", ["stpes=5"], {"stpes": ["steps"]}),
        ("train", ["optimizer.lrr=1"], {"optimizer.lrr": ["optimizer.lr", "optimizer"]}),
        ("train", ["condition=truth", "condition.map=depth", "steps=3"], {}),
        ("train", ["condition=truth,canny", "condition.map=depth"], {}),
        ("train", ["condition=no_such", "condition.map=depth"], {}),
        ("evaluate", ["item=4", "protocol=scenes"], {"item": ["items"]}),
        ("sample", ["promt=a"], {"promt": ["prompt"]}),
    ],
)
def test_keys_that_do_not_exist_are_told_with_what_they_are_like(name, overrides, found):
    assert configs._like_keys(overrides, name) == found
