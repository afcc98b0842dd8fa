"""On a GPU, the numbers of the CPU: networks in half precision, a compiled step, a resumed run.

`bash benchmarks/gpu.sh` runs these; without a GPU they are skipped. Weights and inputs are random and small. An error
is the largest difference, as a share of the largest value that the CPU finds in float32; the tolerances are about four
times what the CPU's own half precision does.
"""

import copy
import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import train
from cldm.branches.controlnet import ControlNet
from cldm.runs.building import instantiate
from cldm.training.control_ldm import ControlLDM
from ldm.attention import attend
from ldm.batch import Batch
from ldm.diffusion import LatentDiffusion
from ldm.unet import ControlResiduals
from ldm.weights import save_weights
from tests.pipelines import Both, build

DEVICE = "cuda"
TOLERANCES = {torch.float16: 0.01, torch.bfloat16: 0.08}
PROMPTS = ["a red star on a mint background", "a blue ring left of a square"]
LR = 1e-3

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
half = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def error(found: Iterable[Tensor], wanted: Iterable[Tensor]) -> float:
    """The largest of the tensors' errors."""
    pairs = [(a.float().cpu(), b) for a, b in zip(found, wanted, strict=True)]
    assert all(a.isfinite().all() for a, _ in pairs)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)


@torch.no_grad()
def assert_agrees(network: nn.Module, dtype: torch.dtype, use: Callable[..., tuple[Tensor, ...]], *given: Tensor):
    """`use(network, *given)` finds on the GPU in `dtype` what it finds on the CPU in float32."""
    wanted = use(network, *given)
    moved = [x.to(DEVICE, dtype if x.is_floating_point() else None) for x in given]
    found = use(copy.deepcopy(network).to(DEVICE, dtype), *moved)
    assert {x.dtype for x in found} == {dtype}
    assert error(found, wanted) < TOLERANCES[dtype]


@pytest.fixture(scope="module")
def both() -> Both:
    return build(controls=1)


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(2, 3, 64, 64, generator=rng) * 2 - 1,
        "hint": torch.rand(2, 3, 64, 64, generator=rng),
        "z": torch.randn(2, 4, 8, 8, generator=rng),
        "t": torch.tensor([900, 20]),
        "context": torch.randn(2, 77, 32, generator=rng),
    }


def residuals(control: ControlNet, *given: Tensor) -> tuple[Tensor, ...]:
    found: ControlResiduals = control(*given)
    return (*found.skips, found.middle)


# ------------------------------------------------------------------ networks


@half
@pytest.mark.parametrize("backend", ["sdpa", "einsum"])
def test_the_unet_agrees_with_either_backend(both, inputs, dtype, backend):
    unet = copy.deepcopy(both.diffusion.unet)
    for module in unet.modules():
        if hasattr(module, "backend"):
            module.backend = backend
    given = (inputs[name] for name in ("z", "t", "context"))
    assert_agrees(unet, dtype, lambda net, *x: (net(*x),), *given)


@half
def test_the_branch_agrees_in_every_residual(both, inputs, dtype):
    assert_agrees(both.controls[0], dtype, residuals, *(inputs[name] for name in ("z", "t", "context", "hint")))


@half
def test_the_autoencoder_agrees_both_ways(both, inputs, dtype):
    autoencoder = both.diffusion.autoencoder
    assert_agrees(autoencoder, dtype, lambda net, x: (net.moments(x),), inputs["image"])
    assert_agrees(autoencoder, dtype, lambda net, z: (net.decode(z),), inputs["z"])


@half
def test_the_text_encoder_agrees(both, dtype):
    assert_agrees(both.diffusion.conditioner, dtype, lambda net: (net(PROMPTS),))


