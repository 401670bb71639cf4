"""Cases of `logo_loss` with cosines, and of the kernel that scales its gradient in backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from .. import logo_loss
from .case import UPSTREAM, Case, Numbers, Place, Results, extreme, identity, name_of, step

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
REPULSION = 0.1  # as large as attraction's weights, nearly: an error in it shows


@dataclass(frozen=True)
class Cosine(Case):
    """x [B, G, D], y [B, L, D], and t, r where the case has them."""

    sizes: tuple[int, int, int, int]  # B, G, L, D
    dtype: torch.dtype
    targets: bool = False
    features: bool = False
    view_major: bool = False
    extreme: bool = False
    reduction: str = "mean"
    pair_reduction: str = "sum"
    constants: torch.dtype | None = None  # of targets; None: that of the crops
    upstream: float = UPSTREAM

    operation = "cosine"

    def __str__(self) -> str:
        return identity(
            self.operation, self.sizes, name_of(self.dtype), self.targets and "targets",
            self.constants and name_of(self.constants), self.features and "features",
            self.view_major and "view-major", self.extreme and "extreme",
            self.reduction != "mean" and self.reduction,
            self.pair_reduction != "sum" and "pairs' mean",
            self.upstream == 1 and "upstream one",
        )  # fmt: skip

    def results(self, place: Place) -> Results:
        images, globals_, locals_, dim = self.sizes
        counts = (globals_, locals_, globals_, locals_)
        blocks: list[Tensor | None] = []
        kept = (True, locals_ > 0, self.targets, self.features)
        for block, there in zip(
            Numbers().crops(images, counts, dim, self.view_major), kept, strict=True
        ):
            if self.extreme:
                block = extreme(block, self.dtype)
            blocks.append(block.to(self.dtype) if there else None)
        x, y, t, r = blocks
        leaves = {
            name: None if v is None else place.leaf(v)
            for name, v in (("global crops", x), ("local crops", y), ("features", r))
        }
        loss = logo_loss(
            leaves["global crops"],  # type: ignore[arg-type]
            leaves["local crops"],
            None if t is None else place.put(t.to(self.constants or self.dtype)),
            repulsion_features=leaves["features"],
            repulsion_weight=REPULSION,
            reduction=self.reduction,
            pair_reduction=self.pair_reduction,
            return_terms=True,
            backend=place.backend,
        )
        total, *terms = loss
        upstream = self.upstream if self.reduction != "none" else torch.linspace(0.5, 2, images)
        found = step(total, upstream, leaves)
        return found | dict(zip(("gg", "lg", "ll"), terms, strict=True))


# By number of rows (up to 16, 32, 64 and 128), by D (one part and several), by dtype.
FEW = [
    Cosine((3, 2, 3, 37), F32, targets=True, reduction="none", pair_reduction="mean"),
    Cosine((2, 2, 8, 129), BF16, view_major=True),
    Cosine((4, 3, 4, 33), F16, targets=True, extreme=True, reduction="none"),
    Cosine((1, 2, 2, 2050), BF16, targets=True, features=True),
    Cosine((2, 3, 14, 64), F32, targets=True, extreme=True),
    Cosine((2, 1, 17, 64), BF16, features=True, view_major=True, reduction="sum"),
    Cosine((1, 4, 90, 40), F16, targets=True),
    Cosine((5, 3, 0, 40), BF16, targets=True, constants=F32),
    Cosine((3, 1, 1, 24), F32, upstream=1.0),
]


def _more() -> Iterator[Cosine]:
    """What C++ does another way: whole images on chip or parts of them, of which none may divide D;
    rows that are copied as they are or converted; norms that have rows scaled.
    """
    for dtype in (F32, BF16, F16, F64):
        for given, view_major in product((False, True), repeat=2):
            yield Cosine((3, 2, 3, 37), dtype, given, given, view_major)
        yield Cosine((3, 2, 4, 64), dtype, targets=True, reduction="none")
        yield Cosine((3, 2, 4, 64), dtype, True, True, True, pair_reduction="mean")
        yield Cosine((4, 3, 4, 64), dtype, targets=True, view_major=True, extreme=True)
        yield Cosine((4, 3, 4, 33), dtype, True, True, extreme=True, reduction="none")
        yield Cosine((2, 2, 16, 4096), dtype, targets=True)
        yield Cosine((2, 3, 14, 4096), dtype, True, view_major=True, extreme=True, reduction="none")
        yield Cosine((1, 2, 16, 4099), dtype, targets=True)
        yield Cosine((1, 2, 0, 65536), dtype, targets=True)  # few rows, long
        yield Cosine((2, 2, 60, 48), dtype, targets=True, features=True)
        yield Cosine((4, 2, 1, 48), dtype, reduction="sum", upstream=1.0)
    yield Cosine((3, 2, 3, 48), BF16, targets=True, constants=F32)
    yield Cosine((3, 2, 3, 48), F32, targets=True, constants=BF16)
    # Two stages of an image fill a multiprocessor, and there are more images than those: blocks
    # go on to a next image, and the last one adds up what all have found.
    yield Cosine((160, 2, 1, 4096), F32, targets=True)


MORE = list(_more())
