"""Promises of prompts: the web UI's weights, chunks of any number, and images that do not depend on the batch."""

import pytest
import torch

from ldm.prompts import encode_prompts, match_lengths, parse_weights


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("a red star", [("a red star", 1)]),
        ("a (red:1.3) star", [("a ", 1), ("red", 1.3), (" star", 1)]),
        ("(red) [star]", [("red", 1.1), (" ", 1), ("star", 1 / 1.1)]),
        ("((red))", [("red", 1.21)]),
        ("(a (red:1.5) star:2)", [("a ", 2), ("red", 3), (" star", 2)]),
        (r"a \(red\) star", [("a (red) star", 1)]),
        ("a: b (c : 0.5)", [("a: b ", 1), ("c ", 0.5)]),
        ("never (closed", [("never (closed", 1)]),
        ("closed) twice", [("closed) twice", 1)]),
        ("(a] b", [("(a] b", 1)]),
        ("", []),
    ],
)
def test_weights_are_read_as_the_web_ui_reads_them(prompt, pieces):
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in pieces]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in pieces])


@torch.no_grad()
def test_without_weights_and_in_one_chunk_nothing_changes(diffusion):
    prompts = ["a red star", "", "a large blue ring on a mint background"]
    assert torch.equal(encode_prompts(diffusion.conditioner, prompts), diffusion.context(prompts))
    assert torch.equal(encode_prompts(diffusion.conditioner, ["a (red:1.0) star"]), diffusion.context(["a red star"]))


@torch.no_grad()
def test_a_weight_moves_its_token_along_the_line_from_the_empty_prompt(diffusion):
    plain, empty = diffusion.context(["a red star"]), diffusion.context([""])
    found = encode_prompts(diffusion.conditioner, ["a (red:1.5) star"])
    position = 2  # start, a, red
    torch.testing.assert_close(found[0, position], empty[0, position] + 1.5 * (plain[0, position] - empty[0, position]))
    others = [i for i in range(found.shape[1]) if i != position]
    assert torch.equal(found[0, others], plain[0, others])


@torch.no_grad()
def test_long_prompts_are_cut_in_chunks_of_the_encoders_length(diffusion):
    words = ["red", "blue", "green", "star", "ring", "heart", "large", "small"] * 6  # 48 tokens; 22 fit in a chunk
    found = encode_prompts(diffusion.conditioner, [" ".join(words)])
    assert found.shape == (1, 3 * 24, 16)
    for i in range(3):
        part = diffusion.context([" ".join(words[22 * i : 22 * (i + 1)])])
        torch.testing.assert_close(found[:, 24 * i : 24 * (i + 1)], part)


@torch.no_grad()
def test_a_short_prompt_beside_long_ones_is_seen_as_it_is(diffusion):
    """Repeated, not padded: attention over keys that come twice is attention over them once."""
    long, longer = " ".join(["red star"] * 15), " ".join(["blue ring"] * 30)  # two and three chunks
    together = encode_prompts(diffusion.conditioner, ["a green heart", long, longer])
    assert together.shape[1] == 6 * 24
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    for i, prompt in enumerate(["a green heart", long, longer]):
        alone = encode_prompts(diffusion.conditioner, [prompt])
        eps = diffusion.unet(z, t, alone)
        torch.testing.assert_close(diffusion.unet(z, t, together[i : i + 1]), eps, rtol=0, atol=1e-5)
    a, b = match_lengths(together[:, :48], together[:, :72])
    assert a.shape == b.shape == (3, 144, 16)


@torch.no_grad()
def test_clip_skip_leaves_out_last_layers_and_is_bounded(make_diffusion):
    from ldm.text_encoder import TextEncoder

    torch.manual_seed(0)
    encoder = TextEncoder(34, 16, layers=3, heads=2, context_length=24).eval()
    tokens = torch.arange(24)[None]
    outputs = [encoder(tokens, clip_skip=k) for k in range(3)]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3
    encoder.skip_last = 1
    assert torch.equal(encoder(tokens), outputs[1])
    assert torch.equal(encoder(tokens, clip_skip=1), outputs[2])
    with pytest.raises(ValueError, match=r"clip_skip must be in 0\.\.2, got 3"):
        encoder(tokens, clip_skip=3)
