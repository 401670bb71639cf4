"""One test that loses the device fails; those after it do not."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

CONFTEST = """
import torch
from lost_device import pytest_runtest_protocol

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = lambda: None
"""
TESTS = """
import torch

def lost():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_before():
    pass

def test_that_loses_it():  # of itself it passes: the launch fails later
    torch.cuda.synchronize = lost

def test_after():
    torch.cuda.synchronize()
"""


@pytest.mark.parametrize("workers", [0, 1])
def test_only_the_test_that_lost_it_fails(tmp_path, workers):
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_some.py").write_text(TESTS)
    junit = tmp_path / "tests.xml"
    outside = {"PATH": "", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", ".", "-n", str(workers), f"--junitxml={junit}",
         "-p", "no:cacheprovider"],
        cwd=tmp_path, env=outside, capture_output=True, text=True, check=False,
    )  # fmt: skip
    failed, passed = [], []
    for case in ElementTree.parse(junit).iter("testcase"):
        wrong = case.find("failure") is not None or case.find("error") is not None
        (failed if wrong else passed).append(case.get("name"))
    assert "has lost the CUDA device to this process" in done.stdout + done.stderr
    if workers:
        assert done.returncode == 1
        assert failed == ["test_that_loses_it"]
        assert {"test_before", "test_after"} <= set(passed)
    else:
        assert done.returncode == 3  # not the 1 of a run that came to its end
        assert "test_after" not in passed + failed
