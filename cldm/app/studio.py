"""Drawing for a page: checkpoints that stay loaded, and a folder for each drawing, filled as sample.py fills it."""

import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from cldm.app.folders import named, new_folder, removed_on_error, renamed, with_copies
from cldm.app.progress import Report, Steps, Stopped
from cldm.app.wish import Control, Wish, command_line
from cldm.conditions import Condition
from cldm.pictures import to_pil
from cldm.runs.building import instantiate
from cldm.runs.configs import MOST, composed, configs_at_hand, mistakes_refused, refuse_numbers
from cldm.runs.folder import Refused
from cldm.runs.quoting import written
from cldm.runs.recorded import FILE
from cldm.runs.trained import (
    base_content,
    device_and_precision,
    find_checkpoint,
    guidance_filled_in,
    published,
    trained_size,
    training_config,
)
from cldm.sampling.drawing import Hands, plan, sample
from cldm.sampling.jobs import MANIFEST, UnitSettings, load_mask
from cldm.sampling.opening import Networks, Opened, load_networks, open_checkpoints
from ldm.conditioner import KnownWords, UnknownWords
from ldm.files import content, read_lines

OWN = ("checkpoint", "out", "more", "hint", "photo", "prompt", "negative", "count", "seed", "sampler", "sampler.steps",
       "sampler.guidance", "scale", "start", "end", "mode", "image", "strength", "mask")  # fmt: skip
"""Keys that the page writes for every drawing; what the command says of them is where its fields start."""


class Kept:
    """The checkpoints and networks of the last drawing; opened and read again only where one needs others."""

    def __init__(self) -> None:
        self.opened: tuple[Any, Opened] | None = None
        self.networks: tuple[Any, Networks] | None = None

    def opening(self, cfg: DictConfig) -> Opened:
        """As `open_checkpoints`."""
        others = [(unit.checkpoint, unit.get("condition")) for unit in cfg.more]
        key = (cfg.checkpoint, others, cfg.base, OmegaConf.to_container(cfg.trained))
        if self.opened is None or self.opened[0] != key:
            self.opened = key, open_checkpoints(cfg)
        return self.opened[1]

    def reading(self, opened: Opened, cfg: DictConfig) -> Networks:
        """As `load_networks`."""
        files = [content(path) for path in opened.paths], base_content(opened.paths[0], opened.trainings[0])
        built = [str((training.model, training.control)) for training in opened.trainings]
        key = (files, built, device_and_precision(cfg), cfg.sampler.low_memory)
        if self.networks is None or self.networks[0] != key:
            self.networks = None  # two sets may not fit
            self.networks = key, load_networks(opened, cfg)
        return self.networks[1]


@dataclass(frozen=True)
class Drawn:
    """A drawing: its folder, its images with their settings, the hint as the ControlNet got it, and what to say."""

    folder: Path
    images: list[Path]
    settings: list[dict[str, Any]]
    hint: Image.Image
    line: str
    notes: list[str]
    seconds: float
    stopped: bool


