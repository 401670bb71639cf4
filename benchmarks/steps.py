"""Commands with a time budget and a log of their own, one after the other, come what may."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PASSED, FAILED, TIMED_OUT, ABSENT = "passed", "failed", "out of time", "not available"
GRACE_SECONDS = 15  # after an interrupt, for pytest to write what it has


class Outcome(NamedTuple):
    """How a step ended."""

    name: str
    verdict: str
    seconds: float
    log: Path | None


class Steps:
    """Runs steps until a deadline for all of them together."""

    def __init__(self, logs: Path, total_seconds: float) -> None:
        self.logs = logs
        self.logs.mkdir(parents=True, exist_ok=True)
        self.deadline = time.monotonic() + total_seconds
        self.outcomes: list[Outcome] = []

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        seconds: float,
        cwd: Path,
        environment: Mapping[str, str],
    ) -> Outcome:
        """Runs to its end, or interrupts it when its budget or the deadline is reached."""
        start = time.monotonic()
        limit = min(seconds, self.deadline - start - GRACE_SECONDS)
        log = self.logs / f"{len(self.outcomes) + 1:02d}-{name.replace(' ', '-')}.log"
        with log.open("w") as output:
            if limit <= 0:
                output.write("not started: no time left\n")
                return self._ended(Outcome(name, TIMED_OUT, 0.0, log))
            process = subprocess.Popen(
                [str(part) for part in command], cwd=cwd, env=dict(environment),
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_heed_interrupts,
            )  # fmt: skip
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
        print(f"{outcome.name:<28} {outcome.verdict:<14} {outcome.seconds:6.1f} s", flush=True)
        if outcome.verdict in (FAILED, TIMED_OUT) and outcome.log is not None:
            tail = outcome.log.read_text(errors="replace").splitlines()[-8:]
            print("\n".join(f"    {line}" for line in tail), flush=True)
        return outcome

    def all_passed(self) -> bool:
        return all(outcome.verdict in (PASSED, ABSENT) for outcome in self.outcomes)


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
