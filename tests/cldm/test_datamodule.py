"""Promises of the data: order depends on (seed, rank, step) alone, scenes are stateless, caches honest."""

import colorsys
import itertools
import threading
from types import SimpleNamespace

import pytest
import torch

from cldm.conditions import apply_batch
from cldm.conditions.canny import Canny
from cldm.data.datamodule import DataModule, StepSampler
from cldm.runs.building import instantiate
from cldm.worlds import dataset, get_world
from cldm.worlds.datamodule import world_data
from cldm.worlds.dataset import WorldDataset
from cldm.worlds.scenes.world import COLORS, HELD_OUT_KINDS, HELD_OUT_PAIRS, KINDS
from ldm.identity import conditioner_key, encoder_key


def take(sampler: StepSampler, count: int) -> list[list[int]]:
    return list(itertools.islice(sampler, count))


# ------------------------------------------------------------------ order


def test_an_epoch_visits_each_sample_at_most_once_and_epochs_differ():
    batches = take(StepSampler(23, 4, seed=1), 15)  # 5 batches an epoch, 3 samples left out
    epochs = [list(itertools.chain(*batches[i : i + 5])) for i in (0, 5, 10)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 20
        assert set(epoch) <= set(range(23))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_every_sample_gets_its_turn():
    assert set(itertools.chain(*take(StepSampler(23, 4, seed=1), 50))) == set(range(23))


def test_ranks_are_disjoint_and_together_are_the_epoch():
    ranks = [take(StepSampler(26, 4, seed=1, rank=rank, world=3), 4) for rank in range(3)]  # 2 batches an epoch
    for epoch in (slice(0, 2), slice(2, 4)):
        seen = [i for rank in ranks for batch in rank[epoch] for i in batch]
        assert len(set(seen)) == len(seen) == 24


@pytest.mark.parametrize("start", [1, 5, 7, 13])
def test_start_goes_on_in_the_very_same_order(start):
    straight = take(StepSampler(23, 4, seed=1), 20)
    assert take(StepSampler(23, 4, seed=1, start=start), 20 - start) == straight[start:]


def test_the_seed_is_the_order():
    assert take(StepSampler(23, 4, seed=1), 5) == take(StepSampler(23, 4, seed=1), 5)
    assert take(StepSampler(23, 4, seed=1), 5) != take(StepSampler(23, 4, seed=2), 5)


@pytest.mark.parametrize(("length", "world"), [(3, 1), (7, 2)])
def test_too_few_samples_for_a_batch_are_refused(length, world):
    with pytest.raises(ValueError, match=f"{length} training samples do not fill one batch of 4 x {world} ranks"):
        StepSampler(length, 4, seed=0, world=world)


def test_the_loader_goes_on_where_the_trainer_stands_and_gives_each_rank_its_own(random_items):
    data = DataModule(random_items(24), random_items(3), batch_size=2, seed=5)

    def ids(count, **where):
        trainer = {"global_rank": 0, "world_size": 1, "global_step": 0, "accumulate_grad_batches": 1, **where}
        data.trainer = SimpleNamespace(**trainer)
        return [batch["id"].tolist() for batch in itertools.islice(data.train_dataloader(), count)]

    straight = ids(8)
    assert ids(6, global_step=2) == straight[2:]
    assert ids(2, global_step=2, accumulate_grad_batches=3) == straight[6:]
    first, second = (ids(6, world_size=2, global_rank=rank) for rank in range(2))
    assert not set(itertools.chain(*first)) & set(itertools.chain(*second))


# ------------------------------------------------------------------ scenes


SCENES = get_world("scenes")


def scenes_set(count: int, size: int = 64, family: str = "base", **options) -> WorldDataset:
    return WorldDataset(SCENES, count, size, family, **options)


@pytest.fixture(scope="module")
def six() -> WorldDataset:
    return scenes_set(6, 64, keep=("image", "hint"), condition=Canny())


def test_a_scene_does_not_depend_on_the_set_it_is_in(six):
    other = scenes_set(2, 64, start=3, keep=("image", "hint"), condition=Canny())
    whole, part = six.__getitems__([4, 3]), other.__getitems__([1, 0])
    assert whole["caption"] == part["caption"]
    assert torch.equal(whole["image"], part["image"])
    assert torch.equal(whole["hint"], part["hint"])
    again = six.__getitems__([3])
    assert again["caption"] == whole["caption"][1:]
    assert torch.equal(again["image"], whole["image"][1:])


def test_items_keep_the_batch_contract_and_the_hint_is_that_of_the_image(six):
    batch = six.__getitems__(range(6))
    assert batch["image"].shape == batch["hint"].shape == (6, 3, 64, 64)
    assert batch["image"].dtype == batch["hint"].dtype == torch.float32
    assert -1 <= batch["image"].min() < -0.2 < 0.2 < batch["image"].max() <= 1
    assert torch.equal(batch["hint"], apply_batch(Canny(), batch["image"]))
    assert batch["hint"].unique().tolist() == [0, 1]
    assert batch["id"].tolist() == list(range(6))
    assert len(set(batch["caption"])) > 1
    assert six[2]["caption"] == batch["caption"][2:3]


def test_kept_moments_are_those_of_the_image(diffusion):
    encode = diffusion.autoencoder.moments
    kept = scenes_set(3, 64, keep=("image", "moments"), encode=encode)
    batch = kept.__getitems__(range(3))
    with torch.no_grad():
        expected = encode(batch["image"])
    assert batch["moments"].dtype == torch.float32
    torch.testing.assert_close(batch["moments"], expected, rtol=2e-3, atol=2e-3)  # stored as float16
    assert expected.std() > 0.02


def test_kept_labels_name_the_kind_and_colour_that_are_seen_there():
    batch = scenes_set(24, 64, keep=("image", "labels")).__getitems__(range(24))
    kinds, colors = batch["labels"].unbind(1)
    assert batch["labels"].shape == (24, 2, 8, 8)
    assert torch.equal(kinds > 0, colors > 0)
    assert 0.05 < (kinds > 0).float().mean() < 0.6
    for image, kind, color, text in zip(batch["image"], kinds, colors, batch["caption"], strict=True):
        for k in kind[kind > 0].unique().tolist():
            assert KINDS[k - 1] in text
        for c in color[color > 0].unique().tolist():
            name = [*COLORS][c - 1]
            assert name in text
            mean = image[:, 4::8, 4::8][:, color == c].mean(dim=1) / 2 + 0.5
            hue = colorsys.rgb_to_hsv(*mean.tolist())[0]  # shading leaves the hue alone
            assert abs((hue - colorsys.rgb_to_hsv(*COLORS[name])[0] + 0.5) % 1 - 0.5) < 0.04


def test_keeping_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="needs the autoencoder"):
        scenes_set(1, 64, keep=("moments",))
    with pytest.raises(ValueError, match="needs a condition"):
        scenes_set(1, 64, keep=("hint",))


