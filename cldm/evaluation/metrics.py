"""The figures of each training stage: pictures of held-out scenes -> named numbers. One contract:

    metrics(pictures, batch, scenes, condition) -> dict[str, float]

pictures: images (b, 3, h, w) in [-1, 1] by name; batch: what they were made from; scenes: the batch's scenes, or
None where it holds photographs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cldm.conditions import Condition, apply_batch
from cldm.evaluation.fidelity import edge_fidelity, psnr
from cldm.worlds.scenes import Scene
from cldm.worlds.scenes.judge import caption_fidelity, scene_fidelity
from ldm.batch import Batch


def autoencoder_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, scenes: Sequence[Scene] | None, condition: Condition
) -> dict[str, float]:
    """PSNR in dB of the reconstructions, and how well their edges agree with the originals'."""
    x, y = pictures["image"], pictures["reconstruction"]
    return {"psnr": psnr(y, x).mean().item(), **edge_fidelity(y, apply_batch(condition, x), condition)}


def diffusion_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, scenes: Sequence[Scene] | None, condition: Condition
) -> dict[str, float]:
    """How well samples show their captions."""
    return caption_fidelity(pictures["sample"], batch["caption"])


def control_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, scenes: Sequence[Scene] | None, condition: Condition
) -> dict[str, float]:
    """How well controlled samples obey their hints, and whether they show the scene and colours asked for."""
    return control_scores(pictures["controlled"], batch["hint"], scenes, condition)


def control_scores(
    images: Tensor, hints: Tensor, scenes: Sequence[Scene] | None, condition: Condition
) -> dict[str, float]:
    """Scores of images against hints (b, 3, h, w) in [0, 1], and against the known scenes if there are any."""
    scores = hint_fidelity(images, hints, condition)
    return scores if scenes is None else {**scores, **scene_fidelity(images, scenes)}


def hint_fidelity(images: Tensor, hints: Tensor, condition: Condition) -> dict[str, float]:
    """Edge agreement for maps of lines; for others hint_error, the mean absolute difference between the hint and
    the condition of the image; nothing where the condition cannot be computed from a picture."""
    if not condition.computable:
        return {}
    if condition.polarity == "white_on_black":
        return edge_fidelity(images, hints, condition)
    return {"hint_error": (apply_batch(condition, images) - hints.to(images.device)).abs().mean().item()}


def scenes_of(dataset: Any, items: Sequence[int]) -> list[Scene] | None:
    """The known scenes behind the items of a rendered data set; None for photographs."""
    return [dataset.scenes[i] for i in items] if hasattr(dataset, "scenes") else None
