"""How much shared memory Triton gives a kernel at most, from its tile alone.

Bounds, found from what the compiler reports and held to it in test_aot.py: no kernel here stores to
shared memory by itself, all of it is copies in flight, operands, and changes of layout.
"""

from __future__ import annotations

from typing import Any

BARRIERS = 64  # of the tensor cores of sm_100, and rounding


def of_image(v_pad: int, block_d: int, stages: int, loaded: int, fp32: bool) -> int:
    """Bytes, for the kernels of image.py; `loaded` as in `tile_for`, `fp32` of operands.

    While blocks are in flight, either the Gram matrix or a block of the gradient changes its
    layout. Both operands of a product of fp32 may be there, in two parts each.
    """
    block, gram = 4 * v_pad * block_d, 4 * v_pad * v_pad
    flight = max(stages * v_pad * block_d * loaded, block)
    return max(flight + max(gram, block), 4 * block if fp32 else 0) + BARRIERS


def of_numbers(count: int) -> int:
    """Bytes, for kernels without products: a tile of so many numbers changes its layout."""
    return 4 * count + BARRIERS


def of_launch(arguments: dict[str, Any]) -> int:
    """By the arguments of a kernel, of all but InfoNCE."""
    if "V_PAD" in arguments:
        pointers = [arguments[f"{v}_ptr"] for v in "xtra" if f"{v}_ptr" in arguments]
        loaded = sum(p.element_size() for p in pointers[1:] if p.dtype != pointers[0].dtype)
        return of_image(
            arguments["V_PAD"],
            arguments["BLOCK_D"],
            arguments["STAGES"],
            loaded + pointers[0].element_size(),
            str(arguments["OP"]) == "fp32",
        )
    rows = [arguments[name] for name in ("ROWS", "PARTS", "ROWS0") if name in arguments]
    if not rows:
        rows = [arguments.get("DEEP", 1) * arguments.get("ACROSS", 1)]  # one vector in `fold`
    return of_numbers(max(rows) * arguments.get("BLOCK_H", arguments.get("BLOCK_D")))
