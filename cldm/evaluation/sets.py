"""Numbers of whole sets of images."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cldm.evaluation.protocol import Shot
from cldm.evaluation.quality import diversity, frechet_distance, kernel_distance
from cldm.evaluation.scores import slices


@dataclass
class SetDistances:
    """How far sets of images lie from real ones, in the features of networks.

    networks: images (n, 3, h, w) in [-1, 1] -> features (n, d), by the end of the names of their numbers.
    real: makes the real images when they are first needed.
    """

    networks: Mapping[str, Callable[[Tensor], Tensor]]
    real: Callable[[], Tensor]

    def features(self, name: str, images: Tensor) -> Tensor:
        """The features (n, d) of a network."""
        return torch.cat([self.networks[name](images[part]) for part in slices(len(images), 64)])

    @cached_property
    def real_features(self) -> dict[str, Tensor]:
        """Those of the real images, by network."""
        images = self.real()
        return {name: self.features(name, images) for name in self.networks}

    def by_setting(self, images: Tensor, chosen: Sequence[Shot]) -> dict[str, dict[str, float]]:
        """Diversity and distances of the images of each prompt setting.

        Distances between sets fall with their size, so every set has one image of each item: with several noise seeds
        the mean of their distances, never the distance of all their images together.
        """
        found = {}
        for setting in dict.fromkeys(shot.setting for shot in chosen):
            rows = [i for i, shot in enumerate(chosen) if shot.setting == setting]
            items = torch.tensor([chosen[i].item for i in rows])
            found[setting] = {"diversity_pixels": diversity(images[rows], items)}
            noises = [[i for i in rows if chosen[i].noise == noise] for noise in {chosen[i].noise for i in rows}]
            for name in self.networks if len(noises[0]) > 1 else ():
                sets, real = [self.features(name, images[one]) for one in noises], self.real_features[name]
                found[setting][f"fid{name}"] = float(np.mean([frechet_distance(one, real) for one in sets]))
                found[setting][f"kid{name}"] = float(np.mean([kernel_distance(one, real) for one in sets]))
        return found
