"""What multi-crop, repulsion, lambda and L are worth on the scenes: every arm at equal steps.

    python python/ablation.py             the whole sweep; some hours on two cores
    python python/ablation.py --quick     a few minutes, to see that it works
    python python/ablation.py --report    only write the report of the runs done so far

Each finished run is one line of runs.jsonl. A sweep that was interrupted skips what is there; the
report says which arms still lack seeds.
"""

import contextlib
import io
import json
import math
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro

import ablation_report
import evaluate
from config import Config, validate
from data import ImageData
from errors import UserError
from train import load_data
from trainer import Trainer, read_metrics

RESULTS = Path(__file__).parent / "results" / "ablation"
# Nothing of these changes what a run measures.
NOT_KEYED = {"data", "out", "resume", "export", "preset", "knn_every", "checkpoint_every"}


@dataclass(frozen=True)
class Sweep:
    out: Path = RESULTS
    """Folder of runs.jsonl and of the report."""
    workers: int = 2
    """Runs at a time, each on one thread."""
    seeds: int = 3
    """Each arm runs with seeds 0, 1, ... of data, weights and crops."""
    frameworks: tuple[Literal["simsiam", "moco"], ...] = ("simsiam", "moco")
    local_crops: tuple[int, ...] = (2, 4, 8)
    """L. The first is that of the comparison of affinities; the other values follow after it."""
    quick: bool = False
    """Few images, steps and seeds, in runs/ablation-quick."""
    report: bool = False
    """Run nothing; write the report."""
    trainer: Config = field(default_factory=Config)
    """Settings that all arms share."""


QUICK = Sweep(
    out=Path("runs/ablation-quick"),
    seeds=1,
    local_crops=(2, 4),
    trainer=Config(scenes=(512, 256), epochs=2),
)


class Arm(NamedTuple):
    """One column of the comparison: its name in the report, and the settings that make it."""

    name: str
    method: str  # the suffix after the framework
    settings: dict[str, Any]


BASE = Arm("global crops only", "", {})
MULTI_CROP = Arm("multi-crop", "-multicrop", {})
COSINE = [Arm(f"cosine, λ = {w:g}", "-logo", {"repulsion_weight": w}) for w in (0.01, 0.1, 0.3)]
PAPER = [
    Arm(f"learned, λ = {w:g}", "-logo", {"affinity": "learned", "repulsion_weight": w})
    for w in (0.1, 1.0, 0.01)
]
DIFFERENCE = Arm(
    "learned by difference, λ = 0.1",
    "-logo",
    {"affinity": "learned", "objective": "difference", "repulsion_weight": 0.1},
)
OFFICIAL = Arm("learned, clipped", "-logo", {"affinity": "learned", "repulsion_step": "clipped"})
IN_BATCH = [
    Arm("in-batch, multi-crop", "-multicrop", {"negatives": "batch"}),
    Arm("in-batch, cosine, λ = 0.3", "-logo", {"negatives": "batch", "repulsion_weight": 0.3}),
]

# What answers most comes first, and all arms of a seed before the next seed, so that a sweep that
# stops early has whole seeds to compare.
FIRST = [BASE, MULTI_CROP, *COSINE, *PAPER[:2], OFFICIAL]
SECOND = [*IN_BATCH, PAPER[2], DIFFERENCE]
WITH_MORE_CROPS = [MULTI_CROP, COSINE[1], PAPER[0], OFFICIAL]


class Run(NamedTuple):
    framework: str
    arm: str
    config: Config

    @property
    def key(self) -> str:
        """The settings as one string: equal for runs that measure the same."""
        settings = {k: v for k, v in asdict(self.config).items() if k not in NOT_KEYED}
        return json.dumps(settings, sort_keys=True, default=str)


def plan(sweep: Sweep) -> list[Run]:
    """Every run of the sweep, in the order in which they start."""
    shared = replace(sweep.trainer, knn_every=sweep.trainer.epochs, checkpoint_every=sys.maxsize)

    def runs(arms: list[Arm], local_crops: int) -> Iterator[Run]:
        for seed in range(sweep.seeds):
            for framework in sweep.frameworks:
                for arm in arms:
                    if framework == "moco" or "negatives" not in arm.settings:
                        settings = {"seed": seed, "local_crops": local_crops} | arm.settings
                        method: Any = framework + arm.method
                        config = replace(shared, method=method, **settings)
                        yield Run(framework, arm.name, config)

    first, *more = sweep.local_crops
    planned = [*runs(FIRST, first), *runs(SECOND, first)]
    for local_crops in more:
        planned += runs(WITH_MORE_CROPS, local_crops)
    return planned


