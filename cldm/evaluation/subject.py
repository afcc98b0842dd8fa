"""What evaluate.py measures: branches that act together, on items and a protocol that are the same for every method."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from cldm.branches.controlnet import Branch
from cldm.conditions import Condition, apply_batch
from cldm.conditions.plain import Unchanged
from cldm.conditions.truth import Truth
from cldm.evaluation.applied import Applied
from cldm.evaluation.clip import ClipScore
from cldm.evaluation.inception import Inception
from cldm.evaluation.protocol import Shot, as_typed, protocol_hash, shots
from cldm.evaluation.quality import nearest_distances, thumbnails
from cldm.evaluation.scores import Rows, Target, as_files, by_setting, hint_scores, join, score, slices
from cldm.evaluation.seen import refuse_another_world, refuse_seen_family, refuse_trained_on, training_images
from cldm.evaluation.sets import SetDistances
from cldm.runs.building import instantiate
from cldm.runs.checkout import code
from cldm.runs.trained import (
    PRECISIONS,
    base_content,
    guidance_filled_in,
    load_models,
    move_branch,
    to_work,
    trained_size,
)
from cldm.sampling.control import check_window
from cldm.sampling.generation import Sampling
from cldm.worlds import REFERENCE_START, Known, world_of
from ldm.diffusion import LatentDiffusion
from ldm.files import content
from ldm.identity import decisive
from ldm.weights import fingerprint

PROTOCOL = ("name", "items", "noise_seeds", "prompts", "data", "size", "scale", "start", "end", "mode", "weighting",
            "negative", "precision", "sampler", "clip", "reference", "nearest")  # fmt: skip
"""Keys of the config that numbers of one table must share."""


COPY = 1e-3
"""Below this distance of thumbnails (see nearest_distances) two pictures are the same one."""


@dataclass
class Subject:
    """Branches that act together, and what they are measured on. Weights are loaded when they are first needed.

    Scores of the first branch's hint have plain names; those of another condition's begin with its name (`others`).
    """

    branches: list[Applied]
    cfg: DictConfig
    device: str
    precision: str

    def __post_init__(self) -> None:
        self.first = self.branches[0]
        self.cfg = guidance_filled_in(self.cfg, self.first.training)
        self.sampling: Sampling = instantiate(self.cfg.sampler, _convert_="all")
        self.sampling.check_numbers()
        for branch in self.branches:
            check_window(self.sampling.steps, branch.settings["start"], branch.settings["end"])
        self.size = trained_size(self.cfg) or trained_size(self.first.training)
        for branch in self.branches:
            refuse_another_world(self.cfg.data.get("world"), branch.path.parent)
        self.data = self._data(self.first.condition)
        for branch in self.branches:
            refuse_trained_on(getattr(self.data, "items", ()), branch.path.parent)
        self.items = self.data.__getitems__(range(self.cfg["items"]))
        self.world = world_of(self.data)
        for branch in self.branches:
            refuse_seen_family(self.world, self.cfg.data.get("family"), branch.path.parent)
        self.hints: list[Tensor] = [self.items["hint"], *(self._hints_of(b.condition) for b in self.branches[1:])]
        self.judge = self.world.judge(self.cfg.judge) if self.world else None
        self.shots = shots(self.items["caption"], self.cfg.prompts, self.cfg.noise_seeds, self.world)
        clip = self.cfg.clip
        self.clip = ClipScore(clip.arch, clip.weights, self.device) if clip.weights else None
        self.inception = Inception(self.cfg.inception, self.device) if self.cfg.inception else None
        if (self.judge or self.inception) and self.cfg.reference == 1:
            raise ValueError("reference=1: a distance between sets of images needs at least 2 real ones")

    def _hints_of(self, condition: Condition) -> Tensor:
        """The hints of the items for a further branch: the first one's where it has the same condition; ready ones
        where none can be made of the picture."""
        if decisive(condition) == decisive(self.first.condition):
            return self.items["hint"]
        if isinstance(condition, Unchanged) or (isinstance(condition, Truth) and self.world):
            return self._data(condition).__getitems__(range(self.cfg["items"]))["hint"]
        return apply_batch(condition, self.items["image"])

    def _data(self, condition: Condition) -> Any:
        """The items, with the hints of a condition."""
        return instantiate(self.cfg.data, _convert_="all")(condition=condition, size=self.size, count=self.cfg["items"])

    @cached_property
    def others(self) -> dict[str, tuple[Condition, Tensor]]:
        """Conditions of further branches with their hints, by name. A condition like the first's is measured there."""
        found: dict[str, tuple[Condition, Tensor]] = {}
        for branch, hints in zip(self.branches[1:], self.hints[1:], strict=True):
            if decisive(branch.condition) == decisive(self.first.condition):
                continue
            known, _ = found.setdefault(branch.condition.name, (branch.condition, hints))
            if decisive(known) != decisive(branch.condition):
                raise ValueError(f"two branches of more have condition {known.name} with other settings: "
                                 f"{known} and {branch.condition}; their scores could not be told apart")  # fmt: skip
        return found

    @property
    def key(self) -> dict[str, Any]:
        """What decides the images: nothing drawn under another one is taken for them."""
        return {
            "protocol": protocol_hash(self.protocol),
            "checkpoint": "+".join(branch.sha256 for branch in self.branches),
            "base": base_content(self.first.path, self.first.training),
            "schedule": self.models[0].schedule.told(),
            "conditions": [decisive(branch.condition) for branch in self.branches],
            "hints": self._hints_digest(),
            "code": code(),
            **({"moved_from": content(self.cfg.moved_from)} if self.cfg.moved_from else {}),
        }

    def _hints_digest(self) -> str:
        """Of ready-made hints the files may change; what is drawn and measured is decided by what they hold."""
        digest = hashlib.blake2b(digest_size=8)
        for hints in self.hints:  # of maps with 16 bits too, and of holes, which are -1
            digest.update((hints * 65535).round().to(torch.int32).numpy().tobytes())
        return digest.hexdigest()

    def load(self) -> None:
        """Read the weights."""
        _ = self.models

    @cached_property
    def models(self) -> tuple[LatentDiffusion, list[Branch]]:
        """The base and the branches, on the device."""
        paths, trainings = zip(*((branch.path, branch.training) for branch in self.branches), strict=True)
        diffusion, nets = load_models(paths, trainings)
        for branch, loaded in zip(self.branches, nets, strict=True) if self.cfg.moved_from else ():
            move_branch(loaded, branch.training, self.cfg.moved_from, diffusion)
        self.fingerprint = fingerprint(diffusion)
        for branch in self.branches if not (self.cfg.base or self.cfg.moved_from) else ():
            if (own := branch.metadata.get("base_fingerprint", self.fingerprint)) != self.fingerprint:
                raise ValueError(
                    f"{branch.path} was trained on base {own}, the base here is {self.fingerprint}: name that one, or "
                    "another to measure it on, with base="
                )
        to_work((diffusion, *nets), self.device, self.precision)
        return diffusion, nets

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """Everything that is fixed, with a digest of the items themselves."""
        given: Any = OmegaConf.to_container(self.cfg, resolve=True)
        digest = hashlib.blake2b(digest_size=8)
        digest.update(as_files(self.items["image"]).numpy().tobytes())
        digest.update("\n".join(self.items["caption"]).encode())
        fixed = {key: given[key] for key in PROTOCOL}
        fixed["data"] = {name: value for name, value in fixed["data"].items() if name != "path"}  # the digest tells
        fixed |= {"size": self.size, "precision": self.precision, "items_digest": digest.hexdigest()}
        fixed |= {"world": self.world and self.world.name, "judge": self.judge and self.judge.facts()}
        fixed["clip"] = {"arch": self.clip.arch, "weights": fingerprint(self.clip.model)} if self.clip else None
        fixed["inception"] = fingerprint(self.inception.model) if self.inception else None
        fixed |= {"steps": self.sampling.steps, "guidance": self.sampling.guidance}
        fixed["more"] = [{"condition": branch.condition.name, **branch.settings} for branch in self.branches[1:]]
        return as_typed(json.loads(json.dumps(fixed)))

    def target(self, chosen: Sequence[Shot]) -> Target:
        """What the images of these shots are measured against."""
        items = [shot.item for shot in chosen]
        return Target(
            self.items["hint"][items],
            [self.items["caption"][i] for i in items],
            [shot.prompt for shot in chosen],
            Known(self.judge, [self.data.truths[i] for i in items]) if self.judge else None,
        )

    def draw(self, chosen: Sequence[Shot], controlled: bool) -> Tensor:
        """The images (n, 3, h, w) in [-1, 1] of these shots."""
        diffusion, nets = self.models
        items = [shot.item for shot in chosen]
        units = [
            branch.unit(net, hints[items].to(self.device))
            for branch, net, hints in zip(self.branches, nets, self.hints, strict=True)
        ]
        return self.sampling(
            diffusion,
            [shot.prompt for shot in chosen],
            [shot.seed for shot in chosen],
            tuple(self.items["image"].shape[-2:]),
            units if controlled else None,
            self.cfg.negative,
        )

    @torch.no_grad()
    def reconstructions(self) -> Tensor:
        """The real images through the autoencoder: what no control can surpass."""
        autoencoder = self.models[0].autoencoder
        dtype = PRECISIONS[self.precision]
        images = self.items["image"]
        return torch.cat([
            autoencoder.decode(autoencoder.encode(images[part].to(self.device, dtype))).float().cpu()
            for part in slices(len(images), 16)
        ])  # fmt: skip

    def measure(self, images: Tensor, chosen: Sequence[Shot]) -> Rows:
        """The scores of these images, with the columns that say which image a row is about."""
        parts = [self._scores(images[part], chosen[part]) for part in chunks(chosen)]
        ids = {
            "item": np.array([shot.item for shot in chosen]),
            "setting": np.array([shot.setting for shot in chosen]),
            "noise": np.array([shot.noise for shot in chosen]),
        }
        return ids | join(parts)

    def _scores(self, images: Tensor, chosen: Sequence[Shot]) -> Rows:
        rows = score(images, self.target(chosen), self.first.condition, self.clip)
        items = [shot.item for shot in chosen]
        for name, (condition, hints) in self.others.items():
            found = hint_scores(images, hints[items], condition)
            rows |= {f"{name}_{score}": values for score, values in found.items()}
        return rows

    @cached_property
    def distances(self) -> SetDistances:
        """Of sets of images to real ones: to a world's that are no items, or to the items where there are no others."""
        networks: dict[str, Callable[[Tensor], Tensor]] = {"": self.inception} if self.inception else {}
        if self.world and self.judge and self.judge.features:
            networks[f"_{self.world.name}"] = self.judge.features
        return SetDistances(networks, self._real_images)

    def _real_images(self) -> Tensor:
        if self.world is None:
            return self.items["image"]
        data = instantiate(self.cfg.data, _convert_="all", start=REFERENCE_START)
        others = data(condition=Unchanged(), size=self.size, count=self.cfg.reference)
        return others.__getitems__(range(len(others)))["image"]

    @cached_property
    def seen(self) -> Tensor | None:
        """Thumbnails of images that the first branch was trained on; None if they are not at hand."""
        run = self.first.run
        record = run and run / "config.yaml"
        if not self.cfg.nearest or record is None or not record.is_file():
            return None
        recorded = OmegaConf.load(record)
        OmegaConf.resolve(recorded)
        try:
            images = training_images(OmegaConf.to_container(recorded).get("data") or {}, self.cfg.nearest)  # type: ignore
        except (OSError, ValueError, KeyError) as error:
            print(f"note: nearest_training is left out; {record}: {error!r}")
            return None
        return None if images is None else thumbnails(images)

    def refuse_copies(self) -> None:
        """ValueError if any item looks like a picture of the first branch's training: a copy under another name."""
        if self.world is not None:  # whose held-out items have numbers of their own
            return
        distances = self.nearest(self.items["image"]).get("nearest_training", np.ones(1))
        if copies := int((distances < COPY).sum()):
            raise ValueError(
                f"{copies} of the {len(distances)} pictures to measure on look the same as pictures that "
                f"{self.first.path.parent} was trained on; take others, or set nearest=0 to measure on them anyway"
            )

    def nearest(self, images: Tensor) -> Rows:
        """The distance of each image to the training images, where they are at hand."""
        return {} if self.seen is None else {"nearest_training": nearest_distances(images, self.seen).numpy()}

    def summary(self, images: Tensor, rows: Rows, chosen: Sequence[Shot]) -> dict[str, dict[str, float]]:
        """{prompt setting: {score: mean, and the numbers of whole sets}}."""
        sets = self.distances.by_setting(images, chosen)
        return {setting: scores | sets[setting] for setting, scores in by_setting(rows).items()}


def chunks(chosen: Sequence[Shot], size: int = 64) -> list[slice]:
    """The shots in slices of at most `size` that do not mix prompt settings: each has scores of its own."""
    found: list[slice] = []
    for _, group in groupby(range(len(chosen)), key=lambda i: chosen[i].setting):
        rows = [*group]
        found += [slice(rows[0] + part.start, rows[0] + part.stop) for part in slices(len(rows), size)]
    return found
