"""Published layouts, written: original Stable Diffusion files and diffusers' folders."""

import gzip
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.autoencoder import AutoencoderKL
from ldm.files import write_json, write_text
from ldm.interop import names
from ldm.interop.published import SETTINGS, UNUSED_TEXT
from ldm.interop.schedules import to_scheduler
from ldm.interop.understand import Understood
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig
from ldm.weights import write_tensors

DIFFUSERS_VERSION = "0.30.0"  # the oldest whose config.json has these keys; see pyproject.toml


# ------------------------------------------------------------------ original


def original_tensors(part: Understood, prefix: bool = True) -> dict[str, Tensor]:
    """The tensors of a U-Net, autoencoder or text encoder in the original layout, behind the prefix of full files."""
    module = part.module
    if isinstance(module, UNet):
        table, start = names.unet_table(module, "original"), "model.diffusion_model."
    elif isinstance(module, AutoencoderKL):
        table, start = names.autoencoder_table(module, "original"), "first_stage_model."
    else:
        assert isinstance(module, TextEncoder)
        _check_causal(module)
        if module.activation == "gelu":  # OpenCLIP's, Stable Diffusion 2.x
            table, start = names.openclip_table(module), "cond_stage_model.model."
        else:
            table, start = names.clip_table(module), "cond_stage_model.transformer.text_model."
    return {(start if prefix else "") + name: t for name, t in names.from_ours(part.state, table).items()}


def schedule_tensors(schedule: NoiseSchedule) -> dict[str, Tensor]:
    """The 13 tables that full original files carry: equations of DDPM (Ho et al. 2020), in float64 until the end."""
    betas, abar = (table.numpy() for table in schedule.exact_tables())
    before = np.append(1.0, abar[:-1])
    variance = betas * (1 - before) / (1 - abar)
    tables = {
        "betas": betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - abar),
        "log_one_minus_alphas_cumprod": np.log(1 - abar),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / abar - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - abar),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - abar),
        "logvar": np.zeros(schedule.steps),
    }
    return {name: torch.from_numpy(table).float() for name, table in tables.items()}


def settings_metadata(parts: Mapping[str, Understood], schedule: Mapping[str, Any], pad: str | None) -> dict[str, str]:
    """Metadata that tells what the shapes of a file do not, so that any size can be read back."""
    told: dict[str, Mapping[str, Any]] = {name: part.settings for name, part in parts.items()}
    told |= {"schedule": schedule} if schedule else {}
    told |= {"conditioner": {"pad": pad}} if pad else {}
    return {SETTINGS: json.dumps(told)}


# ------------------------------------------------------------------ diffusers


def unet_config(config: UNetConfig) -> dict[str, Any]:
    """diffusers' config.json of what a U-Net and a branch have in common."""
    heads = config.heads or [width // config.head_channels for width in config.widths]
    return {
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads,  # diffusers' name for the number of heads
        "block_out_channels": list(config.widths),
        "cross_attention_dim": config.context_channels,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": config.groups,
        "transformer_layers_per_block": config.depth,
        "use_linear_projection": config.linear_projections,
    }


def _unet_folder(unet: UNet, prediction: str | None) -> dict[str, Any]:
    config = unet.config
    return {
        "_class_name": "UNet2DConditionModel",
        **unet_config(config),
        "out_channels": config.out_channels,
        "sample_size": 96 if prediction == "v" else 64,
        # the 768 px model of Stable Diffusion 2.1 overflows in half precision otherwise
        "upcast_attention": config.linear_projections and prediction == "v",
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)],
    }


def _autoencoder_folder(autoencoder: AutoencoderKL, scale: float) -> dict[str, Any]:
    widths = [level[0].conv1.out_channels for level in autoencoder.encoder.levels]  # type: ignore[index]
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        "act_fn": "silu",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "in_channels": autoencoder.encoder.conv_in.in_channels,
        "latent_channels": autoencoder.z_channels,
        "layers_per_block": len(autoencoder.encoder.levels[-1]),  # type: ignore[arg-type]
        "norm_num_groups": autoencoder.encoder.norm_out.num_groups,
        "out_channels": autoencoder.decoder.conv_out.out_channels,
        "sample_size": 512,
        "scaling_factor": scale,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }


