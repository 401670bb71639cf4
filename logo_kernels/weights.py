"""The weight of one pair of each kind in an image's total (eqs. 3-5, 9; formulas: `logo_loss`)."""

from __future__ import annotations

PAIR_REDUCTIONS = ("sum", "mean")


def attraction_weights(globals_: int, locals_: int, pair_reduction: str) -> tuple[float, float]:
    """(gg, lg) of an ordered pair of global crops, and of a local with a global crop."""
    if pair_reduction == "sum":
        return 0.5, 1.0
    pairs = globals_ * (globals_ - 1) + locals_ * globals_
    return (1 / pairs, 1 / pairs) if pairs else (0.0, 0.0)


def repulsion_weight(locals_: int, pair_reduction: str) -> float:
    """The weight of an unordered pair of local crops, without λ."""
    return 1.0 if pair_reduction == "sum" else 1 / max(1, locals_ * (locals_ - 1) // 2)
