"""Benchmarks: published values, counts by hand, and that the usual script sees the images that this project sees."""

import pytest
import recipe
import reconstruct
import reproduce
import torch
import train_step
from torch.utils.flop_counter import FlopCounterMode
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from analysis.inspection import inspect
from analysis.settings import Settings
from dataset import sources
from dataset.preprocess import Preprocess
from network import ResNet18


class TestTrainStep:
    def test_the_usual_script_sees_the_same_images(self, folder, tmp_path):
        transform = v2.Compose(train_step.usual_transform(64).transforms[2:])  # without the random ones
        usual = ImageFolder(folder / "train", transform)
        images, labels, classes = sources.load(str(folder), "train", tmp_path / "root", 64)
        inputs = Preprocess(64, train_step.MEAN, train_step.STD)(images)
        numbers = {str(path): n for n, path in enumerate(sources.list_files(folder, "train"))}
        assert len(usual) == len(images) and usual.classes == list(classes)
        for n, (file, label) in enumerate(usual.samples):
            assert labels[numbers[file]] == label
            grey_levels = (inputs[numbers[file]] - usual[n][0]) * torch.tensor(train_step.STD)[:, None, None] * 255
            assert grey_levels.abs().max() < 1.5  # PIL rounds the rows, then the columns

    def test_operations_per_image(self):
        with torch.device("meta"):
            network, images = ResNet18(10), torch.zeros(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            network(images).sum().backward()
        assert counter.get_total_flops() == pytest.approx(train_step.GFLOP_AT_224 * 1e9, rel=1e-3)


class TestModelCard:
    def test_wilson_intervals(self):
        """Table I of Newcombe 1998, Statistics in Medicine 17."""
        table = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611)}
        for counts, interval in table.items():
            assert reproduce.wilson_interval(*counts) == pytest.approx(interval, abs=5e-5)

    def test_calibration_error(self):
        """Two bins: 0.6 and 0.65 are right once, 0.9 and 1.0 always: (|1 - 1.25| + |2 - 1.9|) / 4."""
        confidence, correct = torch.tensor([0.6, 0.65, 0.9, 1.0]), torch.tensor([True, False, True, True])
        assert reproduce.calibration_error(confidence, correct, bins=4) == pytest.approx(0.0875, abs=1e-6)

    def test_classes(self):
        """Of three cats, two are taken for dogs; the dog is right."""
        labels, logits = torch.tensor([0, 0, 0, 1]), torch.tensor([[2.0, 0], [0, 2], [0, 2], [0, 2]])
        logits = torch.cat([logits, torch.full((4, 2), -9.0)], 1)  # two classes without images
        lines = reproduce.describe_scores(logits, labels, ("cat", "dog", "frog", "ship"))
        assert lines[2].startswith("| cat | 33.3 % |") and lines[2].endswith("| 100.0 % |")
        assert lines[3].startswith("| dog | 100.0 % |") and lines[3].endswith("| 33.3 % |")
        assert "- accuracy 50.00%" in "\n".join(lines) and lines[-1] == "- 2 of cat predicted as dog"

    def test_dead_channels_small_filters_and_mirror_images(self, tmp_path):
        network, images = ResNet18(3).eval(), torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8)
        with torch.no_grad():
            network.conv1.weight[5] *= 1e-3
            network.bn1.weight[[5, 8]] = 0
            network.bn1.bias[[5, 8]] = -1
        prepare = Preprocess(32, [0.5] * 3, [0.25] * 3)
        logits, alive = reproduce.compute_logits(network, images, prepare, torch.device("cpu"), "fp32", flip=True)
        with torch.no_grad():
            expected = torch.stack([network(prepare(images)), network(prepare(images.flip(3)))])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert (~alive["conv1"]).nonzero().flatten().tolist() == [5, 8]
        (tmp_path / "file").write_bytes(b"abc")
        dead, small, sha256 = reproduce.describe_network(network, alive, tmp_path / "file")
        assert "conv1 2 of 64, conv2_x 0 of 64" in dead and small.endswith("1 of 64")
        assert "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" in sha256  # FIPS 180-2, B.1


def test_paired_difference():
    """The table of bf16 against fp32 in benchmarks/README.md."""
    bf16, fp32 = [0.6800, 0.6838, 0.6880], [0.6774, 0.6884, 0.6852]
    assert recipe.paired_difference(bf16, fp32) == "+0.03 ± 0.24"
    assert recipe.paired_difference(bf16[:1], fp32[:1]) == "+0.26"


def test_both_searches_run_the_same_network_on_the_same_images(small_run):
    pictures, root = small_run.parent / "pictures", str(small_run.parent / "decoded")
    inspection = inspect(small_run / "model.pt", Settings(stages=("conv1",)), "cpu", str(pictures), root)
    usual = reconstruct.UsualScript(inspection, pictures / "test")
    with torch.no_grad():
        expected = inspection.network(inspection.inputs(inspection.images))
        found = usual.network(torch.stack([image for image, _ in usual.dataset]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
