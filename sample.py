"""Draw images that obey a hint with a trained ControlNet. Config: configs/sample.yaml."""

import json
from pathlib import Path

import hydra
import torch
from hydra import compose
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

import train  # noqa: F401  (registers the config resolvers)
from cldm.conditions.files import HintFileError, load_hint
from cldm.control import ControlUnit
from cldm.controlnet import ControlNet
from cldm.interop import load_control
from cldm.pictures import grid, save_atomically, to_pil
from cldm.runs import base_of
from ldm.diffusion import LatentDiffusion
from ldm.interop import load_base
from ldm.weights import fingerprint, read_metadata

FILE = "control.safetensors"
GROUPS = ("model", "control", "condition")  # config choices that a control file states


def find_checkpoint(checkpoint: str | None) -> Path:
    """The control weights of a run folder or file; None means the newest run. SystemExit says what to run first."""
    if checkpoint is None:
        found = sorted(Path("runs").glob(f"**/{FILE}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise SystemExit("no trained ControlNet in runs/ yet; run `python train.py` first (minutes on a laptop)")
        return found[-1]
    path = Path(checkpoint)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"checkpoint={checkpoint}: there is no {path}")
    return path


def training_config(path: Path, base: str | None) -> DictConfig:
    """The training config that the file's metadata names; only names of this repository's configs are followed."""
    metadata = read_metadata(path)
    missing = [group for group in GROUPS if group not in metadata]
    if missing:
        raise SystemExit(f"{path} does not say which {', '.join(missing)} it was trained with; is it a control file?")
    names = [f"{group}={metadata[group]}" for group in GROUPS]
    key = "model.path" if metadata["model"] == "pretrained" else "base"
    return compose("train", overrides=[*names, *([f"{key}='{base}'"] if base else [])])


def load_model(path: Path, cfg: DictConfig) -> tuple[LatentDiffusion, ControlNet]:
    """The locked model and its branch, both loaded strictly."""
    base = base_of(cfg)
    diffusion: LatentDiffusion = instantiate(cfg.model, _convert_="all")
    load_base(diffusion, base)
    trained_on, loaded = read_metadata(path).get("base_fingerprint"), fingerprint(diffusion)
    if trained_on not in (None, loaded):
        print(f"note: {path} was trained on base {trained_on}, this base is {loaded}; images may obey less well")
    control: ControlNet = instantiate(cfg.control, _convert_="all")(diffusion.unet)
    load_control(control, path)
    return diffusion.eval(), control.eval()


def sample(cfg: DictConfig) -> Path:
    """Draw the images; returns their folder."""
    path = find_checkpoint(cfg.checkpoint)
    if cfg.count < 1:
        raise SystemExit(f"count must be at least 1, got {cfg.count}")
    training = training_config(path, cfg.base)
    condition = instantiate(training.condition, _convert_="all")
    try:
        hint = load_hint(cfg.hint, training.size, condition=condition)
    except HintFileError as error:
        raise SystemExit(f"hint={cfg.hint}: {error}") from error
    diffusion, control = load_model(path, training)
    sampling = instantiate(cfg.sampler, _convert_="all")
    seeds = list(range(cfg.seed, cfg.seed + cfg.count))
    hints = hint.expand(cfg.count, -1, -1, -1)
    unit = ControlUnit(control, hints, cfg.scale)
    with tqdm(total=sampling.steps, desc=f"drawing {cfg.count} images", unit="step") as bar:
        images = sampling(
            diffusion,
            [cfg.prompt] * cfg.count,
            seeds,
            tuple(hint.shape[-2:]),
            control=unit,
            negative=cfg.negative,
            callback=lambda *_: bar.update(),
        )
    return write(images, hint, seeds, cfg, path)


def write(images: torch.Tensor, hint: torch.Tensor, seeds: list[int], cfg: DictConfig, path: Path) -> Path:
    """One PNG per seed with its settings inside, and sheet.png with the hint beside them."""
    folder = Path(cfg.out) if cfg.out else path.parent / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**OmegaConf.to_container(cfg, resolve=True), "checkpoint": str(path)}  # type: ignore[dict-item]
    for seed, image in zip(seeds, images, strict=True):
        info = PngInfo()
        info.add_text("settings", json.dumps({**settings, "seed": seed}))
        to_pil(image).save(folder / f"seed_{seed}.png", pnginfo=info)
    columns = {
        "hint": 2 * hint[None] - 1,
        **{f"seed {s}": i[None] for s, i in zip(seeds, images, strict=True)},
    }
    save_atomically(grid(columns, [cfg.prompt], pairs=1), folder / "sheet.png")
    print(f"{len(seeds)} images and sheet.png in {folder}")
    return folder


@hydra.main(version_base="1.3", config_path="configs", config_name="sample")
def main(cfg: DictConfig) -> None:
    sample(cfg)


if __name__ == "__main__":
    main()
