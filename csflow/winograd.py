"""Convolutions with fewer multiplications: minimal filtering by Toom-Cook and Winograd (Lavin and Gray, CVPR 2016).

With a k x k kernel w, a tile of m x m outputs y needs t x t inputs x, t = m + k - 1:

    y = A^T [(G w G^T) * (B^T x B)] A,   * element by element

t^2 products instead of m^2 k^2, for m = 4 and k = 5 64 instead of 400. G and A evaluate polynomials at t points, B^T
interpolates. Below, a tile is a vector of t^2 rows: every transform is one matrix product, and the products over all
channels are a 1 x 1 convolution in t^2 groups. Rounding grows with the points' powers: in float32, results and
gradients for a 5 x 5 kernel are off by 3e-6 to 4e-6 of their size, F.conv2d's by 0.1e-6 to 0.8e-6.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

M = 4
POINTS = (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)  # and infinity; kernel 3 takes the first five


@cache
def transforms(kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """A^T (m^2, t^2), G (t^2, k^2) and B^T (t^2, t^2) for tiles as vectors."""
    points = torch.tensor(POINTS[: M + kernel - 2], dtype=torch.float64)

    def evaluate(n: int) -> Tensor:  # polynomials of n coefficients, (t, n); at infinity, the last coefficient counts
        return torch.cat([torch.vander(points, n, increasing=True), torch.eye(n, dtype=torch.float64)[-1:]])

    matrices = evaluate(M).T, evaluate(kernel), torch.linalg.inv(evaluate(M + kernel - 1)).T
    return tuple(torch.kron(matrix, matrix).to(dtype) for matrix in matrices)


def tiles(x: Tensor, t: int, pad: int) -> Tensor:
    """(B, C, H, W) -> (P, t^2, C): the P = B ceil(H/m) ceil(W/m) tiles, one every m pixels, x being padded by zeros."""
    height, width = (-(-side // M) * M + t - M for side in x.shape[2:])
    x = F.pad(x, (pad, width - x.shape[3] - pad, pad, height - x.shape[2] - pad)).permute(0, 2, 3, 1)
    return x.unfold(1, t, M).unfold(2, t, M).permute(0, 1, 2, 4, 5, 3).reshape(-1, t * t, x.shape[3])


def sum_of_tiles(x: Tensor, t: int, pad: int, shape: tuple[int, ...]) -> Tensor:
    """The transpose of `tiles`: (P, t^2, C) -> (B, C, H, W) = shape, where tiles overlap their sum."""
    batch, channels, height, width = shape
    rows, columns, overlap = -(-height // M), -(-width // M), -(-t // M)
    x = x.view(batch, rows, columns, t, t, channels).transpose(2, 3)
    total = x.new_zeros(batch, rows + overlap - 1, M, columns + overlap - 1, M, channels)
    for i in range(overlap):
        for j in range(overlap):
            part = x[:, :, i * M : (i + 1) * M, :, j * M : (j + 1) * M]
            total[:, i : i + rows, : part.shape[2], j : j + columns, : part.shape[4]] += part
    total = total.flatten(3, 4).flatten(1, 2)
    return total[:, pad : pad + height, pad : pad + width].permute(0, 3, 1, 2)


def as_image(x: Tensor) -> Tensor:
    """(P, t^2, C) -> (1, t^2 C, P, 1), channels last."""
    return x.reshape(1, len(x), 1, -1).permute(0, 3, 1, 2)


class Winograd(torch.autograd.Function):
    """F.conv2d(x, weight, bias, padding=k // 2) for kernels of 3 x 3 and 5 x 5."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        outputs, _, kernel = weight.shape[:3]
        a, g, b = transforms(kernel, weight.dtype)
        batch, _, height, width = x.shape
        v = b @ tiles(x, M + kernel - 1, kernel // 2)  # (P, t^2, C)
        y = F.conv2d(as_image(v), Winograd.transformed(weight, g), groups=len(b))  # (1, t^2 C', P, 1)
        y = a @ y.permute(0, 2, 3, 1).view(-1, len(b), outputs)  # (P, m^2, C')
        return sum_of_tiles(y + bias, M, 0, (batch, outputs, height, width))

    @staticmethod
    def transformed(weight: Tensor, g: Tensor) -> Tensor:
        """G w G^T: (C', C, k, k) -> (t^2 C', C, 1, 1)."""
        u = g @ weight.permute(0, 2, 3, 1).flatten(1, 2)  # (C', t^2, C)
        return u.transpose(0, 1).reshape(-1, weight.shape[1], 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        outputs, inputs, kernel = weight.shape[:3]
        a, g, b = transforms(kernel, weight.dtype)
        grad_products = a.T @ tiles(grad_y, M, 0)  # (P, t^2, C')
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_v = F.conv_transpose2d(as_image(grad_products), Winograd.transformed(weight, g), groups=len(b))
            grad_v = b.T @ grad_v.permute(0, 2, 3, 1).view(-1, len(b), inputs)
            grad_x = sum_of_tiles(grad_v, M + kernel - 1, kernel // 2, x.shape)
        v = b @ tiles(x, M + kernel - 1, kernel // 2)  # once more: to keep it takes four times the memory of x
        grad_u = grad_products.permute(1, 2, 0) @ v.transpose(0, 1)  # (t^2, C', C)
        grad_weight = (g.T @ grad_u.flatten(1)).view(kernel, kernel, outputs, inputs).permute(2, 3, 0, 1)
        return grad_x, grad_weight, grad_y.sum((0, 2, 3))


def pays(x: Tensor, layer: nn.Conv2d) -> bool:
    """Whether Winograd takes less time: many pixels for each of the weights, whose transforms cost the same for all."""
    kernel = layer.kernel_size[0]
    return min(layer.in_channels, layer.out_channels) > 128 and len(x) * x.shape[2] * x.shape[3] * kernel >= 5000


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with a square kernel and k // 2 zeros around, computed as above where this is possible and pays."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        possible = self.stride == (1, 1) and self.kernel_size in ((3, 3), (5, 5)) and x.dtype.itemsize >= 4
        on_cpu = x.device.type == "cpu" and torch.backends.mkldnn.is_available()
        autocast = torch.is_autocast_enabled("cpu")
        if possible and on_cpu and not autocast and not torch.compiler.is_exporting() and pays(x, self):
            return Winograd.apply(x, self.weight, self.bias)
        # Weights further from the kernel's centre than the image is large meet only padding: their gradient is 0,
        # but oneDNN leaves it unwritten in bf16 (PyTorch 2.15, 5 x 5 weights on 1 x 1 features).
        pad = self.kernel_size[0] // 2
        reach = tuple(min(pad, side - 1) for side in x.shape[2:])
        if on_cpu and autocast and reach != (pad, pad):
            rows, columns = (slice(pad - far, pad + far + 1) for far in reach)
            return F.conv2d(x, self.weight[:, :, rows, columns], self.bias, self.stride, reach)
        return super().forward(x)


def with_minimal_filtering(model: nn.Module) -> nn.Module:
    """The model, each of whose convolutions is from now on computed as above where this is possible and pays; names
    and numbers of its parameters stay."""
    for module in model.modules():
        if type(module) is nn.Conv2d:
            module.__class__ = Conv2d
    return model
