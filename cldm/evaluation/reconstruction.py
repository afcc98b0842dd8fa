"""How far an autoencoder's reconstructions lie from their originals, in the features of networks."""

from pathlib import Path

import torch
from torch import Tensor

from cldm.evaluation.inception import Inception
from cldm.evaluation.quality import frechet_distance, kernel_distance
from cldm.evaluation.scores import slices
from cldm.worlds import Judge
from ldm.losses import PerceptualLoss


class Reconstruction:
    """originals, reconstructions (n, 3, h, w) in [-1, 1], n > 1 -> distances by name, lower is better.

    fid_judge, kid_judge  of the two sets, in the features of the world's judge, where it has them
    fid, kid              the same in Inception's; `inception` is its file, see cldm.evaluation.inception.Inception
    perceptual            mean distance of each pair in VGG16's features, see ldm.losses.PerceptualLoss; `vgg16` is a
                          file of torchvision's weights

    Errors of the two files come when it is made.
    """

    def __init__(self, inception: str | Path | None = None, vgg16: str | Path | None = None):
        self.inception = Inception(inception) if inception else None
        self.perceptual = PerceptualLoss.vgg16(vgg16) if vgg16 else None

    @torch.no_grad()
    def __call__(self, real: Tensor, made: Tensor, judge: Judge | None = None) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, features in {"_judge": judge.features if judge else None, "": self.inception}.items():
            if features is not None and len(real) > 1:
                sets = [torch.cat([features(x[part]) for part in slices(len(x), 32)]) for x in (made, real)]
                found |= {f"fid{name}": frechet_distance(*sets), f"kid{name}": kernel_distance(*sets)}
        if self.perceptual is not None:
            pairs = [self.perceptual(made[i : i + 1], real[i : i + 1]).item() for i in range(len(real))]
            found["perceptual"] = sum(pairs) / len(pairs)
        return found
