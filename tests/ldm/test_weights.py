"""Weight files: a round trip, strictness, and that a file is whole or not there."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ldm.weights
from ldm.weights import load_weights, read_metadata, save_weights


def net(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.ModuleDict({"first": nn.Linear(2, width), "second": nn.BatchNorm1d(width)})
    nn.init.normal_(module["second"].weight)
    module["second"].num_batches_tracked.fill_(70_000 + seed)  # an integer that fp16 could not hold
    return module


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_fp32_comes_back_bit_for_bit_with_its_metadata(tmp_path):
    saved, loaded = net(0), net(1)
    path = save_weights(saved, tmp_path / "new" / "a.safetensors", {"steps": "7", "commit": "abc"})
    assert path == tmp_path / "new" / "a.safetensors"
    assert not equal(saved, loaded)
    load_weights(loaded, path)
    assert equal(saved, loaded)
    assert read_metadata(path) == {"steps": "7", "commit": "abc"}


def test_fp16_halves_the_floats_leaves_integers_and_loads_into_fp32(tmp_path):
    saved, loaded = net(0), net(1)
    path = save_weights(saved, tmp_path / "a.safetensors", dtype=torch.float16)
    state = load_file(path)
    assert {k: v.dtype for k, v in state.items() if v.is_floating_point()} == dict.fromkeys(
        [k for k, v in saved.state_dict().items() if v.is_floating_point()], torch.float16
    )
    load_weights(loaded, path)
    for name, tensor in loaded.state_dict().items():
        original = saved.state_dict()[name]
        assert tensor.dtype == original.dtype
        torch.testing.assert_close(tensor, original, rtol=2**-11, atol=1e-7)
    assert loaded["second"].num_batches_tracked == 70_000
    assert read_metadata(path) == {}


def test_saving_leaves_the_module_as_it_is(tmp_path):
    module = net().to(memory_format=torch.preserve_format)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    save_weights(module, tmp_path / "a.safetensors", dtype=torch.float16)
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in module.state_dict().items())


def test_parts_load_only_what_they_name(tmp_path):
    saved, loaded, untouched = net(0), net(1), net(1)
    path = save_weights(saved, tmp_path / "a.safetensors")
    load_weights(loaded, path, parts=["first"])
    assert equal(loaded["first"], saved["first"])
    assert equal(loaded["second"], untouched["second"])


def test_a_file_with_other_parts_serves_the_part_it_has(tmp_path):
    saved, loaded = net(0), net(1)
    path = save_weights(nn.ModuleDict({"first": saved["first"]}), tmp_path / "a.safetensors")
    load_weights(loaded, path, parts=("first",))
    assert equal(loaded["first"], saved["first"])
    with pytest.raises(ValueError, match=r"5 missing \(second\."):
        load_weights(loaded, path)


@pytest.mark.parametrize("parts", [("frist",), ("first", "third"), ()])
def test_parts_that_the_model_has_not_are_refused(tmp_path, parts):
    path = save_weights(net(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"among \['first', 'second'\], got \["):
        load_weights(net(), path, parts=parts)


def test_every_problem_is_listed_with_its_count_and_nothing_is_loaded(tmp_path):
    saved = nn.ModuleDict({"first": nn.Linear(2, 4), "other": nn.BatchNorm1d(2)})
    path = save_weights(saved, tmp_path / "a.safetensors")
    loaded, untouched = net(1), net(1)
    with pytest.raises(ValueError, match=r"a\.safetensors does not fit this model") as error:
        load_weights(loaded, path)
    message = str(error.value)
    assert "5 missing (second.bias, second.num_batches_tracked, second.running_mean, ...)" in message
    assert "5 unexpected (other.bias, other.num_batches_tracked, other.running_mean, ...)" in message
    shapes = "first.bias (4,) instead of (3,), first.weight (4, 2) instead of (3, 2)"
    assert f"2 of another shape ({shapes})" in message
    assert equal(loaded, untouched)


def test_a_missing_file_is_told_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere\.safetensors"):
        load_weights(net(), tmp_path / "nowhere.safetensors")


def test_a_save_that_fails_keeps_the_old_file_and_leaves_no_partial_one(tmp_path, monkeypatch):
    path = save_weights(net(0), tmp_path / "a.safetensors")

    def disk_full(state, partial, metadata):
        partial.write_bytes(b"half a file")
        raise OSError("no space left on device")

    monkeypatch.setattr(ldm.weights, "save_file", disk_full)
    with pytest.raises(OSError, match="no space left"):
        save_weights(net(1), path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    loaded = net(2)
    load_weights(loaded, path)
    assert equal(loaded, net(0))


def test_the_same_weights_written_again_are_a_file_of_the_same_content(tmp_path):
    """Runs, evaluations and tables know bases and branches by the contents of their files."""
    facts = {f"{i}. fact": 'a "b" \n\t\x01 \u00fc \U0001f99e' * i for i in range(20)}
    contents = {save_weights(net(0), tmp_path / f"{i}.safetensors", facts).read_bytes() for i in range(4)}
    assert len(contents) == 1
    assert read_metadata(tmp_path / "0.safetensors").items() >= facts.items()


def test_others_may_read_what_is_written_as_far_as_the_user_lets_them(tmp_path):
    (tmp_path / "plain").touch()
    save_weights(net(0), tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_save_that_succeeds_leaves_one_file(tmp_path):
    save_weights(net(0), tmp_path / "a.safetensors")
    save_weights(net(1), tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
