"""Promises of the callbacks: the average is the formula, weights come back, looking disturbs nothing."""

import json
import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn

from cldm.data.datamodule import DataModule
from cldm.training.callbacks import EMA, Checkpoints, Export, Watch, averaged, save_checkpoint
from ldm.batch import Batch
from ldm.training.stage import Stage
from ldm.weights import read_metadata


class Toy(Stage):
    """One trained and one frozen layer."""

    def __init__(self):
        super().__init__(lambda parameters: torch.optim.SGD([*parameters], lr=0.1), warmup_steps=0, cosine=False)
        self.layer, self.frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)

    def trained(self):
        return self.layer

    def training_step(self, batch, batch_idx):
        return self.layer(batch["moments"][:, :2, 0, 0]).square().mean()

    def pictures(self, batch, sampling):
        self.drawn_with = self.layer.weight.detach().clone(), self.training
        return {"sample": torch.zeros(len(batch["caption"]), 3, 8, 8)}


class Pictures:
    """A held-out set of a world: captions and truths."""

    world = SimpleNamespace(judge=lambda: "judge")
    truths = ("truth",) * 5

    def __len__(self):
        return 5

    def __getitems__(self, indices):
        return Batch(caption=[f"item {i}" for i in indices], id=torch.as_tensor([*indices]))


def at(step: int, *callbacks: pl.Callback) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, callbacks=[*callbacks])


def run_ema(ema: EMA, module: Toy, steps: range) -> list[dict[str, torch.Tensor]]:
    """Drive the hooks by hand with known weights; returns the weights of each step."""
    weights = []
    for step in steps:
        with torch.no_grad():
            for p in module.layer.parameters():
                p.fill_(float(step * step))
        weights.append({n: p.detach().clone() for n, p in module.named_parameters()})
        ema.on_train_batch_end(at(step), module)
    return weights


def test_the_average_is_the_formula_over_trainable_weights_only():
    module, ema = Toy(), EMA(decay=0.4)
    expected = module.layer.weight.detach().clone()
    ema.on_train_start(at(0), module)
    for n, weights in enumerate(run_ema(ema, module, range(1, 12))):
        decay = min(0.4, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights["layer.weight"]
    assert ema.average.keys() == {"layer.weight", "layer.bias"}
    assert ema.updates == 11
    torch.testing.assert_close(ema.average["layer.weight"], expected)
    assert module.outcome.average is ema.average


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match="must be in"):
        EMA(decay)


def test_swapping_lends_the_average_and_returns_the_weights_even_after_an_exception():
    module, ema = Toy(), EMA()
    ema.on_train_start(at(0), module)
    run_ema(ema, module, range(1, 4))
    raw = module.layer.weight.detach().clone()
    frozen = module.frozen.weight.detach().clone()

    def look():
        with averaged(module):
            assert torch.equal(module.layer.weight, ema.average["layer.weight"])
            assert not torch.equal(module.layer.weight, raw)
            raise RuntimeError("the picture failed")

    with pytest.raises(RuntimeError, match="the picture failed"):
        look()
    assert torch.equal(module.layer.weight, raw)
    assert torch.equal(module.frozen.weight, frozen)


def test_the_state_makes_a_round_trip_and_goes_on_with_the_same_average(tmp_path):
    module, straight = Toy(), EMA(decay=0.9)
    straight.on_train_start(at(0), module)
    run_ema(straight, module, range(1, 4))
    torch.save(straight.state_dict(), tmp_path / "state")
    resumed = EMA(decay=0.9)
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    resumed.on_train_start(at(3), module)
    for ema in (straight, resumed):
        run_ema(ema, module, range(4, 7))
    assert resumed.updates == straight.updates == 6
    assert all(torch.equal(resumed.average[name], straight.average[name]) for name in straight.average)


def test_an_average_of_other_weights_is_refused():
    ema = EMA()
    ema.load_state_dict({"average": {"other": torch.zeros(1)}, "updates": 3})
    with pytest.raises(ValueError, match="other trainable weights"):
        ema.on_train_start(at(0), Toy())


