"""Preprocessing against PIL and torchvision's transforms; the data sets; images on the host against the device."""

import hashlib
import threading
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torchvision
from conftest import drawn_shapes
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.functional import hflip, resized_crop

import train
from dataset import boxes, placement, shapes, sources
from dataset.batches import Augmentation, Batches, random_words
from dataset.folders import DataError
from dataset.placement import HostImages, batches_of, place
from dataset.preprocess import Preprocess, color_histogram, mean_and_std, resize
from training.data import load_data

CPU = torch.device("cpu")
DRAWS = 10_000


@pytest.fixture
def images():
    """Half noise, half drawn: edges and flat areas."""
    noise = np.random.RandomState(0).randint(0, 256, (3, 3, 32, 32)).astype(np.uint8)
    return torch.from_numpy(np.concatenate([noise, drawn_shapes("test")[0][:3]]))


class TestResizeAndNormalise:
    @pytest.mark.parametrize("size", [224, 64, 33, 32, 20, 8])
    def test_resize_is_within_one_grey_level_of_pil(self, images, size):
        ours = resize(images, size)
        assert ours.shape == (6, 3, size, size) and ours.dtype == torch.float32
        for image, result in zip(images, ours, strict=True):
            pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BILINEAR)
            expected = torch.from_numpy(np.array(pil)).permute(2, 0, 1) / 255
            assert (result - expected).abs().max() <= 1 / 255 + 1e-6

    @pytest.mark.parametrize("size", [224, 48, 20])
    def test_the_whole_way_is_torchvisions(self, images, size):
        mean, std = [0.49, 0.48, 0.44], [0.25, 0.24, 0.26]
        transform = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Resize([size, size], antialias=True), v2.Normalize(mean, std)]
        )
        ours = Preprocess(size, mean, std)(images)
        assert torch.allclose(ours, transform(images), atol=1e-5)
        assert ours.is_contiguous(memory_format=torch.channels_last)

    def test_statistics_are_those_of_all_pixels(self, images, monkeypatch):
        monkeypatch.setattr("dataset.preprocess.HISTOGRAM_BYTES", 4 * images[0].numel())  # counted in two parts
        mean, std = mean_and_std(color_histogram(images))
        pixels = images.permute(1, 0, 2, 3).flatten(1).double() / 255
        assert mean == pytest.approx(pixels.mean(1).tolist(), abs=1e-12)
        assert std == pytest.approx(pixels.std(1, correction=0).tolist(), abs=1e-12)
        constant = torch.full((2, 3, 8, 8), 7, dtype=torch.uint8)
        assert mean_and_std(color_histogram(constant))[1] == [1 / 255] * 3  # not 0


