"""Commands with a time budget and a log of their own, in turn or side by side, come what may."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, TIMED_OUT, ABSENT = "passed", "failed", "out of time", "not available"
GRACE_SECONDS = 15  # after an interrupt, for pytest to write what it has


@dataclass(frozen=True)
class Command:
    """A step to run."""

    name: str
    words: Sequence[str | Path]
    seconds: float
    cwd: Path
    environment: Mapping[str, str]


class Outcome(NamedTuple):
    """How a step ended."""

    name: str
    verdict: str
    seconds: float
    log: Path | None


class _Started(NamedTuple):
    name: str
    process: subprocess.Popen[bytes] | None  # None: there was no time left
    start: float
    limit: float
    log: Path


class Steps:
    """Runs steps until a deadline for all of them together."""

    def __init__(self, logs: Path, total_seconds: float) -> None:
        self.logs = logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + total_seconds
        self.outcomes: list[Outcome] = []  # in the order in which they ended
        self.count = 0  # of logs

    def run(self, *commands: Command) -> list[Outcome]:
        """Runs all side by side, each to its end, its budget or the deadline; then interrupts it.

        What a tool finds does not depend on what else runs; times do: measure one at a time.
        """
        started = [self._start(command) for command in commands]
        with ThreadPoolExecutor(len(started)) as waiting:
            return list(waiting.map(self._end, started))

    def _start(self, command: Command) -> _Started:
        now = time.monotonic()
        limit = min(command.seconds, self.deadline - now - GRACE_SECONDS)
        self.count += 1
        log = self.logs / f"{self.count:02d}-{command.name.replace(' ', '-')}.log"
        with log.open("w") as output:
            if limit <= 0:
                output.write("not started: no time left\n")
                return _Started(command.name, None, now, 0.0, log)
            process = subprocess.Popen(
                [str(word) for word in command.words], cwd=command.cwd,
                env=dict(command.environment), stdout=output, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed_interrupts,
            )  # fmt: skip
        return _Started(command.name, process, now, limit, log)

    def _end(self, started: _Started) -> Outcome:
        name, process, start, limit, log = started
        if process is None:
            return self._ended(Outcome(name, TIMED_OUT, 0.0, log))
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
            _interrupt(process)
        verdict = TIMED_OUT if code is None else PASSED if code == 0 else FAILED
        return self._ended(Outcome(name, verdict, time.monotonic() - start, log))

    def absent(self, name: str) -> Outcome:
        """A step whose tool is not there."""
        return self._ended(Outcome(name, ABSENT, 0.0, None))

    def _ended(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        lines = [f"{outcome.name:<28} {outcome.verdict:<14} {outcome.seconds:6.1f} s"]
        if outcome.verdict in (FAILED, TIMED_OUT) and outcome.log is not None:
            tail = outcome.log.read_text(errors="replace").splitlines()[-8:]
            lines += [f"    {line}" for line in tail]
        print("\n".join(lines), flush=True)
        return outcome

    def all_passed(self) -> bool:
        """Of a step that was run again, the last time counts."""
        last = {outcome.name: outcome for outcome in self.outcomes}
        return all(outcome.verdict in (PASSED, ABSENT) for outcome in last.values())


def _heed_interrupts() -> None:
    """A shell's background jobs ignore the interrupt, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C would, first to the program itself, at last to its whole session."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
