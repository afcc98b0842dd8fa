"""The training stages on a CPU: schedules, what trains and what stays, the patch GAN."""

import functools
import math
import multiprocessing
import os
import socket
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ldm.autoencoder import AutoencoderKL
from ldm.losses import AutoencoderLoss, LabelProbe, PatchDiscriminator
from ldm.text_encoder import TextEncoder
from ldm.training.autoencoder import AutoencoderTraining, set_latent_scale
from ldm.training.clock import Clock
from ldm.training.diffusion import DiffusionTraining
from ldm.training.stage import Stage

SGD = functools.partial(torch.optim.SGD, lr=0.1)
ADAM = functools.partial(torch.optim.Adam, lr=1e-2)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Using ModelCheckpoint with manual optimization"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


def trainer(steps: int, callbacks: tuple[pl.Callback, ...] = (), **options) -> pl.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    checkpoints = {"enable_checkpointing": any(isinstance(c, pl.callbacks.ModelCheckpoint) for c in callbacks)}
    return pl.Trainer(accelerator="cpu", max_steps=steps, callbacks=[*callbacks], **{**quiet, **checkpoints, **options})


def autoencoder(seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    return AutoencoderKL(channels=8, channel_mult=(1, 1), res_blocks=1, groups=4)


class Images(Dataset):
    """Hands out whole batches, as the data sets of this project do."""

    def __init__(self, images: torch.Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices) -> dict[str, torch.Tensor]:
        return {"image": self.images[list(indices)]}


def data(batches: int = 1) -> DataLoader:
    """Epochs of `batches` batches of two smooth images."""
    coarse = torch.rand(2 * batches, 3, 2, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = torch.nn.functional.interpolate(coarse, scale_factor=8.0, mode="bilinear")
    return DataLoader(Images(images), batch_size=2, collate_fn=lambda batch: batch)


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


def distance(module: nn.Module, before: dict[str, torch.Tensor]) -> float:
    return sum((p - before[name]).square().sum().item() for name, p in module.named_parameters()) ** 0.5


class Rates(pl.Callback):
    """The learning rates of each optimizer step, one list per optimizer."""

    def __init__(self):
        self.seen: list[list[float]] = [[], []]

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen[trainer.optimizers.index(optimizer)].append(optimizer.param_groups[0]["lr"])


# ------------------------------------------------------------------ learning-rate schedule


class Toy(Stage):
    def __init__(self, optimizer=SGD, **options):
        super().__init__(optimizer, **options)
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch["image"].mean().reshape(1, 1)).sum()


def rates(steps: int, accumulate: int = 1, **options) -> list[float]:
    seen = Rates()
    trainer(steps, (seen,), accumulate_grad_batches=accumulate).fit(Toy(**options), data(4))
    return [rate / 0.1 for rate in seen.seen[0]]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_rate_warms_up_linearly_then_falls_along_a_cosine_to_two_percent(accumulate):
    """Over optimizer steps, whatever number of batches one takes."""
    cosine = [0.02 + 0.98 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    found = rates(12, accumulate, warmup_steps=4, cosine=True)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, *cosine])
    assert found[8] == pytest.approx(0.51)  # half way


def test_the_rate_ends_at_two_percent_and_stays():
    stage = Toy(warmup_steps=4)
    stage.trainer = trainer(12)
    assert [stage.rate(step) for step in (12, 13, 100)] == pytest.approx([0.02] * 3)


def test_without_cosine_the_rate_stays_and_without_warmup_it_starts_there():
    assert rates(5, warmup_steps=2, cosine=False) == pytest.approx([0.5, 1, 1, 1, 1])
    assert rates(2, warmup_steps=0, cosine=False) == pytest.approx([1, 1])


# ------------------------------------------------------------------ going on from a checkpoint


def resumed(folder, steps: int, first, second, **options) -> tuple[Toy, pl.Trainer]:
    """Three steps with the optimizer `first`, then up to `steps` with `second`."""
    module, run = Toy(optimizer=first, warmup_steps=0, cosine=False), trainer(3)
    run.fit(module, data(4))
    run.save_checkpoint(folder / "three.ckpt")
    module, run = Toy(optimizer=second, warmup_steps=0, cosine=False), trainer(steps, **options)
    run.fit(module, data(4), ckpt_path=folder / "three.ckpt", weights_only=True)
    return module, run


