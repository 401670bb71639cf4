"""The learned affinity between its products, as its definition reads: every pair made."""

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

    def unit(self, z, dtype):
        z = z.to(self.dtype)
        norm = z.norm(dim=-1, keepdim=True)
        inverse = torch.where(norm == 0, 0, 1 / norm)
        return z * inverse, torch.cat([torch.ones_like(inverse), inverse], -1).flatten(0, 1)

    def unit_backward(self, grad, unit, factors, dtype, view_major):
        grad, unit = grad.to(self.dtype), unit.to(self.dtype)
        inverse = factors.to(self.dtype).prod(1).view(*grad.shape[:2], 1)
        return (grad - (grad * unit).sum(-1, keepdim=True) * unit) * inverse

    def norm(self, moments, weight, bias, mean, var, batches, batch, momentum, eps, count):
        if batch:
            mine, variance = moments()
            if mean is not None:
                batches += 1
                share = momentum if momentum >= 0 else 1 / float(batches)
                mean.lerp_(mine.to(mean.dtype), share)
                var.lerp_((variance * count / (count - 1)).to(var.dtype), share)
        else:
            mine, variance = mean.to(self.dtype), var.to(self.dtype)
        inverse = (variance + eps).rsqrt()
        scale = weight.to(self.dtype) * inverse
        return torch.stack([mine, scale, bias.to(self.dtype), inverse])

    def correction(self, sums, inverse, count, batch):
        return torch.stack([sums[0], sums[1] * inverse**2]) / count * batch

    def hidden_layer(self, a, c, *of_norm_and_roll):
        *of_norm, roll = of_norm_and_roll
        count = a.shape[0] * a.shape[1] * (a.shape[1] - 1)
        norm = self.norm(lambda: self.hidden_moments(a, c, roll), *of_norm, count)
        return self.hidden(a, c, norm[:3], roll), norm

    def hidden_gradient(self, grad, a, c, norm, batch, roll):
        norm = norm.to(self.dtype)
        to_a, to_c, sums = self.hidden_sums(grad, a, c, norm[:3], roll)
        correction = self.correction(sums, norm[3], len(grad), batch)
        to_a, to_c = self.hidden_backward(to_a, to_c, a, c, norm[:3], correction, roll)
        before = sums[0] * norm[1] * (not batch)
        return to_a, to_c, torch.stack([*correction, sums[1] * norm[3], sums[0], before])

    def output_layer(self, y, *given):
        *of_norm, last, last_bias, pairs, link = given
        norm = self.norm(lambda: self.output_moments(y), *of_norm, len(y))
        return *self.output(y, norm[:3], last, last_bias, pairs, link), norm

    def output_gradient(self, y, norm, last, slope, grad, batch, parameters, pairs):
        norm, last = norm.to(self.dtype), last.to(self.dtype)
        sums = self.output_sums(y, norm[:3], slope, grad, pairs)
        weighted = sums * last
        correction = self.correction(weighted, norm[3], len(y), batch)
        to_y = self.output_backward(y, norm[:3], last, slope, grad, correction, pairs)
        facts = torch.stack(
            [
                *correction, weighted[1] * norm[3], weighted[0],
                weighted[0] * norm[1] * (not batch), sums[1] * norm[1] + sums[0] * norm[2],
            ]
        )  # fmt: skip
        return to_y, facts if batch or parameters else torch.zeros_like(facts)
