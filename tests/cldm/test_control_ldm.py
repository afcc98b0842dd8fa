"""Promises of the Lightning module: the base stays locked, prompts drop, checkpoints are small."""

import hashlib
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from cldm.branches.controlnet import ControlNet
from cldm.data.datamodule import DataModule
from cldm.runs.building import instantiate
from cldm.training.callbacks import Export
from cldm.training.control_ldm import LOCKING, ControlLDM
from ldm.training.stage import DoesNotFit
from ldm.unet import UNet
from ldm.weights import load_weights, read_metadata

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = (4, 4, 8, 8)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def digest(module: torch.nn.Module) -> str:
    """A hash of every parameter and buffer."""
    found = hashlib.blake2b()
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.fixture
def diffusion(narrow_diffusion):
    return narrow_diffusion


@pytest.fixture
def module(diffusion):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return ControlLDM(diffusion, ControlNet.from_unet(diffusion.unet, hint_widths=WIDTHS), adamw)


@pytest.fixture
def fit(random_items):
    def run(module, steps, ckpt_path=None, callbacks=None):
        data = DataModule(random_items(6), random_items(2), batch_size=2)
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, limit_val_batches=0,
            enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks,
        )  # fmt: skip
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return trainer

    return run


def test_training_leaves_the_locked_model_alone_and_moves_the_whole_branch(module, fit):
    locked, branch = digest(module.diffusion), {n: p.clone() for n, p in module.control.named_parameters()}
    fit(module, 3)
    assert digest(module.diffusion) == locked
    moved = {n for n, p in module.control.named_parameters() if not torch.equal(p, branch[n])}
    assert moved == branch.keys()


TRAINED = {  # what each mode trains besides the branch
    "locked": [],
    "decoder": ["unet.decoder."],
    "unlocked": ["unet.encoder.", "unet.decoder."],
    "scratch": ["unet.encoder.", "unet.decoder."],
}
BRANCHES = sorted(path.stem for path in (ROOT / "configs" / "control").glob("*.yaml"))


@pytest.fixture
def stage(composed, make_diffusion):
    """`stage("controlnet", "decoder")`: the control stage around a tiny model, a branch of configs/control on it."""

    def make(branch: str = "controlnet", locking: str = "locked", narrow: bool = True, **options) -> ControlLDM:
        diffusion = make_diffusion(narrow=narrow)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            if locking == "scratch":
                diffusion.unet = UNet(diffusion.unet.config)
            control = composed("model=tiny", f"control={branch}").control
            net = instantiate(control, _convert_="all")(diffusion.unet)
            return ControlLDM(diffusion, net, adamw, locking=locking, **options)

    return make


class Gradients(pl.Callback):
    """Names of the parameters that have had a gradient other than zero, and of those that had none at all."""

    def __init__(self):
        self.reached, self.without = set(), set()

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for name, p in module.named_parameters():
            if p.requires_grad:
                self.without |= set() if p.grad is not None else {name}
                self.reached |= {name} if p.grad is not None and p.grad.any() else set()


@pytest.mark.parametrize(
    ("branch", "locking", "middle_only"),
    [
        *((branch, "locked", False) for branch in BRANCHES),
        *(("controlnet", locking, False) for locking in LOCKING if locking != "locked"),
        *(("controlnet", locking, True) for locking in LOCKING),
        ("lite", "locked", True),
        ("concat", "scratch", False),
        ("concat", "unlocked", False),
    ],
)
def test_what_trains_gets_a_gradient_within_three_steps_and_nothing_else_changes(
    stage, fit, branch, locking, middle_only
):
    module = stage(branch, locking, middle_only=middle_only)
    before = {name: p.clone() for name, p in module.named_parameters()}
    trainable = {name for name, p in before.items() if module.get_parameter(name).requires_grad}
    frozen = digest(module.diffusion.autoencoder) + digest(module.diffusion.conditioner)
    base = {name for name in trainable if name.startswith("diffusion.")}
    assert base == {n for n in before if n.startswith(tuple(f"diffusion.{part}" for part in TRAINED[locking]))}
    gradients = Gradients()
    # a fresh U-Net is silent: in the first steps it opens its own zero layers, the last first
    fit(module, 3 if locking != "scratch" else 6, callbacks=[gradients])
    assert not gradients.without  # in any step: DDP would wait for it
    # the middle has one pixel here, which attends to itself alone: what it asks for makes no difference
    alone = {f"middle.attention.blocks.0.self_attention.to_{name}.weight" for name in "qk"}
    wanted = {name for name in trainable if not name.endswith(tuple(alone))}
    assert wanted <= gradients.reached <= trainable
    changed = {name for name, p in module.named_parameters() if not torch.equal(p, before[name])}
    assert wanted <= changed <= trainable
    assert digest(module.diffusion.autoencoder) + digest(module.diffusion.conditioner) == frozen


