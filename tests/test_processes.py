"""Two real processes under torchrun, talking by gloo, must train, test, stop and go on as one run."""

import copy
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from narrow import NarrowResNet18
from run_checks import Child, assert_same_run, start_ranks

import train
from dataset import sources
from dataset.batches import Augmentation, Batches
from dataset.folders import DataError
from dataset.preprocess import Preprocess, color_histogram, mean_and_std
from runtime import checkpoint
from training.distributed import World
from training.evaluation import evaluate
from training.optimizer import Optimization, sgd

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("narrow"),
              pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs gloo and /proc")]  # fmt: skip
NARROW = Path(__file__).parent / "narrow.py"
COMPILED = """
import functools
import torch
import narrow, train
from runtime import checkpoint
torch.compile = functools.partial(torch.compile, backend="eager")  # traces and splits, but does not generate code
train.ResNet18 = checkpoint.ResNet18 = narrow.NarrowResNet18
train.main()
"""


def flags(pictures, out, *more):
    """36 iterations: of 48 images 42 remain, 3 batches of 14."""
    fixed = ("--batch-size 14 --hold-out 6 --sizes 32:4 40:8 --images-on host --cutmix 0.5 --ema-decay 0.7 "
             "--log-every 2 --device cpu --precision fp32")  # fmt: skip
    return ["--data", str(pictures), "--root", str(out / "data"), "--out", str(out), *fixed.split(), *more]


def start(pictures, out, *more):
    """Two processes under torchrun."""
    torchrun = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", NARROW]
    return Child(*torchrun, *flags(pictures, out, *more), environment={"OMP_NUM_THREADS": "1"})


def run(pictures, out, *more, script=NARROW):
    """Two processes, started at once as torchrun does; returns what both print."""
    return "".join(rank.finish() for rank in start_ranks(script, *flags(pictures, out, *more)))


