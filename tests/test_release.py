"""The version is one, wherever it stands."""

import re
from pathlib import Path

import logo_kernels

ROOT = Path(__file__).resolve().parents[1]


def test_citation_names_the_version():
    (version,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert version == logo_kernels.__version__


def test_changelog_begins_with_the_version():
    """Or with what is to be released next; and the dates of both files agree."""
    headings = re.findall(r"^## (\S+) \((\S+?)[),]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    newest, date = next(one for one in headings if one[0] != "Unreleased")
    assert newest == logo_kernels.__version__
    assert f'date-released: "{date}"' in (ROOT / "CITATION.cff").read_text()