class Studio:
    """A checkpoint, found as sample.py finds it, that stays loaded. One drawing at a time; others wait.

    given: overrides of sample.py that hold for every drawing, the checkpoint among them.
    Raises Refused where they name no checkpoint that can be used.
    """

    def __init__(self, given: Sequence[str] = ()):
        self.lock, self.kept = threading.Lock(), Kept()
        with sentences():
            self.cfg = composed(given, "sample")
        if self.cfg.jobs:
            raise Refused(f"a page draws no list of jobs: type python sample.py jobs={self.cfg.jobs}")
        refuse_pictures(given, self.cfg)
        with sentences(), configs_at_hand():
            alone = self.kept.opening(OmegaConf.merge(self.cfg, {"more": []}))  # type: ignore[arg-type]
        self.path, self.training, self.condition = alone.paths[0], alone.trainings[0], alone.conditions[0]
        self.cfg = guidance_filled_in(self.cfg, self.training)
        self.typed = given
        self.given = [item for item in given if item.lstrip("+").split("=")[0] not in OWN]
        size = self.cfg.size or trained_size(self.training)
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        self.folder = (Path(self.cfg.out) if self.cfg.out else self.path.parent / "samples" / "page").absolute()

    @property
    def vocabulary(self) -> list[str]:
        """The words that a small base knows; none for one that reads any text."""
        return [*(self.training.model.get("conditioner", {}).get("vocabulary") or ())]

    @property
    def sampler(self) -> str:
        """The name of the command's sampler, or the usual one's."""
        return self.cfg.sampler.sampler._target_.split(".")[-1]

    @property
    def prompt(self) -> str:
        """The command's prompt; none where it gives none."""
        return self.cfg.prompt if any(item.startswith("prompt=") for item in self.typed) else ""

    def others(self) -> dict[str, dict[str, Any]]:
        """ControlNets that may join: those that the command names in `more`, and the runs' of the same model."""
        named = [{key: unit[key] for key in ("checkpoint", "condition") if key in unit} for unit in self.cfg.more]
        model = published(self.path).metadata.get("model")
        runs = sorted(Path("runs").glob(f"**/{FILE}"), key=lambda path: -path.stat().st_mtime)
        alike = [path for path in runs if model and _model_of(path) == model]
        return {str(unit["checkpoint"]): unit for unit in [*named, *({"checkpoint": str(path)} for path in alike)]}

    def hint(self, control: Control, mask: Path | None = None) -> Image.Image:
        """The map that a ControlNet gets. Refused where the picture cannot be used."""
        files = [path for path in (control.hint, control.photo, mask) if path]
        with named({path: path.name for path in files}), sentences(), silence():
            hint, photo = (None if path is None else str(path) for path in (control.hint, control.photo))
            hole = None if mask is None else load_mask(mask, self.size)
            loaded = UnitSettings(hint, photo).load(self.size, self._condition_of(control), lambda _: None, hole)
            return to_pil(2 * loaded[0] - 1)

    def _condition_of(self, control: Control) -> Condition:
        if control.checkpoint is None:
            return self.condition
        with configs_at_hand():
            path, trained = find_checkpoint(control.checkpoint), self.cfg.trained.model
            training = training_config(path, self.cfg.base, trained, control.condition)
            return instantiate(training.condition, _convert_="all")

    def draw(self, wish: Wish, report: Report, stop: threading.Event, place: str | None = None) -> Drawn:
        """Draw the images into a folder of their own below `folder`, named by the time or `place`, which is emptied.

        Refused where the wish cannot be drawn; nothing is left then, and the last drawing of `place` stays. stop: ends
        the drawing at its next step.
        """
        with self.lock, sentences():
            started, hint = time.monotonic(), self._checked(wish)
            folder = new_folder(self.folder, place)
            with removed_on_error(folder):
                copies = with_copies(wish, folder)
                names = {copy: path.name for copy, path in zip(copies.pictures(), wish.pictures(), strict=True)}
                overrides = self._overrides(copies)
                with named(names), sentences(), noted() as notes:
                    stopped = self._sample([*overrides, f"out={written(str(folder))}"], report, stop)
        lines = read_lines(folder / MANIFEST)
        images = [folder / line.pop("file") for line in lines]
        seconds = time.monotonic() - started
        told = [renamed(note, names) for note in notes]
        return Drawn(folder, images, lines, hint, command_line(overrides), told, seconds, stopped)

    def _checked(self, wish: Wish) -> Image.Image:
        """The hint of a wish that can be drawn; Refused, before anything is written, where it cannot."""
        with named({path: path.name for path in wish.pictures()}), sentences(), silence():
            cfg = composed(self._overrides(wish), "sample")
            refuse_numbers(cfg)
            refuse_last_seed(cfg)
            with configs_at_hand():
                plan(cfg, self.kept.opening)
            return self.hint(wish.control, wish.mask)

    def _overrides(self, wish: Wish) -> list[str]:
        return [f"checkpoint={written(str(self.path))}", *self.given, *wish.overrides()]

    def _sample(self, overrides: Sequence[str], report: Report, stop: threading.Event) -> bool:
        """As sample.py would; returns whether it was stopped."""
        hands = Hands(self.kept.opening, self.kept.reading, lambda *, total, **_: Steps(report, stop, total))
        cfg = composed(overrides, "sample")
        try:
            with configs_at_hand():
                sample(cfg, hands)
        except Stopped:
            return True
        return False


def refuse_last_seed(cfg: DictConfig) -> None:
    """Refused where the last of several images has a seed that no command line takes to draw it again."""
    if isinstance(cfg.seed, int) and cfg.seed + cfg.count - 1 > MOST:
        raise Refused(f"the last of {cfg.count} seeds must be at most {MOST}, got {cfg.seed + cfg.count - 1}")


def refuse_pictures(given: Sequence[str], cfg: DictConfig) -> None:
    """Refused for what belongs to a drawing and is chosen on the page alone."""
    typed = {item.lstrip("+").split("=")[0] for item in given}
    if pictures := [key for key in ("hint", "photo", "image", "mask") if key in typed]:
        raise Refused(f"leave out {', '.join(f'{key}=' for key in pictures)}: pictures are given on the page")
    if settings := {key for unit in cfg.more for key in unit} - {"checkpoint", "condition"}:
        told = ", ".join(sorted(map(str, settings)))
        raise Refused(f"more: leave out {told}: how a further ControlNet acts is set on the page")


def _model_of(path: Path) -> str | None:
    """The model that a run's branch belongs to; None for a file that cannot be read, such as one just being written."""
    try:
        return published(path).metadata.get("model")
    except SystemExit:
        return None


@contextmanager
def sentences() -> Iterator[None]:
    """Whatever sample.py would end with in one sentence is Refused with that sentence."""
    try:
        with mistakes_refused():
            yield
    except SystemExit as error:
        raise Refused(str(error)) from error


@contextmanager
def silence() -> Iterator[None]:
    """No warnings: the drawing that follows has them again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def noted() -> Iterator[list[str]]:
    """Collects the notes of the block, each once; the list is full when the block is done."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield found
    told = [item.message for item in caught if is_note(item.category)]
    unknown = [message for message in told if isinstance(message, UnknownWords)]
    found += [left_out(unknown)] if unknown else []
    found += dict.fromkeys(str(one) for one in told if not isinstance(one, UnknownWords | KnownWords))


def is_note(category: type[Warning]) -> bool:
    """Whether a warning is for who draws, not one of a library for who maintains this."""
    return category is UserWarning or (
        issubclass(category, UserWarning) and category.__module__.split(".")[0] in ("cldm", "ldm")
    )


def left_out(unknown: Sequence[UnknownWords]) -> str:
    """The unknown words of all prompts, each once, with the nearest known one."""
    near = {word: known for warning in unknown for word, known in warning.near.items()}
    words = [f"{word} (nearest: {known})" if known else word for word, known in near.items()]
    return f"not known to this base, left out: {', '.join(words)}"