def test_locked_means_no_gradient_and_eval_mode_whatever_is_asked(module):
    assert not any(p.requires_grad for p in module.diffusion.parameters())
    for mode in (True, False):
        module.train(mode)
        assert not any(m.training for m in module.diffusion.modules())
        assert all(m.training is mode for m in module.control.modules())
    trained = {id(p) for group in module.configure_optimizers()["optimizer"].param_groups for p in group["params"]}
    assert trained == {id(p) for p in module.control.parameters()}


def test_lightning_trains_with_the_locked_model_in_eval_mode(module, fit):
    modes = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            modes.append((pl_module.diffusion.unet.training, pl_module.control.training))

    fit(module, 2, callbacks=[Look()])
    assert modes == [(False, True)] * 2


def test_no_graph_is_kept_of_the_locked_encoder_and_the_locked_decoder_has_one(module, random_items):
    seen = {}

    def keep(name):
        return lambda _, __, output: seen.update({name: output})

    module.diffusion.unet.encoder.register_forward_hook(keep("encoded"))
    module.diffusion.unet.decoder.register_forward_hook(keep("decoded"))
    module.control.encoder.blocks[0].register_forward_hook(keep("copied"))
    module.train()
    batch = random_items(2).__getitems__([0, 1])
    branch = module.branch(batch)
    context = module.diffusion.context(batch["caption"])
    z = batch["moments"][:, :4]
    loss = module.diffusion.loss(z, context, torch.tensor([10, 500]), torch.randn(z.shape), branch)
    encoded = seen["encoded"]
    assert not any(x.requires_grad for x in (*encoded.skips, encoded.middle, encoded.emb, context))
    assert seen["copied"].requires_grad
    assert seen["decoded"].requires_grad
    assert loss.requires_grad


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0])
def test_prompts_are_dropped_at_their_rate(module, random_items, rate, monkeypatch):
    prompts = []
    monkeypatch.setattr(module.diffusion, "context", lambda texts: prompts.extend(texts))
    monkeypatch.setattr(module.diffusion, "loss", lambda *_: torch.zeros(16))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    module.prompt_dropout = rate
    batch = random_items(16).__getitems__(range(16))
    for i in range(200):
        module.training_step(batch, i)
    assert len(prompts) == 3200
    assert set(prompts) <= {"", batch["caption"][0]}
    share = prompts.count("") / len(prompts)
    assert share == pytest.approx(rate, abs=0.04 if rate == 0.5 else 0)  # 0.04 is 4.5 standard deviations


def test_half_of_the_prompts_are_dropped_unless_told_otherwise(composed):
    cfg = composed("model=tiny")
    assert cfg.stage.module._target_ == "cldm.training.control_ldm.ControlLDM"
    assert cfg.stage.module.prompt_dropout == 0.5
    assert ControlLDM.__init__.__defaults__[0] == 0.5


def test_middle_only_adds_nothing_to_the_skips_whatever_the_branch_has_learned(stage, fit, random_items):
    module = stage(middle_only=True)
    with torch.no_grad():  # as init_from may
        for p in module.control.zero_convs.parameters():
            p.normal_()
    fit(module, 2)
    batch = random_items(2).__getitems__([0, 1])
    arguments = (batch["moments"][:, :4], torch.tensor([10, 500]), torch.randn(2, 24, 16))
    trained, exported = module.branch(batch)(*arguments), module.control(*arguments, batch["hint"])
    assert trained.middle.any()
    assert not any(skip.any() for skip in (*trained.skips, *exported.skips))


@pytest.mark.parametrize("locking", ["decoder", "unlocked"])
def test_unlocked_parts_are_in_train_mode_and_in_the_checkpoint(stage, fit, tmp_path, locking):
    module = stage(locking=locking)
    module.train()
    unet = module.diffusion.unet
    assert unet.decoder.training
    assert unet.encoder.training is (locking == "unlocked")
    assert not module.diffusion.autoencoder.training
    fit(module, 2).save_checkpoint(tmp_path / "a.ckpt")
    held = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert held.keys() == {name for name, p in module.named_parameters() if p.requires_grad}
    fresh = stage(locking=locking)
    fit(fresh, 2, ckpt_path=tmp_path / "a.ckpt")  # nothing left to do: weights as loaded
    assert digest(fresh) == digest(module)


@pytest.mark.parametrize(("locking", "rates"), [("locked", [1]), ("decoder", [1, 0.2]), ("unlocked", [1, 0.2]),
                                                ("scratch", [1, 1])])  # fmt: skip
