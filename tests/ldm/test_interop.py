"""Published checkpoints: the names, sizes and numbers of the originals and of diffusers, transformers and open_clip."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cldm.commands.cli import main
from ldm.autoencoder import AutoencoderKL
from ldm.interop import load_base, pretrained
from ldm.interop.files import read_tensors
from ldm.interop.model import pad_of, prediction_of
from ldm.interop.names import autoencoder_table, clip_table, openclip_table, unet_table
from ldm.interop.published import read
from ldm.interop.sizes import unet_settings
from ldm.interop.understand import Understood, averaged, understand
from ldm.interop.write import original_tensors, schedule_tensors, write_diffusers_part
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig
from ldm.weights import save_weights

FAMILIES = ["sd1", "sd2", "odd"]
TOLERANCE = 1e-4


def load(found: Understood) -> nn.Module:
    """A module with the weights that were understood."""
    module = found.module.to_empty(device="cpu")
    module.load_state_dict(found.state, strict=True)
    return module.eval()


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    assert b.std() > 0.05  # numbers that could differ
    return (a - b).abs().max().item()


@pytest.fixture(scope="session")
def folders(reference, tmp_path_factory) -> dict[str, Path]:
    """Per family, a folder as diffusers saves it: unet/, vae/, text_encoder/."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        for sub, kind in (("unet", "unet"), ("vae", "autoencoder"), ("text_encoder", "text")):
            reference(kind, family).save_pretrained(made[family] / sub)
    return made


@pytest.fixture(scope="session")
def originals(folders, tmp_path_factory) -> dict[str, Path]:
    """Per family, one file in the original layout with no metadata, as people download them."""
    made = {}
    for family in ("sd1", "sd2"):
        published, tensors = read(folders[family]), {}
        for name in published.parts:
            tensors |= original_tensors(understand(published, name))
        made[family] = tmp_path_factory.mktemp("original") / "no-family-in-this-name.safetensors"
        save_file({**tensors, **schedule_tensors(NoiseSchedule())}, made[family])
    return made


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    z, context = torch.randn(2, 4, 16, 24, generator=rng), torch.randn(2, 7, 64, generator=rng)
    return z, torch.tensor([3, 981]), context


# ------------------------------------------------------------------ real size


def real(linear: bool) -> UNet:
    options = {"context_channels": 1024, "heads": None, "linear_projections": True} if linear else {}
    with torch.device("meta"):
        return UNet(UNetConfig(**options))


def parameters(table) -> int:
    return sum(torch.Size(s.shape).numel() for s in table)


@pytest.mark.parametrize(("linear", "count"), [(False, 859_520_964), (True, 865_910_724)])
def test_the_unets_have_the_published_sizes_and_686_tensors(linear, count):
    unet = real(linear)
    assert sum(p.numel() for p in unet.parameters()) == count
    for layout in ("original", "diffusers"):
        table = unet_table(unet, layout)
        assert len(table) == len({s.name for s in table}) == 686
        assert parameters(table) == count
    shapes = {s.name: s.shape for s in unet_table(unet, "original")}
    assert shapes["input_blocks.4.1.proj_in.weight"] == ((640, 640) if linear else (640, 640, 1, 1))
    assert shapes["output_blocks.8.2.conv.weight"] == (640, 640, 3, 3)
    assert shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"] == (1280, 1024 if linear else 768)
    assert shapes["output_blocks.2.1.conv.bias"] == (1280,)
    assert shapes["input_blocks.3.0.op.weight"] == (320, 320, 3, 3)
    counts = {"time_embed": 4, "input_blocks": 248, "middle_block": 46, "output_blocks": 384, "out": 4}
    assert {k: sum(name.split(".")[0] == k for name in shapes) for k in counts} == counts


def test_the_autoencoder_has_the_published_size_and_248_tensors():
    with torch.device("meta"):
        autoencoder = AutoencoderKL()
    shapes = {s.name: s.shape for s in autoencoder_table(autoencoder, "original")}
    assert len(shapes) == 248
    assert parameters(autoencoder_table(autoencoder, "diffusers")) == 83_653_863
    assert shapes["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.0.block.0.nin_shortcut.weight"] == (128, 256, 1, 1)
    assert shapes["decoder.up.3.upsample.conv.weight"] == (512, 512, 3, 3)
    assert shapes["encoder.down.2.downsample.conv.bias"] == (512,)


