"""Does repulsion help? Seeds are added until the answer is narrow, or the time is up.

    python python/ablation/evidence.py --minutes 10    the scenes, on a CPU
    python python/ablation/evidence.py --workers 6 --trainer.dataset fashion-scenes \\
        --trainer.data DIR --trainer.scenes 16000 2000 --trainer.device cuda \\
        --trainer.encoder resnet18 --trainer.batch-size 256 --trainer.epochs 10

Multi-crop against cosine and learned repulsion, with MoCo and SimSiam, seed by seed. A comparison
is narrow when the 95 % interval of its mean difference in kNN is narrower than --width. Each
finished run is one line of runs.jsonl, and the same command goes on from there; evidence.md says
which comparisons are narrow. An interval that decides when to stop is a little optimistic.
"""

import math
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the trainer's modules

import tyro
from scipy.stats import t as student

from ablation.comparison import Difference, Runs
from ablation.plan import MULTI_CROP, Arm, Run
from ablation.runs import append, measure, read_runs
from config import MOST, Config, defaults, validate
from errors import Interrupted, UserError, in_words, writing
from train import make_folder

REPELLING = (
    Arm("cosine, λ = 0.1", "-logo", {"repulsion_weight": 0.1}),
    Arm("learned, λ = 0.01", "-logo", {"affinity": "learned", "repulsion_weight": 0.01}),
)
# Two seeds that happen to agree are no evidence.
LEAST_SEEDS = 3


@dataclass(frozen=True)
class Evidence:
    out: Path = Path("runs/evidence")
    """Folder of runs.jsonl and evidence.md."""
    minutes: float = 10.0
    """No run starts after them, and those that still run are dropped."""
    width: float = 0.02
    """Of the 95 % interval, from end to end."""
    seeds: int = 100
    """At most so many for a comparison."""
    workers: int = 2
    """Runs at a time, each on one thread; on a GPU they share it."""
    frameworks: tuple[Literal["simsiam", "moco"], ...] = ("moco", "simsiam")
    trainer: Config = field(default_factory=Config)
    """Settings that all runs share."""


class Comparison(NamedTuple):
    """An arm with repulsion against λ = 0, in one framework."""

    framework: str
    arm: Arm
    difference: Difference

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by Student's t."""
        n, mean, sd = self.difference
        if n < 2:
            return -math.inf, math.inf
        half = float(student.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        return mean - half, mean + half

    def narrow(self, width: float) -> bool:
        low, high = self.interval
        return self.difference.n >= LEAST_SEEDS and high - low < width

    def row(self, asked: Evidence) -> str:
        low, high = self.interval
        n = self.difference.n
        says = "better" if low > 0 else "worse" if high < 0 else "no difference seen"
        if n < LEAST_SEEDS:
            says = "–"
        state = "narrow" if self.narrow(asked.width) else "undecided"
        if state == "undecided":
            state += ": all seeds" if n >= asked.seeds else ": the time is up"
        numbers = f"{self.difference.mean:+.3f}" if n else "–"
        span = f"{low:+.3f} to {high:+.3f}" if n > 1 else "–"
        cells = (self.framework, self.arm.name, str(n), numbers, span, says, state)
        return f"| {' | '.join(cells)} |"


def compare(results: list[dict[str, Any]], asked: Evidence) -> list[Comparison]:
    runs, crops = Runs(results), asked.trainer.local_crops
    return [
        Comparison(
            framework,
            arm,
            runs.difference(
                (framework, arm.name, crops), (framework, MULTI_CROP.name, crops), "knn"
            ),
        )
        for framework in asked.frameworks
        for arm in REPELLING
    ]


def run_of(asked: Evidence, framework: str, arm: Arm, seed: int) -> Run:
    shared = replace(asked.trainer, knn_every=asked.trainer.epochs, checkpoint_every=MOST)
    method: Any = framework + arm.method
    return Run(framework, arm.name, replace(shared, method=method, seed=seed, **arm.settings))


def next_run(results: list[dict[str, Any]], begun: set[str], asked: Evidence) -> Run | None:
    """Of the comparisons that are not narrow, the lowest seed that has not begun; None: no more."""
    wide = [c for c in compare(results, asked) if not c.narrow(asked.width)]
    for seed in range(asked.seeds):
        for comparison in wide:
            for arm in (MULTI_CROP, comparison.arm):
                run = run_of(asked, comparison.framework, arm, seed)
                if run.key not in begun:
                    return run
    return None


def gather(
    asked: Evidence,
    results: list[dict[str, Any]],
    done: Callable[[dict[str, Any]], None],
) -> None:
    """Run what is missing until all is narrow, or the time is up; done() keeps each result."""
    until = time.monotonic() + 60 * asked.minutes
    begun = {result["key"] for result in results}

    def start() -> Run | None:
        run = next_run(results, begun, asked) if time.monotonic() < until else None
        if run:
            begun.add(run.key)
        return run

    def keep(result: dict[str, Any]) -> None:
        results.append(result)
        done(result)

    if asked.workers == 1:
        while run := start():
            keep(measure(run))
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
    with ProcessPoolExecutor(asked.workers, mp_context=spawn) as pool:
        running: set[Future[dict[str, Any]]] = set()
        try:
            while True:
                while len(running) < asked.workers and (run := start()):
                    # Workers inherit that they ignore Ctrl-C: this process ends them.
                    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
                    try:
                        running.add(pool.submit(measure, run))
                    finally:
                        signal.signal(signal.SIGINT, heard)
                left = max(until - time.monotonic(), 0)
                ended, running = wait(running, left, FIRST_COMPLETED)
                for future in ended:
                    keep(future.result())
                if not running or (not ended and time.monotonic() >= until):
                    break
        except BrokenProcessPool as error:
            raise UserError(
                "a worker was ended from outside, perhaps for want of memory. Repeat the command, "
                "with fewer --workers: it goes on with the runs that are not done."
            ) from error
        finally:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)


