"""Operators made from records: schema, fake implementation, allocation and choice of a backend.

An operation owns two records, NamedTuples beside its autograd Function: a Call holds the arguments
of a kernel, a Result the tensors that a kernel fills. From their fields follow the schema of a
registered operator, its fake implementation (`Result.empty`), and the course of a call: allocate,
choose a backend, let the backend's method of the operator's name fill the result.

Operators are registered by define + impl + register_fake: `custom_op` costs three times as much per
call. Results are ordinary outputs; the autograd Functions wire them into the graph.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar, cast, get_type_hints

import torch
from torch import Tensor, nn

from .autograd import is_legacy_batchedtensor, peek_interpreter_stack
from .backends import Backend, Key, backend_for

try:  # Private names alone tell whether a call is observed; without one of them, assume it is.
    from torch._C import _is_tracing, _len_torch_dispatch_stack, _len_torch_function_stack
    from torch.autograd import _profiler_enabled
except ImportError:
    _is_tracing = lambda: True  # noqa: E731

# A running statistic: the operator writes to it, unless `Call.written` leaves it out.
Written = Annotated[Tensor | None, "written"]

# Types of arguments that override nothing; a subclass of Tensor may override any operator.
_PLAIN = frozenset([Tensor, nn.Parameter, type(None), bool, int, float, str, torch.dtype])

_SCHEMA = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    torch.dtype: "ScalarType",
    torch.dtype | None: "ScalarType?",
}

NAMESPACE = "logo_kernels"  # of the operators; python/hub.py gives a copy of the package its own
_library = torch.library.Library(NAMESPACE, "DEF")
OPERATORS: dict[str, Operator[Any, Any]] = {}  # by name, all that are made


C = TypeVar("C")  # a Call: its `key` tells the facts by which a backend is chosen
R = TypeVar("R")  # a Result: its `empty(call)` allocates


class Operator(Generic[C, R]):
    """The operator `name` of a Call and a Result record: (call, backend) -> result."""

    def __init__(self, name: str, call: type[C], result: type[R]) -> None:
        self.name = name
        self.call, self.result = cast(Any, call), cast(Any, result)
        self.writes = hasattr(call, "written")
        arguments = [
            _argument(*field) for field in get_type_hints(call, include_extras=True).items()
        ]
        outputs = ", ".join(f"Tensor {field}" for field in self.result._fields)
        _library.define(f"{name}({', '.join(arguments)}, str backend) -> ({outputs})")
        _library.impl(name, self._run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._fake, lib=_library)
        self.registered = getattr(getattr(torch.ops, NAMESPACE), name).default
        OPERATORS[name] = self

    def __call__(self, call: C, backend: str | Backend) -> R:
        """Fills a result, past torch's dispatcher if nothing but the kernel would see the call.

        On a small batch the dispatcher costs the host as much as the kernel. A backend that is none
        by name was `settled`.
        """
        if not isinstance(backend, str):
            return self._fill(call, backend)
        if torch.compiler.is_compiling():
            return self._registered(call, backend)
        if not _observed(call):
            return self._fill(call, backend_for(backend, cast(Any, call).key()))
        with torch.no_grad():  # a constant that requires a gradient gets none
            return self._registered(call, backend)

    def _registered(self, call: Any, backend: str) -> Any:
        made = self.registered(*call, backend)
        made = (made,) if isinstance(made, Tensor) else made
        return self.result(*(one if one.numel() else None for one in made))

    def _fill(self, call: Any, backend: Backend) -> Any:
        result = self.result.empty(call)
        getattr(backend, self.name)(call, result)
        if self.writes and (written := call.written()):
            torch.autograd.graph.increment_version(written)
        return result

    def _run(self, *arguments: Any) -> Any:
        *given, backend = arguments
        call = self.call(*given)
        return _outputs(call, self._fill(call, backend_for(backend, call.key())))

    def _fake(self, *arguments: Any) -> Any:
        call = self.call(*arguments[:-1])
        return _outputs(call, self.result.empty(call))


def settled(arguments: tuple[Any, ...], key: Key, backend: str) -> str | Backend:
    """The backend for several calls on these arguments and on what follows from them.

    By its name only if torch may see the calls: then each of them asks anew.
    """
    if torch.compiler.is_compiling() or _observed(arguments):
        return backend
    return backend_for(backend, key)


def _argument(name: str, annotation: Any) -> str:
    if annotation == Written:
        return f"Tensor({name}!)? {name}"
    return f"{_SCHEMA[annotation]} {name}"


def _outputs(call: Any, result: Any) -> Any:
    """A tensor for every field: an operator has no absent outputs, and none that share memory."""
    like = next(argument for argument in call if isinstance(argument, Tensor))
    made = tuple(like.new_empty(0) if one is None else one for one in result)
    return made if len(made) > 1 else made[0]


def _observed(call: Any) -> bool:
    """Whether torch traces, profiles or transforms, a mode is on, or an argument is special."""
    first = call[1] if call[0] is None else call[0]  # an upstream gradient comes first
    return (
        _is_tracing()
        or _len_torch_dispatch_stack() > 0
        or _len_torch_function_stack() > 0
        or peek_interpreter_stack() is not None
        or is_legacy_batchedtensor(first)
        or first.is_meta
        or _profiler_enabled()
        or not _PLAIN.issuperset(map(type, call))
    )
