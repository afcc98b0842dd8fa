"""The whole way from prompt to latents: ours and diffusers' pipeline with the same weights, hint and settings."""

import functools

import pytest
import torch
from torch import Tensor

from cldm.sampling.control import ControlUnit, inpaint_hint
from cldm.sampling.generation import Sampling
from ldm.samplers import ddim, dpmpp_2m, euler, heun, initial_noise, pndm, unipc

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from tests.pipelines import Both, build

PROMPT, NEGATIVE = "a large red star left of a blue ring", "blurry, low quality"
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = SD | {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING = SD | {"timestep_spacing": "trailing"}
# as Stable Diffusion ships them; DPM-Solver and UniPC have a leading grid of their own, so those are trailing
SCHEDULERS = {
    "ddim": (ddim, "leading", "DDIMScheduler", LEADING | {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (euler, "leading", "EulerDiscreteScheduler", LEADING),
    "heun": (heun, "leading", "HeunDiscreteScheduler", LEADING),
    "dpmpp_2m": (dpmpp_2m, "trailing", "DPMSolverMultistepScheduler", TRAILING),
    "unipc": (unipc, "trailing", "UniPCMultistepScheduler", TRAILING),
    "pndm": (pndm, "leading", "PNDMScheduler", LEADING | {"skip_prk_steps": True, "set_alpha_to_one": False}),
}
SEEDS = [3]
SLOW = [(10, 1.0), (20, 1.0), (30, 1.0), (50, 7.5)]  # the grid of timesteps does not know of guidance


@pytest.fixture(scope="module")
def both() -> Both:
    return build()


@pytest.fixture(scope="module")
def hints() -> list[Tensor]:
    return [torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


def scheduler(name: str) -> object:
    import diffusers

    _, _, cls, config = SCHEDULERS[name]
    return getattr(diffusers, cls)(**config)


def ours(both: Both, name: str, steps: int, units: list[ControlUnit], guidance: float = 7.5, **call) -> Tensor:
    """Final latents: the decoder is left out, it has a test of its own."""
    sampler, spacing, _, _ = SCHEDULERS[name]
    settings = {key: call.pop(key) for key in ("rescale", "clip_skip") if key in call}
    sampling = Sampling(sampler, steps, spacing, guidance, **settings)
    seen = {}
    image = sampling(both.diffusion, [PROMPT], SEEDS, (64, 64), units, call.pop("negative", NEGATIVE),
                     callback=lambda i, z: seen.update(last=z), **call)  # fmt: skip
    assert image.isfinite().all()
    return seen["last"]


def theirs(both: Both, name: str, steps: int, hints: list[Tensor], guidance: float = 7.5,
           cls: str = "StableDiffusionControlNetPipeline", **call) -> Tensor:  # fmt: skip
    """The pipeline's final latents, from the noise of the same seed."""
    pipeline = both.pipeline(cls, scheduler(name), both.controlnets[: len(hints)])
    hint = hints[0] if len(hints) == 1 else hints
    fresh = cls == "StableDiffusionControlNetPipeline"
    call |= {"image": hint, "latents": initial_noise(SEEDS, (4, 8, 8))} if fresh else {"control_image": hint}
    return pipeline(
        prompt_embeds=both.embeds([PROMPT]),
        negative_prompt_embeds=both.embeds([call.pop("negative", NEGATIVE)]),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="latent",
        **call,
    ).images


def close(a: Tensor, b: Tensor, tolerance: float = 1e-3) -> None:
    assert a.shape == b.shape
    assert b.std() > 0.1  # numbers that could differ
    assert ((a - b).abs().max() / b.abs().max()).item() <= tolerance


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize(
    ("steps", "guidance"),
    [(10, 7.5), *(pytest.param(n, s, marks=pytest.mark.slow) for n, s in SLOW)],
)
def test_a_pipeline_gives_our_latents(both, hints, name, steps, guidance):
    close(
        ours(both, name, steps, [ControlUnit(both.controls[0], hints[0], 0.8)], guidance),
        theirs(both, name, steps, hints[:1], guidance, controlnet_conditioning_scale=0.8),
    )


def test_the_hint_matters_in_these_comparisons(both, hints):
    with_hint, without = (ours(both, "ddim", 10, units) for units in ([ControlUnit(both.controls[0], hints[0])], []))
    assert (with_hint - without).abs().max() > 0.1


@pytest.mark.parametrize("name", SCHEDULERS)
def test_two_controlnets_with_windows_and_scales(both, hints, name):
    """The windows of diffusers' PNDM and Heun count evaluations, n + 1 and 2n - 1, so there both act throughout."""
    windows = ((0.0, 1.0), (0.0, 1.0)) if name in ("pndm", "heun") else ((0.0, 0.5), (0.2, 0.8))
    steps = 10
    units = [
        ControlUnit(net, hint, scale, start=start, end=end)
        for net, hint, scale, (start, end) in zip(both.controls, hints, (0.5, 1.2), windows, strict=True)
    ]
    reference = theirs(
        both, name, steps, hints,
        controlnet_conditioning_scale=[0.5, 1.2],
        control_guidance_start=[start for start, _ in windows],
        control_guidance_end=[end for _, end in windows],
    )  # fmt: skip
    close(ours(both, name, steps, units), reference)


@pytest.mark.parametrize(
    ("name", "strength"),
    [("ddim", 0.5), ("euler", 0.8), ("heun", 0.5), ("dpmpp_2m", 0.8), ("unipc", 0.6)],
)
def test_image_to_image(both, hints, name, strength):
    """Latents go in on their side: it would draw a sample of the posterior, we take the mean.

    Without pndm: diffusers cuts its list of n + 1 evaluations by steps, starts one timestep early, and takes the second
    timestep for a repetition of the first.
    """
    image = 2 * torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(7)) - 1
    z0 = both.diffusion.encode(image)
    unit = ControlUnit(both.controls[0], hints[0], 0.8)
    reference = theirs(both, name, 10, hints[:1], cls="StableDiffusionControlNetImg2ImgPipeline", image=z0,
                       strength=strength, controlnet_conditioning_scale=0.8)  # fmt: skip
    close(ours(both, name, 10, [unit], image=image, strength=strength), reference)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_inpainting_with_a_four_channel_base(both, name, monkeypatch):
    """The latent blend after each step, and the denoiser that leads outside of the mask, walk the same path."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    rng = torch.Generator().manual_seed(7)
    image = 2 * torch.rand(1, 3, 64, 64, generator=rng) - 1
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 16:48, 24:64] = 1
    z0 = both.diffusion.encode(image)
    hint = inpaint_hint(image, mask)
    assert hint.min() == -1
    reference = theirs(both, name, 10, [hint], cls="StableDiffusionControlNetInpaintPipeline", image=image,
                       mask_image=mask, strength=0.8, height=64, width=64,
                       controlnet_conditioning_scale=0.8)  # fmt: skip
    found = ours(both, name, 10, [ControlUnit(both.controls[0], hint, 0.8)], image=image, strength=0.8, mask=mask)
    here = mask[:, :, ::8, ::8]
    close(torch.lerp(z0, found, here), reference)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_guess_mode_is_ours_up_to_its_scales(both, hints, name):
    """diffusers spaces the scales from 0.1, the original and this project by 0.825: at most 0.7 % apart."""
    reference = theirs(both, name, 10, hints[:1], 4.0, guess_mode=True, negative="")
    published = torch.logspace(-1, 0, 13).tolist()
    same_scales = ControlUnit(both.controls[0], hints[0], scales=published, mode="conditional")
    close(ours(both, name, 10, [same_scales], 4.0, negative=""), reference)
    own = ControlUnit(both.controls[0], hints[0], mode="control")
    assert max(abs(a / b - 1) for a, b in zip(own.weights(), published, strict=True)) < 0.007
    close(ours(both, name, 10, [own], 4.0, negative=""), reference, 2e-2)


def test_guidance_rescale_and_clip_skip(both, hints):
    unit = ControlUnit(both.controls[0], hints[0])
    text = both.parts["text_encoder"]
    states = text(both.diffusion.conditioner.tokenize([PROMPT, NEGATIVE]), output_hidden_states=True).hidden_states
    norm = getattr(text, "text_model", text).final_layer_norm
    skipped = norm(states[-2])  # what encode_prompt(clip_skip=1) takes
    pipeline = both.pipeline("StableDiffusionControlNetPipeline", scheduler("ddim"), both.controlnets[:1])
    with torch.no_grad():
        reference = pipeline(
            prompt_embeds=skipped[:1], negative_prompt_embeds=skipped[1:], image=hints[0],
            latents=initial_noise(SEEDS, (4, 8, 8)), num_inference_steps=10, output_type="latent",
        ).images  # fmt: skip
    close(ours(both, "ddim", 10, [unit], clip_skip=1), reference)
    assert (reference - ours(both, "ddim", 10, [unit])).abs().max() > 1e-2


def test_global_pooling_is_that_of_the_shuffle_model(both, hints):
    both.controlnets[0].register_to_config(global_pool_conditions=True)
    try:
        reference = theirs(both, "ddim", 10, hints[:1])
    finally:
        both.controlnets[0].register_to_config(global_pool_conditions=False)
    close(ours(both, "ddim", 10, [ControlUnit(both.controls[0], hints[0], pool=True)]), reference)


def test_any_multiple_of_eight(both):
    hint = torch.rand(1, 3, 72, 104, generator=torch.Generator().manual_seed(9))
    pipeline = both.pipeline("StableDiffusionControlNetPipeline", scheduler("ddim"), both.controlnets[:1])
    reference = pipeline(
        prompt_embeds=both.embeds([PROMPT]), negative_prompt_embeds=both.embeds([NEGATIVE]), image=hint,
        latents=initial_noise(SEEDS, (4, 9, 13)), num_inference_steps=10, output_type="latent",
    ).images  # fmt: skip
    seen = {}
    Sampling(functools.partial(ddim, eta=0.0), 10, "leading", 7.5)(
        both.diffusion, [PROMPT], SEEDS, (72, 104), ControlUnit(both.controls[0], hint), NEGATIVE,
        callback=lambda i, z: seen.update(last=z),
    )  # fmt: skip
    close(seen["last"], reference)


def test_decoding_gives_the_pipelines_image(both, hints):
    pipeline = both.pipeline("StableDiffusionControlNetPipeline", scheduler("ddim"), both.controlnets[:1])
    reference = pipeline(
        prompt_embeds=both.embeds([PROMPT]), negative_prompt_embeds=both.embeds([NEGATIVE]), image=hints[0],
        latents=initial_noise(SEEDS, (4, 8, 8)), num_inference_steps=10, output_type="pt",
    ).images  # fmt: skip
    found = Sampling(ddim, 10, "leading", 7.5)(
        both.diffusion, [PROMPT], SEEDS, (64, 64), ControlUnit(both.controls[0], hints[0]), NEGATIVE
    )
    close((found + 1) / 2, reference)
