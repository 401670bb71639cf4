"""Kills a run at random moments, resumes it, and compares it with one that nobody stopped.

    python tests/trainer/kills.py --kills 50
    python tests/trainer/kills.py --kills 20 --signal INT    Ctrl-C: without a traceback, besides
    python tests/trainer/kills.py --kills 20 --ranks 2       one of two processes of torchrun

SIGKILL cannot be caught: whatever is half written stays so. Weights (MoCo: momentum encoder, queue
and its place, too; θd and its batch norm), optimisers, random states, CSV and history have to be
the same, bit for bit. A test runs it with few kills.
"""

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

TRAINER = Path(__file__).resolve().parents[2] / "python"
TINY = {
    "--scenes": "64 24", "--image-size": "32", "--batch-size": "16", "--epochs": "6", "--dim": "16",
    "--bottleneck": "8", "--global-size": "16", "--local-size": "8", "--local-crops": "2",
    "--knn-every": "2", "--log-every": "1", "--checkpoint-every": "3", "--queue-size": "200",
}  # fmt: skip
SOON = 60  # seconds; torchrun itself gives a process 30 to end
METHODS = (
    ("simsiam-logo",),
    ("moco-logo", "--affinity", "learned"),
    ("simsiam-logo", "--affinity", "learned", "--repulsion-step", "clipped"),
)


def command(out: Path, *more: str, ranks: int = 1) -> list[str]:
    """By torchrun for several ranks."""
    settings = [word for name, value in TINY.items() for word in (name, *value.split())]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    start = [sys.executable, *(torchrun if ranks > 1 else [])]
    return [*start, str(TRAINER / "train.py"), *settings, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def finish(out: Path, *more: str, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(out, *more, ranks=ranks),
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )


def rows(out: Path) -> int:
    metrics = out / "metrics.csv"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def kill_once(
    out: Path,
    words: Sequence[str],
    when: Callable[[float], bool],
    how: signal.Signals = signal.SIGKILL,
) -> bool:
    """Start or resume the run; signal it once when(seconds since the start) says so.

    False if it came to its end before.
    """
    began, sent = time.monotonic(), False
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command(out, *words), stdout=subprocess.DEVNULL, stderr=stderr, env=environment()
        )
        while process.poll() is None:
            if not sent and when(time.monotonic() - began):
                process.send_signal(how)
                sent = True
            time.sleep(0.002)
        stderr.seek(0)
        said = stderr.read().decode()
    # 130: it said what to do. By the signal itself: it could not, or had not begun to listen.
    ends = (0, -how) if how == signal.SIGKILL else (0, -how, 130)
    assert process.returncode in ends, f"it ended with status {process.returncode}: {said}"
    assert "Traceback" not in said, said
    return process.returncode != 0


def kill_a_rank(
    out: Path, words: Sequence[str], when: Callable[[float], bool], ranks: int, victim: int
) -> float:
    """As kill_once, by SIGKILL on one of the processes that torchrun started: seconds until all had
    ended; 0 if they came to their end before.

    The others end soon and without a traceback: the one there is comes from torchrun.
    """
    began, killed, late = time.monotonic(), 0.0, False
    with tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(
            command(out, *words, ranks=ranks),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment() | {"PYTHONFAULTHANDLER": "1"},
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None:
            if not killed and when(time.monotonic() - began):
                found = children.read_text().split()
                if len(found) == ranks:  # before that there is nothing to kill
                    os.kill(int(found[victim]), signal.SIGKILL)
                    killed = time.monotonic()
            if killed and not late and time.monotonic() > killed + SOON:
                late = True
                for pid in children.read_text().split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGABRT)  # It says where it was.
            time.sleep(0.002)
        took = time.monotonic() - killed
        stderr.seek(0)
        said = stderr.read().decode()
    assert not late, f"the others did not end within {SOON} s: {said}"
    assert process.returncode in ((0, 1) if killed else (0,)), said
    assert said.count("Traceback") <= 1, said
    assert said.count("error: process") <= 1, said
    return took if process.returncode else 0.0


