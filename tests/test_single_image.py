"""The figures of one image, against the network alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import assert_same_pictures, ends
from PIL import Image

import visualizer
from analysis.inspection import add_pictures, inspect, median_image
from analysis.settings import Settings
from figures import FIGURES
from figures.image_grid import to_array
from figures.single_image import contributions
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings(stages=("conv5_x", "conv2_x"))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture
def trace(inspection):
    with torch.inference_mode():
        return inspection.network.trace(inspection.preprocess(inspection.pictures[0].image[None]))


def test_the_prediction(inspection, trace):
    ((_, figure),) = FIGURES["input"].draw(inspection, SETTINGS)
    with torch.inference_mode():
        probabilities = inspection.network.classify(trace.features["conv5_x"]).softmax(1)[0]
    bars = figure.get_axes()[1]
    widths = {text.get_text(): bar.get_width() for text, bar in zip(bars.get_yticklabels(), bars.patches, strict=True)}
    expected = dict(zip(inspection.metadata.classes, (100 * probabilities).tolist(), strict=True))
    assert widths == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert list(widths.values()) == sorted(widths.values(), reverse=True)


def test_feature_maps(inspection, trace):
    drawn = {path.name: figure for path, figure in FIGURES["feature_maps"].draw(inspection, SETTINGS)}
    maps = trace.features["conv2_x"][0]
    shown = tiles_of(drawn["conv2_x_feature_maps"])
    peaks = maps.amax((1, 2))
    assert len(shown) == (peaks > 0).sum()
    assert torch.allclose(peaks[list(shown)], peaks[peaks > 0].sort(descending=True).values, rtol=1e-4, atol=1e-5)
    channel = next(iter(shown))
    assert np.allclose(shown[channel], maps[channel] / peaks[channel], rtol=1e-3, atol=1e-4)


def test_of_the_last_stage_the_maps_that_contribute_most_to_the_predicted_class(inspection, trace):
    drawn = {path.name: figure for path, figure in FIGURES["feature_maps"].draw(inspection, SETTINGS)}
    maps, last = trace.features["conv5_x"][0], inspection.network.fc
    with torch.inference_mode():
        logits = inspection.network.classify(maps[None])[0]
    sizes, number = contributions(inspection, maps)
    assert number == logits.argmax()
    assert (sizes.sum() + last.bias[number]).item() == pytest.approx(logits[number].item(), rel=1e-5)
    shown = tiles_of(drawn["conv5_x_feature_maps"])
    best = sizes[maps.amax((1, 2)) > 0].sort(descending=True).values[:48]
    assert torch.allclose(sizes[list(shown)], best, rtol=1e-4, atol=1e-5)
    curve = drawn["conv5_x_feature_maps"].get_axes()[2].get_lines()[0].get_ydata()
    assert np.allclose(curve, sizes.sort(descending=True).values, rtol=1e-4, atol=1e-5)


def test_reconstructions(inspection, trace):
    for path, figure in FIGURES["reconstructions"].draw(inspection, SETTINGS):
        stage = path.name.removesuffix("_reconstructions")
        maps = trace.features[stage][0]
        panels = [axes for axes in figure.get_axes() if axes.get_title("left").startswith("channel")]
        channels = [int(axes.get_title("left").split()[1].strip(",")) for axes in panels]
        peaks = maps.amax((1, 2))
        assert torch.allclose(peaks[channels], peaks.sort(descending=True).values[:9], rtol=1e-4, atol=1e-5)
        for axes, channel in zip(panels, channels, strict=True):
            picture = axes.get_images()[0].get_array()
            for place, rule in ((1, "deconvnet"), (2, "guided")):
                with torch.inference_mode():
                    signal = isolate(trace.features[stage], channel)
                    expected = ReverseResNet18(inspection.network, rule)(signal, stage, trace)[0].permute(1, 2, 0)
                tile = 2 * picture[:, place * 34 : place * 34 + 32] - 1
                limit = expected.abs().max().clamp(min=1e-30)
                assert_same_pictures(tile, expected / limit)


def tiles_of(figure):
    """Channel -> tile, in the order of a page of tiles."""
    page = figure.get_axes()[0]
    channels = [int(text.get_text()) for text in page.texts[::2]]
    return dict(zip(channels, [image.get_array() for image in page.get_images()], strict=True))


class TestPicture:
    @pytest.fixture
    def fake(self, inspection):
        """Nine images of one class and three of another; the network predicts the classes given, each in its way."""

        def network(inputs):
            return logits[inputs[:, 0, 0, 0].long()]

        logits = torch.zeros(12, 3)
        logits[:9, 0] = torch.tensor([5.0, 1, 9, 3, 7, -8, 2, 6, -9])  # 5 and 8 are mistakes
        images = torch.arange(12).reshape(-1, 1, 1, 1).expand(-1, 3, 32, 32)
        labels = torch.tensor([0] * 9 + [1] * 3)
        return replace(inspection, network=network, preprocess=lambda images: images, images=images, labels=labels)

    def seed_of(self, number):
        draws = ((seed, torch.randperm(3, generator=torch.Generator().manual_seed(seed))) for seed in range(99))
        return next(seed for seed, order in draws if order[0] == number)

    def test_it_is_the_median_of_those_that_are_right(self, fake):
        index, choice = median_image(fake, Settings(seed=self.seed_of(0), batch_size=4))
        assert index == 0 and "of 7 test images of its class" in choice  # 1 2 3 5 6 7 9
        fake = replace(fake, searched=torch.tensor([2, 4, 5, 7, 8, 10]))
        assert median_image(fake, Settings(seed=self.seed_of(0)))[0] == 4

    def test_a_class_without_any_is_skipped(self, fake):
        assert median_image(fake, Settings(seed=self.seed_of(2)))[0] == 0  # class 1: all wrong; class 2: none

    def test_without_any_it_is_the_first(self, fake):
        wrong = replace(fake, labels=torch.full((12,), 2))
        index, choice = median_image(wrong, Settings())
        assert index == 0 and "none of those tried is classified right" in choice
        index, choice = median_image(replace(fake, label_names=("a", "b", "c")), Settings())
        assert index == 0 and "whose classes are not the network's" in choice


def test_the_picture_is_chosen_by_number_or_ones_own(inspection, small_run, capsys):
    (picture,) = add_pictures(inspection, Settings(image=7)).pictures
    assert torch.equal(picture.image, inspection.images[7]) and picture.folder == "" and picture.choice == ""
    flags = ["--ckpt", small_run / "model.pt", "--figures", "input", "--device", "cpu", "--image"]
    ends(capsys, visualizer.main, [*flags, 12], 2, "--image 12", "0 to 11")
    ends(capsys, visualizer.main, [*flags, 1, "--images", "a.png"], 2, "pass one of them")
    file = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
    (picture,) = add_pictures(inspection, Settings(), [str(file)]).pictures
    with Image.open(file) as image:
        assert np.array_equal(to_array(picture.image), np.asarray(image)) and picture.label is None
