"""Two real processes under torchrun, talking by gloo, must train, test, stop and go on as one run."""

import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_folder
from run_checks import without_speed
from test_kill import heed

from dataset import sources
from dataset.batches import Batches
from dataset.preprocess import Preprocess, mean_and_std
from network import ResNet18
from runtime import checkpoint
from training.distributed import World, join_world
from training.evaluation import evaluate
from training.optimizer import Optimization, sgd

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torch for Windows has no gloo rendezvous")
ROOT = Path(__file__).parent.parent
SETTINGS = "--image-size 32 --batch-size 16 --epochs 2 --log-every 2 --device cpu --precision fp32".split()
GROWING = "--batch-size 16 --log-every 2 --device cpu --precision fp32".split()


def start(pictures, out, *flags, processes=2, settings=SETTINGS):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*torchrun, str(ROOT / "train.py"), "--data", str(pictures), "--out", str(out), *settings, *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed,
                            env=environment)  # fmt: skip


def finish(process, code=0):
    with process:
        text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text
    return text


def load(out):
    return checkpoint.load(out / "last.pt")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def two(tmp_path_factory, pictures):
    """The folder of a run by two processes, and what they printed."""
    out = tmp_path_factory.mktemp("two")
    return out, finish(start(pictures, out))


def test_two_processes_train_as_ddp_says(pictures, tmp_path):
    """Against the mean gradient of both halves of a batch, each with its own batch norm, one after the other."""
    finish(start(pictures, tmp_path, "--max-steps", "1"))
    images, labels, classes = sources.load(str(pictures), "train", image_size=32)
    batches = Batches(images, labels, Preprocess(32, *mean_and_std(images)), 16, seed=0)
    rows = batches.plan(0)[0]
    torch.manual_seed(0)
    network = ResNet18(len(classes)).to(memory_format=torch.channels_last)
    optimizer = sgd(network, Optimization())
    losses = []
    for half, twin in ((rows[8:], copy.deepcopy(network)), (rows[:8], network)):  # the first's statistics count
        inputs, target = batches(half)
        losses.append(torch.nn.functional.cross_entropy(twin(inputs), target))
        gradients = torch.autograd.grad(losses[-1] / 2, list(twin.parameters()))
        for value, gradient in zip(network.parameters(), gradients, strict=True):
            value.grad = gradient if value.grad is None else value.grad + gradient
    optimizer.step()
    state = load(tmp_path)
    for name, value in state["model"].items():
        assert torch.allclose(value, network.state_dict()[name], rtol=1e-4, atol=1e-5), name
    assert (state["since_line"][0] / 16).item() == pytest.approx(sum(losses).item() / 2, rel=1e-5)
    assert state["since_line"][2] == 16


def test_it_says_what_it_does_once(two):
    out, text = two
    assert [(line["kind"], line["step"]) for line in load(out)["history"]] == [
        ("train", 2), ("test", 3), ("train", 4), ("train", 6), ("test", 6)
    ]  # fmt: skip
    assert "6 iterations on 2 processes on cpu, fp32" in text
    assert text.count("48 training and 12 test images") == 1 and text.count("next: python visualizer.py") == 1


def test_the_result_is_measured_on_every_test_image(two, pictures):
    """Evaluated again by this process alone."""
    out, _ = two
    network, info = checkpoint.load_network(out / "model.pt")
    images, labels, _ = sources.load(str(pictures), "test", image_size=32)
    loss, accuracy = evaluate(network, images, labels, Preprocess(32, info.mean, info.std))
    assert info.result["test_accuracy"] == accuracy
    assert info.result["test_loss"] == pytest.approx(loss, rel=1e-5)


def same(a, b):
    first, second = load(a), load(b)
    assert without_speed(first["history"]) == without_speed(second["history"])
    for name, value in first["model"].items():
        assert torch.equal(value, second["model"][name]), name


def test_interrupted_and_resumed_it_ends_as_if_it_had_not_been(two, pictures, tmp_path):
    text = []
    with start(pictures, tmp_path, "--epochs", "60") as process:
        for line in process.stdout:
            text.append(line)
            if "iteration 20/" in line:
                process.send_signal(signal.SIGTERM)
    assert process.returncode != 0 and sum("the same command with --resume" in line for line in text) == 1, text
    step = load(tmp_path)["step"]
    assert 20 <= step < 180
    target = str((step + 3) // 3 + 1)
    finish(start(pictures, tmp_path, "--epochs", target, "--resume"))
    alone = tmp_path / "alone"
    finish(start(pictures, alone, "--epochs", target))
    same(tmp_path, alone)


def test_a_change_of_image_size_keeps_gradients_averaged(pictures, tmp_path):
    """DistributedDataParallel is made anew for every size; a run resumed after the change never had the first one."""
    sizes = ["--sizes", "32:1", "40:1"]
    finish(start(pictures, tmp_path / "alone", *sizes, settings=GROWING))
    finish(start(pictures, tmp_path / "resumed", *sizes, "--max-steps", "3", settings=GROWING))
    finish(start(pictures, tmp_path / "resumed", *sizes, "--resume", settings=GROWING))
    same(tmp_path / "alone", tmp_path / "resumed")


def test_one_process_goes_on_where_two_stopped(two, pictures, tmp_path):
    finish(start(pictures, tmp_path, "--epochs", "1"))
    text = finish(start(pictures, tmp_path, "--resume", processes=1))
    assert "continuing after 3" in text
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 6]


def test_a_process_that_dies_ends_the_others_with_one_error(pictures, tmp_path):
    text = ""
    with start(pictures, tmp_path, "--epochs", "200", "--save-every", "5") as process:
        for line in process.stdout:
            text += line
            if "iteration 20/" in line:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(children[-1]), signal.SIGKILL)
                killed = time.monotonic()
    assert process.returncode != 0 and time.monotonic() - killed < 60
    assert len(re.findall("^error: ", text, re.MULTILINE)) <= 1, text
    state = load(tmp_path)
    assert state["step"] >= 15 and all(value.isfinite().all() for value in state["model"].values())
    finish(start(pictures, tmp_path, "--epochs", str(state["step"] // 3 + 2), "--resume"))


@pytest.mark.parametrize("flags, words", [
    (["--batch-size", "15"], "--batch-size 15 is for all 2 processes"),
    (["--data", "nowhere"], "--data nowhere is no folder"),
], ids=str)  # fmt: skip
def test_a_wrong_use_ends_in_one_line(pictures, tmp_path, flags, words):
    text = finish(start(pictures, tmp_path, *flags), code=1)
    assert text.count("error: ") == 1 and words in text, text


def test_a_rank_without_a_local_rank_ends_in_one_line(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(OSError, match="start the processes with torchrun"), join_world("cpu"):
        pass


def test_shares_make_up_the_batch():
    parts = [World(rank, 4).shard(12) for rank in range(4)]
    assert [list(range(12))[part] for part in parts] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
