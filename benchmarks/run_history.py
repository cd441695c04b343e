"""Read the history.jsonl of a run of train.py, also while it is being written."""

import json
from pathlib import Path


def read_history(out: Path) -> list[dict]:
    """The entries of the run in a folder; none if there is no file, or while its last line is being written."""
    try:
        return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []


def training_seconds(out: Path, images: int, warm_up: float) -> list[float]:
    """Duration of the log intervals (of `images` each) after the first one and this many seconds of warm-up."""
    spent, measured = 0.0, []
    for entry in [entry for entry in read_history(out) if entry["kind"] == "train"][1:]:
        duration = images / entry["images_per_second"]
        if spent >= warm_up:
            measured.append(duration)
        spent += duration
    return measured
