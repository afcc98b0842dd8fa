"""The images of a job list: drawn in batches, written with their settings, and resumed where they stopped."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count, groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cldm.pictures import grid, save_atomically, to_pil
from cldm.sampling.jobs import MANIFEST, Job, load_image
from ldm.files import append_line, content, read_lines


@dataclass(frozen=True)
class Shot:
    """One image of a job: the seed, and the file it goes to."""

    job: Job
    seed: int
    file: str


@dataclass
class Ledger:
    """The folder of a job list: images, their settings, and which of them are done.

    common: settings that all images share, such as sampler and checkpoints.

    Only one process may fill a folder.
    """

    folder: Path
    common: dict[str, Any]
    flat: bool = False  # one job: its images lie in the folder itself
    resume: bool = True
    done: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in read_lines(self.folder / MANIFEST) if self.resume else ():
            self.done[entry.pop("file")] = entry

    def settings(self, shot: Shot) -> dict[str, Any]:
        own = {k: v for k, v in asdict(shot.job).items() if k not in ("count", "seed")}
        pictures = {path: content(path) for path in shot.job.pictures()}  # an edited one draws anew
        told = {**self.common, **own, "pictures": pictures, "seed": shot.seed}
        return json.loads(json.dumps(told))  # as it reads back from a file

    def shots(self, job: Job) -> list[Shot]:
        place = "" if self.flat else f"{job.name}/"
        return [Shot(job, seed, f"{place}seed_{seed}.png") for seed in range(job.seed, job.seed + job.count)]

    def missing(self, jobs: Sequence[Job]) -> list[Shot]:
        """Images that are not there yet, or were drawn with other settings."""
        return [
            shot
            for job in jobs
            for shot in self.shots(job)
            if self.done.get(shot.file) != self.settings(shot) or not (self.folder / shot.file).is_file()
        ]

    def refuse_strangers(self, shots: Sequence[Shot]) -> None:
        """ValueError for a file in the place of an image or a sheet that is none of ours: it may have no copy."""
        sheets = {self.sheet_path(shot.job) for shot in shots}
        for path in (*(self.folder / shot.file for shot in shots), *sheets):
            if path.exists() and not _is_ours(path):
                raise ValueError(f"{path} is in the place of an image to draw, and was not drawn here; set out= to "
                                 "another folder, or move it")  # fmt: skip

    def write(self, shot: Shot, image: Tensor) -> None:
        """The PNG with its settings inside, then its line in the manifest: a line means a whole file."""
        if not bool(torch.isfinite(image).all()):
            raise ValueError(f"the image of seed {shot.seed} is not finite (NaN): the weights or settings of "
                             f"{shot.job.name} overflow; try precision=fp32 or bf16, and other weights")  # fmt: skip
        settings, path = self.settings(shot), self.folder / shot.file
        info = PngInfo()
        info.add_text("settings", json.dumps(settings))
        save_atomically(to_pil(image), path, pnginfo=info)
        append_line(self.folder / MANIFEST, {"file": shot.file, **settings})
        self.done[shot.file] = settings

    def sheet(self, job: Job, inputs: Mapping[str, Tensor]) -> Path:
        """sheet.png: what the job was given, as images in [-1, 1], and every image of it, read back from its file."""
        drawn = {f"seed {shot.seed}": load_image(self.folder / shot.file, job.size) for shot in self.shots(job)}
        path = self.sheet_path(job)
        info = PngInfo()
        info.add_text("images", self._on_sheet(job))
        save_atomically(grid({**inputs, **drawn}, [job.prompt], pairs=1), path, pnginfo=info)
        return path

    def has_sheet(self, job: Job) -> bool:
        """Whether the job's sheet is there and shows these very images."""
        path = self.sheet_path(job)
        if not path.is_file():
            return False
        with Image.open(path) as sheet:
            return sheet.info.get("images") == self._on_sheet(job)

    def _on_sheet(self, job: Job) -> str:
        return json.dumps([[shot.file, self.done.get(shot.file)] for shot in self.shots(job)])

    def sheet_path(self, job: Job) -> Path:
        """Where the job's sheet lies."""
        return (self.folder / self.shots(job)[0].file).parent / "sheet.png"


def _is_ours(path: Path) -> bool:
    """Whether the file was written by a Ledger."""
    try:
        with Image.open(path) as image:
            return bool({"settings", "images"} & image.info.keys())
    except (OSError, ValueError):
        return False


def free_folder(first: Path, common: dict[str, Any], job: Job) -> Path:
    """The first of `first`, first-2, first-3, ... that holds no images of other settings, and none of unknown ones in
    the place of the job's. Settings are the same whatever the seeds, and wherever weights lie."""
    folders = (first.with_name(f"{first.name}-{number}" if number > 1 else first.name) for number in count(1))
    return next(folder for folder in folders if _is_free(Ledger(folder, common, flat=True), job))


def _is_free(held: Ledger, job: Job) -> bool:
    shots = held.shots(job)
    strange = [shot for shot in shots if shot.file not in held.done and (held.folder / shot.file).exists()]
    flat = (told for file, told in held.done.items() if "/" not in file)
    return not strange and all(_decisive(told) == _decisive(held.settings(shots[0])) for told in flat)


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    weights = {name: _contents(settings.get(name)) for name in ("checkpoints", "base")}
    return {**settings, **weights, "seed": None}


def _contents(files: Any) -> Any:
    """Files as a manifest names them, without their places."""
    if isinstance(files, list):
        return [_contents(file) for file in files]
    return files.get("content") if isinstance(files, Mapping) else files


def batches(shots: Sequence[Shot], size: int) -> Iterator[list[Shot]]:
    """Shots that can be drawn together, in order, at most `size` at a time."""

    def alike(shot: Shot) -> tuple:
        job = shot.job
        controls = tuple(replace(unit, hint="", photo=None, region=None) for unit in job.units)
        regions = tuple(unit.region is None for unit in job.units)
        return job.size, controls, regions, job.image is None, job.strength, job.mask is None, job.sampler

    for _, group in groupby(shots, alike):
        rest = list(group)
        while rest:
            yield rest[:size]
            rest = rest[size:]


def draw_in_batches(
    shots: Sequence[Shot],
    draw: Callable[[list[Shot]], Tensor],
    ledger: Ledger,
    size: int,
    finished: Callable[[Job], None] = lambda _: None,
) -> None:
    """draw(shots) -> (n, 3, h, w), for all shots; a batch that the device cannot hold is halved, and later ones too.

    finished: hears of each job whose last image of `shots` is written.
    """
    last = {shot.job.name: shot for shot in shots}
    for batch in batches(shots, size):
        rest = batch
        while rest:
            now = rest[:size]
            try:
                images = draw(now)
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                size = max(len(now) // 2, 1)
                torch.cuda.empty_cache()
                print(f"out of memory: going on with batches of {size}")
                continue
            for shot, image in zip(now, images, strict=True):
                ledger.write(shot, image)
                if last[shot.job.name] == shot:
                    finished(shot.job)
            rest = rest[len(now) :]
