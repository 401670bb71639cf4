"""Cases of `block_cosine_similarity`, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch

from .. import block_cosine_similarity
from .case import Case, Numbers, Place, Results, extreme, identity, name_of, step

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@dataclass(frozen=True)
class Similarity(Case):
    """a [B, V, D] with b [B, W, D]; W None: a with itself."""

    sizes: tuple[int, int, int | None, int]  # B, V, W, D
    dtype: torch.dtype
    view_major: bool = False
    extreme: bool = False

    operation = "similarity"

    def __str__(self) -> str:
        images, rows, others, dim = self.sizes
        return identity(
            self.operation, (images, rows, others or "self", dim), name_of(self.dtype),
            self.view_major and "view-major", self.extreme and "extreme",
        )  # fmt: skip

    def results(self, place: Place) -> Results:
        images, rows, others, dim = self.sizes
        numbers = Numbers()
        a, b = numbers.crops(images, (rows, others or 1), dim, self.view_major)
        if self.extreme:
            a, b = extreme(a, self.dtype), extreme(b, self.dtype)
        ours = place.leaf(a.to(self.dtype))
        theirs = None if others is None else place.leaf(b.to(self.dtype))
        upstream = numbers.normal(images, rows, others or rows).to(self.dtype)
        cosines = block_cosine_similarity(ours, theirs, backend=place.backend)
        return step(cosines, upstream, {"a": ours, "b": theirs}, name="cosines")


FEW = [
    Similarity((3, 5, None, 37), F32),
    Similarity((2, 9, 2, 130), BF16),
    Similarity((4, 3, 2, 33), F16, extreme=True),
    Similarity((2, 14, 6, 520), BF16, view_major=True),
    Similarity((1, 40, None, 48), F32),
    Similarity((1, 70, 10, 40), F16),
]


def _more() -> Iterator[Similarity]:
    """See cosine.py: whole images on chip or parts of them, rows converted, rows scaled."""
    for dtype, view_major in product((F32, BF16, F16, F64), (False, True)):
        yield Similarity((3, 4, None, 64), dtype, view_major)
        yield Similarity((3, 4, 3, 64), dtype, view_major, extreme=view_major)
        yield Similarity((4, 3, 2, 33), dtype, view_major, extreme=True)
        yield Similarity((1, 2, None, 65536), dtype, view_major)
        yield Similarity((2, 14, 6, 4096), dtype, view_major, extreme=view_major)
        yield Similarity((1, 90, 30, 40), dtype, view_major)


MORE = list(_more())
