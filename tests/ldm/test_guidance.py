import pytest
import torch
from torch import Tensor

from ldm.guidance import classifier_free_guidance


class RecordingModel:
    """eps = mean of the context + z + t / 1000; remembers what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.calls.append((z, t, context))
        return context.mean((1, 2))[:, None, None, None] + z + t[:, None, None, None] / 1000


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "z": torch.randn(2, 4, 3, 3, generator=generator),
        "t": torch.tensor([10, 700]),
        "context": torch.randn(2, 5, 6, generator=generator),
        "negative": torch.randn(2, 5, 6, generator=generator),
    }


def guided(inputs: dict[str, Tensor], scale: float) -> Tensor:
    denoiser = classifier_free_guidance(RecordingModel(), inputs["context"], inputs["negative"], scale)
    return denoiser(inputs["z"], inputs["t"])


def test_scale_one_is_the_conditional_model_alone(inputs):
    model = RecordingModel()
    eps = classifier_free_guidance(model, inputs["context"], None, 1.0)(inputs["z"], inputs["t"])
    assert torch.equal(eps, RecordingModel()(inputs["z"], inputs["t"], inputs["context"]))
    assert [len(z) for z, _, _ in model.calls] == [2]


def test_scale_zero_is_the_negative_prompt(inputs):
    torch.testing.assert_close(guided(inputs, 0.0), RecordingModel()(inputs["z"], inputs["t"], inputs["negative"]))


def test_guidance_is_linear_in_the_scale(inputs):
    eps_uc, eps_c = guided(inputs, 0.0), guided(inputs, 1.0)
    for scale in (-1.0, 0.5, 2.0, 7.5):
        torch.testing.assert_close(guided(inputs, scale), eps_uc + scale * (eps_c - eps_uc))


def test_both_halves_are_one_call_with_the_negative_first(inputs):
    model = RecordingModel()
    denoiser = classifier_free_guidance(model, inputs["context"], inputs["negative"], 7.5)
    denoiser(inputs["z"], inputs["t"])
    [(z, t, context)] = model.calls
    assert torch.equal(z, torch.cat([inputs["z"], inputs["z"]]))
    assert torch.equal(t, torch.tensor([10, 700, 10, 700]))
    assert torch.equal(context, torch.cat([inputs["negative"], inputs["context"]]))


def test_images_of_a_batch_do_not_mix(inputs):
    together = guided(inputs, 7.5)
    for i in range(2):
        alone = guided({name: tensor[i : i + 1] for name, tensor in inputs.items()}, 7.5)
        torch.testing.assert_close(together[i : i + 1], alone)


def test_a_half_precision_model_is_combined_in_float32(inputs):
    def model(z: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return RecordingModel()(z, t, context).bfloat16()

    eps = classifier_free_guidance(model, inputs["context"], inputs["negative"], 7.5)(inputs["z"], inputs["t"])
    eps_uc, eps_c = (model(inputs["z"], inputs["t"], inputs[name]).float() for name in ("negative", "context"))
    assert eps.dtype == torch.float32
    assert torch.equal(eps, eps_uc + 7.5 * (eps_c - eps_uc))


def test_a_missing_or_misshapen_negative_is_an_error(inputs):
    with pytest.raises(ValueError, match="negative context"):
        classifier_free_guidance(RecordingModel(), inputs["context"], None, 7.5)
    with pytest.raises(ValueError, match="shape"):
        classifier_free_guidance(RecordingModel(), inputs["context"], inputs["negative"][:1], 7.5)
