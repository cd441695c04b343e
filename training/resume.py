"""Which run may be continued: the saved state of a folder, and whether settings and data still fit."""

import sys
from pathlib import Path
from typing import Any

from runtime import checkpoint
from runtime.checkpoint import CheckpointError
from training.data import Data
from training.optimizer import DEFAULT_GAMMA
from training.plan import Plan

# Flags that say nothing about the network
LOCAL_FLAGS = {"root", "device", "out", "init", "resume", "overwrite", "tensorboard", "log_every", "save_every",
               "images_on", "test_flip", "snapshots"}  # fmt: skip
# Flags that may differ between a run and its continuation; any other would make it another run. The length may differ,
# too, unless the learning rate depends on it.
RESUMABLE_FLAGS = LOCAL_FLAGS | {"precision", "compile", "cuda_graph"}
LENGTH_FLAGS = {"epochs", "max_steps"}
RUN_FILES = ("last.pt", "last.prev.pt", "model.pt", "history.jsonl")


def check_unused(folder: Path) -> None:
    """Raises CheckpointError if the folder holds a run."""
    if any((folder / name).exists() and (folder / name).stat().st_size > 0 for name in RUN_FILES):
        raise CheckpointError(f"{folder} holds an earlier run: pass --resume, --overwrite, or another --out")


def load_resume_state(folder: Path, config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The state to continue from; "is_previous" tells whether it is last.prev.pt, because last.pt is damaged.

    config, defaults: the settings by the names of train.py's flags; a flag that the saved run did not know yet counts
    as its default. Raises CheckpointError if there is no state or the settings are those of another run.
    """
    last, is_previous = folder / "last.pt", False
    if not last.exists() and not checkpoint.previous(last).exists():
        raise CheckpointError(f"there is nothing to resume in {folder}: leave out --resume")
    try:
        state = checkpoint.load(last)
    except CheckpointError as error:
        if not checkpoint.previous(last).exists():
            raise
        print(f"warning: {error}; continuing from {checkpoint.previous(last)}", file=sys.stderr)
        state, is_previous = checkpoint.load(checkpoint.previous(last)), True
    if not {"model", "optimizer", "config", "step", "steps_per_epoch", "since_line", "learning_rate"} <= state.keys():
        raise CheckpointError(f"{last} was not written by this version of train.py: pass it to --init instead")
    if unknown := sorted(state["config"].keys() - config.keys()):
        raise CheckpointError(
            f"{last} has settings that train.py does not know ({', '.join(unknown)}): start a new run"
        )
    before = defaults | state["config"]
    free = RESUMABLE_FLAGS | (LENGTH_FLAGS if config["schedule"] in DEFAULT_GAMMA else set())
    if changed := sorted(name for name in config.keys() - free if before[name] != config[name]):
        were = ", ".join(f"--{name.replace('_', '-')} was {before[name]}" for name in changed)
        raise CheckpointError(f"--resume with other settings would be another run ({were}): pass the same ones")
    return state | {"is_previous": is_previous}


def check_resumable(state: dict[str, Any], data: Data, plan: Plan) -> None:
    """Raises CheckpointError if the data are not those of the saved run, or its end lies behind it."""
    saved = (*(tuple(state[name]) for name in ("classes", "mean", "std")), state["steps_per_epoch"])
    has_changed = saved != (data.classes, data.mean, data.std, plan.steps_per_epoch)
    if has_changed or state.get("fingerprint", data.fingerprint) != data.fingerprint:  # older runs have none
        raise CheckpointError("the images have changed since the run began: start a new one in another --out")
    if state["step"] > plan.total_steps:
        raise CheckpointError(
            f"the run has done {state['step']} iterations, more than the {plan.total_steps} now requested"
        )
