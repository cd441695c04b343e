"""Which run may be continued: the saved state of a folder, and whether settings and data still fit."""

import sys
from pathlib import Path
from typing import Any

from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from training.data import Data
from training.optimizer import DEFAULT_GAMMA, Plan

# flags that say nothing about the network
LOCAL_FLAGS = {"root", "device", "out", "resume", "overwrite", "tensorboard", "log_every", "save_every",
               "images_on", "test_flip", "snapshots"}  # fmt: skip
# flags that may differ between a run and its continuation; any other would make it another run
RESUMABLE_FLAGS = LOCAL_FLAGS | {"init", "precision", "compile", "cuda_graph"}
LENGTH_FLAGS = {"epochs", "max_steps"}  # these, too, unless the learning rate depends on the length


def load_resume_state(folder: Path, config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any] | None:
    """The state that --resume continues from, or None for a new run.

    config, defaults: the settings by the names of train.py's flags; a flag that the saved run did not know yet counts
    as its default. Raises CheckpointError if there is no state, if its settings are those of another run, or if a new
    run would replace an earlier one.
    """
    last, previous = folder / "last.pt", folder / "last.prev.pt"
    if not config["resume"]:
        files = [folder / name for name in ("last.pt", "last.prev.pt", "model.pt", "history.jsonl")]
        if not config["overwrite"] and any(file.exists() and file.stat().st_size for file in files):
            raise CheckpointError(f"{folder} holds an earlier run: pass --resume, --overwrite, or another --out")
        return None
    if not last.exists() and not previous.exists():
        raise CheckpointError(f"there is nothing to resume in {folder}: leave out --resume")
    try:
        state = checkpoint.load(last)
    except CheckpointError as error:
        if not previous.exists():
            raise
        print(f"warning: {error}; continuing from {previous}", file=sys.stderr)
        state = checkpoint.load(previous) | {"is_previous": True}
    if not {"optimizer", "config", "since_line", "learning_rate"} <= state.keys():
        raise CheckpointError(f"{last} was not written by this version of train.py: pass it to --init instead")
    free = RESUMABLE_FLAGS | (LENGTH_FLAGS if config["schedule"] in DEFAULT_GAMMA else set())
    before = defaults | state["config"]
    if changed := sorted(name for name in before.keys() - free if before[name] != config.get(name)):
        were = ", ".join(f"--{name.replace('_', '-')} was {before[name]}" for name in changed)
        raise CheckpointError(f"--resume with other settings would be another run ({were}): pass the same ones")
    return state


def check_resumable(state: dict[str, Any], data: Data, plan: Plan) -> None:
    """Raises CheckpointError if the data are not those of the saved run, or its end lies behind it."""
    saved = [*map(tuple, (state["classes"], state["mean"], state["std"])), state["steps_per_epoch"]]
    has_changed = saved != [data.classes, data.mean, data.std, plan.steps_per_epoch]
    if has_changed or state.get("fingerprint", data.fingerprint) != data.fingerprint:  # older runs have none
        raise CheckpointError("the images have changed since the run began: start a new one in another --out")
    if state["step"] > plan.total_steps:
        raise CheckpointError(f"{state['step']} iterations are done, more than the {plan.total_steps} requested")
