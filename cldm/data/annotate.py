"""From pictures to a training set: the maps of a whole folder, in the layout of fill50k.

A kill at any time loses nothing: every picture is written through a temporary file, and each finished item is one
line in journal.jsonl, from which the next run goes on. Only items that were in work at that moment are done again.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from cldm.conditions import Condition, HintWarning, warn_if_blank
from cldm.data.decoding import PictureError, decode, on_white, read_photo
from cldm.data.hints import Origin, map_tensor
from cldm.data.listing import Item
from cldm.data.transforms import Size, cover
from cldm.pictures import grid, save_atomically
from ldm.files import content, json_lines, locked, remove_partial, whole, write_json, write_text
from ldm.identity import decisive

JOURNAL, PROMPTS, SKIPPED = "journal.jsonl", "prompt.json", "skipped.jsonl"
PARAMS, REPORT, PREVIEW = "params.json", "report.json", "preview.png"

Record = dict[str, Any]
"""One line of the journal: name, file (size, time and content of the picture), and either skipped (the reason) or
source, target, prompt, width, height, grey, digest, warning."""


@dataclass(frozen=True)
class Annotation:
    """What is done with every picture.

    size: pictures are cropped and resized to it, as training and sampling do at that size, or None. resolution: the
    short side of map and picture in pixels instead, or None for the picture's own. min_side: smaller pictures are
    skipped. link: hard-link pictures that need no change instead of copying them.
    """

    condition: Condition
    out: Path
    resolution: int | None = None
    size: Size | None = None
    min_side: int = 64
    link: bool = False

    def facts(self) -> dict[str, Any]:
        """What the output depends on, for params.json."""
        params = decisive(self.condition)
        return {
            "condition": params.pop("name"),
            "version": params.pop("version"),
            "params": params,
            "polarity": self.condition.polarity,
            "resolution": self.resolution,
            "size": None if self.size is None else [*self.size],
            "min_side": self.min_side,
        }

    def __call__(self, item: Item) -> Record:
        """Write source and target of one item; its journal line. Never raises for a bad picture."""
        return {**self._made(item), "file": _stamp(item.image)}

    def _made(self, item: Item) -> Record:
        try:
            picture = decode(item.image, min_side=self.min_side)
        except PictureError as error:
            return {"name": item.name, "skipped": str(error)}
        image = self._sized(on_white(picture))
        untouched = picture.plain and image.shape[:2] == picture.rgb.shape[:2]
        try:
            found = self.condition(image)
        except (cv2.error, RuntimeError, ValueError) as error:
            reason = f"cannot use image {item.image}: {self.condition.name} failed: {error}"
            return {"name": item.name, "skipped": reason}
        source = f"source/{_as_png(item.name)}"
        target = self._write_target(item, image, untouched)
        plain = found.shape[2] == 3 and np.array_equal(found[:, :, :2], found[:, :, 1:])
        info = Origin.of(self.condition, (image.shape[0], image.shape[1])).info()
        # three equal planes: one says it all
        _write_png(found[:, :, 0] if plain else found, self.out / source, info)
        return {
            "name": item.name,
            "source": source,
            "target": target,
            "prompt": item.caption,
            "height": image.shape[0],
            "width": image.shape[1],
            "grey": is_grey(image),
            "digest": hashlib.blake2b(image.tobytes(), digest_size=8).hexdigest(),
            "warning": _warning(found, self.condition),
        }

    def _sized(self, image: np.ndarray) -> np.ndarray:
        if self.size is not None:
            return cover(image, self.size)
        return image if self.resolution is None else short_side(image, self.resolution)

    def _write_target(self, item: Item, image: np.ndarray, untouched: bool) -> str:
        if untouched:
            target = f"target/{item.name}" if Path(item.name).suffix else f"target/{item.name}{item.image.suffix}"
            _copy(item.image, self.out / target, self.link)
            return target
        target = f"target/{_as_png(item.name)}"
        _write_png(image, self.out / target)
        return target


def annotate(items: Sequence[Item], job: Annotation, workers: int = 0, preview: int = 0) -> dict[str, Any]:
    """Annotate all items that the journal does not have yet; returns the closing report.

    workers: processes beside this one; 0 works in this one. Raises ValueError if the folder was made with other
    settings, or another process works in it. Writes params.json, prompt.json, skipped.jsonl, report.json and, for
    `preview` items, preview.png.
    """
    with locked(job.out):
        return _annotate(items, job, workers, preview)


def _annotate(items: Sequence[Item], job: Annotation, workers: int, preview: int) -> dict[str, Any]:
    _check_settings(job)
    job.condition(np.zeros((64, 64, 3), dtype=np.uint8))  # missing weights are better found now
    clashes = [name for name, count in Counter(_as_png(item.name) for item in items).items() if count > 1]
    if clashes:
        raise ValueError(f"two pictures would both be written as {clashes[0]}; rename one of them")
    done = read_journal(job.out / JOURNAL)
    below = [path for name in ("source", "target") for path in (job.out / name).rglob("*") if path.is_dir()]
    remove_partial(job.out, job.out / "source", job.out / "target", *below)
    todo = [item for item in items if item.name not in done or _stale(item, done[item.name], job.out)]
    with (
        open(job.out / JOURNAL, "a", encoding="utf-8") as journal,
        tqdm(total=len(items), initial=len(items) - len(todo), desc=job.condition.name, unit="img") as bar,
    ):
        for record in _run(todo, job, workers):
            journal.write(json.dumps(record, ensure_ascii=False) + "\n")
            journal.flush()
            done[record["name"]] = record
            bar.update()
    records = [{**done[item.name], "prompt": item.caption} for item in items]
    return _close(records, job, preview)


def read_journal(path: Path) -> dict[str, Record]:
    """Records by name. A last line that a kill cut short is removed from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return {record["name"]: record for record in map(json.loads, whole.splitlines())}


