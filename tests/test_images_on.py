"""Images on the host: the same bits as on the device, and each batch is gathered while the last one is used."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from narrow import NarrowResNet18

from dataset import placement, sources
from dataset.batches import Augmentation, Batches
from dataset.folders import DataError
from dataset.placement import HostImages, batches_of, place
from dataset.preprocess import Preprocess, color_histogram, mean_and_std
from network import ResNet18
from training import evaluation
from training.acceleration import accelerate
from training.data import load_data
from training.optimizer import Optimization, sgd
from training.step import TrainStep

CPU = torch.device("cpu")


def noise(count=50, side=16):
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (count, 3, side, side)).astype(np.uint8))


def batches(images, labels, **augmentation):
    preprocess = Preprocess(24, [0.5] * 3, [0.25] * 3, labels.device)
    return Batches(images, labels, preprocess, 8, 3, Augmentation(**augmentation))


class TestBits:
    @pytest.mark.parametrize("augmentation", [{}, {"cutout": 5, "flip": "alternate"}], ids=str)
    @pytest.mark.parametrize("shard", [slice(0, 8), slice(4, 8)], ids=str)
    def test_training_batches(self, augmentation, shard):
        images, labels = noise(), torch.arange(50)
        here, there = (batches(stored, labels, **augmentation) for stored in (images, HostImages(images)))
        assert torch.equal(here.rows(1), there.rows(1))
        rows = here.rows(1)[:, shard]
        inputs, others = ([made(*batch) for batch in made.iterate(rows)] for made in (here, there))
        assert len(inputs) == 6
        for (a, labels_a), (b, labels_b) in zip(inputs, others, strict=True):
            assert torch.equal(a, b) and torch.equal(labels_a, labels_b)

    def test_a_part_of_the_images(self):
        images, kept = noise(), torch.tensor([40, 3, 7, 19, 20])
        part = HostImages(images, kept)
        assert len(part) == 5 and part.shape == (5, 3, 16, 16)
        first, second = batches_of(part, [torch.tensor([4, 0]), torch.tensor([1])], CPU)
        assert torch.equal(first, images[[20, 40]]) and torch.equal(second, images[[3]])

    def test_evaluation(self, monkeypatch):
        monkeypatch.setattr(evaluation, "PIXELS_PER_BATCH", 20 * 16 * 16)
        images, labels, preprocess = noise(), torch.arange(50) % 10, Preprocess(16, [0.5] * 3, [0.25] * 3)
        network, odd = NarrowResNet18(10), torch.arange(1, 50, 2)
        expected = evaluation.evaluate(network, images[odd], labels[odd], preprocess)
        assert evaluation.evaluate(network, HostImages(images, odd), labels[odd], preprocess) == expected


def test_held_out_images_are_those_of_sources(folder, tmp_path):
    images, labels, _ = sources.load(str(folder), "train", tmp_path)
    kept, held = sources.hold_out(48, 7)
    for where in ("host", "device"):
        data = load_data(str(folder), tmp_path, 32, 7, CPU, where)
        assert (data.mean, data.std) == tuple(map(tuple, mean_and_std(color_histogram(images[kept]))))
        for (stored, classes), index in ((data.train, kept), (data.test, held)):
            (batch,) = batches_of(stored, [torch.arange(len(index))], CPU)
            assert torch.equal(batch, images[index]) and torch.equal(classes, labels[index])


def test_processes_that_see_other_images_are_noticed(folder, tmp_path):
    seen = []
    world = SimpleNamespace(local_rank_zero_first=nullcontext, all_equal=lambda value: seen.append(value) or True)
    load_data(str(folder), tmp_path, 32, 0, CPU, world=world)
    (folder / "test" / "disk" / "1.png").rename(folder / "test" / "disk" / "9.png")
    world.all_equal = lambda value: value == seen[0]
    with pytest.raises(DataError, match="the processes found different images"):
        load_data(str(folder), tmp_path, 32, 0, CPU, world=world)


def test_images_are_on_the_device_if_they_take_less_than_half_of_it(monkeypatch):
    images, free = noise(), 2 * noise().numel()
    for memory, kind in ((free, HostImages), (free + 1, torch.Tensor), (None, torch.Tensor)):
        monkeypatch.setattr(placement, "free_memory", lambda device, memory=memory: memory)
        assert isinstance(place(images, CPU), kind)
        assert place(images, CPU, "device").data_ptr() == images.data_ptr()  # on a CPU nothing is copied
        assert np.shares_memory(place(images, CPU, "host").images, images.numpy())
    assert place(images, CPU).data_ptr() == images.data_ptr()
    assert isinstance(place(images, CPU, "auto", torch.arange(3)), HostImages)


class Observed(HostImages):
    """Tells which batches have been gathered."""

    def __init__(self, images):
        super().__init__(images)
        self.gathered = [threading.Event() for _ in range(5)]

    def take(self, index, **options):
        self.gathered[int(index[0]) // 10].set()
        return super().take(index, **options)


class TestAhead:
    indices = torch.arange(50).split(10)

    def test_the_next_batch_and_no_other_is_gathered_while_the_current_one_is_used(self):
        images = Observed(noise())
        parts = batches_of(images, self.indices, CPU)
        for n in range(4):
            assert torch.equal(next(parts), noise()[self.indices[n]])
            assert images.gathered[n + 1].wait(60)  # without being asked for
            assert not any(event.is_set() for event in images.gathered[n + 2 :])
        assert len(list(parts)) == 1
        assert list(batches_of(images, [], CPU)) == []

    def test_an_error_in_the_thread_arrives(self, monkeypatch):
        def fail(*_, **options):
            raise OSError("the disk is gone")

        monkeypatch.setattr(HostImages, "take", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches_of(HostImages(noise()), self.indices, CPU))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
def test_a_gpu_gets_the_same_images(captured):
    device, images, losses = torch.device("cuda:0"), noise(80), []
    labels = torch.arange(80, device=device) % 10
    for placed in (images.to(device), HostImages(images)):
        torch.manual_seed(0)
        made = batches(placed, labels)
        network = ResNet18(10).to(device, memory_format=torch.channels_last)
        step = TrainStep(network, sgd(network, Optimization()), made, "fp32")
        (batch,) = made.iterate(made.rows(0)[:1])
        call = accelerate(step, batch, use_compile=False, use_cuda_graph=captured)
        losses.append([call(*batch).clone() for batch in made.iterate(made.rows(0))])
        assert (call is step) != captured
    torch.testing.assert_close(torch.stack(losses[0]), torch.stack(losses[1]), rtol=1e-3, atol=1e-3)


def test_a_histogram_is_the_sum_over_its_parts(monkeypatch):
    expected = torch.stack([noise()[:, n].flatten().bincount(minlength=256) for n in range(3)])
    monkeypatch.setattr("dataset.preprocess.HISTOGRAM_BYTES", 7 * 3 * 16 * 16)
    assert torch.equal(color_histogram(noise()), expected)
