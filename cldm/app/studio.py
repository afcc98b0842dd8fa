"""Drawing for a page: a checkpoint that stays loaded, and a folder for each drawing, filled as sample.py fills it."""

import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from cldm.app.wish import Control, Wish, command_line, written
from cldm.conditions import Condition
from cldm.pictures import to_pil
from cldm.runs.building import instantiate
from cldm.runs.configs import composed, configs_at_hand, mistakes_refused
from cldm.runs.folder import Refused
from cldm.runs.trained import base_content, checkpoints_of, device_and_precision, trained_size
from cldm.sampling.drawing import Hands, Networks, Plan, load_networks, sample
from cldm.sampling.jobs import UnitSettings
from cldm.sampling.ledger import MANIFEST
from ldm.files import content, read_lines

Report = Callable[[int, int], None]
"""Hears of each step: how many are done, of how many."""


class Stopped(Exception):
    """The drawing was asked to end."""


class Steps:
    """A progress bar in tqdm's way, which tells a function, and ends the drawing where `stop` is set."""

    def __init__(self, report: Report, stop: threading.Event, total: int):
        self.report, self.stop, self.total, self.done = report, stop, total, 0

    def update(self, steps: int) -> None:
        """Some steps are done. Raises Stopped."""
        if self.stop.is_set():
            raise Stopped
        self.done += steps
        self.report(self.done, self.total)

    def __enter__(self) -> "Steps":
        self.update(0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        pass


class Kept:
    """The networks of the last plan; read again only where a plan needs others."""

    def __init__(self) -> None:
        self.key: Any = None
        self.networks: Networks | None = None

    def __call__(self, found: Plan, cfg: DictConfig) -> Networks:
        files = [content(path) for path in found.paths], base_content(found.paths[0], found.trainings[0])
        built = [str((training.model, training.control)) for training in found.trainings]
        key = (files, built, device_and_precision(cfg), cfg.sampler.low_memory)
        if self.networks is None or key != self.key:
            self.networks = None  # two sets may not fit
            self.networks, self.key = load_networks(found, cfg), key
        return self.networks


@dataclass(frozen=True)
class Drawn:
    """A drawing: its folder, its images with their settings, the hint as the ControlNet got it, and what to say."""

    folder: Path
    images: list[Path]
    settings: list[dict[str, Any]]
    hint: Image.Image
    line: str
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False


class Studio:
    """A checkpoint, found as sample.py finds it, that stays loaded. One drawing at a time; others wait.

    given: overrides of sample.py that hold for every drawing, the checkpoint among them.
    Raises Refused where they name no checkpoint that can be used.
    """

    def __init__(self, given: Sequence[str] = ()):
        self.lock, self.kept = threading.Lock(), Kept()
        with sentences():
            self.cfg = composed(given, "sample")
            with configs_at_hand():
                (self.path, *_), (self.training, *_) = checkpoints_of(self.cfg.checkpoint, self.cfg)
                self.condition: Condition = instantiate(self.training.condition, _convert_="all")
        kept = [item for item in given if item.split("=")[0] not in ("checkpoint", "out")]
        self.given = [f"checkpoint={written(str(self.path))}", *kept]
        size = self.cfg.size or trained_size(self.training)
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.folder = (Path(self.cfg.out) if self.cfg.out else self.path.parent / "samples" / "page").absolute()

    @property
    def vocabulary(self) -> list[str]:
        """The words that a small base knows; none for one that reads any text."""
        return [*(self.training.model.get("conditioner", {}).get("vocabulary") or ())]

    def hint(self, control: Control) -> Image.Image:
        """The map that the ControlNet gets. Refused where the picture cannot be used."""
        with sentences(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unit = UnitSettings(control.hint and str(control.hint), control.photo and str(control.photo))
            return to_pil(2 * unit.load(self.size, self.condition, lambda _: None)[0] - 1)

    def draw(self, wish: Wish, report: Report, stop: threading.Event) -> Drawn:
        """Draw the images into a folder of their own. Refused where the wish cannot be drawn; nothing is left then."""
        folder = new_folder(self.folder)
        try:
            wish = with_copies(wish, folder)
            overrides = [*self.given, *wish.overrides()]
            hint, started = self.hint(wish.control), time.monotonic()
            with self.lock, noted() as notes, sentences():
                stopped = self._sample([*overrides, f"out={written(str(folder))}"], report, stop)
        except BaseException:
            shutil.rmtree(folder)
            raise
        lines = read_lines(folder / MANIFEST)
        images = [folder / line.pop("file") for line in lines]
        seconds = time.monotonic() - started
        return Drawn(folder, images, lines, hint, command_line(overrides), notes, seconds, stopped)

    def _sample(self, overrides: Sequence[str], report: Report, stop: threading.Event) -> bool:
        """As sample.py would; returns whether it was stopped."""
        cfg = composed(overrides, "sample")
        hands = Hands(self.kept, lambda *, total, **_: Steps(report, stop, total))
        try:
            with configs_at_hand():
                sample(cfg, hands)
        except Stopped:
            return True
        return False


@contextmanager
def sentences() -> Iterator[None]:
    """Whatever sample.py would end with in one sentence is Refused with that sentence."""
    try:
        with mistakes_refused():
            yield
    except SystemExit as error:
        raise Refused(str(error)) from error


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the warnings of the block, each once; the list is full when the block is done."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield found
    found += dict.fromkeys(str(item.message) for item in caught if issubclass(item.category, UserWarning))


def new_folder(parent: Path) -> Path:
    """A folder named by the time of day, that nobody else has."""
    stamp, number = time.strftime("%Y-%m-%d_%H-%M-%S"), 1
    while True:
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def with_copies(wish: Wish, folder: Path) -> Wish:
    """The wish with its pictures copied into the folder: uploads vanish, a command line shall not."""
    units = [_copied(unit, folder, f"-{i}" if i else "") for i, unit in enumerate((wish.control, *wish.more))]
    image, mask = _copy(wish.image, folder, "image"), _copy(wish.mask, folder, "mask")
    return replace(wish, control=units[0], more=tuple(units[1:]), image=image, mask=mask)


def _copied(unit: Control, folder: Path, number: str) -> Control:
    hint, photo = _copy(unit.hint, folder, f"hint{number}"), _copy(unit.photo, folder, f"photo{number}")
    return replace(unit, hint=hint, photo=photo)


def _copy(path: Path | None, folder: Path, name: str) -> Path | None:
    return None if path is None else Path(shutil.copyfile(path, folder / f"{name}{path.suffix.lower()}"))
