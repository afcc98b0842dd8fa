"""CLIP score: the cosine of a picture and a text, by a CLIP model in a local file. Nothing is downloaded."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ClipScore:
    """cosine(images, texts), -1..1; the published tables have 0.17 to 0.26.

    arch: a name of open_clip, such as ViT-L-14; weights: its file. Pictures are resized (bicubic) to the model's size
    and normalised with its mean and deviation. Weights of OpenAI, DFN and MetaCLIP want QuickGELU where open_clip's
    architecture of that name has GELU: `arch` becomes ARCH-quickgelu where the file says so (see `says_quick_gelu`);
    a warning says that it may be due where the file does not tell. Raises FileNotFoundError without the file,
    ValueError for what open_clip cannot read from it.
    """

    def __init__(self, arch: str, weights: str | Path, device: str = "cpu"):
        import open_clip

        path = Path(weights).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"clip.weights={weights}: there is no such file; nothing is downloaded")
        quick = f"{arch}-quickgelu"
        if quick in open_clip.list_models():  # the architecture exists in both forms
            told = says_quick_gelu(path)
            if told is None:
                warnings.warn(
                    f"clip.weights={weights} does not say whether it was trained with QuickGELU, as those of OpenAI, "
                    f"DFN and MetaCLIP were; if so, set clip.arch={quick}",
                    stacklevel=2,
                )
            arch = quick if told else arch
        self.arch = arch
        try:
            model = _model(arch, path, device)
        except (RuntimeError, ValueError, KeyError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"clip.weights={weights} holds no {arch} (clip.arch): {str(error).splitlines()[0]}"
            ) from error
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


def says_quick_gelu(path: Path) -> bool | None:
    """Whether a file of CLIP weights wants QuickGELU: yes for OpenAI's own, which are TorchScript archives; what
    open_clip_config.json or config.json beside it says; yes for names with openai or quickgelu; None where nothing
    tells."""
    if _is_torchscript(path):
        return True
    for name in ("open_clip_config.json", "config.json"):
        if (path.parent / name).is_file():
            told = json.loads((path.parent / name).read_text(encoding="utf-8"))
            told = told.get("model_cfg", told.get("text_config", told))
            if "quick_gelu" in told or "hidden_act" in told or name == "open_clip_config.json":
                return bool(told.get("quick_gelu", told.get("hidden_act") == "quick_gelu"))
    return True if any(word in path.name.lower() for word in ("openai", "quickgelu")) else None


def _is_torchscript(path: Path) -> bool:
    """Whether the file is a program of TorchScript, which a plain checkpoint is not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _model(arch: str, path: Path, device: str) -> Any:
    import open_clip

    if not _is_torchscript(path):
        return open_clip.create_model(arch, pretrained=str(path), device=device)
    # OpenAI's archive: its tensors alone are taken over, its program is not run
    model = open_clip.create_model(arch, device=device)
    state = torch.jit.load(path, map_location=device).state_dict()
    extra = ("input_resolution", "context_length", "vocab_size")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items() if name not in extra})
    return model
