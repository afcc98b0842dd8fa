"""Control at inference: which branches, which hints, how strong, where and when.

Semantics follow the published tools: modes and their weights are the web UI's, the step rule is diffusers'.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cldm.branches.controlnet import Branch
from cldm.conditions import Condition, apply_batch
from ldm.blocks import repeat_rows
from ldm.reuse import compiled, keys_values
from ldm.unet import ControlResiduals

MODES = {"balanced": (False, "uniform"), "prompt": (False, "decay"), "control": (True, "decay"),
         "conditional": (True, "uniform")}  # fmt: skip
"""mode -> (only in the conditional half of guidance?, weighting).

balanced: both halves, every residual alike. prompt ("my prompt is more important"): both halves, deep residuals
most. control ("ControlNet is more important", guess mode): the same weights, conditional half only, so that
guidance multiplies the control. conditional (InvokeAI's "unbalanced"): conditional half only, all alike.
"""

WEIGHTINGS = ("uniform", "decay", "64/h", "8/h")
DECAY = 0.825  # per residual, of the published guess mode (diffusers: logspace(-1, 0, 13), within 0.7 %)


def check_settings(start: float = 0.0, end: float = 1.0, mode: str = "balanced", weighting: str | None = None) -> None:
    """Refuse settings of a ControlUnit that make no sense; needs no weights."""
    if mode not in MODES:
        raise ValueError(f"control mode must be one of {', '.join(MODES)}, got {mode!r}")
    if weighting is not None and weighting not in WEIGHTINGS:
        raise ValueError(f"control weighting must be one of {', '.join(WEIGHTINGS)}, got {weighting!r}")
    if not 0 <= start < end <= 1:
        raise ValueError(f"a control acts from start to end, 0 <= start < end <= 1; got {start} to {end}")


def within(step: int, steps: int, start: float, end: float) -> bool:
    """Whether step `step` of 0..steps-1 lies in a control's window: all of it, as in diffusers."""
    return step / steps >= start and (step + 1) / steps <= end


def check_window(steps: int, start: float, end: float) -> None:
    """ValueError for a window without a single step: its control would never act."""
    if not any(within(step, steps, start, end) for step in range(steps)):
        raise ValueError(
            f"no step lies between start={start:g} and end={end:g}: each of {steps} is {1 / steps:.2g} of the way. "
            "Widen the window, or take more steps (sampler.steps)"
        )


@dataclass(frozen=True)
class ControlUnit:
    """A branch with the hints of the images to draw, and how it is applied. Several units add their residuals.

    hint: (b, 3, h, w) in [0, 1], or (1, 3, h, w) for a batch that shares it.
    scale: multiplies every residual; `scales` has a factor for each, the shallowest first, the middle's last.
    start, end: shares of the steps, see `within`.
    mode: a key of MODES. weighting: replaces the mode's. "decay" is 0.825^(12 - i) for residual i of 0..12.
        "64/h" and "8/h" are the two readings of the paper's resolution weighting, with h the side of a residual in
        a 64 x 64 latent: 1 (64 px) to 8 (8 px) as printed, and 1/8 to 1, which weakens as the text says.
    pool: replace each residual by its mean over the image (shuffle models); implies the conditional half only.
    mask: (b or 1, 1, h, w) in [0, 1], any size: where in the image the residuals, pooled or not, apply. A cell of a
        residual that the mask covers in part is controlled by that part.
    """

    net: Branch
    hint: Tensor
    scale: float = 1.0
    scales: Sequence[float] | None = None
    start: float = 0.0
    end: float = 1.0
    mode: str = "balanced"
    weighting: str | None = None
    pool: bool = False
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_settings(self.start, self.end, self.mode, self.weighting)
        if not all(map(math.isfinite, [self.scale, *(self.scales or [])])):
            raise ValueError(f"control scales must be finite numbers, got {self.scale} and {self.scales}")
        if self.hint.ndim != 4 or self.hint.shape[1] != self.net.hint_channels:
            raise ValueError(f"hint must be (b, {self.net.hint_channels}, h, w), got {tuple(self.hint.shape)}")
        if self.scales is not None and len(self.scales) != self.count:
            raise ValueError(f"got {len(self.scales)} control scales, the branch has {self.count} residuals")

    @classmethod
    def from_image(cls, net: Branch, condition: Condition, image: Tensor, **settings) -> "ControlUnit":
        """A unit whose hint is the condition's map of an image (b, 3, h, w) in [-1, 1]."""
        return cls(net, apply_batch(condition, image), **settings)

    @property
    def count(self) -> int:
        """How many residuals the branch has: 13 in Stable Diffusion."""
        return len(self.net.levels)

    @property
    def conditional_only(self) -> bool:
        """Whether the negative half of guidance goes without."""
        return MODES[self.mode][0] or self.pool

    def weights(self) -> list[float]:
        """The factor of each residual, shallowest first, middle last."""
        weighting = self.weighting or MODES[self.mode][1]
        last, levels = self.count - 1, self.net.levels
        factors = {
            "uniform": [1.0] * self.count,
            "decay": [DECAY ** (last - i) for i in range(self.count)],
            "64/h": [2.0**level for level in levels],
            "8/h": [2.0 ** (level - levels[-1]) for level in levels],
        }[weighting]
        own = self.scales or [1.0] * self.count
        return [self.scale * a * b for a, b in zip(factors, own, strict=True)]

    def active(self, step: int, steps: int) -> bool:
        """Whether the branch runs at step `step` of 0..steps-1."""
        return within(step, steps, self.start, self.end) and any(self.weights())


class PreparedUnit:
    """A unit with everything that stays the same over the steps computed: hint, keys and values, time embeddings.

    context, negative: (b, n, d); negative None where there is no guidance.
    """

    @torch.no_grad()
    def __init__(
        self, unit: ControlUnit, context: Tensor, negative: Tensor | None, timesteps: Tensor, compile: bool = False
    ):
        self.unit, self.steps = unit, len(timesteps)
        net = unit.net
        self.branch = compiled(net.residuals) if compile else net.residuals
        self.half = unit.conditional_only and negative is not None
        asked = context if negative is None or self.half else torch.cat([negative, context])
        self.active = [unit.active(i, self.steps) for i in range(self.steps)]
        if not any(self.active):
            return
        self.weights = unit.weights()
        self.features = net.encode_hint(unit.hint.to(context))
        self.keys_values = keys_values(net, asked)
        self.times = net.time_table(timesteps)
        self.mask = None if unit.mask is None else unit.mask.to(context)

    def residuals(self, z: Tensor, step: int) -> ControlResiduals:
        """What to add to the U-Net at z (b, c, h, w) in this step: b rows, or 2 b of both halves of guidance, the
        negative one first. What was shared by all images has a row for each from here on."""
        found = self.branch(z, self.times[step], self.keys_values, self.features)
        if any(weight != 1 for weight in self.weights):
            found = found * self.weights
        tensors = [self._shaped(r, len(z)) for r in (*found.skips, found.middle)]
        entering = None if found.input is None else self._shaped(found.input, len(z))
        return ControlResiduals(tuple(tensors[:-1]), tensors[-1], entering)

    def _shaped(self, residual: Tensor, images: int) -> Tensor:
        residual, size = repeat_rows(residual, max(len(residual), images)), residual.shape[-2:]
        if self.unit.pool:
            residual = residual.mean((2, 3), keepdim=True)
        if self.mask is not None:
            residual = residual * repeat_rows(covered(self.mask, size), len(residual))
        return torch.cat([torch.zeros_like(residual), residual]) if self.half else residual


def covered(mask: Tensor, size: Sequence[int]) -> Tensor:
    """How much of each cell of `size` (h, w) a mask (b, 1, any, any) covers: (b, 1, h, w)."""
    height, width = size
    if mask.shape[-2] < height or mask.shape[-1] < width:
        return F.interpolate(mask, (height, width), mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(mask, (height, width))


def inpaint_hint(image: Tensor, mask: Tensor) -> Tensor:
    """The hint of the published inpainting ControlNet: image in [0, 1], -1 where it is to be painted.

    image (b, 3, h, w) in [-1, 1]; mask (b or 1, 1, h, w), more than 0.5 where something new is wanted.
    """
    return torch.where(mask > 0.5, -1.0, (image.clamp(-1, 1) + 1) / 2)
