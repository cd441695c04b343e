"""Convolutions in emulated bf16 against exact ones of the same bf16 values, rounded to bf16."""

import emulated_bf16
import pytest
import torch
import torch.nn.functional as F
from torch import nn


def round_to_bf16(value):
    """The nearest bf16 value of a float64 tensor, in float64; torch's own cast rounds twice, by way of float32."""
    mantissa, exponent = torch.frexp(value)
    return torch.ldexp((mantissa * 2**8).round() / 2**8, exponent)


@pytest.mark.parametrize("kernel, stride", [(7, 2), (3, 1), (1, 2)])
def test_result_and_gradients_are_exact_ones_rounded_to_bf16(kernel, stride):
    conv = nn.Conv2d(16, 24, kernel, stride, padding=kernel // 2, bias=False)
    x = torch.randn(2, 16, 12, 12, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        result = emulated_bf16.convolve(conv, x, conv.weight, None)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    assert result.dtype == torch.bfloat16 and x.grad.dtype == conv.weight.grad.dtype == torch.float32

    exact_x, weight = (value.detach().bfloat16().double().requires_grad_() for value in (x, conv.weight))
    exact = F.conv2d(exact_x, weight, None, stride, kernel // 2)
    exact.backward(gradient.double())
    for found, expected in ((result, exact), (x.grad, exact_x.grad), (conv.weight.grad, weight.grad)):
        expected = expected.detach()
        is_rounded = found.detach().double() == round_to_bf16(expected)
        assert is_rounded.double().mean() > 0.99  # others lie near the middle of two bf16 values, or near 0
        torch.testing.assert_close(found.detach().double(), expected, rtol=2**-8, atol=1e-5 * expected.abs().max())


def test_outside_autocast_a_convolution_is_in_fp32():
    conv, x = nn.Conv2d(3, 4, 3, bias=False), torch.randn(1, 3, 8, 8)
    assert torch.equal(emulated_bf16.convolve(conv, x, conv.weight, None), conv(x))
