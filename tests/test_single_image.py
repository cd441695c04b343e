"""The figures of one image, against the network alone."""

import numpy as np
import pytest
import torch
from conftest import assert_same_pictures
from PIL import Image

from analysis.inspection import add_pictures, inspect
from analysis.settings import Settings
from figures import FIGURES
from figures.image_grid import to_array
from reverse_network import ReverseResNet18, isolate

SETTINGS = Settings(stages=("conv5_x", "conv2_x"))


@pytest.fixture(scope="module")
def inspection(small_run):
    return inspect(small_run / "model.pt", SETTINGS, "cpu")


@pytest.fixture
def trace(inspection):
    with torch.inference_mode():
        return inspection.network.trace(inspection.preprocess(inspection.images[:1]))


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
    canvas = drawn["conv5_x_feature_maps"].get_axes()[0].get_images()[0].get_array()
    expected = trace.features["conv5_x"][0, :, 0, 0].reshape(16, 32)  # of 32x32 pixels one unit a map is left
    assert np.allclose(canvas[::8, ::8], expected, rtol=1e-4, atol=1e-5)
    canvas = drawn["conv2_x_feature_maps"].get_axes()[0].get_images()[0].get_array()
    assert np.allclose(canvas[9:17, 18:26], trace.features["conv2_x"][0, 10], rtol=1e-4, atol=1e-5)


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


def test_the_first_test_image_is_the_picture_unless_files_are_given(inspection, small_run):
    (picture,) = add_pictures(inspection).pictures
    assert torch.equal(picture.image, inspection.images[0]) and picture.folder == "" and picture.label == "disk"
    file = next((small_run.parent / "pictures" / "test" / "ring").iterdir())
    (picture,) = add_pictures(inspection, [str(file)]).pictures
    with Image.open(file) as image:
        assert np.array_equal(to_array(picture.image), np.asarray(image)) and picture.label is None
