"""Inputs as they come: about a hundred malformed or unusual files, lines and overrides, made here, with what is right.

`python tests/malformed.py FOLDER` writes the files of the table to look at. tests/test_malformed.py tries each.
"""

import io
import json
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

READ, REPLACED, REFUSED = "read", "replaced", "refused"
"""Read right; replaced by another item with a warning; one sentence that names the file, and exit 1."""


@dataclass(frozen=True)
class Case:
    """What is tried. kind: how. make: writes the input at a path. outcome: READ, REPLACED or REFUSED, with `says`: what
    the message must contain, or what must be read."""

    kind: str
    name: str
    make: Callable[[Path], object]
    outcome: str
    says: Any = ""


def photo(height: int = 72, width: int = 96, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def png(pixels: np.ndarray | Image.Image | None = None, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of its file."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(photo() if pixels is None else pixels)
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def put(content: bytes | str) -> Callable[[Path], object]:
    """Write this file."""
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def as_json(content: Any) -> Callable[[Path], object]:
    return put(json.dumps(content))


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A PNG that says it is huge."""
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return png(kind="JPEG", exif=exif)


def half_zeros() -> bytes:
    """A PNG of several chunks as a power cut leaves it."""
    grey = np.random.default_rng(0).normal(128, 30, (512, 512, 1)).clip(0, 255).astype(np.uint8)
    whole = png(np.repeat(grey, 3, axis=2))  # zeros go on as pixels of such a file, up to the next chunk
    return whole[: len(whole) // 2].ljust(len(whole), b"\0")


def broken_exif() -> bytes:
    return png(kind="JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")


IMAGE = Image.fromarray(photo())
GLASS = np.dstack([photo(), np.full((72, 96), 128, np.uint8)])

PICTURES = [
    Case("picture", "plain", put(png()), READ),
    Case("picture", "grey", put(png(IMAGE.convert("L"))), READ),
    Case("picture", "grey and alpha", put(png(IMAGE.convert("LA"))), READ),
    Case("picture", "palette", put(png(IMAGE.convert("P"))), READ),
    Case("picture", "one bit", put(png(IMAGE.convert("1"))), READ),
    Case("picture", "half transparent", put(png(GLASS)), READ),
    Case("picture", "16 bits", put(png(photo()[:, :, 0].astype(np.uint16) * 257)), READ),
    Case("picture", "CMYK", put(png(IMAGE.convert("CMYK"), "TIFF")), READ),
    Case("picture", "CMYK JPEG", put(png(IMAGE.convert("CMYK"), "JPEG")), READ),
    Case("picture", "float in range", put(png((photo()[:, :, 0] / 255).astype(np.float32), "TIFF")), READ),
    Case("picture", "WebP under the name of PNG", put(png(kind="WEBP")), READ),
    Case("picture", "turned", put(turned()), READ),
    Case("picture", "broken EXIF", put(broken_exif()), READ),
    Case("picture", "behind a byte-order mark", put(b"\xef\xbb\xbf" + png()), REPLACED, "not a readable picture"),
    Case("picture", "empty", put(b""), REPLACED, "it is empty"),
    Case("picture", "cut short", put(png()[:200]), REPLACED, "not a readable picture"),
    Case("picture", "its second half zeros", put(half_zeros()), REPLACED, "not a readable picture"),
    Case("picture", "cut JPEG", put(png(kind="JPEG")[:500]), REPLACED, "not a readable picture"),
    Case("picture", "web page", put("<html>404</html>"), REPLACED, "not a readable picture"),
    Case("picture", "zeros", put(bytes(4096)), REPLACED, "not a readable picture"),
    Case("picture", "bomb", put(bomb()), REPLACED, "million"),
    Case("picture", "just over the limit", put(bomb(13_000, 12_000)), REPLACED, "million"),
    Case("picture", "animation", put(png(kind="GIF", save_all=True, append_images=[IMAGE.rotate(9)])), REPLACED,
         "2 frames"),
    Case("picture", "pages", put(png(kind="TIFF", save_all=True, append_images=[IMAGE])), REPLACED, "2 frames"),
    Case("picture", "icon", put(png(photo(5, 96))), REPLACED, "a side must have 8"),
    Case("picture", "32-bit integers", put(png((photo()[:, :, 0]).astype(np.int32), "TIFF")), REPLACED, "8 or 16 bits"),
    Case("picture", "metres", put(png(np.full((72, 96), 3.5, np.float32), "TIFF")), REPLACED, "outside [0, 1]"),
    Case("picture", "NaN", put(png(np.full((72, 96), np.nan, np.float32), "TIFF")), REPLACED, "outside [0, 1]"),
    Case("picture", "a folder", lambda path: path.mkdir(), REPLACED, "no such file"),
    Case("picture", "missing", lambda path: None, REPLACED, "no such file"),
]  # fmt: skip

MAPS = [
    Case("map", "half the size", put(png(photo(36, 48))), READ),
    Case("map", "strokes on glass", put(png(GLASS)), READ),
    Case("map", "another shape", put(png(photo(72, 72))), REPLACED, "their shapes differ"),
    Case("map", "upright", put(png(photo(96, 72))), REPLACED, "their shapes differ"),
    Case("map", "empty", put(b""), REPLACED, "it is empty"),
    Case("map", "text", put("depth"), REPLACED, "not a readable picture"),
    Case("map", "missing", lambda path: None, REPLACED, "no such file"),
]

CAPTIONS = [
    Case("caption", "UTF-8", put("a café\n"), READ, "a café"),
    Case("caption", "byte-order mark", put(b"\xef\xbb\xbfa star"), READ, "a star"),
    Case("caption", "UTF-16 of an editor", put("a stär".encode("utf-16")), READ, "a stär"),
    Case("caption", "Windows line ends", put("a star\r\n"), READ, "a star"),
    Case("caption", "empty", put(""), READ, ""),
    Case("caption", "emoji", put("a 🦀"), READ, "a 🦀"),
    Case("caption", "Latin-1", put("a caf\xe9".encode("latin-1")), REFUSED, "not UTF-8 text"),
    Case("caption", "binary", put(b"\0\1\2\3"), REFUSED, "not text"),
]


def lines(*entries: Any) -> Callable[[Path], object]:
    return put("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))


GOOD = {"image": "a.png", "text": "a star"}
LISTS = [
    Case("list.jsonl", "plain", lines(GOOD), READ, "a star"),
    Case("list.jsonl", "byte-order mark", put(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), READ, "a star"),
    Case("list.jsonl", "blank lines", lines("", GOOD, ""), READ, "a star"),
    Case("list.jsonl", "an array", lines([GOOD]), READ, "a star"),
    Case("list.json", "an indented array", put(json.dumps([GOOD], indent=2)), READ, "a star"),
    Case("list.jsonl", "a number for a caption", lines({**GOOD, "text": 7}), READ, "7"),
    Case("list.jsonl", "null for a caption", lines({**GOOD, "text": None}), READ, ""),
    Case("list.jsonl", "backslashes", lines({**GOOD, "image": ".\\a.png"}), READ, "a star"),
    Case("list.csv", "columns", lines("file_name,text", 'a.png,"a star, red"'), READ, "a star, red"),
    Case("list.csv", "a newline in quotes", lines("file_name,text", 'a.png,"a\nstar"'), READ, "a star"),
    Case("list.csv", "semicolons", lines("file_name;text", "a.png;a star"), REFUSED, "names no picture"),
    Case("list.csv", "a column too many", lines("file_name,text", "a.png,a,b"), REFUSED, "number of columns"),
    Case("list.csv", "an open quote", lines("file_name,text", 'a.png,"a'), REFUSED, "no CSV"),
    Case("list.jsonl", "no JSON", lines(GOOD, "{oops"), REFUSED, "line 2"),
    Case("list.jsonl", "a number", lines(GOOD, "3"), REFUSED, "line 2 must be a JSON object"),
    Case("list.jsonl", "a list of captions", lines({**GOOD, "text": ["a", "b"]}), REFUSED, "text of type list"),
    Case("list.jsonl", "an object for a picture", lines({"image": {"bytes": "x"}}), REFUSED, "image of type dict"),
    Case("list.jsonl", "true for a picture", lines({"image": True}), REFUSED, "image of type bool"),
    Case("list.jsonl", "no picture", lines({"text": "a"}), REFUSED, "names no picture"),
    Case("list.jsonl", "a web address", lines({"image": "https://x.org/a.png"}), REFUSED, "nothing is downloaded"),
    Case("list.jsonl", "Latin-1", put(b'{"image": "a.png", "text": "caf\xe9"}'), REFUSED, "not UTF-8"),
    Case("list.jsonl", "empty", put(""), REFUSED, "holds no pictures"),
    Case("list.jsonl", "too deep", put("[" * 100_000), REFUSED, "no JSON"),
    Case("metadata.csv", "of an image folder", lines("file_name,caption", "a.png,a star"), READ, "a star"),
    Case("metadata.jsonl", "of an image folder", lines({"file_name": "a.png", "text": "a star"}), READ, "a star"),
    Case("metadata.csv", "without file_name", lines("name,caption", "a.png,a star"), REFUSED, "names no picture"),
    Case("metadata.parquet", "of an image folder", put(b"PAR1"), REFUSED, "metadata.jsonl"),
]


def tar(**files: bytes) -> Callable[[Path], object]:
    """A shard of these files, `_` standing for a dot."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w") as archive:
            for name, content in {**files, "z_png": png(), "z_txt": b"the good one"}.items():
                info = tarfile.TarInfo(name.replace("_", "."))
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))

    return write


