"""What multi-crop, repulsion, lambda and L are worth on the scenes: every arm at equal steps.

    python python/ablation             the whole sweep; some hours on two cores
    python python/ablation --quick     a few minutes, to see that it works
    python python/ablation --report    only write the report of the runs done so far

Each finished run is one line of runs.jsonl. A sweep that was interrupted skips what is there; the
report says which arms still lack seeds.
"""

import os
import signal
import sys
from pathlib import Path

# As in train.py: Ctrl-C while the libraries load.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the trainer's modules

import tyro

from ablation import report
from ablation.plan import QUICK, Sweep, plan
from ablation.runs import carry_out, read_runs
from config import validate
from errors import Interrupted, in_words, writing
from train import make_folder


def main() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers, before they load torch
    with in_words():
        sweep = tyro.cli(Sweep, description=__doc__)
        if sweep.quick:
            # The same words again, on top of the quick settings: what the user asked for wins.
            sweep = tyro.cli(Sweep, default=QUICK)
        run(sweep)


def run(sweep: Sweep) -> None:
    planned = plan(sweep)
    for each in planned:
        validate(each.config)
    make_folder(sweep.out)
    path = sweep.out / "runs.jsonl"
    if not sweep.report:
        finished = {result["key"] for result in read_runs(path)}
        todo = [run for run in planned if run.key not in finished]
        print(f"{len(planned)} runs, {len(planned) - len(todo)} of them done")
        try:
            carry_out(todo, sweep.workers, path)
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted. Repeat the command: it goes on with the runs that are not done."
            ) from None
    keys = {run.key for run in planned}
    # An interrupted sweep may have left a run twice; the last one counts.
    results = {result["key"]: result for result in read_runs(path) if result["key"] in keys}
    expected = [(r.framework, r.arm, r.config.local_crops, r.config.seed) for r in planned]
    command = " ".join(["python python/ablation", *sys.argv[1:]])
    with writing(sweep.out / "README.md"):
        report.write(list(results.values()), expected, sweep.trainer, command, sweep.out)
    print(f"the report is in {sweep.out / 'README.md'}")


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