@half
@pytest.mark.parametrize("backend", ["auto", "sdpa", "einsum"])
@pytest.mark.parametrize("keys", [64, 77])
def test_every_backend_of_attention_agrees_forward_and_backward(dtype, backend, keys):
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 8, n, 40, generator=rng) for n in (64, keys, keys))

    def use(where: torch.device | str, dtype: torch.dtype, backend: str) -> list[Tensor]:
        inputs = [x.to(where, dtype).requires_grad_() for x in (q, k, v)]
        out = attend(*inputs, backend)
        return [out.detach(), *torch.autograd.grad(out, inputs, q.to(out))]

    wanted = use("cpu", torch.float32, "einsum")
    assert error(use(DEVICE, dtype, backend), wanted) < TOLERANCES[dtype]


# ------------------------------------------------------------------ training


def gradients(diffusion: LatentDiffusion, device: str, compile: bool = False) -> list[Tensor]:
    """The loss of one step, and the gradients that it leaves in the branch."""
    diffusion = copy.deepcopy(diffusion)
    torch.manual_seed(0)
    control = ControlNet.from_unet(diffusion.unet, hint_widths=(8, 8, 8, 8))
    module = ControlLDM(diffusion, control, functools.partial(torch.optim.AdamW, lr=LR)).to(device)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.step_generator = lambda *_, **__: torch.Generator().manual_seed(0)  # type: ignore[method-assign]
    module.noise_like = lambda like, rng: torch.randn(like.shape, generator=rng).to(like)  # type: ignore[method-assign]
    module.timesteps = lambda count, rng: torch.tensor([900, 20], device=device)  # type: ignore[method-assign]
    if compile:
        diffusion.unet.compile()
    rng = torch.Generator().manual_seed(0)
    moments, hint = torch.randn(2, 8, 8, 8, generator=rng), torch.rand(2, 3, 64, 64, generator=rng)
    batch = Batch(moments=moments.to(device), hint=hint.to(device), caption=PROMPTS, id=torch.arange(2, device=device))
    loss = module.training_step(batch, 0)
    loss.backward()
    return [loss.detach()[None], *(p.grad for p in control.parameters() if p.grad is not None and p.grad.any())]


@pytest.mark.parametrize("compile", [False, True])
def test_a_training_step_has_the_loss_and_gradients_of_the_cpu(diffusion, compile):
    """In float32, of which convolutions on a GPU keep ten bits of each factor (TF32)."""
    wanted = gradients(diffusion, "cpu")
    assert len(wanted) > 26  # the zero convolutions learn first
    assert error(gradients(diffusion, DEVICE, compile), wanted) < 0.02


@pytest.fixture
def trained(composed, small, fill_zeros, tmp_path):
    """`trained(name, ...)`: the branch's weights after a run of `python train.py trainer=gpu`."""
    torch.manual_seed(0)
    model = instantiate(composed("model=tiny").model, _convert_="all")
    fill_zeros(model)
    base = save_weights(model, tmp_path / "base.safetensors")

    def go(name: str, *overrides: str, resume: bool = False) -> dict[str, Tensor]:
        folder: Path = tmp_path / name
        place = f"resume={folder}" if resume else f"run_dir={folder}"
        trainer = ["trainer=gpu", f"trainer.accelerator={'gpu' if DEVICE == 'cuda' else 'cpu'}"]
        fixed = [*trainer, f"base={base}", f"optimizer.lr={LR}", "stage.module.cosine=false", "stage.report_items=0"]
        train.train(composed(*small, *fixed, *overrides, place))
        return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    return go


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Root of the summed squares of all differences."""
    return sum(((a[name] - b[name]).double() ** 2).sum().item() for name in a) ** 0.5


def test_a_resumed_run_ends_where_a_straight_one_does(trained):
    """Not bit for bit: a GPU sums in an order of its own, and Adam enlarges what rounding does to small gradients."""
    straight = trained("straight", "steps=4")
    half = trained("half", "steps=2")
    resumed = trained("half", "steps=4", resume=True)
    assert distance(straight, half) > 0
    assert distance(straight, resumed) < 0.05 * distance(straight, half)
