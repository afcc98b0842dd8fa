"""Scenes as a world (cldm.worlds.World)."""

from collections.abc import Collection, Sequence

from torch import Tensor

from cldm.worlds.scenes.captions import caption
from cldm.worlds.scenes.judge import SceneJudge
from cldm.worlds.scenes.maps import class_maps
from cldm.worlds.scenes.prompts import prompts
from cldm.worlds.scenes.renderer import MAPS, render
from cldm.worlds.scenes.segmenter import load_segmenter
from cldm.worlds.scenes.world import COLORS, KINDS, Scene, get_family, sample_scene


class Scenes:
    """Rendered shapes, coloured at will, with exact depth, normals and keypoints."""

    name = "scenes"
    version = 1
    unseen = "held_out"
    label_classes = (1 + len(KINDS), 1 + len(COLORS))
    hint_maps = MAPS
    titles = {  # noqa: RUF012  (a constant)
        "shape_iou": "shape IoU",
        "shape": "shape correct",
        "seg_miou": "segmentation mIoU",
        "segmenter_miou": "mIoU by the segmenter",
        "depth_delta1": "depth delta 1",
        "normal_angle": "normal angle, degrees",
        "keypoint_error_px": "keypoint error, px",
        "keypoint_found": "keypoints found",
        "color_binding": "colour binding",
        "background": "background",
        "fid_scenes": "FID (segmenter features)",
        "caption_binding": "caption: colour and shape",
        "prompt_binding": "prompt: colour and shape",
    }
    headlines = ("shape_iou", "shape", "color_binding", "background")

    def sample(self, seed: int, index: int, family: str) -> Scene:
        return sample_scene(seed, index, get_family(family))

    def caption(self, truth: Scene, seed: int, index: int) -> str:
        return caption(truth, seed, index)

    def draw(self, truths: Sequence[Scene], size: int, maps: Collection[str] = ()) -> dict[str, Tensor]:
        """Maps: "labels" (numbers of kind and colour), and those of cldm.worlds.scenes.renderer.MAPS."""
        drawn = render(truths, size, [name for name in maps if name != "labels"])
        found = {"image": drawn.image, **{name: getattr(drawn, name) for name in maps}}
        return found | ({"labels": class_maps(truths, drawn.labels)} if "labels" in maps else {})

    def prompts(self, setting: str, captions: Sequence[str]) -> list[str]:
        return prompts(setting, captions)

    def judge(self, weights: str | None = None) -> SceneJudge:
        """weights: of a segmenter that judges beside the exact reader (`python -m cldm segmenter`)."""
        return SceneJudge(load_segmenter(weights) if weights else None)
