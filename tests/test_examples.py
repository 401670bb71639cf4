"""Each script of examples/ runs as its first lines say, and shows what it claims."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def printed(cwd: Path, script: str, *before: str) -> str:
    done = subprocess.run(
        [sys.executable, *before, EXAMPLES / script],
        capture_output=True, text=True, cwd=cwd, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def shares(text: str) -> list[float]:
    """Of local crops that find their image, before and after."""
    return [float(x) for x in re.findall(r"(\d\.\d+) (?:before|after)", text)]


def losses(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"step +\d+  loss (-?[\d.]+)", text)]


def test_first_loss(tmp_path):
    text = printed(tmp_path, "first_loss.py")
    before, after = shares(text)
    assert after > before + 0.02
    gg = [float(x) for x in re.findall(r"gg (-?[\d.]+)", text)]
    assert gg[-1] < gg[0] - 0.3


def test_moco_queue(tmp_path):
    text = printed(tmp_path, "moco_queue.py")
    before, after = shares(text)
    assert after > before + 0.05
    assert "the last loss differs by 0.0\n" in text


@pytest.mark.skipif(
    not torch.distributed.is_available(), reason="torch was built without torch.distributed"
)
def test_several_processes(tmp_path):
    alone = losses(printed(tmp_path, "several_processes.py"))
    together = losses(printed(tmp_path, "several_processes.py", *TORCHRUN))
    assert len(alone) == 4
    assert alone[-1] < alone[0] - 0.5
    assert together == pytest.approx(alone, abs=0.002)


def test_all_are_tested():
    """pictures.py is what the others import."""
    scripts = {path.stem for path in EXAMPLES.glob("*.py")} - {"pictures"}
    assert {f"test_{name}" for name in scripts} <= globals().keys()
