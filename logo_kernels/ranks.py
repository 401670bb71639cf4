"""Constants of other processes: what a group is, and what is gathered over it.

The engine is torch.distributed. Targets and keys are constants, so no collective here has a
gradient, and no factor of the number of ranks can enter one.
"""

from __future__ import annotations

import copy
import importlib
from typing import Any, Union

import torch
import torch.distributed as dist
from torch import Tensor, nn

if dist.is_available():
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Group = Union["ProcessGroup", "DeviceMesh", None]

# Of functional collectives, which torch.compile traces; torch has moved and renamed this one.
_PLACES = [
    (f"torch.distributed.{module}", name)
    for module in ("functional_collectives", "_functional_collectives")
    for name in ("all_gather_single", "all_gather_tensor")
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What this rank has brought to a group before: (group, facts, device) -> the facts as a tensor.
_brought: dict[tuple[str, tuple[int, ...], torch.device], Tensor] = {}


def process_group(group: Any) -> ProcessGroup | None:
    """`group` as a process group of several ranks; None for this process alone."""
    if group is None:
        return None
    if not dist.is_available():
        raise ValueError("group must be None, since torch was built without torch.distributed")
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            names = group.mesh_dim_names or ("dp",)
            raise ValueError(
                f"group must be a mesh of one dimension, got a DeviceMesh of {group.ndim}, "
                f"{tuple(group.mesh.shape)}; pass the one over which the batch is divided, "
                f"mesh[{names[0]!r}] for example"
            )
        group = group.get_group()
    if group == dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "group has no place for this process: torch.distributed.new_group made it of other "
            "ranks; pass a group that this rank is in, or None"
        )
    if not isinstance(group, ProcessGroup):
        raise TypeError(
            f"group must be a ProcessGroup, a DeviceMesh or None, got {type(group).__name__}"
        )
    return group if group.size() > 1 else None


def own_first(targets: Tensor, group: ProcessGroup) -> Tensor:
    """The rows of all ranks' targets [B, P, D], [W·B·P, D]: this rank's own, then the others'.

    Every rank brings as many.
    """
    images, positives, dim = targets.shape
    rows = targets.reshape(images * positives, dim).contiguous()
    if not torch.compiler.is_compiling():
        _agree(rows, (images, positives, dim, _DTYPES.index(rows.dtype)), group)
    everyone, rank, count = _gather(rows, group), dist.get_rank(group), len(rows)
    if rank > 0:  # the others in any order: a swap moves two ranks' rows, not all
        everyone[rank * count : (rank + 1) * count] = everyone[:count]
        everyone[:count] = rows
    return everyone


def in_rank_order(rows: Tensor, brought: int, group: ProcessGroup) -> tuple[Tensor, int]:
    """All ranks' rows [N, D], N of each rank's own, and what all ranks `brought`.

    The host reads how many there are.
    """
    mine = torch.tensor([[len(rows), brought]], device=rows.device)
    counts, of_all = zip(*_gather(mine, group).tolist(), strict=True)
    padded = rows.new_zeros(max(1, *counts), rows.shape[1])
    padded[: len(rows)] = rows
    of_ranks = _gather(padded, group).split(len(padded))
    found = [one[:count] for one, count in zip(of_ranks, counts, strict=True)]
    return torch.cat(found), sum(of_all)


def of_first(number: int, group: ProcessGroup) -> int:
    """The number of the group's rank 0."""
    numbers = [number]
    dist.broadcast_object_list(numbers, group=group, group_src=0)
    return numbers[0]


class HoldsGroup(nn.Module):
    """A module with an attribute `group`, which a deep copy shares: torch cannot copy a group."""

    group: Group

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        memo[id(self.group)] = self.group
        made = self.__new__(type(self))
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made


def _agree(rows: Tensor, facts: tuple[int, ...], group: ProcessGroup) -> None:
    """Raises ValueError on every rank where they bring different shapes or dtypes.

    The facts are gathered at every call, so that ranks which disagree still run the same
    collectives. The host looks at them where that is free, on the CPU, and else where this rank has
    not brought such rows before: a look waits for the device.
    """
    if rows.is_meta:
        return
    key = group.group_name, facts, rows.device
    known = key in _brought
    mine = _brought[key] if known else torch.tensor(facts, device=rows.device)
    everyone = _gather(mine, group)
    if known and not rows.is_cpu:
        return
    found = everyone.view(-1, len(facts)).tolist()
    if any(one != list(facts) for one in found):
        shown = [f"{one[:3]} {str(_DTYPES[one[3]]).removeprefix('torch.')}" for one in found]
        raise ValueError(
            f"targets must have one shape [B, P, D] and one dtype on all ranks of the group, got "
            f"{', '.join(f'{one} on rank {rank}' for rank, one in enumerate(shown))}; give each "
            f"rank as many images (a sampler with drop_last=True does)"
        )
    _brought[key] = mine


def _gather(rows: Tensor, group: ProcessGroup) -> Tensor:
    """[W·N, ..] of [N, ..], in rank order."""
    made = _all_gather(rows, 0, group)
    return made.wait() if hasattr(made, "wait") else made


def _find() -> Any:
    for module, name in _PLACES:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"torch has none of {', '.join('.'.join(place) for place in _PLACES)}")


_all_gather: Any = _find() if dist.is_available() else None
