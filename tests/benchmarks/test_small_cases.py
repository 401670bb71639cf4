"""The problems that compute-sanitizer watches are right in themselves."""

import small_cases


def test_the_reference_passes(capsys):
    assert small_cases.main("reference", "cpu") == 0
    assert "0 wrong" in capsys.readouterr().out


def test_sizes_fill_no_tile():
    assert any(case.dim % 16 for case in small_cases.COSINE)
    assert {case.view_major for case in small_cases.COSINE} == {True, False}
