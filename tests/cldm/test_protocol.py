"""Promises of the protocol: prompts of four settings, paired noise, a hash of everything."""

import pytest

from cldm.evaluation.protocol import INSUFFICIENT, as_typed, prompts, protocol_hash, shots
from cldm.worlds import get_world
from cldm.worlds.scenes import caption, parse_caption, sample_scene
from cldm.worlds.scenes.prompts import contradicted

SCENES = get_world("scenes")
CAPTIONS = [caption(sample_scene(0, i), 0, i) for i in range(60)]


def test_conflicting_prompts_share_nothing_with_the_scene_but_their_form():
    for text in CAPTIONS:
        old, new = parse_caption(text), contradicted(parse_caption(text))
        assert not {o.kind for o in old.objects} & {o.kind for o in new.objects}
        assert not {o.color for o in old.objects} & {o.color for o in new.objects}
        assert len({o.color for o in new.objects}) == len({o.kind for o in new.objects}) == len(old.objects)
        assert new.background != old.background
        assert [o.size for o in new.objects] == [o.size for o in old.objects]
        assert new.relation == old.relation


def test_conflicting_prompts_of_single_objects_vary():
    single = [parse_caption(text) for text in CAPTIONS if len(parse_caption(text).objects) == 1]
    assert len({contradicted(spec).objects[0].color for spec in single}) > 2


def test_prompts_of_the_four_settings():
    assert prompts("none", CAPTIONS[:2], SCENES) == ["", ""]
    assert prompts("perfect", CAPTIONS[:2], SCENES) == CAPTIONS[:2]
    assert prompts("insufficient", CAPTIONS[:1], SCENES) == [f"a {parse_caption(CAPTIONS[0]).background} background"]
    assert prompts("insufficient", ["a cat"], None) == [INSUFFICIENT]
    assert prompts("conflicting", ["a cat", "a cat", "a dog"], None) == ["a dog", "a dog", "a cat"]
    with pytest.raises(ValueError, match="all alike"):
        prompts("conflicting", ["a cat", "a cat"], None)


def test_an_empty_caption_is_no_conflicting_prompt():
    assert prompts("conflicting", ["a cat", "", "a dog", " "], None) == ["a dog", "a dog", "a cat", "a cat"]
    with pytest.raises(ValueError, match="all alike or empty"):
        prompts("conflicting", ["a cat", "", "a cat"], None)


def test_noise_is_shared_by_settings_and_by_nothing_else():
    found = shots(["a cat", "a dog"], ["none", "perfect"], [0, 1], None)
    assert len(found) == len({shot.file for shot in found}) == 8
    seeds = {(shot.item, shot.noise): set() for shot in found}
    for shot in found:
        seeds[shot.item, shot.noise].add(shot.seed)
    assert [len(group) for group in seeds.values()] == [1] * 4
    assert len(set.union(*seeds.values())) == 4


def test_the_hash_depends_on_every_value_and_not_on_their_order():
    assert protocol_hash({"a": 1, "b": {"c": 2}}) == protocol_hash({"b": {"c": 2}, "a": 1})
    assert protocol_hash({"a": 1, "b": {"c": 2}}) != protocol_hash({"a": 1, "b": {"c": 3}})


def test_a_whole_number_and_the_same_fraction_are_one_protocol():
    written = {"scale": 1, "items": 4, "sampler": {"guidance": 3, "steps": 10}, "more": [{"scale": 1, "end": 1}]}
    same = {"scale": 1.0, "items": 4, "sampler": {"guidance": 3.0, "steps": 10}, "more": [{"scale": 1.0, "end": 1.0}]}
    assert protocol_hash(as_typed(written)) == protocol_hash(as_typed(same)) == protocol_hash(same)