def _stamp(path: Path) -> list[Any] | None:
    """What tells a file from another one, without reading it (`_marks`), and its content."""
    try:
        return [*_marks(path), content(path)]
    except OSError:
        return None


def _marks(path: Path) -> list[int]:
    """Size, time, and what also changes where another file of the same size and time takes its place (cp -p)."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]


def _stale(item: Item, record: Record, out: Path) -> bool:
    """Whether the picture is another one than that of the record, whose content is read where its marks differ, or
    what was made of it is gone. A picture that is gone leaves the record as it is."""
    known = record.get("file")
    if not item.image.is_file():
        return False
    lost = "file" in record and known is None
    if lost or any(not (out / record[name]).is_file() for name in ("source", "target") if record.get(name)):
        return True
    if known is None:  # of a version that did not tell
        return False
    return _marks(item.image) != known[:-1] and content(item.image) != known[-1]


def _check_settings(job: Annotation) -> None:
    path, facts = job.out / PARAMS, job.facts()
    if path.exists():
        there = json.loads(path.read_text())
        differing = [key for key in facts if there.get(key) != facts[key]]
        if differing:
            told = "; ".join(f"{key} is {there.get(key)!r} there, {facts[key]!r} now" for key in differing)
            raise ValueError(f"{job.out} was annotated with other settings ({told}); choose another output folder")
    else:
        write_json(path, facts)


def _run(items: Sequence[Item], job: Annotation, workers: int) -> Iterator[Record]:
    if workers < 1 or len(items) < 2:
        yield from map(job, items)
        return
    # not fork: OpenCV and OpenMP threads of this process would be locks without owners in a copy of it
    server = "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if server else "spawn")
    if server:
        context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        waiting = iter(items)
        running: set[Future[Record]] = set()
        while True:
            for item in waiting:
                running.add(pool.submit(job, item))
                if len(running) >= 4 * workers:
                    break
            if not running:
                return
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()


def _start_worker() -> None:
    """One thread each; and no worker outlives a killed run."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(run: Any) -> None:
    """End this process when that of the run ends. (This one's parent is the fork server, which lives as long as its
    children do.)"""
    run.join()
    os._exit(1)