def test_what_several_threads_draw_is_what_one_draws(monkeypatch, make_diffusion):
    encode, threads = make_diffusion().autoencoder.encode, {}
    monkeypatch.setattr(dataset, "CHUNK", 2)

    def noted(image):
        threads[cores].add(threading.get_ident())
        assert torch.get_num_threads() == 1
        assert not torch.is_grad_enabled()
        return encode(image)

    found, before = {}, torch.get_num_threads()
    for cores in (1, 3):
        threads[cores] = set()
        monkeypatch.setattr(dataset, "cores", lambda n=cores: n)
        options = {"size": 64, "keep": ("moments", "hint", "labels"), "condition": Canny(), "encode": noted}
        found[cores] = scenes_set(33, **options).tensors
    assert len(threads[1]) == 1 < len(threads[3])
    assert torch.get_num_threads() == before
    assert all(torch.equal(found[1][name], found[3][name]) for name in options["keep"])


def test_a_second_construction_reads_the_cache(tmp_path, monkeypatch):
    options = {"size": 64, "keep": ("image", "hint"), "condition": Canny(), "cache": tmp_path}
    first = scenes_set(2, **options)
    assert len([*tmp_path.glob("*.pt")]) == 1
    assert not [*tmp_path.glob("*.partial")]
    rendered = []
    monkeypatch.setattr(WorldDataset, "_draw_all", lambda *_: rendered.append(1) or 1 / 0)
    second = scenes_set(2, **options)
    assert not rendered
    assert first.__getitems__([1, 0])["caption"] == second.__getitems__([1, 0])["caption"]
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in ("image", "hint"))
    changes = [
        {"condition": Canny(low=50)}, {"seed": 1}, {"start": 1}, {"family": "control"}, {"size": 128},
        {"keep": ("image",)}, {"fingerprint": "another encoder"},
    ]  # fmt: skip
    for change in changes:  # each of these would be wrong to read from that file
        with pytest.raises(ZeroDivisionError):
            scenes_set(2, **{**options, **change})
    assert len(rendered) == len(changes)


