"""What the loss costs each of W ranks: bytes sent and kept, and operations.

Formulas; tests hold them against a count of what collectives and products are given. An all-gather
as a ring does it: each rank sends its own rows and passes on those of all others but one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FACTS = 4 * 8  # bytes: B, P, D and the dtype, by which ranks see that they agree
COUNTS = 2 * 8  # bytes: how many keys a rank brings


@dataclass(frozen=True)
class Step:
    """One call of `logo_loss` with InfoNCE on a rank, and the queue's `enqueue` after it."""

    ranks: int  # W
    images: int  # B of a rank
    global_crops: int  # G, and as many targets
    local_crops: int  # L
    dim: int  # D
    element_bytes: int  # of targets, and of the queue's keys
    queue: int | None = None  # K; None: negatives="batch"

    @property
    def own_bytes(self) -> int:
        """Of this rank's targets, B·G·D numbers."""
        return self.images * self.global_crops * self.dim * self.element_bytes

    @property
    def negatives(self) -> int:
        """K: of the queue, or W·B·G targets; an image sees all but its own G."""
        return self.queue or self.ranks * self.images * self.global_crops

    def sent_bytes(self) -> int:
        """(W − 1) times own_bytes and what ranks tell of them."""
        return (self.ranks - 1) * (self.own_bytes + (COUNTS if self.queue else FACTS))

    def kept_bytes(self) -> int:
        """The negatives, K·D numbers: of a batch during forward, of a queue for good."""
        return self.negatives * self.dim * self.element_bytes

    def operations(self) -> int:
        """Of the forward pass: N queries with K negatives and back, and with their G positives.

        Backward has none over the negatives.
        """
        queries = self.images * (self.global_crops + self.local_crops)
        return 2 * queries * self.dim * (2 * self.negatives + self.global_crops)


RANKS = (1, 2, 8, 64, 256, 1024)
# A rank's: (title, what does not change with W).
CASES = {
    'negatives="batch", B = 256 of a rank, G = L = 2, D = 256, bfloat16':
        Step(1, 256, 2, 2, 256, 2),
    'negatives="batch", B = 64 of a rank, G = 2, L = 8, D = 2048, float32':
        Step(1, 64, 2, 8, 2048, 4),
    "a queue of 65,536 keys in bfloat16, B = 256 of a rank, G = L = 2, D = 128":
        Step(1, 256, 2, 2, 128, 2, queue=2**16),
    "a queue of 16,777,216 keys in bfloat16, B = 256 of a rank, G = L = 2, D = 128":
        Step(1, 256, 2, 2, 128, 2, queue=2**24),
}  # fmt: skip


def tables() -> Iterator[str]:
    """In Markdown, one of each case."""
    for title, one in CASES.items():
        yield f"\n**{title}**\n"
        yield "| ranks | negatives | sent by a rank, MB | kept, MB | operations, 10⁹ |"
        yield "|--:|--:|--:|--:|--:|"
        for ranks in RANKS:
            step = Step(**{**vars(one), "ranks": ranks})
            yield (
                f"| {ranks} | {step.negatives:,} | {step.sent_bytes() / 1e6:,.3g} "
                f"| {step.kept_bytes() / 1e6:,.4g} | {step.operations() / 1e9:,.4g} |"
            )
