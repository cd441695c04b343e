"""The signals that enter the mirror: `isolate` by hand; `class_signal` against Captum and the logit itself."""

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from test_reverse_network import ignore_captums_warning, images_of, relative_error

from reverse_network import RULES, ReverseResNet18, class_signal, isolate


class TestIsolate:
    features = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)

    @pytest.mark.parametrize("channels, units, kept", [
        ([0, 2], "map", {(0, 0): [0, 1, 2, 3], (1, 2): [20, 21, 22, 23]}),
        (1, "peak", {(0, 1): [0, 0, 0, 7], (1, 1): [0, 0, 0, 19]}),
        (1, torch.tensor([1, 2]), {(0, 1): [0, 5, 0, 0], (1, 1): [0, 0, 18, 0]}),
    ], ids=["map", "peak", "positions"])  # fmt: skip
    def test_by_hand(self, channels, units, kept):
        expected = torch.zeros(2, 3, 4)
        for image_and_channel, values in kept.items():
            expected[image_and_channel] = torch.tensor(values, dtype=torch.float32)
        assert torch.equal(isolate(self.features, channels, units), expected.reshape(2, 3, 2, 2))

    @pytest.mark.parametrize("one", [np.uint8(1), torch.tensor(1)], ids=repr)
    def test_any_integers(self, one):
        for ones in (one, [one, one], np.array([1, 1])[::-1], torch.tensor([1, 1])):
            assert torch.equal(isolate(self.features, one, ones), isolate(self.features, 1, 1))

    @pytest.mark.parametrize("wrong", [True, 1.0, [True, 1], [0], [[0, 1]], None, torch.tensor(True)], ids=repr)
    def test_anything_else_is_told_what_is_expected(self, wrong):
        for arguments, words in (((wrong,), "channels must be an integer for all images, or one for each of the 2"),
                                 ((0, wrong), "units must be an integer for all images, or one for each of the 2"),
                                 (([0, 9],), "channels must be 0 to 2"), ((-1,), "channels must be 0 to 2"),
                                 ((0, torch.tensor([4, 0])), "units must be 0 to 3"),
                                 ((0, "all"), "unknown units 'all'")):  # fmt: skip
            with pytest.raises(ValueError, match=words):
                isolate(self.features, *arguments)


class TestClassSignal:
    classes = [4, 0, 9]

    @ignore_captums_warning
    @pytest.mark.parametrize("rule", RULES)
    def test_it_is_captums_attribution_of_the_logit(self, random_network, rule):
        images = images_of((71, 53), count=3)
        with torch.no_grad():
            trace = random_network.trace(images)
            signal = class_signal(random_network, trace.features["conv5_x"], self.classes)
            picture = ReverseResNet18(random_network, rule)(signal, "conv5_x", trace)
        method = {"gradient": Saliency, "guided": GuidedBackprop, "deconvnet": Deconvolution}[rule](random_network)
        options = {"abs": False} if rule == "gradient" else {}
        expected = method.attribute(images.requires_grad_(), target=self.classes, **options)
        assert relative_error(picture, expected.detach()) < 1e-12

    @torch.no_grad()
    def test_weighted_the_contributions_and_the_bias_are_the_logit(self, random_network):
        features = random_network.trace(images_of((71, 53), count=3)).features["conv5_x"]
        logits = random_network.classify(features)[range(3), self.classes]
        contributions = class_signal(random_network, features, self.classes, weighted=True).sum((2, 3))  # (N, 512)
        assert relative_error(contributions.sum(1) + random_network.fc.bias[self.classes], logits) < 1e-12
        for channel in (3, 77, 500):  # a channel set to zero changes the logit by exactly its contribution
            without = features.clone()
            without[:, channel] = 0
            changed = logits - random_network.classify(without)[range(3), self.classes]
            assert (changed - contributions[:, channel]).abs().max() < 1e-12 * logits.abs().max()

    def test_one_class_for_all_and_invalid_classes(self, random_network):
        features = torch.rand(2, 512, 2, 3, dtype=torch.float64)
        one, both = (class_signal(random_network, features, classes) for classes in (torch.tensor(4), [4, 4]))
        assert torch.equal(one, both)
        for wrong, words in {4.0: "classes must be an integer", 10: "classes must be 0 to 9"}.items():
            with pytest.raises(ValueError, match=words):
                class_signal(random_network, features, wrong)
