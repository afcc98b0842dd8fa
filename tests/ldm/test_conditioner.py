"""Prompts to tokens: CLIP's numbers, small vocabularies, and what happens to words that are not known."""

import random
import subprocess
import sys
import warnings

import pytest
import torch

from ldm.conditioner import Conditioner, KnownWords, UnknownWords
from ldm.interop.write import write_tokenizer
from ldm.text_encoder import TextEncoder

START, END = 49406, 49407
PROMPTS = [
    "",
    "a photograph of an astronaut riding a horse",
    "  Ünïcode, EMOJI 🎈 and punctuation!! it's 1234  ",
    "word " * 100,
]
WORDS = ("a", "red", "blue", "star", "left", "of", ",")


AWKWARD = [
    "", " ", "\t\n", "a\tb\nc\r\nd", "x\u00a0y", "x\x1cy", "x\x85y", "\u3000wide", "\u2028line", "\ufeffbom",
    "\u200bzero\u200bwidth", "\x00ctl\x07", "word " * 100, "🎈" * 90, "a" * 500, "!!!???...", "…", "a_b-c",
    "&amp; &lt;b&gt; &quot;x&quot; &#39;", "schön &nbsp; gut", "cafÃ©", "â€œmojibakeâ€\x9d", "‘quotes’ “double”",
    "naïve café", "e\u0301 and é", "a\u0300\u0301", "ﬁne ligatures", "Ａfull width", "ａ＇ｓ", "𝓯ancy", "½ ² Ⅳ", "ŉ ǆ",
    "İstanbul ẞ ß", "ΑΣ Σ", "\u0345 alone", "ﷺ", "日本語のテキスト", "한국어", "עברית", "👨‍👩‍👧‍👦 family", "12345 3.14",
    "it's we're I'LL don't", "a'S", "<|endoftext|> hi", "<|startoftext|>", "<end_of_text> hi", "(masterpiece:1.2), [x]",
]  # fmt: skip


def awkward(count: int) -> list[str]:
    """The list above, and strings drawn from ASCII, accents, combining marks, symbols, ideographs and emoji."""
    rng = random.Random(0)
    blocks = [(32, 127), (0xA0, 0x2FF), (0x300, 0x36F), (0x370, 0x1FFF), (0x2000, 0x2FFF), (0x4E00, 0x5000)]
    blocks += [(0x1F300, 0x1F6FF), (97, 99), (32, 33)]
    drawn = [
        "".join(chr(rng.randrange(*rng.choice(blocks))) for _ in range(rng.randrange(1, 40))) for _ in range(count)
    ]
    return [*AWKWARD, *drawn][:count]


@pytest.mark.parametrize("pad", ["end", "zero"])
def test_two_hundred_awkward_prompts_get_the_tokens_of_transformers(tmp_path, pad):
    """Stable Diffusion 1 pads with the end token, 2 with 0. The vocabulary is the one that we write for diffusers.

    With Stable Diffusion 2's settings transformers takes a "!" of the prompt for its padding token; open_clip, with
    which that model was trained, does not, nor do we.
    """
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path, pad, 77)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (START, END)
    assert theirs.pad_token_id == (END if pad == "end" else 0)
    prompts = [prompt for prompt in awkward(220) if pad == "end" or "!" not in prompt][:200]
    assert len({*prompts}) == 200
    expected = theirs(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]
    ours = full(pad).tokenize(prompts)
    assert [prompt for prompt, a, b in zip(prompts, ours, expected, strict=True) if not torch.equal(a, b)] == []


def full(pad: str, length: int = 77) -> Conditioner:
    encoder = TextEncoder(vocab_size=49408, width=4, layers=1, heads=1, context_length=length)
    return Conditioner(encoder, pad=pad)


def small(length: int = 8, vocabulary: tuple[str, ...] = WORDS, tokens: int | None = None) -> Conditioner:
    size = len(vocabulary) + 2 if tokens is None else tokens
    encoder = TextEncoder(vocab_size=size, width=8, layers=1, heads=2, context_length=length)
    return Conditioner(encoder, vocabulary)


def test_the_full_vocabulary_gives_the_tokens_of_open_clip():
    import open_clip

    assert torch.equal(full("zero").tokenize(PROMPTS), open_clip.tokenize(PROMPTS))


