"""The memory (paper, section 3.3): a code z becomes a sparse mixture z_hat = w_hat M of the memory's items.

Shapes: N positions, C channels, M items. For a batch of 14 clips of 256 x 256, N = 14 * 2 * 16 * 16 = 7168, and one
(N, M) array of 2000 items takes 57 MB: the backward pass keeps w and w_hat, nothing else of that size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-12


class Addressing(torch.autograd.Function):
    """Equations 4, 6 and 7: (N, M) similarities and the threshold lambda -> (N, M) weights w_hat, at least float32."""

    @staticmethod
    def forward(ctx, similarity: Tensor, shrink_thres: float) -> Tensor:
        w = torch.softmax(similarity, dim=1, dtype=torch.promote_types(similarity.dtype, torch.float32))
        if shrink_thres <= 0:
            ctx.save_for_backward(w)
            return w
        above = (w - shrink_thres).relu_()
        w_hat = above * w
        # |w - lambda| is w - lambda wherever the product is not zero. onnxscript takes the addition of 1e-12 for one of
        # 0 and leaves it out, so that below the threshold there would be 0 / 0.
        w_hat.div_(above.clamp_(min=EPSILON) if torch.compiler.is_exporting() else above.add_(EPSILON))
        norm = w_hat.sum(dim=1, keepdim=True).clamp_(min=EPSILON)
        w_hat.div_(norm)
        ctx.save_for_backward(w, w_hat, norm)
        ctx.shrink_thres = shrink_thres
        return w_hat

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        w, *shrunk = ctx.saved_tensors
        if shrunk:
            w_hat, norm = shrunk
            # of the division by the sum of the row
            gradient = (gradient - (gradient * w_hat).sum(dim=1, keepdim=True)).div_(norm)
            # of a w / (a + epsilon) with a = w - lambda > 0; zero below the threshold
            above = (w - ctx.shrink_thres).relu_()
            gradient.mul_(above > 0)
            below = above + EPSILON
            gradient.mul_(above.div_(below).addcdiv_(w * EPSILON, below.square_()))
        else:
            gradient = gradient.clone()
        # of the softmax
        total = (gradient * w).sum(dim=1, keepdim=True)
        return gradient.sub_(total).mul_(w), None


class MemoryUnit(nn.Module):
    """M memory items of C channels: weight (M, C), initially uniform within +-1 / sqrt(C)."""

    def __init__(self, mem_dim: int, fea_dim: int, shrink_thres: float = 0.0025):
        super().__init__()
        self.mem_dim, self.fea_dim, self.shrink_thres = mem_dim, fea_dim, shrink_thres
        bound = 1 / math.sqrt(fea_dim)
        self.weight = nn.Parameter(torch.empty(mem_dim, fea_dim).uniform_(-bound, bound))

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """z (N, C) -> "output" z_hat (N, C) (equation 3), "att" w_hat (N, M); each row of w_hat sums to 1 or is 0."""
        w_hat = Addressing.apply(F.linear(z, self.weight), self.shrink_thres)
        return {"output": w_hat @ self.weight, "att": w_hat}

    def extra_repr(self) -> str:
        return f"mem_dim={self.mem_dim}, fea_dim={self.fea_dim}, shrink_thres={self.shrink_thres}"


class MemModule(nn.Module):
    """The memory, applied to every position of a code."""

    def __init__(self, mem_dim: int, fea_dim: int, shrink_thres: float = 0.0025):
        super().__init__()
        self.memory = MemoryUnit(mem_dim, fea_dim, shrink_thres)

    def forward(self, z: Tensor) -> dict[str, Tensor]:
        """z (B, C, L), (B, C, H, W) or (B, C, T, H, W) -> "output" of the same shape, "att" with M for C.

        Both are views of row-major (positions, C or M) arrays: in channels-last memory, nothing is copied.
        Raises ValueError for other numbers of dimensions or channels.
        """
        channels = self.memory.fea_dim
        if z.dim() not in (3, 4, 5) or z.shape[1] != channels:
            raise ValueError(f"code of shape {tuple(z.shape)}: expected (B, {channels}, ...) with 3 to 5 dimensions")
        rows = z.movedim(1, -1)  # (B, ..., C)
        found = self.memory(rows.reshape(-1, channels))
        return {name: value.unflatten(0, rows.shape[:-1]).movedim(-1, 1) for name, value in found.items()}
