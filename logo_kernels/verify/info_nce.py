"""Cases of InfoNCE: against a queue, and against the other images of the batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import info_nce, logo_loss
from ..contrast import contrast
from .case import UPSTREAM, Case, Numbers, Place, Results, extreme, identity, name_of, step
from .errors import BOUNDS

F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@dataclass(frozen=True)
class Queue(Case):
    """`info_nce` of queries [N, D], positives [N, P, D] and negatives [K, D]."""

    sizes: tuple[int, int, int, int]  # N, P, K, D
    dtype: torch.dtype
    of_negatives: torch.dtype
    temperature: float = 0.2
    extreme: bool = False
    transposed: bool = False  # the queue is [D, K] in memory

    operation = "info_nce"

    def __str__(self) -> str:
        return identity(
            self.operation, self.sizes, name_of(self.dtype),
            self.of_negatives != self.dtype and f"negatives {name_of(self.of_negatives)}",
            self.temperature != 0.2 and f"τ={self.temperature}", self.extreme and "extreme",
            self.transposed and "transposed",
        )  # fmt: skip

    def bound(self, _result: Tensor) -> float:
        """Products are of the queries' dtype, and what they round weighs 1/τ in a probability, as
        long as there is more than one negative that has some."""
        undecided = 0.05 / self.temperature if self.temperature > 1e-6 else 1
        return BOUNDS[self.dtype] * max(1, undecided)

    def results(self, place: Place) -> Results:
        rows, positives, negatives, dim = self.sizes
        numbers = Numbers()
        q, n = numbers.normal(1, rows, dim), numbers.normal(1, negatives, dim)
        k = numbers.normal(rows, positives, dim)
        if self.extreme:  # rows stand where images do
            q = extreme(q.transpose(0, 1), self.dtype).transpose(0, 1)
            n = extreme(n.transpose(0, 1), self.of_negatives).transpose(0, 1)
        queue = place.put(n[0].to(self.of_negatives))
        if self.transposed:
            queue = queue.T.contiguous().T
        leaves = {"queries": place.leaf(q[0].to(self.dtype))}
        losses = info_nce(
            leaves["queries"], place.put(k.to(self.dtype)), queue,
            temperature=self.temperature, backend=place.backend,
        )  # fmt: skip
        upstream = torch.linspace(0.5, 2, losses.numel()).view(rows, positives)
        return step(losses, upstream, dict(leaves), name="losses")


@dataclass(frozen=True)
class Batch(Case):
    """`logo_loss` with the targets of the other images as negatives, or a queue of them."""

    sizes: tuple[int, int, int, int]  # B, G, L, D
    dtype: torch.dtype
    queue: int | None = None  # K; None: the batch itself
    reduction: str = "mean"
    view_major: bool = False
    learned: bool = False  # τ is a tensor, which gets a gradient

    operation = "info_nce"

    def __str__(self) -> str:
        return identity(
            self.operation, self.sizes, name_of(self.dtype),
            f"queue of {self.queue}" if self.queue else "batch",
            self.view_major and "view-major", self.reduction != "mean" and self.reduction,
            self.learned and "learned τ",
        )  # fmt: skip

    def bound(self, _result: Tensor) -> float:
        """Products are of the queries' dtype."""
        return BOUNDS[self.dtype]

    def results(self, place: Place) -> Results:
        images, globals_, locals_, dim = self.sizes
        numbers = Numbers()
        x, y, t = (
            v.to(self.dtype)
            for v in numbers.crops(images, (globals_, locals_, globals_), dim, self.view_major)
        )
        n = None if self.queue is None else numbers.normal(self.queue, dim).to(self.dtype)
        leaves: dict[str, Tensor | None] = {
            "global crops": place.leaf(x),
            "local crops": place.leaf(y) if locals_ else None,
        }
        temperature: float | Tensor = 0.2
        if self.learned:
            temperature = leaves["temperature"] = place.leaf(
                torch.tensor(0.2, dtype=F64 if self.dtype == F64 else F32)
            )
        total, gg, lg, _ = logo_loss(
            leaves["global crops"],  # type: ignore[arg-type]
            leaves["local crops"],
            place.put(t),
            similarity="info_nce",
            negatives="batch" if n is None else place.put(n),
            temperature=temperature,
            affinity=None,
            reduction=self.reduction,
            return_terms=True,
            backend=place.backend,
        )
        upstream = UPSTREAM if self.reduction != "none" else torch.linspace(0.5, 2, images)
        return step(total, upstream, leaves) | {"gg": gg, "lg": lg}


