"""The signals that enter the mirror: `isolate` by hand; `class_signal` against Captum and the logit itself."""

import numpy as np
import pytest
import torch
from captum.attr import Deconvolution, GuidedBackprop, Saliency
from test_reverse_network import ignore_captums_warning, images_of, relative_error

from reverse_network import RULES, ReverseResNet18, class_signal, isolate


class TestIsolate:
    features = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)

    @pytest.mark.parametrize(
        "channels, units, kept",
        [
            ([0, 2], "map", {(0, 0): [0, 1, 2, 3], (1, 2): [20, 21, 22, 23]}),
            (1, "peak", {(0, 1): [0, 0, 0, 7], (1, 1): [0, 0, 0, 19]}),
            (1, torch.tensor([1, 2]), {(0, 1): [0, 5, 0, 0], (1, 1): [0, 0, 18, 0]}),
        ],
        ids=["map", "peak", "positions"],
    )
    def test_by_hand(self, channels, units, kept):
        expected = torch.zeros(2, 3, 4)
        for place, values in kept.items():
            expected[place] = torch.tensor(values, dtype=torch.float32)
        assert torch.equal(isolate(self.features, channels, units), expected.reshape(2, 3, 2, 2))

    @pytest.mark.parametrize(
        "one", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.uint8)], ids=repr
    )
    @pytest.mark.parametrize("several", [list, tuple, np.array, torch.tensor, lambda values: np.array(values)[::-1]])
    def test_any_integers(self, one, several):
        expected = isolate(self.features, 1, 1)
        assert torch.equal(isolate(self.features, one, one), expected)
        assert torch.equal(isolate(self.features, [one, one], several([1, 1])), expected)

    @pytest.mark.parametrize(
        "wrong",
        [True, 1.0, [True, 1], [0.0, 1], [0], [0, 1, 2], [[0, 1]], None, np.bool_(True), np.array([0.0, 1]),
         torch.tensor(True), torch.tensor([0.0, 1]), torch.tensor([0]), torch.tensor([[0, 1]])],
        ids=repr,
    )  # fmt: skip
    def test_anything_else_is_told_what_is_expected(self, wrong):
        for name, arguments in {"channels": (wrong,), "units": (0, wrong)}.items():
            with pytest.raises(ValueError, match=f"{name} must be an integer for all images, or one for each of the 2"):
                isolate(self.features, *arguments)

    def test_tensors_on_a_device_are_not_read(self):
        """The device "meta" has no values to read, like a GPU without waiting for it."""
        features, one = self.features.to("meta"), torch.tensor(99, device="meta")
        assert isolate(features, one, one).shape == features.shape
        assert isolate(features, one.expand(2), one.expand(2)).device == features.device
        for wrong in (one.float(), one.bool(), one.expand(3), one.expand(1, 2)):
            with pytest.raises(ValueError, match="channels must be an integer"):
                isolate(features, wrong)

    @pytest.mark.parametrize(
        "arguments, words",
        [((3,), "channels must be 0 to 2"), ((-1,), "channels must be 0 to 2"), (([0, 9],), "channels must be 0 to 2"),
         ((0, torch.tensor([4, 0])), "units must be 0 to 3"), ((0, "all"), "unknown units 'all'")],
        ids=str,
    )  # fmt: skip
    def test_out_of_range(self, arguments, words):
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
        signal = class_signal(random_network, features, [4, 4])
        for four in (4, np.int64(4), torch.tensor(4), np.array([4, 4])):
            assert torch.equal(class_signal(random_network, features, four), signal)
        for wrong, words in {4.0: "classes must be an integer", 10: "classes must be 0 to 9"}.items():
            with pytest.raises(ValueError, match=words):
                class_signal(random_network, features, wrong)