SHARDS = [
    Case("shard", "plain", tar(a_png=png(), a_txt=b"a star"), READ, "a star"),
    Case("shard", "caption in JSON", tar(a_png=png(), a_json=b'{"text": "a star"}'), READ, "a star"),
    Case("shard", "caption with a byte-order mark", tar(a_png=png(), a_txt=b"\xef\xbb\xbfa star"), READ, "a star"),
    Case("shard", "no caption", tar(a_png=png()), READ, ""),
    Case("shard", "no picture", tar(a_txt=b"a star"), REPLACED, "none of its files ends in"),
    Case("shard", "broken picture", tar(a_png=png()[:99], a_txt=b"a"), REPLACED, "not a readable picture"),
    Case("shard", "broken JSON", tar(a_png=png(), a_json=b"{oops"), REPLACED, "cannot use sample"),
    Case("shard", "JSON of another kind", tar(a_png=png(), a_json=b"[1]"), REPLACED, "cannot use sample"),
    Case("shard", "list of captions", tar(a_png=png(), a_json=b'{"text": ["a"]}'), REPLACED, "text of type list"),
    Case("shard", "Latin-1 caption", tar(a_png=png(), a_txt=b"caf\xe9"), REPLACED, "not UTF-8"),
    Case("shard", "map of another shape", tar(a_png=png(), a_hint_png=png(photo(72, 72))), REPLACED,
         "their shapes differ"),
    Case("shard", "cut archive", lambda path: (tar(a_png=png())(path), path.write_bytes(path.read_bytes()[:600])),
         REFUSED, "hold no"),
    Case("shard", "no archive", put("not a tar"), REFUSED, "hold no"),
]  # fmt: skip


