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

_ABSENT: dict[str, Any] = {"rows": NO_ROWS, "matrix": NO_ROWS, "pairs": NO_ROWS}

# Of a field: its place among the arguments, its place in a record, its conversion.
_Field = tuple[int, int, Callable[[Any], Any]]


class _Record:
    """The fields of one record among a launcher's arguments, by what becomes of their values."""

    def __init__(self) -> None:
        self.addresses: list[tuple[int, int]] = []
        self.as_they_are: list[tuple[int, int]] = []
        self.converted: list[_Field] = []

    def add(self, place: int, index: int, kind: str) -> None:
        convert = CONVERT[kind]
        if kind == "address":
            self.addresses.append((place, index))
        elif convert is None:
            self.as_they_are.append((place, index))
        else:
            self.converted.append((place, index, convert))

    def put(self, record: Any, arguments: list[Any]) -> None:
        for place, index in self.addresses:
            array = record[index]
            if array is not None:
                arguments[place] = array.data_ptr()
        for place, index in self.as_they_are:
            arguments[place] = record[index]
        for place, index, convert in self.converted:
            arguments[place] = convert(record[index])


class Arguments:
    """The positional arguments of one launcher, from records of the types of these.

    Of a name that both have, as `grad_global`, whether it is wanted and the gradient, the Result's
    counts.
    """

    def __init__(self, fields: list[tuple[str, str]], call: Any, result: Any) -> None:
        self.absent = [_ABSENT.get(kind, 0) for _, kind in fields]
        self.of_call, self.of_result = _Record(), _Record()
        self.of_sizes: list[tuple[int, str, Callable[[Any], Any] | None]] = []
        sizes = call.sizes()
        for place, (name, kind) in enumerate(fields):
            if name in result._fields:
                self.of_result.add(place, result._fields.index(name), kind)
            elif name in call._fields:
                self.of_call.add(place, call._fields.index(name), kind)
            elif name in sizes:
                self.of_sizes.append((place, name, CONVERT[kind]))

    def __call__(self, call: Any, result: Any) -> list[Any]:
        arguments = self.absent.copy()
        self.of_call.put(call, arguments)
        self.of_result.put(result, arguments)
        sizes = call.sizes()
        for place, name, convert in self.of_sizes:
            value = sizes[name]
            arguments[place] = value if convert is None else convert(value)
        return arguments


class CompiledBackend(Backend):
    """Every launcher of the library is an operation."""

    @property
    @abstractmethod
    def library(self) -> ModuleType:
        """The compiled launchers, and `fields`: launcher -> [(field, kind)]."""

    @abstractmethod
    def launch(self, operation: str, call: Any, result: Any, arguments: list[Any]) -> None:
        """Calls the launcher, and tells it where to run."""

    def __getattr__(self, operation: str) -> Any:
        if operation.startswith("_") or operation not in self.library.fields:
            raise AttributeError(f"backend {self.name!r} has no operation {operation!r}")
        self.__dict__[operation] = fill = self.filler(operation)  # the next time it is there
        return fill

    def filler(self, operation: str) -> Callable[[Any, Any], None]:
        """(call, result) -> None by the launcher of that name."""
        arguments: Arguments | None = None  # an operation has one type of Call

        def fill(call: Any, result: Any) -> None:
            nonlocal arguments
            if arguments is None:
                arguments = Arguments(self.library.fields[operation], call, result)
            self.launch(operation, call, result, arguments(call, result))

        return fill