def test_clip_l_and_openclip_h_have_the_published_sizes():
    with torch.device("meta"):
        clip = TextEncoder()
        openclip = TextEncoder(49408, 1024, 24, 16, activation="gelu", skip_last=1, projection=True)
    assert sum(p.numel() for p in clip.parameters()) == parameters(clip_table(clip)) == 123_060_480
    assert sum(p.numel() for p in openclip.parameters()) == parameters(openclip_table(openclip)) == 354_032_641
    assert len(clip_table(clip)) == 196
    assert len(openclip_table(openclip)) == 294
    shapes = {s.name: s.shape for s in openclip_table(openclip)}
    assert shapes["transformer.resblocks.23.attn.in_proj_weight"] == (3072, 1024)
    assert shapes["positional_embedding"] == (77, 1024)
    assert shapes["logit_scale"] == ()


# ------------------------------------------------------------------ numbers


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_unet_of_diffusers_loads_strictly_and_gives_its_numbers(folders, reference, inputs, family):
    unet = load(understand(read(folders[family]), "unet"))
    z, t, context = inputs
    assert difference(unet(z, t, context), reference("unet", family)(z, t, context).sample) < TOLERANCE
    assert unet.config.linear_projections == (family == "sd2")


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_an_original_file_without_metadata_gives_the_same_numbers(originals, reference, inputs, family):
    """Heads and projections follow from the family's rule."""
    unet = load(understand(read(originals[family]), "unet"))
    z, t, context = inputs
    assert difference(unet(z, t, context), reference("unet", family)(z, t, context).sample) < TOLERANCE


PUBLISHED = [(family, layout) for family in ("sd1", "sd2") for layout in ("diffusers", "original")]
EVERY = [*PUBLISHED, ("odd", "diffusers")]  # what shapes do not tell of the odd one is in its config.json alone


@torch.no_grad()
@pytest.mark.parametrize(("family", "layout"), EVERY)
def test_autoencoders_of_both_layouts_give_diffusers_moments_and_images(folders, originals, reference, family, layout):
    theirs = reference("autoencoder", family)
    ours = load(understand(read((folders if layout == "diffusers" else originals)[family]), "autoencoder"))
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    z = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    assert difference(ours.moments(image), theirs.encode(image).latent_dist.parameters) < TOLERANCE
    assert difference(ours.decode(0.18215 * z), theirs.decode(z).sample) < TOLERANCE
    assert ours.scale.item() == pytest.approx(0.18215, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(("family", "layout"), EVERY)
def test_text_encoders_of_both_layouts_give_transformers_context(folders, originals, reference, family, layout):
    theirs = reference("text", family)
    ours = load(understand(read((folders if layout == "diffusers" else originals)[family]), "text"))
    tokens = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(1))
    assert difference(ours(tokens), theirs(tokens).last_hidden_state) < TOLERANCE