def report(results: list[dict[str, Any]], asked: Evidence, command: str) -> str:
    rows = "\n".join(c.row(asked) for c in compare(results, asked))
    return (
        f"# Repulsion against multi-crop without it\n\n`{command}` wrote this page from "
        f"{len(results)} runs. kNN, seed by seed (the same images, first weights and first crops); "
        f"narrow is a 95 % interval below {asked.width:g} from end to end.\n\n"
        "| framework | arm − λ = 0 | seeds | difference | 95 % | says | interval |\n"
        f"|---|---|---|---|---|---|---|\n{rows}\n"
    )


def check(asked: Evidence) -> None:
    for name in ("workers", "seeds"):
        if not 1 <= getattr(asked, name) <= MOST:
            raise UserError(f"--{name}: got {getattr(asked, name)}; want at least 1")
    if not 0 <= asked.minutes <= MOST:
        raise UserError(f"--minutes: got {asked.minutes}; want a number of minutes")
    if not asked.width > 0:
        raise UserError(f"--width: got {asked.width}; want a number above 0")
    if not asked.frameworks:
        raise UserError("--frameworks: got none; want at least one")
    for framework in asked.frameworks:
        for arm in (MULTI_CROP, *REPELLING):
            validate(run_of(asked, framework, arm, 0).config)


def collect(asked: Evidence, command: str) -> None:
    check(asked)
    make_folder(asked.out)
    path = asked.out / "runs.jsonl"
    planned = {
        run_of(asked, framework, arm, seed).key
        for framework in asked.frameworks
        for arm in (MULTI_CROP, *REPELLING)
        for seed in range(asked.seeds)
    }
    results = list({r["key"]: r for r in read_runs(path) if r["key"] in planned}.values())
    print(f"{len(results)} runs are there")

    def done(result: dict[str, Any]) -> None:
        append(path, result)
        print(
            f"seed {result['seed']}  {result['framework']}, {result['arm']}:  "
            f"kNN {result['knn']:.3f}",
            flush=True,
        )

    try:
        gather(asked, results, done)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted. Repeat the command: it goes on with the runs that are not done."
        ) from None
    page = report(results, asked, command)
    with writing(asked.out / "evidence.md"):
        (asked.out / "evidence.md").write_text(page)
    print(page)


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, before they load torch
    with in_words():
        asked = tyro.cli(Evidence, description=__doc__)
        if (default := defaults(asked.trainer)) != Config():
            # The same words again, on top of these: what the user asked for wins.
            asked = tyro.cli(Evidence, default=Evidence(trainer=default))
        collect(asked, " ".join(["python python/ablation/evidence.py", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