def weights(**tensors: torch.Tensor) -> bytes:
    return save(tensors)


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        for name, content in files.items():
            z.writestr(name, content)
    return buffer.getvalue()


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self) -> tuple:
        import os

        return os.system, ("true",)


def evil() -> bytes:
    import pickle

    return pickle.dumps({"state_dict": Evil()})


HALF_HEADER = struct.pack("<Q", 40) + b'{"a": {"dtype": "F32"'
CHECKPOINTS = [
    Case("checkpoint", "empty", put(b""), REFUSED, "empty"),
    Case("checkpoint", "web page", put("<!doctype html><html>"), REFUSED, "web page"),
    Case("checkpoint", "LFS pointer", put("version https://git-lfs.github.com/spec/v1"), REFUSED, "Git LFS"),
    Case("checkpoint", "text", put("hello"), REFUSED, "neither"),
    Case("checkpoint", "half a header", put(HALF_HEADER), REFUSED, "damaged"),
    Case("checkpoint", "cut", put(weights(a=torch.ones(64))[:120]), REFUSED, "damaged"),
    Case("checkpoint", "header that is no JSON", put(struct.pack("<Q", 8) + b"{oops!!}"), REFUSED, "damaged"),
    Case("checkpoint", "no tensors", put(weights()), REFUSED, "holds no tensors"),
    Case("checkpoint", "unknown tensors", put(weights(a=torch.ones(2))), REFUSED, "no Stable Diffusion checkpoint"),
    Case("checkpoint", "a LoRA", put(weights(**{"lora_unet_a.lora_up.weight": torch.ones(2)})), REFUSED, "is a LoRA"),
    Case("checkpoint", "half a U-Net", put(weights(**{"input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)})), REFUSED,
         "no Stable Diffusion U-Net"),
    Case("checkpoint", "pickle that runs code", put(evil()), REFUSED, "could run code"),
    Case("checkpoint", "pickle of a list", put(pickled([1, 2])), REFUSED, "not a dict"),
    Case("checkpoint", "pickle of numbers", put(pickled({"a": 1})), REFUSED, "holds no tensors"),
    Case("checkpoint", "cut pickle", put(pickled({"a": torch.ones(64)})[:300]), REFUSED, "damaged"),
    Case("checkpoint", "another zip", put(archive(a=b"1")), REFUSED, "damaged"),
    Case("checkpoint", "a schedule of its own",
         put(weights(**{"model.diffusion_model.a": torch.ones(2), "alphas_cumprod": torch.linspace(0.9, 0.1, 1000)})),
         REFUSED, "noise schedule of its own"),
    Case("checkpoint", "missing", lambda path: None, REFUSED, "no weights at"),
]  # fmt: skip


def folder(**files: Any) -> Callable[[Path], object]:
    """A diffusers folder: `__` in a name stands for a slash, content is JSON or bytes."""

    def write(path: Path) -> None:
        for name, content in files.items():
            file = path / f"{name.replace('__', '/')}.{'safetensors' if isinstance(content, bytes) else 'json'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())

    return write


UNET = {"_class_name": "UNet2DConditionModel"}
ONE = weights(**{"down_blocks.0.resnets.0.conv1.weight": torch.ones(4, 4, 3, 3)})
FOLDERS = [
    Case("folder", "empty", lambda path: path.mkdir(), REFUSED, "no diffusers folder"),
    Case("folder", "config that is no JSON",
         lambda path: (path.mkdir(), (path / "config.json").write_text("{oops")), REFUSED, "is not JSON"),
    Case("folder", "config that is a list", folder(config=[1]), REFUSED, "expected a JSON object"),
    Case("folder", "another class", folder(config={"_class_name": "Flux"}), REFUSED, "describes Flux"),
    Case("folder", "architectures of another kind", folder(config={"architectures": 3}), REFUSED, "config.json"),
    Case("folder", "no weights", folder(config=UNET), REFUSED, "no weights in"),
    Case("folder", "weights of another model",
         folder(config=UNET, diffusion_pytorch_model=weights(**{"embeddings.token_embedding.weight": torch.ones(2)})),
         REFUSED, "another model's"),
    Case("folder", "heads of words", folder(config={**UNET, "attention_head_dim": "many"}, diffusion_pytorch_model=ONE),
         REFUSED, "U-Net"),
    Case("folder", "hints with blue first",
         folder(config={"_class_name": "ControlNetModel", "controlnet_conditioning_channel_order": "bgr"},
                diffusion_pytorch_model=weights(**{"controlnet_cond_embedding.conv_in.weight": torch.ones(2)})),
         REFUSED, "channel_order='bgr'"),
    Case("folder", "shifted latents",
         folder(config={"_class_name": "AutoencoderKL", "shift_factor": 0.1},
                diffusion_pytorch_model=weights(
                    **{"encoder.down_blocks.0.resnets.0.conv1.weight": torch.ones(2)})),
         REFUSED, "shift_factor=0.1"),
    Case("folder", "an unknown schedule",
         folder(unet__config=UNET, unet__diffusion_pytorch_model=ONE,
                scheduler__scheduler_config={"beta_schedule": "squaredcos_cap_v2"}), REFUSED, "noise schedule"),
    Case("folder", "betas of its own",
         folder(unet__config=UNET, unet__diffusion_pytorch_model=ONE,
                scheduler__scheduler_config={"trained_betas": [0.1]}), REFUSED, "trained_betas"),
    Case("folder", "an unknown prediction",
         folder(unet__config=UNET, unet__diffusion_pytorch_model=ONE,
                scheduler__scheduler_config={"prediction_type": "sample"}), REFUSED, "prediction_type"),
    Case("folder", "an index without its shards",
         folder(config=UNET, diffusion_pytorch_model__safetensors__index={"weight_map": {}}), REFUSED, "no weights"),
]  # fmt: skip

JOBS = [
    Case("job", "a number for a prompt", as_json({"prompt": 1984}), READ, "1984"),
    Case("job", "no prompt", as_json({"prompt": ""}), READ, ""),
    Case("job", "null for a prompt", as_json({"prompt": None}), REFUSED, "prompt must be text"),
    Case("job", "a list for a prompt", as_json({"prompt": ["a"]}), REFUSED, "prompt must be text"),
    Case("job", "true for a negative prompt", as_json({"negative": True}), REFUSED, "negative must be text"),
    Case("job", "NaN for a scale", put('{"scale": NaN}'), REFUSED, "scale must be a number"),
    Case("job", "infinity for a start", put('{"start": Infinity}'), REFUSED, "start must be a number"),
    Case("job", "null for a seed", as_json({"seed": None}), REFUSED, "seed must be a whole number"),
    Case("job", "a seed below 0", as_json({"seed": -1}), REFUSED, "seed must be at least 0"),
    Case("job", "a huge seed", as_json({"seed": 2**70}), REFUSED, "seed must be"),
    Case("job", "too many images", as_json({"count": 10**12}), REFUSED, "count must be at most"),
    Case("job", "half an image", as_json({"count": 1.5}), REFUSED, "count must be a whole number"),
    Case("job", "a word for a size", as_json({"size": "big"}), REFUSED, "size must be"),
    Case("job", "one side", as_json({"size": [64]}), REFUSED, "size must be"),
    Case("job", "three sides", as_json({"size": [64, 64, 3]}), REFUSED, "size must be"),
    Case("job", "a number for a hint", as_json({"hint": 3}), REFUSED, "hint must be a file"),
    Case("job", "NaN among scales", put('{"scales": [NaN]}'), REFUSED, "scales must be numbers"),
    Case("job", "a list for a mode", as_json({"mode": ["balanced"]}), REFUSED, "mode must be a word"),
    Case("job", "a word for pool", as_json({"pool": "yes"}), REFUSED, "pool must be true or false"),
    Case("job", "a word for more", as_json({"more": "depth"}), REFUSED, "more must be a list"),
    Case("job", "numbers in more", as_json({"more": [1]}), REFUSED, "more must be a list"),
    Case("job", "a name that leaves the folder", as_json({"name": "../up"}), REFUSED, "plain file name"),
    Case("job", "an unknown key", as_json({"promt": "a"}), REFUSED, "unknown key promt"),
    Case("job", "no JSON", put("{oops"), REFUSED, "not JSON"),
    Case("job", "a list", put("[1]"), REFUSED, "not an object"),
    Case("job", "Latin-1", put(b'{"prompt": "caf\xe9"}'), REFUSED, "not UTF-8"),
]

OVERRIDES = [
    Case("sample", "scale=nan", lambda _: None, REFUSED, "scale must be a finite number"),
    Case("sample", "sampler.guidance=inf", lambda _: None, REFUSED, "sampler.guidance must be a finite number"),
    Case("sample", "count=-1", lambda _: None, REFUSED, "count must be whole and at least 1"),
    Case("sample", "scale=much", lambda _: None, REFUSED, "scale must be a number"),
    Case("sample", "+prompts=x", lambda _: None, REFUSED, "did you mean prompt"),
    Case("train", "optimizer.lr=nan", lambda _: None, REFUSED, "optimizer.lr must be a finite number"),
    Case("train", "steps=0", lambda _: None, REFUSED, "steps must be whole and at least 1"),
    Case("train", "batch_size=many", lambda _: None, REFUSED, "batch_size must be a number"),
    Case("train", "+step=3", lambda _: None, REFUSED, "did you mean"),
]

TABLE = [*PICTURES, *MAPS, *CAPTIONS, *LISTS, *SHARDS, *CHECKPOINTS, *FOLDERS, *JOBS, *OVERRIDES]


if __name__ == "__main__":
    for number, case in enumerate(TABLE):
        place = Path(sys.argv[1]) / f"{number:03d} {case.kind} {case.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        case.make(place)
    print(f"{len(TABLE)} inputs in {sys.argv[1]}")
