"""The pair stage of the learned affinity as its definition reads: every pair made."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from logo_kernels.backends.pairs import PairStage


def pairs_of(a: Tensor, c: Tensor, roll: int) -> Tensor:
    """h [P, H]."""
    crops = a.shape[1]
    i, j = (~torch.eye(crops, dtype=torch.bool, device=a.device)).nonzero(as_tuple=True)
    return (a[:, i] + c.roll(-roll, 0)[:, j]).flatten(0, 1)


def normalised(v: Tensor, norm: Tensor) -> Tensor:
    mean, scale, bias = norm.to(v.dtype)
    return (v - mean) * scale + bias


def moments(v: Tensor) -> Tensor:
    return torch.stack([v.mean(0), v.var(0, correction=0)])


def scatter(pairs: Tensor, like: Tensor, roll: int) -> tuple[Tensor, Tensor]:
    """Σ over the pairs of each a[b, i] and of each c[b, j]."""
    images, crops, width = like.shape
    i, j = (~torch.eye(crops, dtype=torch.bool, device=like.device)).nonzero(as_tuple=True)
    pairs, zeros = pairs.view(images, -1, width), like.new_zeros(images, crops, width)
    return zeros.index_add(1, i, pairs), zeros.index_add(1, j, pairs).roll(roll, 0)


class Definition(PairStage):
    """Everything in one dtype, whatever comes in."""

    def __init__(self, dtype=torch.float64):
        self.dtype = dtype

    def hidden_moments(self, a, c, roll):
        return moments(pairs_of(a.to(self.dtype), c.to(self.dtype), roll))

    def hidden(self, a, c, norm, roll):
        return F.relu(normalised(pairs_of(a.to(self.dtype), c.to(self.dtype), roll), norm))

    def hidden_sums(self, grad, a, c, norm, roll):
        h = pairs_of(a.to(self.dtype), c.to(self.dtype), roll)
        m = torch.where(normalised(h, norm) > 0, grad.to(self.dtype), 0)
        to_a, to_c = scatter(m, a.to(self.dtype), roll)
        return to_a, to_c, torch.stack([m.sum(0), (m * (h - norm[0].to(self.dtype))).sum(0)])

    def hidden_backward(self, to_a, to_c, a, c, norm, correction, roll):
        mean, scale, _ = norm.to(self.dtype)
        h = pairs_of(a.to(self.dtype), c.to(self.dtype), roll)
        less_a, less_c = scatter(
            correction[0].to(self.dtype) + correction[1].to(self.dtype) * (h - mean),
            a.to(self.dtype),
            roll,
        )
        return scale * (to_a.to(self.dtype) - less_a), scale * (to_c.to(self.dtype) - less_c)

    def output_moments(self, y):
        return moments(y.to(self.dtype))

    def output(self, y, norm, weight, bias, pairs, link):
        f = F.relu(normalised(y.to(self.dtype), norm)) @ weight.to(self.dtype) + bias.to(self.dtype)
        zero = f.new_zeros(())
        linked = (f, torch.logaddexp(f, zero), torch.logaddexp(-f, zero))[link]
        slope = (torch.ones_like(f), torch.sigmoid(f), -torch.sigmoid(-f))[link]
        return linked.view(-1, pairs).mean(1), slope / pairs

    def output_sums(self, y, norm, slope, grad, pairs):
        y = y.to(self.dtype)
        t = slope.to(self.dtype) * grad.to(self.dtype).repeat_interleave(pairs)
        m = torch.where(normalised(y, norm) > 0, t.unsqueeze(1), 0)
        return torch.stack([m.sum(0), (m * (y - norm[0].to(self.dtype))).sum(0)])

    def output_backward(self, y, norm, weight, slope, grad, correction, pairs):
        y, (mean, scale, _) = y.to(self.dtype), norm.to(self.dtype)
        t = slope.to(self.dtype) * grad.to(self.dtype).repeat_interleave(pairs)
        m = torch.where(normalised(y, norm) > 0, t.unsqueeze(1) * weight.to(self.dtype), 0)
        return scale * (
            m - correction[0].to(self.dtype) - correction[1].to(self.dtype) * (y - mean)
        )
