"""What the names on a page mean, for who reads nothing else."""

from collections.abc import Iterable

from cldm.worlds import WORLDS, get_world

CURVES = {
    "train/loss": "denoising loss of training batches",
    "val/loss": "denoising loss of held-out items, with noise fixed for each item",
    "hint_use": "share of the loss of held-out items that the right hint saves against another item's hint",
}
WHERE = {"watch/": "of samples drawn from held-out items during training"}

SCORES = {
    "edge_f1_1px": "edges of the image that agree with the hint, within 1 pixel (F1, 1 is perfect)",
    "edge_f1_2px": "edges of the image that agree with the hint, within 2 pixels (F1, 1 is perfect)",
    "hint_error": "mean difference between the hint and the hint that the condition finds in the image, 0 to 1",
    "hint_ssim": "structural similarity of the hint and the hint found in the image, 1 is perfect",
    "hint_miou": "overlap of the regions of the hint and those found in the image, mean over classes, 1 is perfect",
    "hint_rmse": "difference between the depth of the hint and the depth found in the image, root mean square",
    "hint_angle": "angle between the normals of the hint and those found in the image, degrees",
    "hint_color": "distance between the colours of the hint and those found in the image",
    "shape_iou": "overlap of the pixels in an object's colour with its true mask, 1 is perfect",
    "shape": "share of objects whose kind is read at their true place",
    "circle_iou": "overlap of the circle that is seen with the true one, 1 is perfect",
    "inside": "share of circles in their own colour",
    "outside": "share of grounds in their own colour",
    "color_binding": "share of objects that are in their own colour",
    "concept": "share of stickers whose concept is seen at their true place",
    "color_distance": "colour distance (CIE Lab) to the true picture within the stickers",
    "category": "share of stickers whose category is seen at their true place",
    "segmenter_miou": "overlap of the classes that a trained segmenter sees in the image with the true ones, mean",
    "fid_scenes": "Fréchet distance to other real scenes in the segmenter's features, not Inception's",
    "fid_stickers": "Fréchet distance to other real pictures in the judge's features, not Inception's",
    "clip_caption": "CLIP similarity of the image and its caption",
    "psnr": "likeness of reconstruction and picture in dB",
    "fid": "Fréchet distance of Inception features to real images",
    "kid": "kernel distance of Inception features to real images",
    "diversity_pixels": "how much images of one item differ between noise seeds",
    "nearest_training": "distance to the nearest training image",
}

PARTS = {
    "family": "compositions of its world that an evaluation measures on; ControlNets are trained on those of `control`",
}
"""Words in the line that says a protocol."""


def words(names: Iterable[str], worlds: Iterable[str]) -> dict[str, str]:
    """What each of these names means, where that is known; worlds: those whose judges gave the scores."""
    titles = {k: v for world in worlds if world in WORLDS for k, v in get_world(world).titles.items()} | SCORES
    found = {}
    for name in dict.fromkeys(names):
        prefix = next((start for start in WHERE if name.startswith(start)), "")
        meaning = CURVES.get(name) or PARTS.get(name) or titles.get(name.removeprefix(prefix))
        if meaning:
            found[name] = f"{meaning}, {WHERE[prefix]}" if prefix else meaning
    return found
