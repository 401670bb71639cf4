"""Whose tests they are, and how many passed."""

import os
from dataclasses import replace

import pytest

from benchmarks.made import junit
from hardware import check, counts, ledger
from hardware.steps import FAILED, PASSED, TIMED_OUT, Outcome, Steps
from hardware.workplace import Workplace

ENDED = Outcome("tests", FAILED, 1.0, None, 1)


def test_tests_are_counted_by_operation(tmp_path):
    path = junit(
        tmp_path,
        ("tests.triton_kernels.test_scale", "test_one", ""),
        ("tests.test_cosine", "test_golden[triton-float32]", ""),
        ("tests.test_cosine", "test_golden[triton-float16]", "<skipped/>"),
        ("tests.test_cosine", "test_golden[cuda-float32]", "<failure/>"),
        ("tests.test_gpu", "test_replayed_graph[cuda-info_nce]", "<failure/>"),
        ("tests.test_similarity", "test_golden[cuda-cuda]", ""),
        ("tests.test_affinity_pairs", "test_nan_is_seen[cuda]", "<error/>"),
        ("tests.test_compile", "test_autocast[cuda]", ""),
        ("tests.test_cosine", "test_golden[emulated-80]", ""),
        ("tests.test_cosine", "test_golden[emulated-90-cuda]", "<failure/>"),
        ("tests.cuda_kernels.test_walk", "test_it[sm_80]", "<failure/>"),
        ("tests.emulation.test_emulator", "test_it", "<error/>"),
        ("tests.test_losses", "test_cuda_is_named", ""),
        ("tests.test_backends", "test_auto[cuda-reasons0-cuda]", ""),
    )
    none = {operation: {"passed": 0, "failed": 0} for operation in ledger.OPERATIONS}
    found = counts.count_tests(path, "triton", ENDED)
    assert found == none | {"cosine": {"passed": 2, "failed": 0}}
    of_all = {operation: {"passed": 1, "failed": 0} for operation in ledger.OPERATIONS}
    assert counts.count_tests(path, "cuda", ENDED) == of_all | {
        "cosine": {"passed": 1, "failed": 1},
        "similarity": {"passed": 2, "failed": 0},
        "info_nce": {"passed": 1, "failed": 1},
        "affinity": {"passed": 1, "failed": 1},
    }


@pytest.mark.parametrize(
    ("module", "name", "operations"),
    [
        ("tests.test_cosine_anything", "test_any_problem[cuda]", ["cosine"]),
        ("tests.triton_kernels.test_scale", "test_product[x]", ["cosine"]),
        ("tests.triton_kernels.test_affinity_hidden", "test_nan", ["affinity"]),
        ("tests.test_affinity", "test_in_the_loss[cuda-info_nce]", ["info_nce", "affinity"]),
        ("tests.test_compile", "test_opcheck_similarity[cuda]", ["similarity"]),
        ("tests.test_unit", "test_rows[cuda]", ["affinity"]),
        ("tests.test_compile", "test_opportunity[cuda]", list(ledger.OPERATIONS)),
    ],
)
def test_whose_operation_it_is(module, name, operations):
    assert counts.operations_of_test(module, name) == operations


@pytest.mark.parametrize(
    ("verdict", "code", "failed"),
    [(PASSED, 0, 0), (FAILED, 1, 0), (TIMED_OUT, None, 1), (FAILED, 2, 1), (FAILED, 3, 1)],
)
def test_a_run_that_did_not_end_has_not_passed(tmp_path, verdict, code, failed):
    """Whatever tests of it have: others were to come."""
    path = junit(tmp_path, ("tests.test_cosine", "test_it[cuda]", ""))
    found = counts.count_tests(path, "cuda", Outcome("tests", verdict, 1.0, None, code))
    assert found["cosine"] == {"passed": 1, "failed": failed}
    assert found["similarity"] == {"passed": 0, "failed": failed}


@pytest.mark.parametrize(
    ("module", "name", "owner"),
    [
        ("tests.test_cosine", "test_expanded[cuda]", "cuda"),
        ("tests.test_cosine", "test_strides[cuda-view-major-dtype0]", "cuda"),
        ("tests.test_cosine", "test_strides[triton-strided over D-dtype0]", "triton"),
        ("tests.test_cosine", "test_strides[emulated-90-view-major-dtype0]", "emulated"),
        ("tests.test_cosine", "test_cases[cpu-cuda]", None),
        ("tests.test_cosine", "test_cuda", None),
        ("tests.triton_kernels.test_aot", "test_compiles[cuda-80]", "triton"),
        ("tests.cuda_kernels.test_scale", "test_products[sm_80-True]", "emulated"),
        ("tests.test_backends", "test_auto[cuda-reasons0-cuda]", None),
        ("", "tests.test_properties", None),
    ],
)
def test_whose_test_it_is(module, name, owner):
    assert counts.backend_of_test(module, name) == owner


def collected(monkeypatch, tmp_path, tests):
    """(module, name) of the project's tests that the command `tests(workplace)` would run here."""
    monkeypatch.setattr(Workplace, "__init__", lambda self: None)
    monkeypatch.setattr(Workplace, "parallel", lambda self, share: [])
    work = Workplace()
    work.source, work.folder, work.environment = ledger.ROOT, tmp_path, dict(os.environ)
    work.steps = Steps(tmp_path / "logs", 300)

    made = tests(work)
    work.steps.run(replace(made, words=[*made.words, "--collect-only"]))
    lines = work.steps.outcomes[-1].log.read_text().splitlines()
    found = [line.split("::", 1) for line in lines if "::" in line]
    return [(path.removesuffix(".py").replace("/", "."), name) for path, name in found]


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_the_gpu_runs_tests_of_its_backends_alone(monkeypatch, tmp_path, backend):
    """Of this project's own tests: what is selected is what is counted."""
    found = collected(monkeypatch, tmp_path, lambda work: check.gpu_tests(work, backend))
    assert {counts.backend_of_test(*test) for test in found} == {backend}
    modules = {module for module, _ in found}
    assert modules >= {"tests.test_cosine", "tests.test_similarity"}
    assert any("triton_kernels" in module for module in modules) == (backend == "triton")
    assert not any("test_aot" in module for module in modules)  # for GPUs that are not here


def test_the_emulator_runs_tests_of_its_own_alone(monkeypatch, tmp_path):
    found = collected(
        monkeypatch, tmp_path, lambda work: check.emulated_tests(work, tmp_path / "x.xml")
    )
    assert {counts.backend_of_test(*test) for test in found} == {"emulated"}
    assert {"tests.test_cosine", "tests.cuda_kernels.test_walk"} <= {module for module, _ in found}
    assert any(module.startswith("tests.emulation.") for module, _ in found)
    assert "tests.cuda_kernels.test_static" not in {module for module, _ in found}


def test_a_failure_that_names_nothing_counts_for_all(tmp_path):
    path = junit(tmp_path, ("", "tests.test_properties", "<error/>"))
    found = counts.count_tests(path, "cuda", ENDED)
    assert found == {name: {"passed": 0, "failed": 1} for name in ledger.OPERATIONS}


def test_no_report_means_nothing_passed(tmp_path):
    found = counts.count_tests(tmp_path / "absent.xml", "cuda", ENDED)
    assert all(count == {"passed": 0, "failed": 1} for count in found.values())
