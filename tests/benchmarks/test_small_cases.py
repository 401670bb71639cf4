"""The problems that compute-sanitizer watches are right in themselves."""

import shutil

import pytest

import small_cases
from cases import CosineCase
from logo_kernels.backends import BACKENDS, extension
from pair_stage import Definition


def test_the_reference_passes(capsys):
    assert small_cases.main("reference", "cpu") == 0
    assert "0 wrong" in capsys.readouterr().out


def test_sizes_fill_no_tile():
    assert any(case.dim % 16 for case in small_cases.COSINE)
    assert {case.view_major for case in small_cases.COSINE} == {True, False}


def layouts(dtype):
    """Whether images of `problems("cuda")` lie in shared memory whole, as on an H100 or H200."""
    plan = extension.extension.cuda.plan
    found = {}
    for problem in small_cases.problems("cuda"):
        case = problem.case
        if case.dtype != dtype:
            continue
        if isinstance(case, CosineCase):
            rows = 2 * case.global_crops + case.local_crops * (1 + case.features)
        else:
            rows = case.rows + (case.others or 0)
        size = 4 if dtype == "float32" else 2
        found[problem] = plan(rows, case.dim, size, 227 * 1024)["chunks"] == 1
    return found


@pytest.mark.skipif(not hasattr(getattr(extension.extension, "cuda", None), "plan"),
                    reason="the extension is not there")  # fmt: skip
@pytest.mark.parametrize("dtype", small_cases.DTYPES)
def test_what_cuda_does_another_way_is_among_its_cases(dtype):
    found = layouts(dtype)
    vector = 4 if dtype == "float32" else 8
    for resident in (True, False):
        cases = [problem.case for problem, is_resident in found.items() if is_resident == resident]
        assert {case.operation for case in cases} == {"cosine", "similarity"}
        assert {case.view_major for case in cases} == {True, False}
        assert {case.dim % vector == 0 for case in cases} == {True, False}
        assert any(problem.extreme for problem, where in found.items() if where == resident)
    assert {problem.reduction for problem in found} == {"mean", "none"}
    similar = [problem.case for problem in found if problem.case.operation == "similarity"]
    assert {case.others is None for case in similar} == {True, False}
    assert (2, 65536) in {(case.rows, case.dim) for case in similar}


def test_cases_of_triton_are_those_of_the_lists():
    listed = [problem.case for problem in small_cases.problems("triton")]
    assert listed == [*small_cases.COSINE, *small_cases.SIMILARITY]
    assert {case.per_row for case in small_cases.SCALE} == {True, False}


@pytest.mark.parametrize("architecture", [80, 90])
def test_the_cuda_sources_pass(monkeypatch, capsys, architecture):
    """In the emulator, so that a sanitizer does not spend its time on a case that is wrong."""
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs g++")
    pytest.importorskip("pybind11", reason="building the emulator needs pybind11")
    from emulation.backend import emulate

    emulate(monkeypatch, architecture)
    assert small_cases.main("emulated", "cpu") == 0
    others = len(small_cases.SCALE) + len(small_cases.CONTRAST) + len(small_cases.PAIRS)
    count = len(small_cases.problems("cuda")) + others
    assert f"{count} cases, 0 wrong" in capsys.readouterr().out


def test_a_wrong_kernel_is_found(monkeypatch, capsys):
    """Of every operation, and the exit status says so."""

    class WrongPairs(Definition):
        def output(self, *arguments):
            value, slope = super().output(*arguments)
            return 2 * value + 10, slope

    class Wrong(type(BACKENDS["reference"])):
        name = "wrong"
        pair_stage = WrongPairs()

        def cosine(self, *arguments):
            result = super().cosine(*arguments)
            return result._replace(total=result.total + 1)

        def similarity(self, a, b):
            return super().similarity(a, b) * 1.1

        def info_nce(self, *arguments):
            result = super().info_nce(*arguments)
            return result._replace(lse=2 * result.lse + 10)

        def scale_(self, gradients, upstream, row_scales):
            super().scale_(gradients, upstream * 1.1, row_scales)

    monkeypatch.setitem(BACKENDS, "wrong", Wrong())
    monkeypatch.setattr(small_cases, "CUDA", small_cases.CUDA[:4])
    assert small_cases.main("wrong", "cpu") == 1
    others = len(small_cases.SCALE) + len(small_cases.CONTRAST) + len(small_cases.PAIRS)
    count = len(small_cases.problems("wrong")) + others
    assert f"{count} cases, {count} wrong" in capsys.readouterr().out
