"""The features of FID and KID: Inception by torchmetrics, its weights in a local file. Nothing is downloaded."""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from cldm.evaluation.scores import slices


class Inception:
    """images (n, 3, h, w) in [-1, 1] -> features (n, 2048), from which published FID and KID are computed.

    weights: the file that torch-fidelity and torchmetrics use, `weights-inception-2015-12-05-6726825d.pth`. Raises
    FileNotFoundError without it, ValueError for another file, ImportError without torchmetrics and torch-fidelity.
    """

    def __init__(self, weights: str | Path, device: str = "cpu"):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"inception={weights}: there is no such file; nothing is downloaded")
        try:
            import torch_fidelity  # noqa: F401  (torchmetrics asks for it only when it draws)
            from torchmetrics.image.fid import NoTrainInceptionV3
        except ImportError as error:
            raise ImportError("inception needs torchmetrics and torch-fidelity: pip install -e '.[quality]'") from error
        try:
            torch.load(path, weights_only=True, mmap=True)  # torch-fidelity would run whatever the file says
            self.model = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(path)).to(device)
        except (RuntimeError, pickle.UnpicklingError, TypeError, AttributeError) as error:
            raise ValueError(f"inception={weights} holds no weights of torch-fidelity's Inception: {error}") from error
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return torch.cat([self.model(pixels[part].to(self.device)).cpu() for part in slices(len(pixels), 16)])