def rows_without_time(path: Path) -> list[list[str]]:
    """metrics.csv but for ms_per_step, the one column that no two runs share."""
    with path.open(newline="") as file:
        return [row[:-1] for row in csv.reader(file)]


def difference(whole: Path, killed: Path) -> str | None:
    """What two finished runs do not share, or None."""
    states = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (whole, killed)]
    for state in states:
        del state["seconds"], state["csv_bytes"]
    place = first_difference(*states, "checkpoint")
    if place:
        return place
    if rows_without_time(whole / "metrics.csv") != rows_without_time(killed / "metrics.csv"):
        return "metrics.csv"
    leftover = killed / "checkpoint.pt.tmp"
    return str(leftover) if leftover.exists() else None


def first_difference(one: object, other: object, place: str) -> str | None:
    if type(one) is not type(other):
        return place
    if isinstance(one, torch.Tensor):
        return None if torch.equal(one, other) else place
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return f"{place}: {sorted(map(str, one.keys() ^ other.keys()))}"
        parts = ((one[key], other[key], f"{place}[{key!r}]") for key in one)
    elif isinstance(one, list | tuple):
        if len(one) != len(other):
            return place
        parts = ((a, b, f"{place}[{i}]") for i, (a, b) in enumerate(zip(one, other, strict=True)))
    else:
        return None if one == other else place
    return next((found for part in parts if (found := first_difference(*part))), None)


def moment(chance: random.Random, out: Path) -> Callable[[float], bool]:
    """At some time since the start, whatever the program does then; or soon after some next row."""
    if chance.random() < 0.3:
        seconds = chance.uniform(0, 12)
        return lambda elapsed: elapsed > seconds
    target, wait = rows(out) + chance.randrange(12), chance.uniform(0, 0.05)
    reached: list[float] = []

    def when(elapsed: float) -> bool:
        if not reached and rows(out) > target:
            reached.append(elapsed)
        return bool(reached) and elapsed > reached[0] + wait

    return when


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments, not of the training")
    parser.add_argument("--epochs", type=int, default=40, help="4 steps each")
    parser.add_argument("--signal", default="KILL", choices=("KILL", "INT", "TERM"))
    parser.add_argument("--ranks", type=int, default=1, help="processes; one of them is killed")
    options = parser.parse_args()
    how, ranks = signal.Signals[f"SIG{options.signal}"], options.ranks
    if ranks > 1 and how != signal.SIGKILL:
        parser.error("--signal: several ranks are killed by KILL alone")
    chance, kills, ends, longest = random.Random(options.seed), 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for i, method in enumerate(METHODS):
            words = ("--method", *method, "--epochs", str(options.epochs))
            whole, killed = Path(folder) / f"{i}-whole", Path(folder) / f"{i}-killed"
            assert finish(whole, *words, ranks=ranks).returncode == 0
            share = options.kills * (i + 1) // len(METHODS)
            while kills < share:
                when = moment(chance, killed)
                again = (*words, "--resume")
                if ranks > 1:
                    victim = chance.randrange(ranks)
                    took = kill_a_rank(killed, again, when, ranks, victim)
                    killed_it, longest = took > 0, max(took, longest)
                else:
                    victim, killed_it = 0, kill_once(killed, again, when, how)
                kills += killed_it
                print(
                    f"{kills} kills; {' '.join(method)} at row {rows(killed)}, process {victim}",
                    flush=True,
                )
                if not killed_it:
                    ends += 1
                    check(whole, killed)
                    shutil.rmtree(killed)
            done = finish(killed, *words, "--resume", ranks=ranks)
            assert done.returncode == 0, done.stderr
            ends += 1
            check(whole, killed)
    print(
        f"{kills} kills by {how.name}, {ranks} processes, seed {options.seed}: {ends} runs to the "
        "end, each as one never stopped"
        + (f"; the others ended within {longest:.0f} s" if ranks > 1 else "")
    )


def check(whole: Path, killed: Path) -> None:
    found = difference(whole, killed)
    if found:
        sys.exit(f"resumed differs from uninterrupted: {found}")


if __name__ == "__main__":
    main()