def test_what_the_configuration_says_of_an_optimizer_holds_after_a_resume_and_its_moments_stay(tmp_path):
    first = functools.partial(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    told = {"lr": 1e-4, "betas": (0.5, 0.6), "weight_decay": 0.3, "eps": 1e-3, "amsgrad": False}
    seen = Rates()
    second = functools.partial(torch.optim.AdamW, **told)
    _, run = resumed(tmp_path, 5, first, second, callbacks=[seen])
    (group,) = run.optimizers[0].param_groups
    assert {name: group[name] for name in told} == told
    assert run.lr_scheduler_configs[0].scheduler.base_lrs == [1e-4]
    assert seen.seen[0] == [1e-4] * 2
    assert {state["step"].item() for state in run.optimizers[0].state.values()} == {5}  # not begun anew
    _, again = resumed(tmp_path, 3, first, second)  # nothing left to do: state and moments as they were saved
    saved = torch.load(tmp_path / "three.ckpt", weights_only=True)["optimizer_states"][0]["state"]
    for held, kept in zip(again.optimizers[0].state.values(), saved.values(), strict=True):
        assert torch.equal(held["exp_avg_sq"], kept["exp_avg_sq"])


def test_a_resumed_rate_follows_the_schedule_of_now(tmp_path):
    seen = Rates()
    run = trainer(4)
    run.fit(Toy(warmup_steps=2, cosine=True), data(4))
    run.save_checkpoint(tmp_path / "four.ckpt")
    trainer(6, (seen,)).fit(Toy(warmup_steps=8, cosine=True), data(4), ckpt_path=tmp_path / "four.ckpt")
    assert seen.seen[0] == pytest.approx([0.1 * 5 / 8, 0.1 * 6 / 8])


def test_moments_of_another_optimizer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"moments of SGD, which optimizer\._target_ \(Adam\) cannot use"):
        resumed(tmp_path, 5, SGD, ADAM)


