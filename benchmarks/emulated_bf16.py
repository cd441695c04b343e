"""train.py on a CPU without native bf16: the same numbers in bf16, at the speed of fp32.

python benchmarks/emulated_bf16.py --precision bf16 [other flags of train.py]

A CPU with AVX512-BF16 or AMX multiplies bf16 values, adds the products in fp32, and rounds the sums to bf16. A product
of two bf16 values has 16 significant bits and is exact in fp32. So a convolution in fp32 of bf16 values, rounded to
bf16, differs only in the order of the sum. All other operations run in bf16 as usual.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
import train


class RoundedConvolution(torch.autograd.Function):
    """A convolution without bias of bf16 tensors: products and sums in fp32; result and gradients rounded to bf16."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        """x: (N, C, H, W) bf16; weight: (out, C, kh, kw) bf16; the result is bf16."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x.float(), weight.float(), None, stride, padding).bfloat16()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """gradient: of the result, bf16; the gradients of x and weight are bf16."""
        operands = [value.float() for value in (gradient, *ctx.saved_tensors)]
        geometry = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1)  # no dilation, not transposed, one group
        wanted = (*ctx.needs_input_grad[:2], False)
        gradients = torch.ops.aten.convolution_backward(*operands, None, *geometry, wanted)
        return *(value if value is None else value.bfloat16() for value in gradients[:2]), None, None


def convolve(self: nn.Conv2d, x: Tensor, weight: Tensor, bias: None) -> Tensor:
    """Replaces `nn.Conv2d._conv_forward`; fp32 outside autocast."""
    if not torch.is_autocast_enabled("cpu"):
        return F.conv2d(x, weight, bias, self.stride, self.padding)
    with torch.autocast("cpu", enabled=False):
        return RoundedConvolution.apply(x.bfloat16(), weight.bfloat16(), self.stride, self.padding)


if __name__ == "__main__":
    nn.Conv2d._conv_forward = convolve
    train.main()
