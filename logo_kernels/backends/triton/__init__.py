"""The `triton` backend (in the making)."""

from __future__ import annotations

from typing import NoReturn

from ..protocol import Backend, Problem


class TritonBackend(Backend):
    name = "triton"

    def missing(self) -> str | None:
        return "not written yet"

    def refuses(self, problem: Problem) -> str | None:
        return "not written yet"

    def cosine(self, *args: object) -> NoReturn:
        raise NotImplementedError

    similarity = similarity_backward = cosine
