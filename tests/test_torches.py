"""The command that tries one release of torch after another, but for the trying."""

from torches import BEGIN, END, HEADER, PAGE, newest_of_each_minor, written


def test_the_newest_patch_of_every_minor_from_2_8_on():
    said = """torch (2.10.0)
Available versions: 2.10.0, 2.9.1, 2.9.0, 2.9.0+cpu, 2.8.0rc1, 2.8.0, 2.7.1, 1.13.1
  INSTALLED: 2.9.0
"""
    assert newest_of_each_minor(said) == ["2.8.0", "2.9.1", "2.10.0"]


def test_a_row_takes_the_place_of_the_earlier_one_of_its_kind():
    page = f"above\n{BEGIN}\n{END}\nbelow"
    page = written(page, ("2.10.0", "3.11.7", "none", "2.4", "passed", "1 passed"))
    page = written(page, ("2.9.1", "3.11.7", "3.5", "2.4", "failed", "1 failed"))
    page = written(page, ("2.9.1", "3.11.7", "3.5", "2.4", "passed", "2 passed"))
    page = written(page, ("2.9.1", "3.12.1", "none", "2.4", "passed", "3 passed"))
    rows = [
        "| 2.9.1 | 3.11.7 | 3.5 | 2.4 | passed | 2 passed |",
        "| 2.9.1 | 3.12.1 | none | 2.4 | passed | 3 passed |",
        "| 2.10.0 | 3.11.7 | none | 2.4 | passed | 1 passed |",
    ]
    table = "\n".join([*HEADER, *rows])
    assert page == f"above\n{BEGIN}\n\n{table}\n\n{END}\nbelow"


def test_the_table_shows_no_failure():
    """What fails is mended, or the claim of torch>=2.8 is changed."""
    table = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert " passed |" in table
    assert "failed" not in table
    assert "status" not in table
    assert "error" not in table