@lru_cache(maxsize=1)
def scenes(config: Config) -> ImageData:
    return load_data(config)


def measure(run: Run) -> dict[str, Any]:
    """Train one arm and evaluate it at the end: its line of runs.jsonl."""
    torch.set_num_threads(1)
    config = run.config
    # Arms of one seed share their images: only what load_data() reads is in the cache's key.
    data = scenes(
        Config(
            dataset=config.dataset, data=config.data, scenes=config.scenes,
            image_size=config.image_size, seed=config.seed,
        )
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, data, Path(folder))
        trainer.start()
        began = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):  # the parent prints a line of its own
            trainer.run()
        trained = time.process_time()
        metrics = read_metrics(trainer.csv_path)
    train, test = trainer.features()
    # What this took, run() took as well, for its evaluation at the end.
    busy = (trained - began) - (time.process_time() - trained)
    last = trainer.history[-1]
    objective = metrics["objective"][len(metrics["objective"]) // 2 :]
    encoders = 2 if run.framework == "moco" else 1
    return {
        "framework": run.framework,
        "arm": run.arm,
        "local_crops": config.local_crops,
        "seed": config.seed,
        "knn": last["knn"],
        "linear": evaluate.linear_metric(data, train, test),
        "linear_10": evaluate.linear_metric(data, train, test, label_share=0.1),
        "feature_rank": last["feature_rank"],
        "z_std": last["z_std"],
        "ll": float(metrics["ll"][-1]),
        # Of the last half: one batch says little. None where nothing is learned.
        "objective": float(objective.mean()) if math.isfinite(objective[-1]) else None,
        "steps": trainer.total_steps,
        "ms_per_step": trainer.seconds / trainer.total_steps * 1e3,
        # Of this thread alone, whatever else the machine does.
        "cpu_ms_per_step": busy / trainer.total_steps * 1e3,
        # Per image: crops through the online encoder, and global ones through MoCo's momentum one.
        "forwards": encoders * config.global_crops + trainer.local_crops,
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "key": run.key,
    }


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The finished runs; a line torn off by a kill is none."""
    runs = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path}: skipped a line that is not whole: {line[:60]}")
    return runs


def append(path: Path, result: dict[str, Any]) -> None:
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the torn line
                file.write(b"\n")
        file.write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def carry_out(todo: list[Run], workers: int, path: Path) -> None:
    """Run them in their order; this process alone writes."""
    began = time.perf_counter()

    def done(count: int, result: dict[str, Any]) -> None:
        append(path, result)
        print(
            f"{count}/{len(todo)}  {time.perf_counter() - began:6.0f} s  seed {result['seed']}  "
            f"{result['framework']}, {result['arm']}, L = {result['local_crops']}:  "
            f"kNN {result['knn']:.3f}  linear {result['linear']:.3f}",
            flush=True,
        )

    if workers == 1:
        for count, run in enumerate(todo, 1):
            done(count, measure(run))
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy torch's threads
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
        futures = [pool.submit(measure, run) for run in todo]
        try:
            for count, future in enumerate(as_completed(futures), 1):
                done(count, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, before they load torch
    sweep = tyro.cli(Sweep, description=__doc__)
    if sweep.quick:
        # The same words again, on top of the quick settings: what the user asked for wins.
        sweep = tyro.cli(Sweep, default=QUICK)
    planned = plan(sweep)
    try:
        for run in planned:
            validate(run.config)
    except UserError as error:
        sys.exit(f"error: {error}")
    sweep.out.mkdir(parents=True, exist_ok=True)
    path = sweep.out / "runs.jsonl"
    if not sweep.report:
        finished = {result["key"] for result in read_runs(path)}
        todo = [run for run in planned if run.key not in finished]
        print(f"{len(planned)} runs, {len(planned) - len(todo)} of them done")
        carry_out(todo, sweep.workers, path)
    keys = {run.key for run in planned}
    # An interrupted sweep may have left a run twice; the last one counts.
    results = {result["key"]: result for result in read_runs(path) if result["key"] in keys}
    expected = [(r.framework, r.arm, r.config.local_crops, r.config.seed) for r in planned]
    command = " ".join(["python python/ablation.py", *sys.argv[1:]])
    ablation_report.write(list(results.values()), expected, sweep.trainer, command, sweep.out)
    print(f"the report is in {sweep.out / 'README.md'}")


if __name__ == "__main__":
    main()
