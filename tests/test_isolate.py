"""The seeds of reconstructions, by hand on a small tensor."""

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

    def test_units_out_of_range(self):
        with pytest.raises(ValueError, match="unknown units 'all'"):
            isolate(self.features, 0, "all")
        with pytest.raises(ValueError, match="units must be 0 to 3"):
            isolate(self.features, 0, torch.tensor([4, 0]))