def test_the_fingerprint_names_the_encoder_and_nothing_else(make_diffusion):
    autoencoder = make_diffusion().autoencoder
    name = encoder_key(autoencoder)
    assert encoder_key(make_diffusion().autoencoder) == name
    with torch.no_grad():
        autoencoder.decoder.conv_in.weight.add_(1)
    assert encoder_key(autoencoder) == name
    with torch.no_grad():
        autoencoder.encoder.conv_in.weight[0, 0, 0, 0] += 1e-3
    assert encoder_key(autoencoder) != name


def test_what_no_shape_tells_of_a_network_is_part_of_its_key(make_diffusion):
    model = make_diffusion()
    latents, contexts = encoder_key(model.autoencoder), conditioner_key(model.conditioner)
    model.autoencoder.encoder.norm_out.num_groups = 1
    assert encoder_key(model.autoencoder) != latents
    for name, value in (("skip_last", 1), ("heads", 1), ("causal", False), ("activation", "quick_gelu")):
        encoder = make_diffusion().conditioner
        before = getattr(encoder.text_encoder, name)
        setattr(encoder.text_encoder, name, value)
        assert (conditioner_key(encoder) == contexts) == (before == value), name
    words = make_diffusion().conditioner
    words.vocabulary = ("other", "words")
    assert conditioner_key(words) != contexts


@pytest.fixture(scope="module")
def data(make_diffusion) -> DataModule:
    # no hint or moments of the training scenes: rendering them is not what is looked at
    return world_data(Canny(), make_diffusion(), "scenes", 64, "control", 40, 12, 4, keep=["image"], seed=2)


def test_training_and_validation_scenes_are_disjoint(data):
    assert len(set(data.train.truths)) == 40
    assert len(set(data.validation.truths)) == 12
    assert not set(data.train.truths) & set(data.validation.truths)
    assert data.validation.__getitems__([0]).keys() == {"image", "hint", "caption", "id"}


def test_the_control_family_holds_out_what_it_promises(data, monkeypatch):
    monkeypatch.setattr(WorldDataset, "_load", lambda *_: {})  # scenes only
    control = scenes_set(400, family="control").truths
    base = {(o.kind, o.color) for scene in scenes_set(400).truths for o in scene.objects}
    seen = {(o.kind, o.color) for scene in [*control, *data.train.truths] for o in scene.objects}
    assert base >= HELD_OUT_PAIRS
    assert not seen & HELD_OUT_PAIRS
    assert not {kind for kind, _ in seen} & HELD_OUT_KINDS
    assert {kind for kind, _ in base} >= HELD_OUT_KINDS


def test_the_training_seed_orders_the_examples_and_the_data_seed_makes_them(make_diffusion, composed):
    def order(*overrides):
        cfg = composed("model=tiny", "data.train_count=24", "data.val_count=1", "data.cache=null", "data.keep=[image]",
                       *overrides)  # fmt: skip
        data = instantiate(cfg.data, _convert_="all")(condition=Canny(), model=make_diffusion())
        data.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0, accumulate_grad_batches=1)
        first = next(iter(data.train_dataloader()))["id"].tolist()
        return first, data.train.truths

    (first, scenes), (second, same), (_, others) = (order("seed=0"), order("seed=1"), order("data.seed=1"))
    assert first != second
    assert scenes == same != others


def test_a_training_set_that_would_run_into_the_validation_scenes_is_refused(make_diffusion):
    with pytest.raises(ValueError, match=r"data\.train_count must be at least 1 and below 10000000"):
        world_data(Canny(), make_diffusion(), "scenes", 64, "base", 10_000_000, 1, 1)


@pytest.mark.parametrize(("train_count", "val_count", "key"), [(0, 1, "train_count"), (4, 0, "val_count")])
def test_a_set_without_a_scene_to_train_on_or_to_measure_on_is_refused(make_diffusion, train_count, val_count, key):
    with pytest.raises(ValueError, match=rf"data\.{key}(=0)? must be at least 1"):
        world_data(Canny(), make_diffusion(), "scenes", 64, "base", train_count, val_count, 1)
