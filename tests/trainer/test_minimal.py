"""The page one shows to a colleague runs, fits on a page, and learns."""

from pathlib import Path

import minimal


def test_minimal_learns(capsys):
    before, after = minimal.main(steps=30)
    assert 0.1 < before < after - 0.05 < 1
    assert "kNN accuracy: untrained" in capsys.readouterr().out


def test_minimal_is_one_page():
    assert len(Path(minimal.__file__).read_text().splitlines()) <= 95
