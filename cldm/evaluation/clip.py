"""CLIP score: the cosine of a picture and a text, by a CLIP model in a local file. Nothing is downloaded."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


class ClipScore:
    """cosine(images, texts), -1..1; the published tables have 0.17 to 0.26.

    arch: a name of open_clip, such as ViT-L-14; weights: its file. Pictures are resized (bicubic) to the model's size
    and normalised with its mean and deviation. Raises FileNotFoundError without the file, ValueError for what
    open_clip cannot read from it.
    """

    def __init__(self, arch: str, weights: str | Path, device: str = "cpu"):
        import open_clip

        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"clip.weights={weights}: there is no such file; nothing is downloaded")
        try:
            model = open_clip.create_model(arch, pretrained=str(path), device=device)
        except RuntimeError as error:
            raise ValueError(f"clip.weights={weights} holds no {arch} (clip.arch): {error}") from error
        self.model, self.tokenize, self.device = model.eval(), open_clip.get_tokenizer(arch), device
        side = model.visual.image_size
        self.size = (side, side) if isinstance(side, int) else tuple(side)
        mean, std = model.visual.image_mean, model.visual.image_std
        self.mean, self.std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))

    @torch.no_grad()
    def __call__(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """(n,) for images (n, 3, h, w) in [-1, 1] and as many texts."""
        x = (images.to(self.device) + 1) / 2
        x = F.interpolate(x, self.size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        ours = self.model.encode_image((x - self.mean) / self.std, normalize=True)
        theirs = self.model.encode_text(self.tokenize([*texts]).to(self.device), normalize=True)
        return (ours * theirs).sum(1).cpu()
