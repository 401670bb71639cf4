"""Each run of a sweep: trained, measured, and kept as one line of runs.jsonl."""

import contextlib
import io
import json
import math
import multiprocessing
import os
import platform
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import evaluate
from ablation.plan import Run
from config import Config
from data import ImageData
from errors import UserError, writing
from train import load_data
from trainer import Trainer, read_metrics

# What the report reads of every run.
NEEDED = {"framework", "arm", "local_crops", "seed", "knn", "linear", "linear_10", "torch", "key"}


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
    network = trainer.network
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
        "forwards": network.encoders * config.global_crops + trainer.local_crops,
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "key": run.key,
    }


def read_runs(path: Path) -> list[dict[str, Any]]:
    """The finished runs; a line torn off by a kill is none."""
    runs = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            run = json.loads(line)
        except (ValueError, RecursionError):
            run = None
        if isinstance(run, dict) and run.keys() >= NEEDED:
            runs.append(run)
        else:
            print(f"{path}: skipped a line that is not whole: {line[:60]}")
    return runs


def append(path: Path, result: dict[str, Any]) -> None:
    with writing(path), path.open("a+b") as file:
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
        # Workers inherit that they ignore Ctrl-C: this process ends them, and it alone says so.
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            futures = [pool.submit(measure, run) for run in todo]
        finally:
            signal.signal(signal.SIGINT, heard)
        try:
            for count, future in enumerate(as_completed(futures), 1):
                done(count, future.result())
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in multiprocessing.active_children():
                worker.terminate()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker was ended from outside, perhaps for want of memory. Repeat the "
                    "command, with fewer --workers: it goes on with the runs that are not done."
                ) from error
            raise