def test_end_padding_repeats_the_end_token_as_transformers_does_for_stable_diffusion_1():
    import open_clip

    ours, theirs = full("end").tokenize(PROMPTS), open_clip.tokenize(PROMPTS)
    ends = theirs.argmax(dim=1)  # the end token is the largest number
    for row, reference, end in zip(ours, theirs, ends.tolist(), strict=True):
        assert torch.equal(row[: end + 1], reference[: end + 1])
        assert (row[end:] == END).all()


def test_known_tokens():
    """Numbers of OpenAI's tokenizer, written out."""
    assert full("end", 6).tokenize(["a red cat"]).tolist() == [[START, 320, 736, 2368, END, END]]


@pytest.mark.parametrize("pad", ["end", "zero"])
def test_what_does_not_fit_is_cut_off_before_the_end_token(pad):
    long, short = full(pad, 8).tokenize(["word " * 50, "word"])
    assert long.tolist() == [START, *[short[1]] * 6, END]
    assert short.tolist() == [START, short[1], END, *[END if pad == "end" else 0] * 5]


def test_a_small_vocabulary_is_numbered_in_its_order_then_start_then_end():
    conditioner = small(length=9)
    assert conditioner.tokenize(["star, left of a red star"]).tolist() == [[7, 3, 6, 4, 5, 0, 1, 3, 8]]
    assert conditioner.tokenize([""]).tolist() == [[7] + [8] * 8]


def test_case_and_spaces_do_not_matter():
    conditioner = small()
    assert torch.equal(conditioner.tokenize(["A  Red STAR"]), conditioner.tokenize([" a red star"]))


def test_unknown_words_are_left_out_with_a_warning_that_names_them_and_the_known_ones():
    conditioner = small()
    with (
        pytest.warns(UnknownWords, match=r"does not know 'purple', 'zebra' and leaves it out$"),
        pytest.warns(KnownWords, match="blue left of red"),
    ):
        tokens = conditioner.tokenize(["a purple red zebra star purple"])
    assert torch.equal(tokens, conditioner.tokenize(["a red star"]))


def test_the_nearest_known_word_is_offered_for_a_slip():
    with pytest.warns(UnknownWords, match=r"leaves it out \(did you mean 'star'\?\)"), pytest.warns(KnownWords):
        small().tokenize(["a red stair"])


def test_known_words_raise_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small().tokenize(["a red star, left of a blue star"])


@pytest.mark.parametrize(("build", "has"), [(lambda: small(tokens=20), 9), (lambda: full_of_size(50), 49408)])
def test_a_text_encoder_of_another_size_is_refused_with_both_numbers(build, has):
    with pytest.raises(ValueError, match=rf"vocab_size is (20|50), the vocabulary has {has} tokens"):
        build()


def full_of_size(tokens: int) -> Conditioner:
    return Conditioner(TextEncoder(vocab_size=tokens, width=4, layers=1, heads=1))


def test_an_unknown_padding_is_refused():
    with pytest.raises(ValueError, match=r"model\.conditioner\.pad must be 'end' or 'zero', got 'max'"):
        full("max", 4)


@torch.no_grad()
def test_the_context_is_the_text_encoders_output_and_word_order_matters():
    conditioner = small().eval()
    context = conditioner(["a red star", "a star red"])
    assert context.shape == (2, 8, 8)
    assert torch.equal(context, conditioner.text_encoder(conditioner.tokenize(["a red star", "a star red"])))
    assert not torch.allclose(context[0, -1], context[1, -1])


@pytest.mark.slow
def test_shapes_and_tokens_cost_no_import_of_what_they_do_not_use():
    tried = """
import sys
from ldm.blocks import without_weights
from ldm.conditioner import Conditioner
from ldm.text_encoder import TextEncoder
with without_weights():
    conditioner = Conditioner(TextEncoder(vocab_size=4, width=8, layers=1, heads=1, context_length=5), ["red", "star"])
assert conditioner.tokenize(["red star"]).tolist() == [[2, 0, 1, 3, 3]]
print({"torch._dynamo", "open_clip", "timm", "wandb"} & sys.modules.keys() or "none")
"""
    assert subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True).stdout.strip() == "none"
