"""What an offline W&B run holds, read from its file."""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def history(records: list[Any]) -> list[dict[str, Any]]:
    """The rows of a run, with nested keys joined by dots."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def summary(path: Path) -> dict[str, Any]:
    """The summary of a run, as `wandb leet` shows it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout)[
        "summary"
    ]


def config(records: list[Any]) -> dict[str, Any]:
    """The configuration of a run."""
    return {
        item.key: json.loads(item.value_json)
        for record in records
        for item in [*record.run.config.update, *record.config.update]
    }


def finished_records(path: Path) -> list[Any]:
    """All records of a run that has ended; on a busy machine W&B's own process writes the last ones a little later."""
    for _ in range(300):
        records = [*wandb_records(path)]
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} does not say how the run ended")


def exit_code(records: list[Any]) -> int:
    (code,) = (record.exit.exit_code for record in records if record.HasField("exit"))
    return code


def wandb_records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), 7, b""
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        if position + 7 > len(data):
            return
        _, length, kind = struct.unpack_from("<IHB", data, position)  # kind: 1 whole, 2 first, 3 middle, 4 last
        if (not length and not kind) or position + 7 + length > len(data):  # not written yet
            return
        chunk = data[position + 7 : position + 7 + length]
        position += 7 + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