@pytest.fixture(scope="session")
def openclip() -> nn.Module:
    """A small text tower of open_clip, as SD2's original files hold it."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=1, width=64, patch_size=16, image_size=16)
    text = CLIPTextCfg(width=64, heads=1, layers=3, context_length=77, vocab_size=49408)
    model = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape)
            p.copy_(noise * p.shape[-1] ** -0.5 if p.ndim > 1 else p + 0.2 * noise)
    return model.eval()


def openclip_file(openclip: nn.Module, path: Path) -> Path:
    state = {k: v for k, v in openclip.state_dict().items() if not k.startswith("visual.")}
    save_file({f"cond_stage_model.model.{k}": v.contiguous() for k, v in state.items()}, path)
    return path


@torch.no_grad()
def test_an_openclip_encoder_gives_its_penultimate_layer_through_the_final_norm(openclip, tmp_path):
    ours = load(understand(read(openclip_file(openclip, tmp_path / "a.safetensors")), "text"))
    tokens = torch.randint(0, 49408, (2, 77), generator=torch.Generator().manual_seed(1))
    hidden = openclip.token_embedding(tokens) + openclip.positional_embedding
    for block in openclip.transformer.resblocks[:-1]:
        hidden = block(hidden, attn_mask=openclip.attn_mask)
    assert difference(ours(tokens), openclip.ln_final(hidden)) < TOLERANCE


def test_an_openclip_encoder_survives_diffusers_layout_bit_for_bit(openclip, tmp_path, reference):
    """diffusers has no place for the last layer and the contrastive head; they travel beside it."""
    transformers = pytest.importorskip("transformers")
    path = openclip_file(openclip, tmp_path / "a.safetensors")
    found = understand(read(path), "text")
    write_diffusers_part(found, tmp_path / "folder", {}, None, None)
    back = original_tensors(understand(read(tmp_path / "folder"), "text"))
    saved = load_file(path)
    assert saved.keys() - {"cond_stage_model.model.attn_mask"} == back.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in back.items())
    theirs, tokens = transformers.CLIPTextModel.from_pretrained(tmp_path / "folder"), torch.arange(77)[None]
    with torch.no_grad():
        assert difference(load(found)(tokens), theirs(tokens).last_hidden_state) < TOLERANCE


def test_what_diffusers_leaves_out_of_stable_diffusion_2_may_be_missing(folders, originals):
    """Its 24th layer and head are never read: whoever converts through diffusers has lost them, and no harm is done."""
    for source in (folders["sd2"], originals["sd2"]):
        model = pretrained(str(source), "eps")
        sizes = {"layers": 3, "heads": 1, "activation": "gelu", "skip_last": 1, "projection": True}
        encoder = model.conditioner.text_encoder = TextEncoder(width=64, **sizes).eval()
        load_base(model, source)
        tokens = torch.arange(77)[None]
        whole = load(understand(read(source), "text"))
        with torch.no_grad():
            assert torch.equal(encoder(tokens), whole(tokens))
        assert not encoder.text_projection.any()


@torch.no_grad()
@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_diffusers_reads_our_original_files(originals, folders, reference, inputs, family):
    """from_single_file uses diffusers' own converter: a second opinion on every name."""
    diffusers = pytest.importorskip("diffusers")
    z, t, context = inputs
    theirs = diffusers.UNet2DConditionModel.from_single_file(
        str(originals[family]), config=str(folders[family]), subfolder="unet", local_files_only=True
    )
    assert torch.equal(theirs(z, t, context).sample, reference("unet", family)(z, t, context).sample)
    vae = diffusers.AutoencoderKL.from_single_file(
        str(originals[family]), config=str(folders[family]), subfolder="vae", local_files_only=True
    )
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(2))
    assert torch.equal(vae.decode(latents).sample, reference("autoencoder").decode(latents).sample)


# ------------------------------------------------------------------ what files are like


def same(a: Understood, b: Understood) -> bool:
    return a.state.keys() == b.state.keys() and all(torch.equal(t, b.state[name]) for name, t in a.state.items())


def test_old_files_may_carry_position_ids_training_losses_and_averages(originals, tmp_path):
    state = load_file(originals["sd1"])
    unet = {k.removeprefix("model.diffusion_model."): v for k, v in state.items() if ".diffusion_model." in k}
    state |= {f"model_ema.diffusion_model{k.replace('.', '')}": v + 1 for k, v in unet.items()}
    state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["first_stage_model.loss.logvar"] = torch.zeros(())
    torch.save({"state_dict": state, "epoch": 3, "global_step": 7}, tmp_path / "old.ckpt")
    old, new = read(tmp_path / "old.ckpt"), read(originals["sd1"])
    assert old.unknown == ()
    assert all(same(understand(old, name), understand(new, name)) for name in ("unet", "autoencoder", "text"))
    plain, mean = understand(old, "unet").state, understand(averaged(old), "unet").state
    assert all(torch.equal(mean[name], plain[name] + 1) for name in plain)


def test_averages_of_a_file_that_has_none_are_refused(originals):
    with pytest.raises(ValueError, match="has no moving averages"):
        averaged(read(originals["sd1"]))


def test_state_dicts_nested_twice_and_pickles_of_the_old_format_are_read(originals, tmp_path):
    state = load_file(originals["sd1"])
    nested = {"state_dict": {"state_dict": state}}
    torch.save(nested, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert same(understand(read(tmp_path / "old"), "unet"), understand(read(originals["sd1"]), "unet"))


def test_a_safetensors_file_is_told_from_a_pickle_whatever_the_length_of_its_header(tmp_path):
    """One in 32 has a header whose length begins with the byte that pickles begin with."""
    found = set()
    for length in range(400):
        save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {"note": "x" * length})
        found.add((tmp_path / "a.safetensors").read_bytes()[0])
        assert read_tensors(tmp_path / "a.safetensors")[1]["note"] == "x" * length
    assert 0x80 in found