def short_side(image: np.ndarray, resolution: int) -> np.ndarray:
    """(h, w, c) uint8 with its short side at `resolution`, aspect ratio kept."""
    height, width = image.shape[:2]
    if min(height, width) == resolution:
        return image
    scale = resolution / min(height, width)
    size = (max(round(width * scale), resolution), max(round(height * scale), resolution))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _as_png(name: str) -> str:
    return name if name.lower().endswith(".png") else f"{name}.png"


def is_grey(image: np.ndarray) -> bool:
    """Whether the channels of (h, w, 3) uint8 differ by less than 2 on average."""
    red, green, blue = cv2.split(image)
    return float(cv2.absdiff(red, green).mean() + cv2.absdiff(green, blue).mean()) < 2


def _copy(source: Path, target: Path, link: bool) -> None:
    with whole(target) as partial:
        if link:
            os.link(source.resolve(), partial)
        else:
            shutil.copyfile(source, partial)


def _write_png(pixels: np.ndarray, path: Path, info: PngInfo | None = None) -> None:
    save_atomically(Image.fromarray(pixels), path, compress_level=1, pnginfo=info)


def _warning(found: np.ndarray, condition: Condition) -> str:
    hint = map_tensor(condition.to_hint(found))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HintWarning)
        return "; ".join(warn_if_blank(hint, condition.polarity, "map"))


def _close(records: Sequence[Record], job: Annotation, preview: int) -> dict[str, Any]:
    kept = [record for record in records if "skipped" not in record]
    skipped = [record for record in records if "skipped" in record]
    lines = [{key: record[key] for key in ("source", "target", "prompt")} for record in kept]
    write_text(job.out / SKIPPED, json_lines({"file": r["name"], "reason": r["skipped"]} for r in skipped))
    write_text(job.out / PROMPTS, json_lines(lines))
    report = make_report(records)
    write_json(job.out / REPORT, report)
    if preview and kept:
        save_atomically(contact_sheet(kept, job.out, preview, job.condition), job.out / PREVIEW)
    return report


def make_report(records: Sequence[Record]) -> dict[str, Any]:
    """Counts over a finished annotation: what was skipped, and what of the rest deserves a look."""
    kept = [record for record in records if "skipped" not in record]
    copies = Counter(record["digest"] for record in kept)
    sides = Counter(min(record["height"], record["width"]) // 128 * 128 for record in kept)
    return {
        "pictures": len(records),
        "annotated": len(kept),
        "skipped": len(records) - len(kept),
        "duplicates": sum(count - 1 for count in copies.values()),
        "grey_share": round(sum(record["grey"] for record in kept) / max(len(kept), 1), 4),
        "empty_captions": sum(not record["prompt"] for record in kept),
        "suspicious_maps": sum(bool(record["warning"]) for record in kept),
        "short_side": {f"{side}..{side + 127}": sides[side] for side in sorted(sides)},
    }


def contact_sheet(
    records: Sequence[Record], out: Path, count: int, condition: Condition, side: int = 224
) -> Image.Image:
    """Pictures and maps of `count` items, spread evenly over all."""
    chosen = [records[i * len(records) // min(count, len(records))] for i in range(min(count, len(records)))]
    columns = {
        name: torch.stack([_fit(read_photo(out / r[key], min_side=1), side) for r in chosen])
        for name, key in (("picture", "target"), (condition.name, "source"))
    }
    return grid(columns, [record["prompt"] or record["name"] for record in chosen])


def _fit(image: np.ndarray, side: int) -> torch.Tensor:
    """(3, side, side) in [-1, 1]: the whole picture, centred on grey."""
    scale = side / max(image.shape[:2])
    width, height = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    canvas = np.full((side, side, 3), 128, dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = small
    return torch.from_numpy(canvas).permute(2, 0, 1).float() / 127.5 - 1
