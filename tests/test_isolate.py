"""The seeds of reconstructions, by hand on a small tensor."""

import numpy as np
import pytest
import torch

from reverse_network import isolate


class TestIsolate:
    features = torch.arange(2 * 3 * 2 * 2, dtype=torch.float32).reshape(2, 3, 2, 2)

    def test_map_keeps_one_channel_of_each_image(self):
        signal = isolate(self.features, [0, 2])
        assert torch.equal(signal[0, 0], self.features[0, 0]) and torch.equal(signal[1, 2], self.features[1, 2])
        assert not signal[0, 1:].any() and not signal[1, :2].any()

    def test_peak_keeps_its_strongest_unit(self):
        signal = isolate(self.features, 1, "peak")
        assert torch.count_nonzero(signal) == 2
        assert signal[0, 1, 1, 1] == 7 and signal[1, 1, 1, 1] == 19

    def test_positions_keep_the_given_unit(self):
        signal = isolate(self.features, 1, torch.tensor([1, 2]))
        assert torch.count_nonzero(signal) == 2
        assert signal[0, 1, 0, 1] == 5 and signal[1, 1, 1, 0] == 18

    def test_a_dead_map_gives_a_zero_signal(self):
        assert not isolate(torch.zeros(2, 3, 2, 2), 0, "peak").any()

    @pytest.mark.parametrize("channels", [3, -1, [0, 9]])
    def test_a_channel_out_of_range(self, channels):
        with pytest.raises(ValueError, match="channels must be 0 to 2"):
            isolate(self.features, channels)

    @pytest.mark.parametrize(
        "one", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), torch.tensor(1, dtype=torch.uint8)], ids=repr
    )
    @pytest.mark.parametrize("several", [list, tuple, np.array, torch.tensor, lambda values: np.array(values)[::-1]])
    def test_any_integers(self, one, several):
        expected = isolate(self.features, 1, 1)
        assert torch.count_nonzero(expected) == 2 and expected[0, 1, 0, 1] == 5
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

    def test_units_out_of_range(self):
        with pytest.raises(ValueError, match="unknown units 'all'"):
            isolate(self.features, 0, "all")
        with pytest.raises(ValueError, match="units must be 0 to 3"):
            isolate(self.features, 0, torch.tensor([4, 0]))