def test_text_encoders_with_and_without_text_model_in_their_names_are_the_same(folders, tmp_path):
    weights = load_file(folders["sd1"] / "text_encoder" / "model.safetensors")
    bare = {name.removeprefix("text_model."): t for name, t in weights.items()}
    for name, state in (("bare", bare), ("nested", {f"text_model.{k}": t for k, t in bare.items()})):
        save_file(state, tmp_path / f"{name}.safetensors")
        assert same(
            understand(read(tmp_path / f"{name}.safetensors"), "text"), understand(read(folders["sd1"]), "text")
        )


def test_a_sharded_folder_is_the_whole(reference, folders, tmp_path):
    reference("unet", "sd1").save_pretrained(tmp_path / "unet", max_shard_size="300KB")
    assert len([*(tmp_path / "unet").glob("*.safetensors")]) > 2
    sharded = read(tmp_path / "unet")
    assert same(understand(sharded, "unet"), understand(read(folders["sd1"]), "unet"))
    next((tmp_path / "unet").glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(FileNotFoundError, match=r"no weights at .*00002"):
        read(tmp_path / "unet")


def test_old_names_of_the_autoencoders_attention_are_read(folders, tmp_path):
    weights = load_file(folders["sd1"] / "vae" / "diffusion_pytorch_model.safetensors")
    old = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    for new, name in old.items():
        weights = {k.replace(new, name) if ".attentions." in k else k: v for k, v in weights.items()}
    save_file(weights, tmp_path / "vae.safetensors")
    assert same(
        understand(read(tmp_path / "vae.safetensors"), "autoencoder"), understand(read(folders["sd1"]), "autoencoder")
    )


def test_config_json_must_describe_a_model_that_exists_here(folders):
    config = json.loads((folders["sd1"] / "unet" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"has time_cond_proj_dim=256 in its config\.json"):
        unet_settings({**config, "time_cond_proj_dim": 256}, "x")
    with pytest.raises(ValueError, match="neither the heads nor their widths are equal"):
        unet_settings({**config, "attention_head_dim": [1, 2, 4, 8]}, "x")
    assert unet_settings({**config, "attention_head_dim": [4, 8, 8, 8]}, "x")["head_channels"] == 8


# ------------------------------------------------------------------ models


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_any_folder_becomes_a_model_of_its_sizes_that_draws(folders, family):
    prediction = {"sd2": "v"}.get(family)
    model = pretrained(str(folders[family]), prediction)
    load_base(model, folders[family])
    assert same(Understood(model.unet, model.unet.state_dict(), {}), understand(read(folders[family]), "unet"))
    assert model.schedule.prediction == (prediction or "eps")
    assert model.conditioner.pad == ("zero" if family == "sd2" else "end")
    c, h, w = model.latent_shape(64, 64)
    z = torch.randn(1, c, h, w, generator=torch.Generator().manual_seed(0))
    assert model.decode(model.denoise(z, torch.tensor([5]), model.context(["a cat"]))).shape == (1, 3, 64, 64)


def test_parts_load_alone_and_leave_the_others(originals):
    model = pretrained(str(originals["sd1"]))
    before = {k: v.clone() for k, v in model.unet.state_dict().items()}
    load_base(model, originals["sd1"], ["autoencoder"])
    assert all(torch.equal(v, before[k]) for k, v in model.unet.state_dict().items())
    found = understand(read(originals["sd1"]), "autoencoder")
    assert same(Understood(model.autoencoder, model.autoencoder.state_dict(), {}), found)


def test_stable_diffusion_2_must_be_told_what_it_predicts(originals):
    with pytest.raises(ValueError, match=r"set model\.prediction \(convert: --prediction\) to v \(2\.1, 768 px\) or"):
        pretrained(str(originals["sd2"]))
    assert pretrained(str(originals["sd2"]), "v").schedule.prediction == "v"


def test_a_folder_whose_scheduler_says_v_is_not_taken_for_eps(folders, tmp_path):
    import shutil

    folder = shutil.copytree(folders["sd2"], tmp_path / "v")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "v_prediction"}')
    model = pretrained(str(folder))
    assert model.schedule.prediction == "v"
    with pytest.raises(ValueError, match="says prediction=v, the configuration says eps"):
        pretrained(str(folder), "eps")
    model.schedule.prediction = "eps"
    with pytest.raises(ValueError, match=r"predicts v, this model eps \(model\.schedule\.prediction\)"):
        load_base(model, folder)


def test_weights_of_the_other_family_end_in_one_clear_sentence(folders):
    model = pretrained(str(folders["sd1"]))
    with pytest.raises(ValueError, match=r"the U-Net of .* does not fit this model: .* of another shape"):
        load_base(model, folders["sd2"], ["unet"])
    with torch.device("meta"):
        model.unet = UNet(UNetConfig(context_channels=768))
    theirs, ours = (
        r"is Stable Diffusion 2\.x \(context of 64 chan",
        r"this model is Stable Diffusion 1\.x \(context of 768",
    )
    with pytest.raises(ValueError, match=rf"{theirs}.*{ours}.*; choose the model that fits: model=sd15"):
        load_base(model, folders["sd2"])


def test_missing_unexpected_and_misshapen_tensors_are_listed_and_nothing_is_loaded(originals, tmp_path):
    state = load_file(originals["sd1"])
    state.pop("model.diffusion_model.out.2.bias")
    state["model.diffusion_model.surprise"] = torch.zeros(1)
    state["model.diffusion_model.out.0.bias"] = torch.zeros(5)
    save_file(state, tmp_path / "bad.safetensors")
    model = pretrained(str(originals["sd1"]))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"U-Net, original layout\): 1 missing \(out\.2\.bias\); 1 unexpected "
                       r"\(surprise\); 1 of another shape \(out\.0\.bias \(5,\) instead of \(32,\)\)"):  # fmt: skip
        load_base(model, tmp_path / "bad.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    save_file({**load_file(originals["sd1"]), "something.else": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"1 of its tensors are unknown \(something\.else\)"):
        load_base(model, tmp_path / "more.safetensors")


@pytest.mark.parametrize("name", ["unet", "autoencoder", "text"])
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_whichever_tensor_is_missing_or_misshapen_the_file_is_refused(folders, originals, layout, name):
    published = read((originals if layout == "original" else folders)["sd1"])
    part = published.parts[name]
    for key in [*part.state][:: len(part.state) // 12]:
        for broken in ({k: v for k, v in part.state.items() if k != key}, {**part.state, key: torch.zeros(3, 1)}):
            with pytest.raises(ValueError, match=r"sd|no-family"):
                understand(replace(published, parts={name: replace(part, state=broken)}), name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_of_our_own_is_read_as_what_it_was_made_from(folders, tmp_path, family):
    model = pretrained(str(folders[family]), prediction="v")
    load_base(model, folders[family])
    settings = {"settings": json.dumps(model.untold())}
    own = read(save_weights(model, tmp_path / "own.safetensors", settings))
    assert (own.layout, prediction_of(own), pad_of(own)) == ("own", "v", model.conditioner.pad)
    for part in ("unet", "autoencoder", "text"):
        found, expected = understand(own, part), understand(read(folders[family]), part)
        assert found.settings == expected.settings
        assert found.state.keys() == expected.state.keys()
        assert all(torch.equal(found.state[name], tensor) for name, tensor in expected.state.items())
    bare = read(save_weights(model, tmp_path / "bare.safetensors", {"model": "scenes"}))
    with pytest.raises(ValueError, match=r"only the configuration it was trained with \(model=scenes\) can load it"):
        understand(bare, "unet")


@pytest.mark.slow
def test_an_inpainting_unet_of_nine_channels_is_read_and_written_but_not_trained_or_sampled(folders, tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    shutil.copytree(folders["sd1"], tmp_path / "sd")
    config = json.loads((tmp_path / "sd" / "unet" / "config.json").read_text())
    wide = diffusers.UNet2DConditionModel.from_config({**config, "in_channels": 9})
    wide.save_pretrained(tmp_path / "sd" / "unet")
    assert main(["inspect", str(tmp_path / "sd")]) == 0
    assert "9 input channels (inpainting)" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "sd"), str(tmp_path / "sd.safetensors"), "--to", "original"]) == 0
    assert main(["convert", str(tmp_path / "sd.safetensors"), str(tmp_path / "back"), "--to", "diffusers"]) == 0
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "back" / "unet").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in wide.state_dict().items())
    with pytest.raises(ValueError, match=r"9 input channels \(inpainting, for instance\); training and sampling here"):
        pretrained(str(tmp_path / "sd"))


def test_settings_in_metadata_that_make_no_sense_are_refused(originals, tmp_path):
    state = load_file(originals["sd1"])
    for settings in ('{"unet": {"heads": "eight"}}', '{"unet": {"groups": 0}}', '{"unet": 3}', "no json"):
        save_file(state, tmp_path / "a.safetensors", {"settings": settings})
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            understand(read(tmp_path / "a.safetensors"), "unet")
