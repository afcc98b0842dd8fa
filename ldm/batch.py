"""The one batch contract between data and training."""

from typing import TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """What a data loader yields; keys that a stage does not need may be missing.

    image (b, 3, h, w) in [-1, 1]; moments (b, 2c, h/f, w/f) of the autoencoder when cached; hint (b, 3, h, w) in
    [0, 1], in inpainting -1 where masked; context (b, tokens, width) of the captions when cached; labels (b, k, h/f,
    w/f) int64, k maps of class numbers (0 = none) for LabelProbe; caption one string each; id the sample's number
    in its data set (b,).
    """

    image: Tensor
    moments: Tensor
    hint: Tensor
    context: Tensor
    labels: Tensor
    caption: list[str]
    id: Tensor
