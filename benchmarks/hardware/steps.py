"""Commands with a time budget and a log of their own, in turn or side by side, come what may."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, TIMED_OUT, ABSENT = "passed", "failed", "out of time", "not available"
# Of a tool that watched a program: it knows nothing against it, and does not know all.
LOST_TRACK, NO_END = "lost track of a launch", "came to no end"
ANOTHERS = "of another's kernel"
GRACE_SECONDS = 15  # after an interrupt, for pytest to write what it has


def by_status(code: int, _log: Path) -> str:
    return PASSED if code == 0 else FAILED


@dataclass(frozen=True)
class Command:
    """A step to run; `judge` makes a verdict of its exit status and log."""

    name: str
    words: Sequence[str | Path]
    seconds: float
    cwd: Path
    environment: Mapping[str, str]
    judge: Callable[[int, Path], str] = by_status


class Outcome(NamedTuple):
    """How a step ended."""

    name: str
    verdict: str
    seconds: float
    log: Path | None
    code: int | None = None  # the exit status; None: it was interrupted, or never started


class Steps:
    """Runs steps until a deadline for all of them together."""

    def __init__(self, logs: Path, total_seconds: float) -> None:
        self.logs = logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + total_seconds
        self.outcomes: list[Outcome] = []  # in the order in which they ended
        self.count = 0  # of logs
        # A shell's background jobs ignore the interrupt, and so would all that they start.
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(
        self, *commands: Command, at_once: int | None = None, seconds: float = math.inf
    ) -> list[Outcome]:
        """Runs all side by side, each to its end, its budget or the deadline; then interrupts it.

        No more than `at_once` of them, if given, in their order, and none longer than `seconds`
        from now. What a tool finds does not depend on what else runs; times do: measure one at a
        time.
        """
        if not commands:
            return []
        until = min(self.deadline - GRACE_SECONDS, time.monotonic() + seconds)
        logs = [self._log_of(command) for command in commands]
        with ThreadPoolExecutor(at_once or len(commands)) as places:
            return list(places.map(self._run, commands, logs, [until] * len(commands)))

    def _log_of(self, command: Command) -> Path:
        self.count += 1
        return self.logs / f"{self.count:02d}-{command.name.replace(' ', '-')}.log"

    def _run(self, command: Command, log: Path, until: float) -> Outcome:
        start = time.monotonic()
        limit = min(command.seconds, until - start)
        with log.open("w") as output:
            if limit <= 0:
                output.write("not started: no time left\n")
                return self._ended(Outcome(command.name, TIMED_OUT, 0.0, log))
            process = subprocess.Popen(
                [str(word) for word in command.words], cwd=command.cwd,
                env=dict(command.environment), stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            _interrupt(process)
        verdict = TIMED_OUT if code is None else command.judge(code, log)
        return self._ended(Outcome(command.name, verdict, time.monotonic() - start, log, code))

    def absent(self, name: str) -> Outcome:
        """A step whose tool is not there."""
        return self._ended(Outcome(name, ABSENT, 0.0, None))

    def _ended(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        lines = [f"{outcome.name:<28} {outcome.verdict:<22} {outcome.seconds:6.1f} s"]
        if outcome.verdict not in (PASSED, ABSENT) and outcome.log is not None:
            tail = outcome.log.read_text(errors="replace").splitlines()[-8:]
            lines += [f"    {line}" for line in tail]
        print("\n".join(lines), flush=True)
        return outcome

    def all_passed(self) -> bool:
        """Of a step that was run again, the last time counts."""
        last = {outcome.name: outcome for outcome in self.outcomes}
        return all(
            outcome.verdict in (PASSED, ABSENT, LOST_TRACK, ANOTHERS) for outcome in last.values()
        )


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, first to the program itself, at last to its whole session."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
