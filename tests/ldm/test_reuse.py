"""Nothing computed twice, and nothing changed by it: each saving against the plain path."""

import pytest
import torch

from ldm.attention import CrossAttention, SelfAttention
from ldm.blocks import ResBlock, repeat_rows
from ldm.reuse import compiled, keys_values, time_table


@pytest.fixture
def inputs():
    rng = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 8, 8, generator=rng), torch.tensor([421]), torch.randn(4, 24, 16, generator=rng)


def plain(unet, z, t, context):
    """Every row on its own: both halves of guidance as one batch."""
    with torch.no_grad():
        return unet(torch.cat([z, z]), t.expand(4), context)


def close(a, b):
    assert b.std() > 0.05
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
def test_keys_and_values_made_once_change_nothing_and_save_their_projections(diffusion, inputs):
    unet, (z, t, context) = diffusion.unet, inputs
    memory = keys_values(unet, context)
    cross = [m for m in unet.modules() if isinstance(m, CrossAttention) and not isinstance(m, SelfAttention)]
    assert set(memory) == set(cross)
    assert len(cross) == 16
    for layer in cross:
        layer.to_k.register_forward_hook(lambda *_: pytest.fail("keys of a fixed prompt were computed again"))
        layer.to_v.register_forward_hook(lambda *_: pytest.fail("values of a fixed prompt were computed again"))
    found = unet(torch.cat([z, z]), t.expand(4), memory)
    for layer in cross:
        layer.to_k._forward_hooks.clear()
        layer.to_v._forward_hooks.clear()
    close(found, plain(unet, z, t, context))


@torch.no_grad()
def test_a_time_table_changes_nothing_and_saves_the_embedding_and_its_projections(diffusion, inputs):
    unet, (z, _, context) = diffusion.unet, inputs
    timesteps = torch.tensor([981, 421, 1])
    expected = [plain(unet, z, t[None], context) for t in timesteps]
    table = time_table(unet, unet.encoder, timesteps)
    assert [len(shifts) for shifts in table] == [22] * 3  # the ResBlocks of Stable Diffusion's U-Net
    unet.encoder.time_embed.register_forward_hook(lambda *_: pytest.fail("a time embedding was computed again"))
    for block in table[0]:
        assert isinstance(block, ResBlock)
        block.emb_proj.register_forward_hook(lambda *_: pytest.fail("a time projection was computed again"))
    for shifts, reference in zip(table, expected, strict=True):
        close(unet(torch.cat([z, z]), shifts, context), reference)


@torch.no_grad()
def test_both_halves_share_what_comes_before_the_first_cross_attention(diffusion, inputs):
    unet, (z, t, context) = diffusion.unet, inputs
    expected, rows = plain(unet, z, t, context), {}
    encoder = unet.encoder
    first = encoder.blocks[0].attention.blocks[0]
    for name, module in {
        "conv_in": encoder.conv_in,
        "first ResBlock": encoder.blocks[0].res,
        "first self-attention": first.self_attention,
        "its query": first.cross_attention.to_q,
        "after the first cross-attention": first.feed_forward,
        "second block": encoder.blocks[1].res,
    }.items():
        module.register_forward_hook(lambda m, a, out, name=name: rows.update({name: len(out)}))
    close(unet(z, t, context), expected)
    assert rows == {
        "conv_in": 2, "first ResBlock": 2, "first self-attention": 2, "its query": 2,
        "after the first cross-attention": 4, "second block": 4,
    }  # fmt: skip


@torch.no_grad()
def test_sharing_works_where_the_first_level_has_no_attention(make_diffusion, inputs):
    from ldm.unet import UNet, UNetConfig

    torch.manual_seed(0)
    config = UNetConfig(
        channels=8, channel_mult=(1, 2), attention=(False, True), context_channels=16, heads=2, groups=4
    )
    unet = UNet(config).eval()
    for p in unet.parameters():
        if not p.any():
            p.normal_(std=0.1)
    z, t, context = inputs
    close(unet(z, t, context), plain(unet, z, t, context))


def test_rows_repeat_as_whole_batches():
    x = torch.tensor([[1.0], [2.0]])
    assert repeat_rows(x, 4).flatten().tolist() == [1, 2, 1, 2]
    assert repeat_rows(x, 2) is x
    assert repeat_rows(x[:1], 3).flatten().tolist() == [1, 1, 1]


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_unet_is_one_graph_for_all_timesteps_and_prompts(narrow_diffusion, inputs):
    """Fixed keys, values and time rows are inputs of the graph: other prompts and steps do not compile anew."""
    unet, (z, _, context) = narrow_diffusion.unet, inputs
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    table = time_table(unet, unet.encoder, torch.tensor([981, 421, 1]))
    run = torch.compile(unet, backend=backend, fullgraph=True)
    for prompts in (context, context + 1):
        memory = keys_values(unet, prompts)
        for shifts in table:
            close(run(z, shifts, memory), unet(z, shifts, memory))
    assert len(graphs) == 1
    assert compiled(unet) is compiled(unet)