def test_pretrained_weights_that_are_unlocked_train_at_a_rate_of_their_own(stage, fit, locking, rates):
    module = stage(locking=locking)
    fit(module, 2)
    [optimizer] = module.trainer.optimizers
    lr = optimizer.param_groups[0]["lr"]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate * lr for rate in rates])
    unlocked = {id(p) for part in module._unlocked() for p in part.parameters()}
    assert all({id(p) for p in group["params"]} == unlocked for group in optimizer.param_groups[1:])


def test_hint_use_is_zero_for_a_silent_branch_and_tells_an_own_hint_from_anothers(stage, random_items):
    module = stage()
    batch = random_items(4).__getitems__(range(4))
    image = torch.rand(batch["hint"].shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    items = module.diffusion.encode(image), module.diffusion.context(batch["caption"]), batch["hint"]
    assert module.hint_use(*items) == 0
    with torch.no_grad():  # a branch that draws what its hint shows: each item's hint is its own target
        for conv in (*module.control.zero_convs, module.control.zero_conv_middle, module.control.hint_encoder[-1]):
            conv.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert module.hint_use(*items) == module.hint_use(*items) != 0


def test_a_locking_that_does_not_exist_is_refused(stage):
    with pytest.raises(ValueError, match=r"stage.module.locking must be one of locked, decoder, unlocked, scratch"):
        stage(locking="open")


def test_a_checkpoint_holds_the_trainable_weights_only_and_goes_on(module, fit, make_diffusion, tmp_path):
    trainer = fit(module, 2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    expected = {f"control.{name}": value for name, value in module.control.state_dict().items()}
    assert checkpoint["state_dict"].keys() == expected.keys()
    assert all(torch.equal(checkpoint["state_dict"][name], expected[name]) for name in expected)
    other = make_diffusion(narrow=True)
    fresh = ControlLDM(other, ControlNet.from_unet(other.unet, hint_widths=WIDTHS), adamw)
    assert fit(fresh, 2, ckpt_path=tmp_path / "a.ckpt").global_step == 2  # nothing left to do: weights as loaded
    assert digest(fresh.control) == digest(module.control)


@pytest.mark.parametrize(
    ("widths", "message"), [((4, 4, 8), "[1-9] unexpected"), ((4, 4, 8, 4), " 0 unexpected, [1-9]+ of another shape")]
)
def test_a_checkpoint_of_another_branch_is_refused(module, fit, make_diffusion, tmp_path, widths, message):
    fit(module, 1).save_checkpoint(tmp_path / "a.ckpt")
    other = make_diffusion(narrow=True)
    stranger = ControlLDM(other, ControlNet.from_unet(other.unet, hint_widths=widths), adamw)
    with pytest.raises(DoesNotFit, match=f"does not fit what this stage trains: .*{message}"):
        fit(stranger, 2, ckpt_path=tmp_path / "a.ckpt")


def test_resuming_on_another_base_is_refused(module, fit, make_diffusion, tmp_path):
    fit(module, 1).save_checkpoint(tmp_path / "a.ckpt")
    other = make_diffusion(narrow=True)
    with torch.no_grad():
        next(other.unet.parameters()).add_(1e-3)
    moved = ControlLDM(other, ControlNet.from_unet(other.unet, hint_widths=WIDTHS), adamw)
    with pytest.raises(ValueError, match="was trained on base"):
        fit(moved, 2, ckpt_path=tmp_path / "a.ckpt")


@torch.no_grad()
def test_the_exported_file_reloads_and_gives_the_same_residuals(module, fit, make_diffusion, random_items, tmp_path):
    export = Export(str(tmp_path), {"stage": "control", "condition": "canny", "seed": 3})
    trainer = fit(module, 2)
    export.write(trainer, module)
    other = make_diffusion(narrow=True)
    reloaded = ControlNet.from_unet(other.unet, hint_widths=WIDTHS)
    load_weights(reloaded, tmp_path / "control.safetensors")
    reloaded.to(memory_format=torch.channels_last)  # as it was trained: the same sums in the same order
    batch = random_items(2).__getitems__([0, 1])
    arguments = (batch["moments"][:, :4], torch.tensor([10, 500]), torch.randn(2, 24, 16), batch["hint"])
    a, b = module.control(*arguments), reloaded(*arguments)
    assert a.middle.any()
    assert torch.equal(a.middle, b.middle)
    assert all(torch.equal(x, y) for x, y in zip(a.skips, b.skips, strict=True))
    facts = read_metadata(tmp_path / "control.safetensors")
    assert {"stage": "control", "condition": "canny", "seed": "3", "steps": "2"}.items() <= facts.items()


def test_noise_is_a_function_of_the_step_and_not_of_what_was_drawn_before(module, random_items, monkeypatch):
    drawn = []
    monkeypatch.setattr(module.diffusion, "loss", lambda z0, c, t, eps, b: drawn.append((z0, t, eps)) or z0.mean())
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    batch = random_items(4).__getitems__(range(4))
    batch["image"] = torch.rand(batch["hint"].shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for i in (0, 1, 0):
        torch.randn(3)
        module.training_step(batch, i)
    first, second, again = drawn
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(module, "seed", 1)
    module.training_step(batch, 0)
    assert not any(torch.equal(a, b) for a, b in zip(first, drawn[-1], strict=True))


def test_ranks_draw_different_noise_and_together_that_of_one_process(module, random_items, monkeypatch):
    drawn, prompts = [], []
    monkeypatch.setattr(module.diffusion, "loss", lambda z0, c, t, eps, b: drawn.append((z0, t, eps)) or z0.mean())
    monkeypatch.setattr(module.diffusion, "context", lambda texts: prompts.append(texts))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    whole = random_items(8).__getitems__(range(8))
    module.training_step(whole, 0)
    monkeypatch.setattr(type(module), "world_size", 2)
    for rank in range(2):
        monkeypatch.setattr(type(module), "global_rank", rank)
        module.training_step(random_items(8).__getitems__(range(4 * rank, 4 * rank + 4)), 0)
    one, first, second = drawn
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, torch.cat(halves)) for a, *halves in zip(one, first, second, strict=True))
    assert prompts[0] == prompts[1] + prompts[2]
    assert len(set(prompts[0])) == 2  # some are dropped, some are not


@pytest.mark.parametrize("locking", ["locked", "unlocked"])
def test_checkpointing_keeps_fewer_activations_and_gives_the_same_gradients(stage, random_items, locking):
    batch = random_items(2).__getitems__([0, 1])
    found = []
    for checkpointing in (False, True):
        module, held = stage(locking=locking, narrow=False, checkpointing=checkpointing), []
        module.log = lambda *_, **__: None
        with torch.no_grad():
            for p in [*module.control.zero_convs.parameters(), *module.control.zero_conv_middle.parameters()]:
                p.fill_(0.01)
        names = [*module.state_dict()]
        with torch.autograd.graph.saved_tensors_hooks(lambda t, held=held: held.append(t.numel()) or t, lambda t: t):
            loss = module.training_step(batch, 0)
        loss.backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        found.append((loss.detach(), names, gradients, sum(held)))
    (loss, names, gradients, kept), (loss2, names2, gradients2, kept2) = found
    assert torch.equal(loss, loss2)
    assert names == names2
    assert gradients.keys() == gradients2.keys()
    assert all(torch.equal(gradients[name], gradients2[name]) for name in gradients)
    assert kept2 < 0.5 * kept


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_weighs_each_example_by_its_timestep(make_diffusion, random_items, monkeypatch, prediction):
    diffusion = make_diffusion(prediction, narrow=True)
    control = ControlNet.from_unet(diffusion.unet, hint_widths=WIDTHS)
    module = ControlLDM(diffusion, control, adamw, min_snr_gamma=5.0)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    seen = {}
    original = diffusion.loss

    def loss(z0, context, t, eps, branch):
        seen.update(t=t, losses=original(z0, context, t, eps, branch))
        return seen["losses"]

    monkeypatch.setattr(diffusion, "loss", loss)
    found = module.training_step(random_items(4).__getitems__(range(4)), 0)
    abar = diffusion.schedule.alphas_cumprod[seen["t"]]
    snr = abar / (1 - abar)
    weights = torch.minimum(snr, torch.tensor(5.0)) / (snr if prediction == "eps" else snr + 1)
    assert weights.unique().numel() > 1
    assert found.item() == pytest.approx((weights * seen["losses"]).mean().item(), rel=1e-6)
    with pytest.raises(ValueError, match="min_snr_gamma must be above 0"):
        ControlLDM(diffusion, control, adamw, min_snr_gamma=0.0)


def test_held_out_losses_are_the_same_for_an_item_every_time_and_disturb_no_randomness(module):
    rng = torch.Generator().manual_seed(3)
    draw = {"image": torch.rand(3, 3, 64, 64, generator=rng) * 2 - 1, "hint": torch.rand(3, 3, 64, 64, generator=rng)}
    batch = {**draw, "caption": ["a red star on a mint background"] * 3, "id": torch.tensor([4, 5, 6])}
    before = torch.get_rng_state()
    losses = module.eval().held_out_losses(batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert [*losses] == ["0-250", "250-500", "500-750", "750-1000"]
    assert all(loss.shape == (3,) and loss.isfinite().all() for loss in losses.values())
    alone = {name: value[1:2] for name, value in batch.items()}
    for name, loss in module.held_out_losses(alone).items():
        torch.testing.assert_close(loss, losses[name][1:2])
    with torch.no_grad():  # the loss is that of the controlled model
        module.control.zero_conv_middle.bias.add_(1.0)
    assert not torch.equal(module.held_out_losses(batch)["0-250"], losses["0-250"])
