"""Kill `python -m cldm annotate` at random moments until it is through, and compare with a run that was never killed.

    python benchmarks/annotate_kills.py --files 2000 --kills 20

One file in twenty is broken (empty, cut short, text, animated, tiny); others are CMYK, RGBA, 16-bit, palettes.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
BROKEN = ("empty", "cut", "text", "animated", "tiny")
CONVERTED = ("CMYK", "RGBA", "I;16", "P", "L")


def picture(rng: np.random.Generator, side: int) -> Image.Image:
    noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(cv2.resize(noise, (side + 16, side), interpolation=cv2.INTER_CUBIC))


def write(kind: str, path: Path, image: Image.Image) -> None:
    """One file of a kind: of BROKEN, of CONVERTED, or "plain"."""
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("<html>404</html>")
    elif kind == "animated":
        image.save(path, format="GIF", save_all=True, append_images=[image.rotate(90)])
    elif kind == "tiny":
        image.resize((5, 5)).save(path, format="PNG")
    elif kind == "cut":
        image.save(path, format="JPEG")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "I;16":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, format="PNG")
    elif kind in CONVERTED:
        image.convert(kind).save(path, format="TIFF" if kind == "CMYK" else "PNG")
    else:
        image.save(path, format="JPEG")


def make_files(folder: Path, count: int, side: int) -> int:
    """Write the pictures with captions; returns how many are broken."""
    rng, broken = np.random.default_rng(0), 0
    folder.mkdir(parents=True)
    for i in range(count):
        kind = "plain"
        if i % 20 == 7:
            kind, broken = BROKEN[i // 20 % len(BROKEN)], broken + 1
        elif i % 20 == 13:
            kind = CONVERTED[i // 20 % len(CONVERTED)]
        path = folder / f"part{i % 3}" / f"{i:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        write(kind, path, picture(rng, side))
        path.with_suffix(".txt").write_text(f"picture number {i}")
    return broken


def start(source: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "cldm", "annotate", str(source), str(out), f"--workers={workers}"]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **output)


def members(session: int) -> list[int]:
    """Processes of a session (Linux; elsewhere none is found)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()  # state, parent, group, session, ...
            found += [int(path.parent.name)] if int(fields[3]) == session and fields[0] != "Z" else []
    return found


def finish(process: subprocess.Popen) -> None:
    error = process.communicate()[1].decode()
    if process.returncode:
        raise SystemExit(f"annotate failed: {error}")


def journal(out: Path) -> list[dict]:
    path = out / "journal.jsonl"
    whole = path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []
    return [json.loads(line) for line in whole]


def written(out: Path) -> dict[str, int]:
    """When each finished map was written, in nanoseconds."""
    return {r["source"]: (out / r["source"]).stat().st_mtime_ns for r in journal(out) if "source" in r}


def tree(out: Path) -> dict[str, bytes]:
    """Every file but the journal, whose order is that of finishing."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "journal.jsonl")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--side", type=int, default=128)
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = str(ROOT)
    random.seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        source, straight, killed = (Path(temporary) / name for name in ("in", "straight", "killed"))
        broken = make_files(source, args.files, args.side)
        began = time.perf_counter()
        finish(start(source, straight, args.workers))
        seconds = time.perf_counter() - began
        kills, done, seen = 0, 0, {}
        while kills < args.kills:
            process = start(source, killed, args.workers)
            goal = done + random.randint(1, max(args.files // (args.kills + 1), 2))
            while process.poll() is None and len(journal(killed)) < goal:
                time.sleep(random.uniform(0.001, 0.02))
            if process.poll() is not None:
                finish(process)
                break
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            until = time.monotonic() + 10  # its workers notice and stop
            while (left := members(process.pid)) and time.monotonic() < until:
                time.sleep(0.1)
            assert not left, f"processes {left} outlive the killed run"
            now = written(killed)
            redone = [name for name in seen if now[name] != seen[name]]
            assert not redone, f"done again: {redone[:3]}"
            done, seen = len(journal(killed)), now
        finish(start(source, killed, args.workers))
        now = written(killed)
        assert all(now[name] == seen[name] for name in seen), "finished maps were written again"
        assert tree(killed) == tree(straight), "the killed run differs from the straight one"
        assert len(journal(killed)) == args.files, "an item is missing or was done twice"
        report = json.loads((killed / "report.json").read_text())
        assert report["skipped"] == broken, report
        print(f"{args.files} files, {broken} broken: {kills} kills, identical; {seconds:.1f} s for the straight run")


if __name__ == "__main__":
    main()