def test_the_same_shapes_on_every_machine():
    """The digest is not an oracle: it is the promise that the data set never changes."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for array in drawn_shapes(split):
            digest.update(np.ascontiguousarray(array).tobytes())
    assert digest.hexdigest() == "b1f3d8cb09773cb0be384ed6fb9322dce878609a5a971806097a4f316be69390"
    images, labels, classes = sources.load("shapes", "train")
    assert images.shape == (5000, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [500] * 10 and classes == shapes.CLASSES


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_files_of_cifar10_become_tensors(fake_cifar10, split, monkeypatch):
    root, arrays = fake_cifar10
    images, labels, classes = sources.load("cifar10", split, root)
    names = [f"data_batch_{n}" for n in range(1, 6)] if split == "train" else ["test_batch"]
    expected = np.concatenate([arrays[name] for name in names]).reshape(-1, 3, 32, 32)
    assert images.dtype == torch.uint8 and np.array_equal(images.numpy(), expected)
    assert labels.dtype == torch.int64 and len(labels) == len(images) and classes[3] == "cat" and len(classes) == 10
    # without a network, a damaged copy is not used
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    (root / "cifar-10-batches-py" / "data_batch_2").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"could not be downloaded.*--data FOLDER.*--data shapes"):
        sources.load("cifar10", split, root)


def noise(count=50):
    return torch.from_numpy(np.random.RandomState(0).randint(0, 256, (count, 3, 16, 16)).astype(np.uint8))


def test_held_out_images_are_those_of_sources(folder, tmp_path):
    images, labels, _ = sources.load(str(folder), "train", tmp_path)
    kept, held = sources.hold_out(48, 7)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(48)) and kept.tolist() == sorted(kept.tolist())
    np.random.seed(5)
    (folder / "test").rename(tmp_path / "not used")
    for where in ("host", "device"):
        data = load_data(str(folder), tmp_path, 32, 7, CPU, where)
        assert (data.mean, data.std) == tuple(map(tuple, mean_and_std(color_histogram(images[kept]))))
        for (stored, classes), index in ((data.train, kept), (data.test, held)):
            (batch,) = batches_of(stored, [torch.arange(len(index))], CPU)
            assert torch.equal(batch, images[index]) and torch.equal(classes, labels[index])


def test_processes_that_see_other_images_are_noticed(folder, tmp_path):
    seen = []
    world = SimpleNamespace(local_rank_zero_first=nullcontext, all_reduce_max=lambda *values: list(values))
    world.broadcast = lambda make: seen.append(make()) or seen[0]
    load_data(str(folder), tmp_path, 32, 0, CPU, world=world)
    (folder / "test" / "disk" / "1.png").rename(folder / "test" / "disk" / "9.png")
    with pytest.raises(DataError, match="the processes found different images"):
        load_data(str(folder), tmp_path, 32, 0, CPU, world=world)


def test_images_are_on_the_device_if_they_take_less_than_half_of_it(monkeypatch):
    images, free = noise(), 2 * noise().numel()
    for memory, kind in ((free, HostImages), (free + 1, torch.Tensor), (None, torch.Tensor)):
        monkeypatch.setattr(placement, "free_memory", lambda device, memory=memory: memory)
        assert isinstance(place(images, CPU), kind)
    assert place(images, CPU).data_ptr() == images.data_ptr()  # on a CPU nothing is copied
    assert np.shares_memory(place(images, CPU, "host").images, images.numpy())
    assert isinstance(place(images, CPU, "auto", torch.arange(3)), HostImages)


def test_the_next_batch_and_no_other_is_gathered_while_the_current_one_is_used(monkeypatch):
    indices, take = torch.arange(50).split(10), HostImages.take
    gathered = [threading.Event() for _ in indices]

    def observed_take(images, index, **options):
        gathered[int(index[0]) // 10].set()
        return take(images, index, **options)

    monkeypatch.setattr(HostImages, "take", observed_take)
    parts = batches_of(HostImages(noise()), indices, CPU)
    for n in range(4):
        assert torch.equal(next(parts), noise()[indices[n]])
        assert gathered[n + 1].wait(60)  # without being asked for
        assert not any(event.is_set() for event in gathered[n + 2 :])
    assert len(list(parts)) == 1
    monkeypatch.setattr(HostImages, "take", Mock(side_effect=OSError("the disk is gone")))
    with pytest.raises(OSError, match="the disk is gone"):  # from the thread
        next(batches_of(HostImages(noise()), indices, CPU))


def distance(first, second):
    """The Kolmogorov-Smirnov statistic: the largest difference of two empirical distribution functions."""
    values = np.unique(np.concatenate([first, second]))
    functions = [np.searchsorted(np.sort(sample), values, side="right") / len(sample) for sample in (first, second)]
    return np.abs(functions[0] - functions[1]).max()


class TestBoxes:
    @pytest.mark.parametrize("least, height, width", [(0.08, 64, 64), (0.5, 224, 224), (0.9, 50, 80), (0.3, 20, 90)])
    def test_their_distribution_is_torchvisions(self, least, height, width):
        """Of every coordinate, the area, the aspect ratio, and the margins left on the other side."""

        def statistics(boxes):
            top, left, h, w = boxes.T
            return {"top": top, "left": left, "height": h, "width": w, "bottom": top + h, "right": left + w,
                    "area": h * w, "aspect": w / h}  # fmt: skip

        words = random_words(0, 0, DRAWS, boxes.WORDS, stream=3)
        image, area = torch.empty(3, height, width), (least, 1.0)
        theirs = np.array([RandomResizedCrop.get_params(image, area, boxes.ASPECTS) for _ in range(DRAWS)])
        ours, reference = boxes.draw_boxes(words, height, width, least), statistics(theirs)
        limit = 1.95 * (2 / DRAWS) ** 0.5  # exceeded by chance once in a thousand times
        for name, values in statistics(ours).items():
            assert distance(values, reference[name]) < limit, name
        # so small a change would be noticed
        changed = ours + np.array([0, 0, 0, max(1, width // 30)])
        assert distance(statistics(changed)["aspect"], reference["aspect"]) > limit

    @pytest.mark.parametrize("height, width, expected", [
        (40, 40, (0, 0, 40, 40)), (20, 80, (0, 26, 20, 27)), (90, 30, (25, 0, 40, 30))])  # fmt: skip
    def test_where_none_fits_it_is_torchvisions_central_one(self, height, width, expected):
        words = np.full((1, boxes.WORDS), 2**64 - 1, np.uint64)  # the whole area, with the largest aspect ratio
        (ours,) = boxes.draw_boxes(words, height, width, 1.0)
        assert tuple(ours) == expected
        image = torch.empty(3, height, width)
        assert RandomResizedCrop.get_params(image, (50.0, 60.0), boxes.ASPECTS) == expected


def batches(images, image_size, where=Tensor.clone, least=0.1, **augmentation):
    preprocess = Preprocess(image_size, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    augmentation = Augmentation(shift=0, scale_crop=least, **augmentation)
    return Batches(where(images), torch.arange(len(images)), preprocess, len(images), 0, augmentation)


class TestPixels:
    pictures = torch.from_numpy(drawn_shapes("test")[0][:12])

    @pytest.mark.parametrize("image_size", [48, 32, 7])
    @pytest.mark.parametrize("where, width", [(Tensor.clone, 20), (HostImages, 32)], ids=["device", "host"])
    def test_a_box_is_torchvisions_resized_crop(self, image_size, where, width):
        images = self.pictures[..., :width]
        made = batches(images, image_size, where)
        rows = made.rows(0)
        ((inputs, labels),) = [made(*batch) for batch in made.iterate(rows)]
        assert inputs.shape == (12, 3, image_size, image_size) and inputs.dtype == torch.float32
        assert inputs.is_contiguous(memory_format=torch.channels_last) and len(rows[0, :, 3].unique()) == 2
        for n, (image, _, _, flip, _, _, *box) in enumerate(rows[0].tolist()):
            expected = resized_crop(made.preprocess.normalize(images[image]), *box, [image_size] * 2, antialias=True)
            assert labels[n] == image
            assert torch.allclose(inputs[n], hflip(expected) if flip else expected, atol=1e-4)

    @pytest.mark.parametrize("image_size", [64, 32, 16])
    def test_the_cutout_is_as_large_as_without_it(self, image_size):
        """Of an otherwise white image; in pixels of the result."""
        made = batches(torch.full((12, 3, 32, 32), 255, dtype=torch.uint8), image_size, cutout=8)
        inputs, _ = made(made.rows(0)[0])
        hidden = (inputs == 0).all(1)
        for n, (row, column) in enumerate(made.rows(0)[0, :, 4:6].tolist()):
            square = torch.zeros(1, 1, 32, 32)
            square[..., max(0, row - 4) : row + 4, max(0, column - 4) : column + 4] = 1
            expected = torch.nn.functional.interpolate(square, (image_size, image_size), mode="nearest-exact")
            assert torch.equal(hidden[n], expected[0, 0] == 1)


def test_the_flags_of_the_augmentation():
    for flags, expected in {"": (4, "random", 0, None), "--scale-crop 0.08 --cutout 5": (0, "random", 5, 0.08),
                            "--cutmix 0.5 --flip alternate": (4, "alternate", 0, None, 0.5),
                            "--cutout 5 --no-augment": (0, "none")}.items():  # fmt: skip
        assert train.make_settings(train.parse_args(flags.split()), CPU).augmentation == Augmentation(*expected)
