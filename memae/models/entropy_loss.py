"""The sparsity loss (paper, equation 9): the entropy of the memory weights."""

import torch
from torch import Tensor, nn


class Entropy(torch.autograd.Function):
    """Mean over N rows of -sum w log(w + epsilon), (N, M) -> scalar; keeps nothing for the backward pass but w."""

    @staticmethod
    def forward(ctx, w: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(w)
        ctx.epsilon = epsilon
        return -(w + epsilon).log_().mul_(w).sum(dim=1).mean()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        shifted = w + ctx.epsilon
        return (w / shifted).add_(shifted.log_()).mul_(-gradient / len(w)), None


class EntropyLoss(nn.Module):
    """Mean entropy of the rows of an (N, M) array of weights >= 0."""

    def __init__(self, eps: float = 1e-12):
        super().__init__()
        self.eps = eps

    def forward(self, w: Tensor) -> Tensor:
        """w (N, M) -> scalar in nats, 0 (one item has all the weight) to log M."""
        return Entropy.apply(w, self.eps)


class EntropyLossEncap(nn.Module):
    """`EntropyLoss` over all positions of weights (B, M, ...), as `MemModule` returns them."""

    def __init__(self, eps: float = 1e-12):
        super().__init__()
        self.entropy_loss = EntropyLoss(eps)

    def forward(self, att: Tensor) -> Tensor:
        """att (B, M, ...) -> scalar in nats."""
        rows = att.movedim(1, -1)  # (B, ..., M)
        return self.entropy_loss(rows.reshape(-1, rows.shape[-1]))
