"""Steps of a check: budgets, verdicts, side by side."""

import os
import sys
import time
from dataclasses import replace

from hardware.steps import (
    ABSENT,
    FAILED,
    LOST_TRACK,
    PASSED,
    TIMED_OUT,
    Command,
    Steps,
)


def command(tmp_path, code, seconds=20.0, name="a step"):
    return Command(name, [sys.executable, "-c", code], seconds, tmp_path, os.environ)


def run(steps, tmp_path, code, seconds=20.0, name="a step"):
    (outcome,) = steps.run(command(tmp_path, code, seconds, name))
    return outcome


def test_steps_go_on_after_a_failure(tmp_path):
    steps = Steps(tmp_path / "logs", 60)
    assert run(steps, tmp_path, "print('first'); raise SystemExit(3)").verdict == FAILED
    assert run(steps, tmp_path, "print('second')", name="another").verdict == PASSED
    assert steps.absent("a tool").verdict == ABSENT
    assert not steps.all_passed()
    assert [path.name for path in sorted((tmp_path / "logs").iterdir())] == [
        "01-a-step.log", "02-another.log"
    ]  # fmt: skip
    assert (tmp_path / "logs/02-another.log").read_text() == "second\n"
    assert run(steps, tmp_path, "print('better')").verdict == PASSED
    assert steps.all_passed()  # the last time that a step ran is what counts


def test_a_step_is_interrupted_and_may_write_what_it_has(tmp_path):
    code = (
        "import time\ntry:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('written', flush=True)"
    )
    start = time.monotonic()
    outcome = run(Steps(tmp_path / "logs", 60), tmp_path, code, seconds=1.5)
    assert outcome.verdict == TIMED_OUT
    assert time.monotonic() - start < 10
    assert "written" in outcome.log.read_text()


def test_steps_side_by_side(tmp_path):
    """Each waits for a file of the other: one after the other, neither would end."""
    code = (
        "import sys, time, pathlib\n"
        "pathlib.Path({mine!r}).touch()\n"
        "while not pathlib.Path({other!r}).exists():\n    time.sleep(0.01)\n"
        "print({mine!r})\nraise SystemExit({code})"
    )
    steps = Steps(tmp_path / "logs", 60)
    first, second, third = steps.run(
        command(tmp_path, code.format(mine="a", other="b", code=0)),
        command(tmp_path, code.format(mine="b", other="a", code=3)),
        command(tmp_path, "import time; time.sleep(60)", seconds=1.0),
    )
    assert (first.verdict, second.verdict, third.verdict) == (PASSED, FAILED, TIMED_OUT)
    assert [outcome.log.read_text() for outcome in (first, second)] == ["a\n", "b\n"]
    assert third.seconds < 15
    assert sorted(steps.outcomes) == sorted([first, second, third])


def test_no_step_starts_after_the_deadline(tmp_path):
    steps = Steps(tmp_path / "logs", 0)
    assert run(steps, tmp_path, "print('never')").verdict == TIMED_OUT
    assert "never" not in steps.outcomes[0].log.read_text()


def test_a_verdict_of_its_own(tmp_path):
    """A tool's, by its log: it is no failure, and it is seen in the log of the check."""
    steps = Steps(tmp_path / "logs", 60)
    given = command(tmp_path, "print('0 of 3'); raise SystemExit(9)")

    def judge(code, log):
        return LOST_TRACK if (code, log.read_text()) == (9, "0 of 3\n") else FAILED

    (outcome,) = steps.run(replace(given, judge=judge))
    assert (outcome.verdict, outcome.code) == (LOST_TRACK, 9)
    assert steps.all_passed()
    (outcome,) = steps.run(given)
    assert outcome.verdict == FAILED


def test_so_many_at_once_and_so_long_together(tmp_path):
    code = "import time, sys; time.sleep(1.5)"
    steps = Steps(tmp_path / "logs", 60)
    commands = [command(tmp_path, code, name=f"step {n}") for n in range(3)]
    start = time.monotonic()
    outcomes = steps.run(*commands, at_once=1, seconds=2)
    assert time.monotonic() - start < 8
    assert outcomes[0].verdict == PASSED
    assert outcomes[-1].verdict == TIMED_OUT
    assert outcomes[-1].seconds == 0  # it was never started
