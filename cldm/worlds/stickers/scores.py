"""What a picture of stickers shows, by the judge: against the composition it should show, or against a caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cldm.worlds import Scores
from cldm.worlds.agreement import class_scores
from cldm.worlds.stickers.captions import CaptionSpec, parse_caption
from cldm.worlds.stickers.composer import render
from cldm.worlds.stickers.concepts import CLASSES, CONCEPTS, get_concept
from cldm.worlds.stickers.judge import SIZE, Judge, at_stride, category_of_class
from cldm.worlds.stickers.world import GROUNDS, Composition

MIN_SHARE = 0.02  # of the picture, that a concept must cover to count as shown
BLUR = 5  # pixels over which colours are averaged before they are compared: an outline may be a pixel off
CAPTION_SCORES = ("concept", "concept_one", "concept_two", "concept_two_sides", "relation", "objects", "ground")
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left of": (-1.0, 0.0),
    "right of": (1.0, 0.0),
    "above": (0.0, -1.0),
    "below": (0.0, 1.0),
}


@dataclass(frozen=True)
class Reading:
    """What the judge sees: images (n, 3, h, w) in [-1, 1], log-probabilities (n, CLASSES, ., .), grounds (n)."""

    images: Tensor
    log_p: Tensor
    grounds: list[str]


def read(judge: Judge, images: Tensor) -> Reading:
    """Look once at images (n, 3, h, w) in [-1, 1]."""
    log_p = judge.log_probabilities(images)
    return Reading(images, log_p, _grounds(log_p, images))


def scores(reading: Reading, compositions: Sequence[Composition]) -> list[Scores]:
    """For each image, against the composition whose places it should keep:

    concept, category  for each sticker: does the judge name it right at its true place (wholly hidden ones left out)
    seg_miou           what the judge sees everywhere against the true concepts: mean IoU of these and the ground
    color_distance     CIE Lab (1976) between image and true picture inside the stickers, mean over their pixels
    objects            the judge sees as many concepts as there are
    ground             the ground's colour is the true one

    ValueError if the counts differ.
    """
    _same_length(reading.images, compositions)
    truth = render(compositions, SIZE, ("instances", "concepts"))
    agreed = class_scores(reading.log_p.argmax(dim=1), at_stride(truth.maps["concepts"])).miou.tolist()
    distances = lab_distance(reading.images, truth.image)
    rows = []
    for i, composition in enumerate(compositions):
        instances, log_p = at_stride(truth.maps["instances"][i : i + 1])[0], reading.log_p[i]
        found = [at_place(log_p, instances == k) for k in range(1, 1 + len(composition.stickers))]
        true = [CONCEPTS[sticker.concept].number for sticker in composition.stickers]
        inside = (truth.maps["instances"][i] > 0).numpy()
        rows.append({
            **_named_right(found, true),
            "seg_miou": [agreed[i]],
            "color_distance": [float(distances[i][inside].mean())] if inside.any() else [],
            "objects": [float(len(shown(log_p)) == len(true))],
            "ground": [float(reading.grounds[i] == composition.ground)],
        })  # fmt: skip
    return rows


def caption_scores(reading: Reading, captions: Sequence[str]) -> list[Scores]:
    """For each image, whether it shows what its caption says; [] where the caption says nothing of the kind:

    concept            for each named concept: it is shown
    concept_one        captions of one: the concept that covers most is the one named
    concept_two        captions of two: for each named concept, it is shown
    concept_two_sides  captions of two with a relation: the same, on its side of the middle
    relation           the same: both are shown, the first in the stated direction from the second
    objects            as many concepts are shown as named
    ground             the ground's colour is the one named
    """
    _same_length(reading.images, captions)
    read = zip(reading.log_p, reading.grounds, captions, strict=True)
    return [_caption_row(log_p, ground, parse_caption(text)) for log_p, ground, text in read]


def _caption_row(log_p: Tensor, ground: str, spec: CaptionSpec) -> Scores:
    found = shown(log_p)
    wanted = [get_concept(name).number for name in spec.concepts]
    row: Scores = {name: [] for name in CAPTION_SCORES}
    row["ground"] = [float(ground == spec.ground)]
    row["concept"] = [float(k in found) for k in wanted]
    if wanted:
        row["objects"] = [float(len(found) == len(wanted))]
    if len(wanted) == 1:
        row["concept_one"] = [float(bool(found) and max(found, key=lambda k: found[k][0]) == wanted[0])]
    if len(wanted) == 2:
        row["concept_two"] = row["concept"]
        if spec.relation:
            dx, dy = DIRECTIONS[spec.relation]
            along = [found[k][1] * dx + found[k][2] * dy if k in found else None for k in wanted]
            sides = [v is not None and (v > 0) == first for v, first in zip(along, (True, False), strict=True)]
            row["concept_two_sides"] = [float(side) for side in sides]
            row["relation"] = [float(along[0] is not None and along[1] is not None and along[0] > along[1])]
    return row


def at_place(log_p: Tensor, place: Tensor) -> tuple[int | None, int | None]:
    """Class and category that the judge sees at a place (h, w) bool of one picture: by its mean log-probability,
    and the categories by their concepts' together; 0 is the ground, None stands for an empty place."""
    if not place.any():
        return None, None
    probabilities = log_p[:, place].mean(dim=1).softmax(dim=0)
    by_category = torch.zeros(1 + int(category_of_class().max())).index_add_(0, category_of_class(), probabilities)
    return int(probabilities.argmax()), int(by_category.argmax())