def _check_causal(encoder: TextEncoder) -> None:
    if not encoder.causal:
        raise ValueError(
            "the text encoder is not causal (model.conditioner.text_encoder.causal=false), and every CLIP that other "
            "programs load is: this base cannot be written for them; its ControlNet can"
        )


def _text_folder(encoder: TextEncoder) -> dict[str, Any]:
    _check_causal(encoder)
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,  # as published: only the pooled output, which is not used, depends on it
        "hidden_act": encoder.activation,
        "hidden_size": encoder.width,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * encoder.width,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": encoder.context_length,
        "model_type": "clip_text_model",
        "num_attention_heads": encoder.heads,
        "num_hidden_layers": len(encoder.layers) - encoder.skip_last,
        "pad_token_id": 1,
        "projection_dim": encoder.width,
        "torch_dtype": "float32",
        "vocab_size": encoder.token_embedding.num_embeddings,
    }


def write_diffusers_part(
    part: Understood, folder: Path, metadata: Mapping[str, str], dtype: torch.dtype | None, prediction: str | None
) -> None:
    """One model's folder: config.json and weights, of a U-Net, autoencoder or text encoder."""
    module = part.module
    if isinstance(module, TextEncoder):
        write_json(folder / "config.json", _text_folder(module))
        tensors = names.from_ours(part.state, names.clip_table(module))
        text = {f"text_model.{name}": tensor for name, tensor in tensors.items()}
        write_tensors(text, folder / "model.safetensors", metadata, dtype)
        unused = {name: tensor for name, tensor in part.state.items() if not module.reads(name)}
        if unused:
            write_tensors(unused, folder / UNUSED_TEXT, {}, dtype)
        return
    if isinstance(module, UNet):
        config, table = _unet_folder(module, prediction), names.unet_table(module, "diffusers")
    else:
        assert isinstance(module, AutoencoderKL)
        config, table = (
            _autoencoder_folder(module, part.settings["scale"]),
            names.autoencoder_table(module, "diffusers"),
        )
    write_json(folder / "config.json", config)
    write_tensors(names.from_ours(part.state, table), folder / "diffusion_pytorch_model.safetensors", metadata, dtype)


def write_pipeline(folder: Path, schedule: NoiseSchedule, pad: str, length: int, controlled: bool = False) -> None:
    """What a whole model's folder has beside its models: model_index.json, scheduler/ and tokenizer/."""
    index = {
        "_class_name": "StableDiffusionControlNetPipeline" if controlled else "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        **({"controlnet": ["diffusers", "ControlNetModel"]} if controlled else {}),
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", _scheduler(schedule))
    write_tokenizer(folder / "tokenizer", pad, length)


def _scheduler(schedule: NoiseSchedule) -> dict[str, Any]:
    """Stable Diffusion's settings; the class's defaults are others."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        **to_scheduler(schedule),
        "clip_sample": False,
        **({"timestep_spacing": "trailing"} if schedule.zero_snr else {}),  # pure noise belongs to the last timestep
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


START, END = "<|startoftext|>", "<|endoftext|>"


def write_tokenizer(folder: Path, pad: str, length: int) -> None:
    """CLIP's tokenizer in transformers' form, from the vocabulary that ships with open_clip."""
    merges = _merges()
    letters = [*_bytes_to_letters()]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split()) for m in merges), START, END]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)}, indent=None)
    write_text(folder / "merges.txt", "#version: 0.2\n" + "\n".join(merges) + "\n")
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!" if pad == "zero" else END}
    write_json(folder / "special_tokens_map.json", tokens)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True, **tokens}
    write_json(folder / "tokenizer_config.json", config)


def _merges() -> list[str]:
    """The 48,894 merges of CLIP's byte pair encoding."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def _bytes_to_letters() -> list[str]:
    """GPT-2's letter for each byte (Radford et al. 2019): printable ones stand for themselves, in this order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
