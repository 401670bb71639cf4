"""Validation of what users pass: done once, at the public functions, and nowhere below them.

Every message says which argument is wrong, what it is, and what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DTYPES = frozenset(FLOATING)


def strided(name: str, value: Any, letters: str) -> None:
    """Checks that `value` is a tensor, and neither sparse nor nested nor quantised."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor [{letters}], got {type(value).__name__}")
    if value.is_nested or value.layout is not torch.strided or value.is_quantized:
        kind = "nested" if value.is_nested else "quantized" if value.is_quantized else value.layout
        raise TypeError(
            f"{name} must be a dense tensor [{letters}], got a tensor that is {kind}; convert it "
            f"by to_padded_tensor, dequantize or to_dense"
        )


def is_sequence(value: Any) -> bool:
    """Whether `value` is a list, tuple, deque, ParameterList or the like."""
    if isinstance(value, (list, tuple)):
        return True
    if isinstance(value, (Tensor, str, bytes, Mapping)):
        return False
    return hasattr(value, "__len__") and hasattr(value, "__getitem__")


def block(name: str, value: Any, letters: str) -> Tensor:
    """`value` as a floating tensor of rank 3, `letters` naming its sizes ("B, G, D")."""
    usual = type(value) is Tensor and value.ndim == 3 and value.dtype in _DTYPES
    if usual and value.layout is torch.strided and not value.is_nested:
        return value
    strided(name, value, letters)
    if value.ndim != 3:
        raise ValueError(f"{name} must be [{letters}], got shape {list(value.shape)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")
    return value


def crops(name: str, value: Tensor | Sequence[Tensor], letters: str) -> Tensor:
    """A block, or a sequence of crops [B, D], which is stacked view-major (one copy)."""
    if type(value) is Tensor or not is_sequence(value):
        return block(name, value, letters)
    size, wanted = letters.split(", ")[1], f"a tensor [{letters}] or a sequence of tensors [B, D]"
    if len(value) == 0:
        raise ValueError(f"{name} must be {wanted}, got an empty sequence ({size} = 0)")
    for index, crop in enumerate(value):
        if not isinstance(crop, Tensor):
            raise TypeError(f"{name} must be {wanted}; {name}[{index}] is a {type(crop).__name__}")
        if crop.ndim != 2:
            raise ValueError(
                f"{name} must be {wanted}; {name}[{index}] has shape {list(crop.shape)}"
            )
        if crop.shape != value[0].shape:
            raise ValueError(
                f"{name}: crops must have one shape, but {name}[0] is {list(value[0].shape)} "
                f"and {name}[{index}] is {list(crop.shape)}"
            )
        if crop.dtype != value[0].dtype:
            raise TypeError(
                f"{name}: crops must have one dtype, but {name}[0] is {value[0].dtype} "
                f"and {name}[{index}] is {crop.dtype}"
            )
        if crop.device != value[0].device:
            raise ValueError(
                f"{name}: crops must be on one device, but {name}[0] is on {value[0].device} "
                f"and {name}[{index}] on {crop.device}"
            )
    return block(name, torch.stack(tuple(value)).transpose(0, 1), letters)


def matrix(name: str, value: Any, letters: str) -> Tensor:
    """`value` as a floating tensor of rank 2."""
    strided(name, value, letters)
    if value.ndim != 2:
        raise ValueError(f"{name} must be [{letters}], got shape {list(value.shape)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64, got {value.dtype}")
    return value


def negatives(value: Any, like: Tensor, like_name: str) -> Tensor:
    """Negatives [K, D] for crops `like` [B, V, D]."""
    keys = matrix("negatives", value, "K, D")
    if keys.shape[0] == 0:
        raise ValueError("negatives must not be empty, got K = 0")
    if keys.shape[1] != like.shape[2]:
        raise ValueError(
            f"negatives has D = {keys.shape[1]} (shape {list(keys.shape)}) but {like_name} has "
            f"D = {like.shape[2]} (shape {list(like.shape)}); they must agree"
        )
    same_device("negatives", keys, like_name, like)
    return keys


def alike(name: str, value: Tensor, other_name: str, other: Tensor, sizes: dict[str, int]) -> None:
    """Checks that `sizes` (letter -> dimension) and the device agree with those of `other`."""
    shape, others = value.shape, other.shape
    if shape == others and value.device == other.device:
        return
    for letter, dimension in sizes.items():
        if shape[dimension] != others[dimension]:
            raise ValueError(
                f"{name} has {letter} = {shape[dimension]} (shape {list(shape)}) but {other_name} "
                f"has {letter} = {others[dimension]} (shape {list(others)}); they must agree"
            )
    same_device(name, value, other_name, other)


def same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(
            f"{name} is on {value.device} but {other_name} is on {other.device}; "
            f"move them to one device"
        )


def same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} is {value.dtype} but {other_name} is {other.dtype}; cast one of them"
        )


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def positive_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}")


def temperature(value: Any) -> float | Tensor:
    """A number τ > 0, or a floating tensor [], whose value stays where it is."""
    if not isinstance(value, Tensor):
        tau = number("temperature", value)
        if tau <= 0:
            raise ValueError(f"temperature must be positive, got {value!r}")
        return tau
    if value.ndim != 0:
        raise ValueError(
            f"temperature must be a number or a tensor [], got shape {list(value.shape)}"
        )
    if value.dtype not in FLOATING:
        raise TypeError(
            f"temperature must be float32, bfloat16, float16 or float64, got {value.dtype}"
        )
    return value


def number(name: str, value: Any) -> float:
    """`value` as a finite number; one of NumPy or the like becomes a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    found: float = value if isinstance(value, (int, float)) else float(value)
    # torch.compile traces comparisons of a number that varies, a scheduled λ say, but not isfinite
    if not -math.inf < found < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}")
    return found