def load(out):
    return checkpoint.load(out / "last.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory, folder_template):
    """The folder of a run by two processes, and what they printed."""
    out = tmp_path_factory.mktemp("two")
    return out, run(folder_template, out)


def test_two_processes_train_as_ddp_says(folder_template, tmp_path):
    """Against the mean gradient of both halves of a batch, each with its own batch norm, one after the other.

    Compiled, too: there DistributedDataParallel is inside the compiled code.
    """
    script, runs = tmp_path / "script.py", (tmp_path / "eager", tmp_path / "compiled")
    script.write_text(COMPILED)
    once = "--max-steps 1 --cutmix 1 --label-smoothing 0.1".split()
    run(folder_template, runs[0], *once)
    text = run(folder_template, runs[1], *once, "--compile", script=script)
    assert text.count("compiled in ") == 1, text
    images, labels, classes = sources.load(str(folder_template), "train", image_size=32)
    kept, _ = sources.hold_out(48, 6)
    preprocess = Preprocess(32, *mean_and_std(color_histogram(images[kept])))
    batches = Batches(images[kept], labels[kept], preprocess, 14, 0, Augmentation(cutmix=1.0))
    rows = batches.rows(0)[0]
    torch.manual_seed(0)
    network = NarrowResNet18(len(classes)).to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer, cross_entropy, losses = sgd(network, Optimization()), torch.nn.CrossEntropyLoss(label_smoothing=0.1), []
    for half, twin in ((rows[7:], copy.deepcopy(network)), (rows[:7], network)):  # the first's statistics count
        inputs, target, partner_target, share = batches(half)
        logits = twin(inputs)
        losses.append(share * cross_entropy(logits, target) + (1 - share) * cross_entropy(logits, partner_target))
        gradients = torch.autograd.grad(losses[-1] / 2, list(twin.parameters()))
        for value, gradient in zip(network.parameters(), gradients, strict=True):
            value.grad = gradient if value.grad is None else value.grad + gradient
    optimizer.step()
    for state in map(load, runs):
        for name, expected in network.state_dict().items():
            # rounding differs with the number of threads; a sum instead of a mean would be off by 1
            change = (expected - before[name]).double().norm()
            assert (state["model"][name] - expected).double().norm() <= 0.02 * change, name
        assert (state["since_line"][0] / 14).item() == pytest.approx(sum(losses).item() / 2, rel=1e-4)
        assert state["since_line"][2] == 14
        average = torch.lerp(before["fc.weight"], state["model"]["fc.weight"], 0.3)
        assert torch.allclose(state["ema"]["fc.weight"], average, atol=1e-7)


def test_the_result_is_measured_on_every_held_out_image_and_said_once(two, folder_template):
    """The moving average, evaluated again by this process alone."""
    out, text = two
    assert "36 iterations on 2 processes on cpu, fp32, images on the host" in text and "Warning:" not in text, text
    for once in ("decoding once: ", "42 training and 6 test images", "next: python visualizer.py"):
        assert text.count(once) == 1
    assert [line["step"] for line in load(out)["history"] if line["kind"] == "test"] == list(range(3, 37, 3))
    network, info = checkpoint.load_network(out / "model.pt")
    images, labels, _ = sources.load(str(folder_template), "train", image_size=40)
    _, held = sources.hold_out(48, 6)
    loss, accuracy = evaluate(network, images[held], labels[held], Preprocess(40, info.mean, info.std))
    assert torch.equal(network.fc.weight, load(out)["ema"]["fc.weight"])
    assert info.result["test_accuracy"] == accuracy and info.result["test_loss"] == pytest.approx(loss, rel=1e-5)


def test_interrupted_and_resumed_it_ends_as_if_it_had_not_been(two, folder_template, tmp_path):
    """After the change of image size: the resumed processes never had the first size's gradient hooks."""
    killed, text = tmp_path / "killed", []
    with start(folder_template, killed) as process:
        for line in process.stdout:
            text.append(line)
            if "iteration 14/" in line:
                os.kill(process.pid, signal.SIGTERM)
    assert process.returncode != 0 and sum("the same command with --resume" in line for line in text) == 1, text
    assert 14 <= load(killed)["step"] < 36
    run(folder_template, killed, "--resume")
    assert_same_run(two[0], killed)


def test_one_process_goes_on_where_two_stopped(two, folder_template, tmp_path, capsys):
    out = shutil.copytree(two[0], tmp_path / "run")
    state = load(out)
    torch.save(state | {"step": 33}, out / "last.pt")  # as if they had stopped an epoch earlier
    train.main(flags(folder_template, out, "--resume"))
    assert "continuing after 33" in capsys.readouterr().out
    assert load(out)["step"] == 36 and not torch.equal(load(out)["model"]["fc.weight"], state["model"]["fc.weight"])


def test_a_process_that_dies_ends_the_others_with_one_error(folder_template, tmp_path):
    text = ""
    with start(folder_template, tmp_path, "--save-every", "1") as process:
        for line in process.stdout:
            text += line
            if "iteration 4/" in line:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(int(children[-1]), signal.SIGKILL)
    assert process.returncode != 0
    assert len(re.findall("^error: ", text, re.MULTILINE)) <= 1, text
    state = load(tmp_path)
    assert 3 <= state["step"] < 36 and all(value.isfinite().all() for value in state["model"].values())


def test_one_process_of_each_machine_loads_first_and_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    for rank, local_rank, turn in ((0, 0, 0), (2, 0, 1), (3, 1, 2)):
        monkeypatch.setattr("training.distributed.dist", dist := Mock())
        with World(rank, 4, local_rank).local_rank_zero_first():
            assert dist.barrier.call_count == turn
        assert dist.barrier.call_count == 3
    args = train.parse_args(["--batch-size", "15"])
    with pytest.raises(DataError, match="--batch-size 15 is for all 2 processes: pass a multiple of 2, at least 4"):
        train.make_plan(args, 48, World(0, 2))