def shown(log_p: Tensor) -> dict[int, tuple[float, float, float]]:
    """Classes seen in one picture (CLASSES, h, w) on at least MIN_SHARE of it: share, and the middle (x, y) of where,
    from the picture's middle in [-1, 1], y down."""
    classes = log_p.argmax(dim=0)
    h, w = classes.shape
    found = {}
    for k, pixels in enumerate(torch.bincount(classes.flatten(), minlength=CLASSES).tolist()):
        if k > 0 and pixels >= MIN_SHARE * classes.numel():
            y, x = (places.float().mean().item() for places in torch.where(classes == k))
            found[k] = (pixels / classes.numel(), (2 * x + 1) / w - 1, (2 * y + 1) / h - 1)
    return found


def _grounds(log_p: Tensor, images: Tensor) -> list[str]:
    """The ground of each picture: the named colour nearest to the median of where the judge sees no sticker."""
    names, known = list(GROUNDS), _lab(torch.tensor([*GROUNDS.values()]).reshape(1, -1, 1, 3).permute(0, 3, 1, 2))
    free = log_p.argmax(dim=1) == 0
    small = F.interpolate(images.float().cpu(), free.shape[-2:], mode="area").add(1.0).mul(0.5).clamp(0, 1)
    grounds = []
    for lab, where in zip(_lab(small), free.numpy(), strict=True):
        middle = np.median(lab[where] if where.any() else lab.reshape(-1, 3), axis=0)
        grounds.append(names[int(np.linalg.norm(known[0, :, 0] - middle, axis=1).argmin())])
    return grounds


def lab_distance(images: Tensor, others: Tensor) -> np.ndarray:
    """CIE Lab distance (b, SIZE, SIZE) of images (b, 3, h, w) in [-1, 1], after averaging over BLUR pixels."""
    smooth = []
    for x in (images, others):
        x = x.float().cpu().clamp(-1, 1).add(1.0).mul(0.5)
        x = x if x.shape[-2:] == (SIZE, SIZE) else F.interpolate(x, (SIZE, SIZE), mode="area")
        smooth.append(_lab(F.avg_pool2d(x, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)))
    return np.linalg.norm(smooth[0] - smooth[1], axis=-1)


def _lab(images: Tensor) -> np.ndarray:
    """(b, 3, h, w) in [0, 1] -> (b, h, w, 3): L in [0, 100], a and b of about [-128, 127]."""
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy().astype(np.float32)
    return np.stack([cv2.cvtColor(p, cv2.COLOR_RGB2LAB) for p in pixels])


def _named_right(found: Sequence[tuple[int | None, int | None]], true: Sequence[int]) -> Scores:
    """Stickers that are wholly hidden are left out."""
    pairs = [(seen, k) for seen, k in zip(found, true, strict=True) if seen[0] is not None]
    return {
        "concept": [float(seen[0] == k) for seen, k in pairs],
        "category": [float(seen[1] == int(category_of_class()[k])) for seen, k in pairs],
    }


def _same_length(images: Tensor, others: Sequence) -> None:
    if len(images) != len(others):
        raise ValueError(f"got {len(images)} images to judge against {len(others)} compositions or captions")