def test_seconds_of_training_are_summed_over_attempts_and_pauses_do_not_count(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock()
    now[0] += 50  # set-up
    assert clock.seconds == 0
    clock.start()
    now[0] += 3
    with clock.paused():
        now[0] += 20
    now[0] += 4
    assert clock.seconds == 7
    clock.stop()
    now[0] += 5
    assert clock.seconds == 7
    assert clock.first == 150


# ------------------------------------------------------------------ the autoencoder


def stage(**options) -> AutoencoderTraining:
    defaults = {"optimizer": ADAM, "loss": AutoencoderLoss(gradient=0.5), "warmup_steps": 0, "cosine": False}
    return AutoencoderTraining(autoencoder(), **{**defaults, **options})


def test_training_changes_every_weight_and_lowers_the_loss():
    module = stage()
    before, batch = snapshot(module.autoencoder), next(iter(data()))

    def error() -> float:
        pictures = module.pictures(batch, None)
        return (pictures["image"] - pictures["reconstruction"]).abs().mean().item()

    first = error()
    trainer(20).fit(module, data())
    assert error() < 0.8 * first
    # softmax does not see a constant added to every key's score
    assert {n for n in before.keys() - changed(module.autoencoder, before) if not n.endswith("to_k.bias")} == set()


def test_after_training_the_latents_have_unit_standard_deviation():
    module = stage()
    trainer(3).fit(module, data())
    with torch.no_grad():
        z = module.autoencoder.encode(next(iter(data()))["image"])
    assert z.std().item() == pytest.approx(1.0, abs=1e-5)
    assert module.autoencoder.scale.item() != pytest.approx(0.18215)


def test_set_latent_scale_forgets_the_scale_before():
    first, second = autoencoder(), autoencoder()
    second.scale.fill_(50.0)
    for model in (first, second):
        set_latent_scale(model, next(iter(data()))["image"])
    assert torch.equal(first.scale, second.scale)


def test_decoder_only_trains_the_decoder_and_leaves_the_latents():
    module = stage(decoder_only=True)
    before, x = snapshot(module.autoencoder), next(iter(data()))["image"]
    with torch.no_grad():
        z = module.autoencoder.encode(x)
    trainer(3).fit(module, data())
    found = changed(module.autoencoder, before)
    assert {name.split(".")[0] for name in found} == {"decoder", "post_quant_conv"}
    assert "decoder.conv_out.weight" in found
    with torch.no_grad():
        assert torch.equal(module.autoencoder.encode(x), z)


def test_the_noise_of_a_step_depends_on_the_seed_and_not_on_what_was_drawn_before():
    results = []
    for seed, disturb in ((0, False), (0, True), (1, False)):
        module = stage(seed=seed)
        torch.manual_seed(123 if disturb else 0)
        trainer(2).fit(module, data())
        results.append(module.autoencoder.decoder.conv_out.weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# ------------------------------------------------------------------ the patch GAN


def gan(**options) -> AutoencoderTraining:
    torch.manual_seed(1)
    return stage(discriminator=PatchDiscriminator(channels=8, layers=1), **options)


class Moves(pl.Callback):
    """After each step: which of the two networks have changed during it."""

    def __init__(self):
        self.seen: list[tuple[bool, bool]] = []

    def networks(self, module):
        return module.autoencoder, module.discriminator

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.before = [snapshot(network) for network in self.networks(pl_module)]

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(
            tuple(bool(changed(*pair)) for pair in zip(self.networks(pl_module), self.before, strict=True))
        )


def test_gan_training_changes_both_networks_in_each_of_its_steps_and_counts_them_once():
    module, moves = gan(), Moves()
    run = trainer(4, (moves,))
    run.fit(module, data())
    assert moves.seen == [(True, True)] * 4
    assert run.global_step == 4
    assert len(run.optimizers) == 2
    assert all(p.requires_grad for p in module.discriminator.parameters())


def test_the_discriminator_starts_at_its_step_with_a_warm_up_of_its_own():
    module, moves = gan(discriminator_start=2, warmup_steps=2, cosine=True, optimizer=SGD), Moves()
    run = trainer(6, (moves,))
    critic = []
    descend = module._descend

    def watched(optimizer, scheduler, loss):
        index = 0 if optimizer.param_groups is run.optimizers[0].param_groups else 1
        critic.append((index, optimizer.param_groups[0]["lr"] / 0.1))
        descend(optimizer, scheduler, loss)

    module._descend = watched
    run.fit(module, data())
    assert moves.seen == [(True, False)] * 2 + [(True, True)] * 4
    cosine = [0.02 + 0.98 * (1 + math.cos(math.pi * i / 4)) / 2 for i in range(4)]
    assert [rate for index, rate in critic if index == 0] == pytest.approx([0.5, 1.0, *cosine])
    assert [rate for index, rate in critic if index == 1] == pytest.approx([0.5, *cosine[1:]])


def test_before_the_discriminator_starts_training_is_that_without_one():
    plain, late = stage(optimizer=SGD), gan(optimizer=SGD, discriminator_start=10)
    trainer(3, gradient_clip_val=1.0).fit(plain, data())
    trainer(3).fit(late, data())
    assert changed(late.autoencoder, snapshot(plain.autoencoder)) == set()


def test_the_discriminator_learns_to_tell_real_from_reconstructed():
    module = gan()
    x = next(iter(data()))["image"]
    trainer(15).fit(module, data())
    with torch.no_grad():
        y = module.autoencoder.decode(module.autoencoder.encode(x))
        assert module.discriminator(x).mean() > module.discriminator(y).mean() + 0.5


def test_the_adversarial_loss_pulls_the_autoencoder_elsewhere():
    with_gan, without = gan(optimizer=SGD), gan(optimizer=SGD, discriminator_weight=0.0)
    for module in (with_gan, without):
        trainer(1).fit(module, data())
    assert "decoder.conv_out.weight" in changed(with_gan.autoencoder, snapshot(without.autoencoder))


def test_gradients_of_both_networks_are_clipped():
    module = gan(optimizer=SGD, gradient_clip=1e-3)
    before = snapshot(module.autoencoder), snapshot(module.discriminator)
    trainer(1).fit(module, data())
    for network, old in zip((module.autoencoder, module.discriminator), before, strict=True):
        assert distance(network, old) == pytest.approx(0.1 * 1e-3, rel=0.02)  # lr x norm


def test_a_gan_exports_the_autoencoder_alone_and_its_checkpoint_holds_both():
    module = gan()
    trained = module.trained().state_dict()
    assert trained.keys() == {f"autoencoder.{name}" for name in module.autoencoder.state_dict()}
    assert trained.keys() == stage().trained().state_dict().keys()
    assert any(name.startswith("discriminator.") for name in module.state_dict())
    assert not any(name.startswith("discriminator.") for name in stage().state_dict())


def test_a_gan_resumed_half_way_is_the_run_that_never_stopped(tmp_path):
    def run(steps: int, resume: bool) -> AutoencoderTraining:
        module = gan(discriminator_start=1, warmup_steps=3)
        checkpoint = pl.callbacks.ModelCheckpoint(tmp_path, filename=f"{steps}", every_n_train_steps=steps)
        trainer(steps, (checkpoint,)).fit(module, data(), ckpt_path=tmp_path / "2.ckpt" if resume else None)
        return module

    run(2, resume=False)
    whole, resumed = run(4, resume=False), run(4, resume=True)
    assert changed(resumed, snapshot(whole)) == set()


def in_ddp(rank: int, port: int) -> None:
    torch.set_num_threads(1)  # threads do not survive a fork
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    module = gan(discriminator_start=2)
    before = snapshot(module)
    trainer(4, strategy="ddp", devices=2).fit(module, data(4))
    moved = changed(module, before)
    assert any(name.startswith("discriminator.") for name in moved)
    assert any(name.startswith("autoencoder.decoder") for name in moved)


@pytest.mark.slow
def test_a_gan_trains_in_two_processes():
    """Neither network's backward pass reaches the other: DDP would wait for its gradients, and end in step 2."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=in_ddp, args=(rank, port)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(240)
    assert [process.exitcode for process in ranks] == [0, 0]


def test_without_a_discriminator_lightning_optimizes_by_itself():
    module = stage()
    assert module.automatic_optimization
    run = trainer(1)
    run.fit(module, data())
    assert len(run.optimizers) == 1


def test_half_precision_with_a_gan_is_refused():
    module = gan()
    module.trainer = trainer(1)
    module.trainer.strategy.precision_plugin.precision = "16-mixed"
    with pytest.raises(ValueError, match=r"discriminator needs trainer\.precision=bf16-mixed"):
        module.on_fit_start()


# ------------------------------------------------------------------ diffusion


def test_every_weight_that_trains_gets_a_gradient_also_beside_text_layers_that_are_never_read(diffusion):
    """DDP would wait for the gradients of the others, and end in step 2."""
    diffusion.conditioner.text_encoder = TextEncoder(34, 16, layers=3, heads=2, context_length=24, skip_last=1)
    module = DiffusionTraining(diffusion, ADAM)
    module.log = lambda *_, **__: None
    batch = {"moments": torch.randn(2, 8, 8, 8), "caption": ["a red star", "a blue ring"]}
    module.training_step(batch, 0).backward()
    without = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    frozen = [name for name, p in diffusion.conditioner.named_parameters() if not p.requires_grad]
    assert without == []
    assert frozen
    assert all(name.startswith("text_encoder.layers.2.") for name in frozen)


def test_a_probe_adds_its_loss_trains_alongside_and_is_not_exported(diffusion):
    probe = functools.partial(LabelProbe, classes=(3,), weight=0.5)
    plain = DiffusionTraining(diffusion, ADAM, train_text_encoder=False)
    probed = DiffusionTraining(diffusion, ADAM, train_text_encoder=False, probe=probe)
    batch = {
        "moments": torch.randn(2, 8, 8, 8),
        "caption": ["a red star on a mint background"] * 2,
        "id": torch.arange(2),
    }
    batch["labels"] = torch.randint(3, (2, 1, 8, 8))
    for module in (plain, probed):
        module.log = module.log_dict = lambda *_, **__: None
        module.step_generator = lambda *_, **__: torch.Generator().manual_seed(0)
    alone, both = plain.training_step(batch, 0), probed.training_step(batch, 0)
    assert (both - alone).item() == pytest.approx(0.5 * math.log(3), rel=0.3)
    both.backward()
    assert probed.probe.heads[0].weight.grad.abs().sum() > 0
    block = diffusion.unet.decoder.blocks[probed.probe.block]
    assert block.res.conv2.weight.grad.abs().sum() > 0
    assert probed.trained() is diffusion
    assert not block._forward_hooks  # previews and exports see the model as it was


def test_losses_are_logged_as_means_over_the_batches_of_an_optimizer_step():
    stage, logged = Stage(torch.optim.SGD), []
    stage.log = lambda name, value, **_: logged.append((name, value.item()))
    for step, losses in ((7, [1.0, 3.0, 8.0]), (8, [5.0])):
        stage._trainer = SimpleNamespace(global_step=step, world_size=1)
        for loss in losses:
            stage.log_means({"train/loss": torch.tensor(loss)})
    assert logged == [("train/loss", value) for value in (1.0, 2.0, 4.0, 5.0)]
