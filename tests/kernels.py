"""An operation of one backend by its arguments; records are made as an operator makes them."""

from __future__ import annotations

from typing import Any

from logo_kernels.backends import BACKENDS, Backend
from logo_kernels.operators import OPERATORS


class Kernels:
    """The kernels of a backend as functions: positional arguments in, what was filled out.

    Names are those of operators, the affinity's without "affinity_".
    """

    def __init__(self, backend: str | Backend) -> None:
        self.backend = BACKENDS[backend] if isinstance(backend, str) else backend

    def __getattr__(self, name: str) -> Any:
        operator = OPERATORS.get(name) or OPERATORS[f"affinity_{name}"]

        def run(*arguments: Any) -> Any:
            call = operator.call(*arguments)
            result = operator.result.empty(call)
            getattr(self.backend, operator.name)(call, result)
            if name == "hidden_gradient":
                return result[:3]  # what follows is scratch
            return result[0] if len(result) == 1 else result

        return run
