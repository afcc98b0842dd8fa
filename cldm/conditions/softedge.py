"""Soft edges: grey maps whose brightness tells how strong an edge is, by gradient or by a trained net."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cldm.conditions import Condition, Polarity
from cldm.conditions.weights import read_state, to_device


@dataclass(frozen=True)
class Sobel(Condition):
    """Gradient magnitude of the strongest channel, times `gain`; the weight-free soft edge, and no net's equal.

    A step between black and white has magnitude 0.5. The gain is fixed, so that a faint edge stays fainter than
    a strong one in any image.
    """

    gain: float = 4.0

    name: ClassVar[str] = "sobel"
    version: ClassVar[int] = 2  # 8 bits
    polarity: ClassVar[Polarity] = "white_on_black"

    def __post_init__(self) -> None:
        if self.gain <= 0:
            raise ValueError(f"sobel needs gain > 0, got {self.gain}")

    def extract(self, image: np.ndarray) -> np.ndarray:
        hint = self.batch(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
        return (hint.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)

    @torch.no_grad()
    def batch(self, images: Tensor) -> Tensor:
        from kornia.filters import spatial_gradient  # imported late: the package takes seconds

        gradient = spatial_gradient(images.float() / 255, mode="sobel")  # (b, c, 2, h, w), kernel normalised
        magnitude = gradient.square().sum(dim=2).sqrt().amax(dim=1, keepdim=True)
        rounded = (magnitude * self.gain).clamp(0, 1).mul(255).round() / 255  # as files have it
        return rounded.expand(-1, 3, -1, -1).contiguous()


@dataclass(frozen=True)
class SoftEdge(Condition):
    """Edges of a trained net, from a local file that you name: HED, or any net through `network`.

    weights: a .safetensors or .pth file. network: None for HED in the layout of the published ControlNetHED.pth,
        whose widths are read from the file; or a callable without arguments that returns your module (a `_partial_`
        in a config), whose state dict the file must fit exactly. The module gets RGB (1, 3, h, w) in 0..255 and
        returns logits: one map (1, 1, h, w), or several, which are averaged (HED) after being enlarged.
    safe: round to 3 levels, so that no faint copy of the photo hides in the map.
    """

    weights: str
    network: Callable[[], nn.Module] | None = None
    safe: bool = False

    name: ClassVar[str] = "softedge"
    polarity: ClassVar[Polarity] = "white_on_black"
    needs_weights: ClassVar[bool] = True

    @torch.no_grad()
    def extract(self, image: np.ndarray) -> np.ndarray:
        net = _load(self.weights, self.network)
        device = next(net.parameters()).device
        found = net(torch.from_numpy(image).permute(2, 0, 1)[None].float().to(device))
        maps = [found] if isinstance(found, Tensor) else [*found]
        size = image.shape[:2]
        logits = torch.stack([F.interpolate(m.float(), size, mode="bilinear", align_corners=False) for m in maps])
        edges = logits.mean(dim=0).sigmoid()[0, 0].cpu().numpy()
        return np.repeat((_safe(edges) if self.safe else edges)[:, :, None] * 255, 3, axis=2).astype(np.uint8)


def _safe(edges: np.ndarray, steps: int = 2) -> np.ndarray:
    """Values in [0, 1] cut to steps + 1 levels (1.1's softedge_hedsafe)."""
    return np.minimum(np.trunc(edges * (steps + 1)), steps) / steps


@lru_cache(maxsize=2)
def _load(weights: str, network: Callable[[], nn.Module] | None) -> nn.Module:
    state = read_state(weights, "condition.weights")
    try:
        net = HED(state) if network is None else network()
        net.load_state_dict(state)
    except (RuntimeError, KeyError) as error:
        kind = "HED" if network is None else "condition.network"
        raise ValueError(f"condition.weights={weights} does not fit {kind}: {str(error)[:300]}") from error
    return to_device(net)


class HED(nn.Module):
    """Holistically-nested edges (Xie & Tu 2015) in the Apache-2.0 layout of ControlNet 1.1: five side outputs.

    state: the weights to be loaded, which give the number of convolutions and the width of each block.
    """

    def __init__(self, state: dict[str, Tensor]):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        for number in range(1, 6):
            prefix = f"block{number}.convs."
            shapes = [state[name].shape for name in state if name.startswith(prefix) and name.endswith("weight")]
            if not shapes:
                raise KeyError(f"no {prefix}0.weight among {[*state][:4]}")
            setattr(self, f"block{number}", _Block([(shape[1], shape[0]) for shape in shapes]))

    def forward(self, image: Tensor) -> list[Tensor]:
        h, sides = image - self.norm, []
        for number in range(1, 6):
            block: Any = getattr(self, f"block{number}")
            h = block(h if number == 1 else F.max_pool2d(h, 2))
            sides.append(block.projection(h))
        return sides


class _Block(nn.Module):
    def __init__(self, widths: list[tuple[int, int]]):
        super().__init__()
        self.convs = nn.Sequential(*(nn.Conv2d(cin, cout, 3, padding=1) for cin, cout in widths))
        self.projection = nn.Conv2d(widths[-1][1], 1, 1)

    def forward(self, h: Tensor) -> Tensor:
        for conv in self.convs:
            h = conv(h).relu()
        return h
