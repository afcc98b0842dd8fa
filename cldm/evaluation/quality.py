"""How far two sets of pictures lie apart, in the features of a network that is named with the number."""

import torch
import torch.nn.functional as F
from torch import Tensor


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """|mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^1/2) of features (n, d), (m, d); n, m > 1.

    FID, where the features are Inception's. It is biased upwards for few pictures: compare sets of equal size only.
    """
    _check(a, b)
    a, b = a.double(), b.double()
    # x is a root of its covariance, x^T x; tr (cov_a cov_b)^1/2 is the sum of the singular values of x_a x_b^T, also
    # where there are fewer pictures than features
    roots = [torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R for x in (a, b)]
    overlap = torch.linalg.matrix_norm(roots[0] @ roots[1].T, ord="nuc")
    distance = (a.mean(0) - b.mean(0)).square().sum() + sum(x.square().sum() for x in roots) - 2 * overlap
    return max(distance.item(), 0.0)


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3. May be below 0."""
    _check(a, b)
    a, b = a.double(), b.double()
    dim, n, m = a.shape[1], len(a), len(b)
    aa, bb, ab = ((x @ y.T / dim + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return (within - 2 * ab.mean()).item()


def diversity(images: Tensor, groups: Tensor) -> float:
    """Mean root-mean-square difference of the pairs of images (n, 3, h, w) in [-1, 1] within a group (n,), halved to
    the range 0..1: how much the noise alone changes a picture. nan where no group has two."""
    found = []
    for group in groups.unique():
        members = images[groups == group].flatten(1) / 2
        found += [(x - y).square().mean().sqrt().item() for i, x in enumerate(members) for y in members[:i]]
    return sum(found) / len(found) if found else float("nan")


THUMBNAIL = 32  # pixels at which images are compared with training images


def thumbnails(images: Tensor) -> Tensor:
    """Images (n, 3, h, w) in [-1, 1] as rows (n, 3 * THUMBNAIL^2)."""
    return F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="area").flatten(1)


def nearest_distances(images: Tensor, training: Tensor) -> Tensor:
    """(n,) root-mean-square distance, 0..1, of each image (n, 3, h, w) to the nearest of the training thumbnails.

    0 for a copy. Judge it beside the same number of real held-out images: a copying model lies far below it.
    """
    a, b = thumbnails(images).double() / 2, training.double() / 2
    return torch.cdist(a, b).min(dim=1).values / a.shape[1] ** 0.5


def _check(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"needs features (n, d) and (m, d) of at least two pictures each, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
