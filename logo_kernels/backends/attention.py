"""The pass over InfoNCE's negatives on the CPU: torch's flash attention with keys = values.

Attention's output is the softmax-weighted mean of its values, and its CPU kernel also returns the
log-sum-exp (DESIGN, identity 2). Its matrix products run at the rate of the vendor's library, so a
kernel of ours would have nothing to win. Unit negatives are made a chunk at a time, so that memory
does not grow with K; the chunks' results are merged by their log-sum-exp.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .protocol import InfoNCEResult
from .units import Rows, full_precision

# Bytes of a chunk of unit negatives: large enough that merging, O(N · D) a chunk, does not count.
CHUNK_BYTES = 8 << 20
# Rows of a chunk of which a query may not see its own image's: its mask has as many columns, and
# V / P times as many rows.
MASKED_CHUNK = 256


class Merged:
    """Running log-sum-exp and mean of queries over chunks of negatives."""

    def __init__(self, queries: Tensor, temperature: float) -> None:
        self.queries, self.scale = queries, 1 / temperature
        self.lse = queries.new_full(queries.shape[:1], -torch.inf)
        self.mean: Tensor | None = None  # [N, D], once something has been seen

    def see(self, units: Tensor, first: int, last: int, mask: Tensor | None = None) -> None:
        """Queries first..last see these unit negatives [k, D], but for −inf in mask [·, k]."""
        if first == last:
            return
        # torch's kernel takes unit strides for granted
        keys = units.contiguous()[None, None]
        mean, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            self.queries[None, None, first:last], keys, keys, 0.0, False,
            attn_mask=mask, scale=self.scale,
        )  # fmt: skip
        mean, lse = mean[0, 0], lse[0, 0].to(mean.dtype)
        if self.mean is None and len(mean) == len(self.queries):
            self.mean, self.lse = mean.contiguous(), lse  # nothing to merge with
            return
        if self.mean is None:
            self.mean = torch.zeros_like(self.queries)
        before = self.lse[first:last]
        after = torch.logaddexp(before, lse)
        self.mean[first:last].mul_(torch.exp(before - after).unsqueeze(-1))
        self.mean[first:last].addcmul_(mean, torch.exp(lse - after).unsqueeze(-1))
        self.lse[first:last] = after

    def result(self) -> InfoNCEResult:
        assert self.mean is not None, "every query sees a negative"
        return InfoNCEResult(self.lse, self.mean)


def info_nce(
    queries: Tensor,  # [N, D] unit rows, fp32 or fp64
    negatives: Tensor,  # [K, D]
    temperature: float,
    own: tuple[int, int] | None,
) -> InfoNCEResult:
    """`Backend.info_nce`."""
    merged = Merged(queries, temperature)
    count, dim = negatives.shape
    with torch.no_grad(), full_precision(queries.device.type):
        if own is None:
            step = max(1, CHUNK_BYTES // (dim * queries.element_size()))
            buffer = queries.new_empty(min(step, count), dim)
            for start in range(0, count, step):
                chunk = negatives[start : start + step]
                units = Rows(chunk, queries.dtype, buffer[: len(chunk)]).unit
                merged.see(units, 0, len(queries))
            return merged.result()
        crops, positives = own
        images = max(1, MASKED_CHUNK // positives)
        for image in range(0, count // positives, images):
            units = Rows(
                negatives[image * positives : (image + images) * positives], queries.dtype
            ).unit
            here = len(units) // positives
            first, last = image * crops, (image + here) * crops
            merged.see(units, 0, first)
            merged.see(units, last, len(queries))
            if here > 1:
                blocks = torch.eye(here, dtype=torch.bool)
                hidden = blocks.repeat_interleave(crops, 0).repeat_interleave(positives, 1)
                mask = queries.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
                merged.see(units, first, last, mask[None, None])
    return merged.result()