def fit_toy(random_items, steps, *callbacks, ckpt_path=None, accumulate=1, checkpointing=False, **options):
    torch.manual_seed(0)
    module = Toy()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=checkpointing, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
        callbacks=[*callbacks], **options,
    )  # fmt: skip
    data = DataModule(random_items(12), Pictures(), batch_size=2)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def test_accumulated_batches_count_once_also_after_a_resume(random_items, tmp_path):
    straight, half, resumed = EMA(), EMA(), EMA()
    _, expected = fit_toy(random_items, 6, straight, accumulate=2)
    assert straight.updates == 6
    fit_toy(random_items, 3, half, accumulate=2)[0].save_checkpoint(tmp_path / "half.ckpt")
    _, module = fit_toy(random_items, 6, resumed, accumulate=2, ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(module.layer.weight, expected.layer.weight)
    assert resumed.updates == 6
    assert all(torch.equal(resumed.average[name], straight.average[name]) for name in straight.average)


class Seen(Toy):
    """Notes what it was shown in each micro-batch, at which optimizer step, with which noise."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        noise = torch.rand(1, generator=self.step_generator(batch_idx)).item()
        self.seen.append((self.global_step, batch["id"].tolist(), noise))
        return super().training_step(batch, batch_idx)


def seen_by(steps, accumulate, batch_size, items, ckpt_path=None, save=None):
    module = Seen()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
        enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    data = DataModule(items, Pictures(), batch_size=batch_size)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    if save:
        trainer.save_checkpoint(save)
    return module.seen


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 2), (2, 1), (1, 4), (2, 3), (2, 2)])
def test_another_accumulation_or_batch_goes_on_at_the_right_samples_and_steps(
    random_items, tmp_path, batch_size, accumulate
):
    items = random_items(12)
    straight = [i for _, ids, _ in seen_by(9, 2, 2, items) for i in ids]
    seen_by(2, 2, 2, items, save=tmp_path / "two.ckpt")  # eight samples
    found = seen_by(4, accumulate, batch_size, items, tmp_path / "two.ckpt", tmp_path / "four.ckpt")
    assert [step for step, _, _ in found] == [2] * accumulate + [3] * accumulate
    samples = [i for _, ids, _ in found for i in ids]
    assert samples == straight[8 : 8 + 2 * accumulate * batch_size]
    assert len({noise for *_, noise in found}) == len(found)
    again = seen_by(5, 2, 2, items, tmp_path / "four.ckpt")  # and back
    assert [i for _, ids, _ in again for i in ids] == straight[8 + len(samples) :][:4]


def watched(tmp_path, random_items, steps=5, metrics=None, **options):
    looks = []

    def spy(pictures, batch, known, condition):
        assert known.judge == "judge"
        looks.append((list(batch["caption"]), known.truths))
        return {"score": 0.1 * len(looks)}

    watch = Watch(metrics or spy, sampling=None, count=3, shown=2, **options)
    ema = EMA()
    trainer, module = fit_toy(random_items, steps, ema, watch, default_root_dir=tmp_path)
    return watch, looks, trainer, module


def test_watch_looks_at_the_same_items_at_the_start_on_schedule_and_at_the_end(random_items, tmp_path):
    watch, looks, _, module = watched(tmp_path, random_items, steps=5, every=2)
    assert watch.history["step"] == [0, 2, 4, 5]
    assert watch.history["score"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert module.outcome.looks is watch.history
    again = Watch(lambda *_: {}, None, key="score")
    again.load_state_dict(watch.state_dict())
    resumed = SimpleNamespace(global_step=5, is_global_zero=True, default_root_dir=tmp_path)
    again.on_train_start(resumed, module)
    assert module.outcome.shown == ("score", pytest.approx(0.4))  # the bar of a run that goes on shows it at once
    assert looks == [(["item 0", "item 1", "item 2"], ["truth"] * 3)] * 4
    lines = [json.loads(line) for line in (tmp_path / "previews" / "manifest.jsonl").read_text().splitlines()]
    assert lines.pop() == {"resumed": 5}
    assert [line["step"] for line in lines] == [0, 2, 4, 5]
    assert all(line["ids"] == [0, 1] and line["captions"] == ["item 0", "item 1"] for line in lines)
    for line in lines:
        Image.open(tmp_path / "previews" / line["file"]).verify()


def test_watch_draws_with_the_averaged_weights_in_eval_mode_and_puts_both_back(random_items, tmp_path):
    _, _, trainer, module = watched(tmp_path, random_items, steps=4, every=4)
    drawn, training = module.drawn_with
    ema = trainer.callbacks[0]
    assert torch.equal(drawn, ema.average["layer.weight"])
    assert not torch.equal(module.layer.weight, drawn)
    assert training is False
    assert module.training is True


def test_a_figure_that_does_not_exist_leaves_a_manifest_that_every_json_reader_accepts(random_items, tmp_path):
    watched(tmp_path, random_items, steps=1, metrics=lambda *_: {"score": float("nan")})

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    lines = (tmp_path / "previews" / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse)["score"] for line in lines] == [None, None]


def test_the_history_travels_in_the_checkpoint(random_items, tmp_path):
    watch, *_ = watched(tmp_path, random_items, steps=2, every=1)
    other = Watch(lambda *_: {}, None)
    other.load_state_dict(watch.state_dict())
    assert other.history == {"step": [0, 1, 2], "score": pytest.approx([0.1, 0.2, 0.3])}


def test_export_writes_the_averaged_weights_beside_each_checkpoint(random_items, tmp_path):
    ema, export = EMA(), Export(str(tmp_path), {"stage": "toy", "base": None, "seed": 1})
    trainer, module = fit_toy(random_items, 3, ema, export)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "toy.safetensors")
    assert weights.keys() == {"weight", "bias"}
    assert torch.equal(weights["weight"], ema.average["layer.weight"])
    assert not torch.equal(weights["weight"], module.layer.weight)
    facts = read_metadata(tmp_path / "toy.safetensors")
    assert facts["stage"] == "toy"
    assert facts["steps"] == "3"
    assert facts["seed"] == "1"
    assert {"commit", "command"} <= facts.keys()


# ------------------------------------------------------------------ checkpoints


def checkpointed(tmp_path, random_items, scores, steps=5, **options):
    """Trains for some steps; the watched score of step k is scores[k]. Returns the callback and the trainer."""
    scores = iter(scores)
    watch = Watch(lambda *_: {"score": next(scores)}, sampling=None, every=1, count=1)
    checkpoints = Checkpoints(str(tmp_path / "checkpoints"), **options)
    trainer, _ = fit_toy(random_items, steps, watch, checkpoints, checkpointing=True, default_root_dir=tmp_path)
    return checkpoints, trainer


def saved(tmp_path, name):
    return torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)


@pytest.mark.parametrize(("mode", "best"), [("max", 3), ("min", 4)])
def test_the_last_and_the_best_state_are_kept_and_nothing_else(random_items, tmp_path, mode, best):
    scores = [9.0, 0.5, 0.4, 0.7, 0.1, float("nan")]  # nothing is saved before the first step
    checkpointed(tmp_path, random_items, scores, every_n_train_steps=2, best={"unknown": "max", "score": mode})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}
    assert saved(tmp_path, "last")["global_step"] == 5
    assert saved(tmp_path, "best")["global_step"] == best
    assert saved(tmp_path, "last")["callbacks"]["Checkpoints"]["record"] == {
        "figure": "score", "value": scores[best], "step": best,
    }  # fmt: skip


def test_checkpoints_are_written_after_so_many_steps_or_minutes(random_items, tmp_path, monkeypatch):
    written = []
    note = lambda trainer, path: written.append(trainer.global_step)  # noqa: E731
    monkeypatch.setattr("cldm.training.callbacks.checkpoints.save_checkpoint", note)
    clock = iter(range(0, 10_000, 40))  # seconds: every look at the clock is 40 later
    monkeypatch.setattr("cldm.training.callbacks.checkpoints.time", SimpleNamespace(monotonic=lambda: next(clock)))
    checkpointed(tmp_path, random_items, [0.0] * 9, steps=7, every_n_train_steps=3)
    assert written == [3, 6, 7]
    written.clear()
    checkpointed(tmp_path, random_items, [0.0] * 9, steps=7, every_n_train_steps=100, minutes=2)
    assert written == [3, 6, 7]


def test_a_write_that_is_cut_off_leaves_the_checkpoint_before(random_items, tmp_path, monkeypatch):
    _, trainer = checkpointed(tmp_path, random_items, [0.0] * 9, steps=2)

    def cut(path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(trainer, "save_checkpoint", cut)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(trainer, tmp_path / "checkpoints" / "last.ckpt")
    assert saved(tmp_path, "last")["global_step"] == 2


@pytest.mark.parametrize(
    ("options", "message"), [({"every_n_train_steps": 0}, "at least 1"), ({"best": {"f1": "up"}}, "best.f1 must be")]
)
def test_checkpoints_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Checkpoints("folder", **options)


def test_a_figure_that_only_later_looks_measure_has_nan_for_those_before(random_items, tmp_path):
    found = iter([{"a": 1.0}, {"a": 2.0, "b": 3.0}, {"b": 4.0}])
    watch, *_ = watched(tmp_path, random_items, steps=2, every=1, metrics=lambda *_: next(found))
    assert watch.history["step"] == [0, 1, 2]
    assert watch.history["a"] == pytest.approx([1.0, 2.0, math.nan], nan_ok=True)
    assert watch.history["b"] == pytest.approx([math.nan, 3.0, 4.0], nan_ok=True)
