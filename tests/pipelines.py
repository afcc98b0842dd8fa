"""A small random Stable Diffusion, twice: as this project's modules and as diffusers' and transformers'.

Used by the parity tests and by benchmarks/sampling.py; every tensor is copied by name, both ways strictly.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cldm.branches.controlnet import ControlNet
from cldm.branches.interop import control_table
from ldm.autoencoder import AutoencoderKL
from ldm.conditioner import Conditioner
from ldm.diffusion import LatentDiffusion
from ldm.interop.names import Spelling, autoencoder_table, clip_table, to_ours, unet_table
from ldm.schedule import NoiseSchedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet, UNetConfig
from tests.ldm.test_unet import randomise as random_weights


@dataclass(frozen=True)
class Sizes:
    """Widths of the U-Net and the autoencoder, of the context, and heads, in Stable Diffusion's topology.

    heads: of every attention, or None for heads of 32 channels. latent: channels of the latents.
    """

    widths: tuple[int, ...] = (16, 32, 32, 32)
    context: int = 32
    heads: int | None = 2
    groups: int = 8
    autoencoder: tuple[int, ...] = (8, 8, 8, 8)
    autoencoder_blocks: int = 1
    text_layers: int = 3
    text_heads: int = 4
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    attention: tuple[bool, ...] = (True, True, True, False)
    latent: int = 4


SMALL = Sizes()
SD15 = Sizes((320, 640, 1280, 1280), 768, 8, 32, (128, 256, 512, 512), 2, 12, 12)


def copy(ours: nn.Module, theirs: nn.Module, table: list[Spelling]) -> None:
    """Load the weights of `theirs` into `ours`, every tensor; both then share their memory."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in theirs.state_dict().items()}
    state |= {f"text_model.{name}": tensor for name, tensor in state.items()}
    found = to_ours(state, table, {name: tensor.shape for name, tensor in ours.state_dict().items()})
    if isinstance(ours, AutoencoderKL):
        found["scale"] = torch.tensor(0.18215)
    ours.load_state_dict(found, strict=True, assign=True)


@dataclass
class Both:
    """ours: diffusion, controls; theirs: the parts of a pipeline."""

    diffusion: LatentDiffusion
    controls: list[ControlNet]
    parts: dict[str, nn.Module]
    controlnets: list[nn.Module] = field(default_factory=list)

    def pipeline(self, cls: str, scheduler: object, controlnets: list[nn.Module]) -> object:
        import diffusers

        pipeline = getattr(diffusers, cls)(
            **self.parts,
            scheduler=scheduler,
            controlnet=controlnets[0] if len(controlnets) == 1 else controlnets,
            tokenizer=None,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @torch.no_grad()
    def embeds(self, prompts: list[str]) -> Tensor:
        """The prompts through transformers' text encoder."""
        return self.parts["text_encoder"](self.diffusion.conditioner.tokenize(prompts))[0]


def build(sizes: Sizes = SMALL, controls: int = 2, randomise=random_weights) -> Both:
    """The same random weights in both worlds."""
    import diffusers
    import transformers

    first = sizes.widths[0]
    shared = {
        "block_out_channels": sizes.widths,
        "cross_attention_dim": sizes.context,
        "norm_num_groups": sizes.groups,
        "attention_head_dim": sizes.heads or tuple(width // 32 for width in sizes.widths),  # the number of heads
        "layers_per_block": 2,
        "in_channels": sizes.latent,
        "down_block_types": tuple("CrossAttn" * has + "DownBlock2D" for has in sizes.attention),
    }
    up = tuple("CrossAttn" * has + "UpBlock2D" for has in reversed(sizes.attention))
    theirs_unet = diffusers.UNet2DConditionModel(sample_size=8, up_block_types=up, out_channels=sizes.latent, **shared)
    theirs_controls = [
        diffusers.ControlNetModel(conditioning_embedding_out_channels=sizes.hint_widths, **shared)
        for _ in range(controls)
    ]
    theirs_autoencoder = diffusers.AutoencoderKL(
        block_out_channels=sizes.autoencoder,
        layers_per_block=sizes.autoencoder_blocks,
        norm_num_groups=min(sizes.groups, *sizes.autoencoder),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=sizes.latent,
    )
    text = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=sizes.context,
        intermediate_size=4 * sizes.context,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
    )
    theirs_text = transformers.CLIPTextModel(text)
    for seed, module in enumerate([theirs_unet, theirs_autoencoder, theirs_text, *theirs_controls]):
        randomise(module, seed)
        module.eval()

    with torch.device("meta"):  # the copies bring the memory
        unet = UNet(
            UNetConfig(
                in_channels=sizes.latent,
                out_channels=sizes.latent,
                channels=first,
                channel_mult=tuple(width // first for width in sizes.widths),
                attention=sizes.attention,
                context_channels=sizes.context,
                heads=sizes.heads,
                head_channels=32,
                groups=sizes.groups,
            )
        )
        autoencoder = AutoencoderKL(
            sizes.autoencoder[0],
            tuple(width // sizes.autoencoder[0] for width in sizes.autoencoder),
            res_blocks=sizes.autoencoder_blocks,
            z_channels=sizes.latent,
            groups=min(sizes.groups, *sizes.autoencoder),
        )
        encoder = TextEncoder(width=sizes.context, layers=sizes.text_layers, heads=sizes.text_heads)
        ours_controls = [ControlNet.from_unet(unet, hint_widths=sizes.hint_widths) for _ in range(controls)]
    copy(unet, theirs_unet, unet_table(unet, "diffusers"))
    copy(autoencoder, theirs_autoencoder, autoencoder_table(autoencoder, "diffusers"))
    copy(encoder, theirs_text, clip_table(encoder))
    for control, reference in zip(ours_controls, theirs_controls, strict=True):
        copy(control, reference, control_table(control, "diffusers"))
    diffusion = LatentDiffusion(autoencoder, Conditioner(encoder), unet, NoiseSchedule())
    parts = {"vae": theirs_autoencoder, "text_encoder": theirs_text, "unet": theirs_unet}
    return Both(diffusion.eval(), [control.eval() for control in ours_controls], parts, theirs_controls)
