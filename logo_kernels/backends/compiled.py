"""The backends of the compiled extension: how records become the arguments of a launcher.

The extension tells the name and the kind of each field of a launcher, from the list of its problem
(csrc/include/logo/problem.h). A field takes the value of the Result, the Call or the Call's `sizes`
under its name; it is absent if none has it. So no operation is written out here; cuda.py names
those that need memory of their own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .protocol import Backend

# The numbers of csrc/include/logo/problem.h.
DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
REDUCTIONS = {"mean": 0, "sum": 1, "none": 2, "pairs": 3}
PAIR_REDUCTIONS = {"sum": 0, "mean": 1}

# (address, dtype, V, strides in elements over B, V, D)
RowsArgument = tuple[int, int, int, int, int, int]
NO_ROWS: RowsArgument = (0, 0, 0, 0, 0, 0)


def rows(crops: Tensor | None) -> RowsArgument:
    """Of crops [B, V, D]."""
    if crops is None:
        return NO_ROWS
    image, crop, element = crops.stride()
    return crops.data_ptr(), DTYPES[crops.dtype], crops.size(1), image, crop, element


def matrix(rows: Tensor | None) -> RowsArgument:
    """Of a matrix [K, D], as the rows of one image."""
    if rows is None:
        return NO_ROWS
    row, element = rows.stride()
    return rows.data_ptr(), DTYPES[rows.dtype], rows.size(0), 0, row, element


def pairs(upstream: Tensor | None) -> RowsArgument:
    """Of [], [B] or [B, V, P] as rows of P numbers: a sum hands its gradient to each summand."""
    if upstream is None:
        return NO_ROWS
    image, crop, element = (*upstream.stride(), 0, 0, 0)[:3]
    return upstream.data_ptr(), DTYPES[upstream.dtype], 1, image, crop, element


# The conversion of a value by the kind of its field; None: the value as it is.
CONVERT: dict[str, Callable[[Any], Any] | None] = {
    "rows": rows,
    "matrix": matrix,
    "pairs": pairs,
    "address": None,  # of a tensor, 0 where it is absent
    "dtype": DTYPES.__getitem__,
    "reduction": REDUCTIONS.__getitem__,
    "pair_reduction": PAIR_REDUCTIONS.__getitem__,
    "int": None,
    "float": None,
    "bool": None,
}
ROWS = ("rows", "matrix", "pairs")


def arguments_of(
    fields: list[tuple[str, str]], call: Any, result: Any
) -> Callable[[Any, Any], list[Any]]:
    """(call, result) -> the positional arguments of a launcher, for records of the types of these.

    Of a name that both have, as `grad_global`, whether it is wanted and the gradient, the Result's
    counts. The function is one expression, made here as text: a loop over the fields takes the host
    as long as a small kernel.
    """
    sizes = call.sizes()
    values = []
    for name, kind in fields:
        if name in result._fields:
            value = f"result[{result._fields.index(name)}]"
        elif name in call._fields:
            value = f"call[{call._fields.index(name)}]"
        elif name in sizes:
            value = f"sizes[{name!r}]"
        else:
            values.append("NO_ROWS" if kind in ROWS else "0")
            continue
        if kind == "address":
            value = f"0 if (it := {value}) is None else it.data_ptr()"
        elif CONVERT[kind] is not None:
            value = f"{kind}({value})"
        values.append(value)
    names = {"NO_ROWS": NO_ROWS} | {kind: how for kind, how in CONVERT.items() if how is not None}
    if not any("sizes[" in value for value in values):
        return eval(f"lambda call, result: [{', '.join(values)}]", names)
    made = eval(f"lambda call, result, sizes: [{', '.join(values)}]", names)
    return lambda call, result: made(call, result, call.sizes())


class CompiledBackend(Backend):
    """Every launcher of the library is an operation."""

    @property
    @abstractmethod
    def library(self) -> ModuleType:
        """The compiled launchers, and `fields`: launcher -> [(field, kind)]."""

    @abstractmethod
    def launcher(self, operation: str) -> Callable[[Any, Any, list[Any]], None]:
        """(call, result, arguments) -> None: calls the launcher, and tells it where to run."""

    def __getattr__(self, operation: str) -> Any:
        if operation.startswith("_") or operation not in self.library.fields:
            raise AttributeError(f"backend {self.name!r} has no operation {operation!r}")
        self.__dict__[operation] = fill = self.filler(operation)  # the next time it is there
        return fill

    def filler(self, operation: str) -> Callable[[Any, Any], None]:
        """(call, result) -> None by the launcher of that name."""
        launch: Callable[[Any, Any, list[Any]], None]
        arguments: Callable[[Any, Any], list[Any]] | None = None

        def fill(call: Any, result: Any) -> None:
            nonlocal launch, arguments
            if arguments is None:  # an operation has one type of Call
                launch = self.launcher(operation)
                arguments = arguments_of(self.library.fields[operation], call, result)
            launch(call, result, arguments(call, result))

        return fill