@dataclass(frozen=True)
class Ranks(Case):
    """The targets of other processes behind one's own: of an image's own, none is a negative."""

    sizes: tuple[int, int, int, int]  # B, G, L, D
    others: int  # targets of other processes
    dtype: torch.dtype

    operation = "info_nce"

    def __str__(self) -> str:
        return identity(self.operation, self.sizes, name_of(self.dtype), f"{self.others} of others")

    def bound(self, _result: Tensor) -> float:
        return BOUNDS[self.dtype]

    def results(self, place: Place) -> Results:
        images, globals_, locals_, dim = self.sizes
        numbers = Numbers()
        counts = (globals_, locals_, globals_)
        x, y, t = (v.to(self.dtype) for v in numbers.crops(images, counts, dim, False))
        others = numbers.normal(self.others, dim).to(self.dtype)
        x, y = place.leaf(x), place.leaf(y)
        total, terms = contrast(
            x, y, place.put(t), place.put(torch.cat([t.flatten(0, 1), others])),
            0.2, "sum", "mean", place.backend, True, own_first=True,
        )  # fmt: skip
        assert terms is not None
        leaves: dict[str, Tensor | None] = {"global crops": x, "local crops": y}
        return step(total, UPSTREAM, leaves) | {"gg": terms[0], "lg": terms[1]}


# Each pair of dtypes that has products of its own; several tiles, ragged; a running maximum (small
# τ), and one (1e-30) that leaves no weight but the largest; more columns than one tile has; the
# images of the batch, and those of other processes.
FEW: list[Case] = [
    Queue((70, 2, 300, 64), F32, F32),
    Queue((70, 2, 300, 64), BF16, BF16, transposed=True),
    Queue((9, 2, 130, 33), F16, F16, temperature=0.01, extreme=True),
    Queue((9, 2, 130, 33), F32, BF16, temperature=0.01, extreme=True),
    Queue((9, 2, 130, 33), F32, F32, temperature=1e-30),
    Queue((70, 1, 300, 64), F32, F16),
    Queue((5, 3, 70, 300), BF16, BF16),
    Batch((20, 2, 3, 48), BF16),
    Batch((7, 1, 2, 24), F32, reduction="none", view_major=True, learned=True),
    Ranks((20, 2, 3, 48), 70, BF16),
]


def _more() -> Iterator[Case]:
    pairs = [(dtype, dtype) for dtype in (F32, BF16, F16, F64)]
    for dtype, of_negatives in (*pairs, (F32, BF16), (F32, F16)):
        yield Queue((70, 2, 300, 64), dtype, of_negatives)
        yield Queue((9, 2, 130, 33), dtype, of_negatives, temperature=0.01, extreme=True)
        yield Queue((9, 1, 130, 40), dtype, of_negatives, extreme=True, transposed=True)
        yield Queue((5, 2, 70, 300), dtype, of_negatives)
        yield Queue((1, 1, 1, 16), dtype, of_negatives)
    yield Queue((9, 2, 130, 33), F32, BF16, temperature=1e-38)
    yield Queue((9, 2, 130, 33), F64, F64, temperature=1e-300)
    for dtype, _ in pairs:
        yield Batch((20, 2, 3, 48), dtype)
        yield Batch((9, 2, 2, 129), dtype, reduction="none", view_major=True)
        yield Batch((9, 3, 0, 64), dtype, reduction="sum")
        yield Batch((9, 2, 2, 64), dtype, queue=150)
        yield Batch((33, 2, 2, 64), dtype, queue=150, learned=True)
        yield Ranks((9, 2, 2, 64), 150, dtype)


MORE: list[Case] = list(_more())
