"""The figures of each training stage: pictures of held-out items -> named numbers. One contract:

    metrics(pictures, batch, known, condition) -> dict[str, float]

pictures: images (b, 3, h, w) in [-1, 1] by name; batch: what they were made from; known: the truths of the batch's
items and the judge of their world, or None where it holds photographs.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from cldm.conditions import Condition, apply_batch, apply_like
from cldm.evaluation.fidelity import edge_fidelity, psnr
from cldm.worlds import Known, by_image, pooled
from cldm.worlds.agreement import structural_similarity
from ldm.batch import Batch


def autoencoder_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, known: Known | None, condition: Condition
) -> dict[str, float]:
    """PSNR in dB and SSIM of the reconstructions, how well their edges agree with the originals', and, where truths
    are known, whether the judge still sees them: `truth_*`."""
    x, y = pictures["image"], pictures["reconstruction"]
    ssim = structural_similarity((y + 1) / 2, (x + 1) / 2).mean().item()
    scores = {"psnr": psnr(y, x).mean().item(), "ssim": ssim}
    if condition.measurable and condition.polarity == "white_on_black":
        scores |= edge_fidelity(y, apply_batch(condition, x), condition)
    if known is not None:
        scores |= pooled(known.judge.scores(known.judge.read(y), known.truths), "truth_")
    return scores


def diffusion_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, known: Known | None, condition: Condition
) -> dict[str, float]:
    """How well samples show their captions, where a world can tell."""
    if known is None:
        return {}
    return pooled(known.judge.prompt_scores(known.judge.read(pictures["sample"]), batch["caption"]))


def control_metrics(
    pictures: Mapping[str, Tensor], batch: Batch, known: Known | None, condition: Condition
) -> dict[str, float]:
    """How well controlled samples obey their hints, and whether they show the truth behind them."""
    return control_scores(pictures["controlled"], batch["hint"], batch["caption"], known, condition)


def control_scores(
    images: Tensor, hints: Tensor, captions: Sequence[str], known: Known | None, condition: Condition
) -> dict[str, float]:
    """Scores of images against hints (b, 3, h, w) in [0, 1]; where truths are known, against these and the captions."""
    scores = hint_fidelity(images, hints, condition)
    if known is None:
        return scores
    reading = known.judge.read(images)
    told = by_image(known.judge.prompt_scores(reading, captions), "caption_")
    return scores | by_image(known.judge.scores(reading, known.truths)) | told


def hint_fidelity(images: Tensor, hints: Tensor, condition: Condition) -> dict[str, float]:
    """Edge agreement for maps of lines; for others hint_error, the mean absolute difference between the hint and
    the condition of the image; nothing where the condition cannot be computed from a picture."""
    if not condition.measurable:
        return {}
    if condition.polarity == "white_on_black":
        return edge_fidelity(images, hints, condition)
    return {"hint_error": (apply_like(condition, images, hints) - hints.to(images.device)).abs().mean().item()}
