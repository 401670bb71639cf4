"""README, CONTRIBUTING and docs: code blocks run, links and paths lead somewhere, names exist."""

import re
from pathlib import Path

import pytest
import torch

import logo_kernels
import neighbours

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, CONTRIBUTING, ROOT / "CHANGELOG.md", ROOT / "SECURITY.md", *DOCS]
WITH_BLOCKS = {"README", "index", "backends", "design", "migrating", "neighbours"}

# In the order in which a reader meets them.
SECTIONS = [
    "Verified", "Install", "Example", "Speed", "Two commands", "What runs where", "Links",
]  # fmt: skip
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
PATH = re.compile(
    r"(?<![\w./-])(?:csrc|logo_kernels|python|tests|benchmarks|docs|examples)/[\w./-]*(?![\w<{*])"
)


def name_of(page: Path) -> str:
    return page.stem


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_run(page, monkeypatch):
    """In order, in one namespace: a block may use what an earlier one has made."""
    text = page.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert bool(blocks) == (page.stem in WITH_BLOCKS)
    neighbours.stand_in(monkeypatch)
    namespace: dict = {"__name__": page.stem}
    torch.manual_seed(0)
    for block in blocks:
        above = "\n" * text[: block.start(1)].count("\n")  # for the line numbers of a traceback
        exec(compile(above + block[1], str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target, _, anchor in links_of(page):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors_of(file), f"{target}#{anchor}"


def links_of(page: Path) -> list[tuple[str, str, str]]:
    """(file or nothing, "#", anchor) of each link that stays within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    return [target.partition("#") for target in targets if not target.startswith("http")]


def anchors_of(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, CONTRIBUTING, *DOCS], ids=name_of)
def test_paths_exist(page):
    """Of files and folders that a sentence or a command names."""
    named = {path.rstrip(".-") for path in PATH.findall(page.read_text())}
    assert not {path for path in named if not (ROOT / path).exists()}


def test_readme_is_short_and_in_order():
    text = README.read_text()
    assert 90 <= len(text.splitlines()) <= 120
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS


def test_readme_and_docs_have_their_generated_blocks():
    for page, name in ((README, "speed"), (ROOT / "docs/benchmarks.md", "benchmarks")):
        text = page.read_text()
        begin, end = (text.index(f"<!-- {name}:{edge} -->") for edge in ("begin", "end"))
        assert begin < end


def test_docs_are_linked_from_their_index():
    index = ROOT / "docs/index.md"
    linked = {target for target, _, _ in links_of(index)}
    assert {page.name for page in DOCS if page != index} <= linked


def test_public_names_have_a_place_in_the_reference():
    """Each once, as the page is built from them."""
    shown = re.findall(
        r"^::: logo_kernels\.(\w+)$", (ROOT / "docs/api.md").read_text(), re.MULTILINE
    )
    assert sorted(shown) == sorted(set(logo_kernels.__all__) - {"__version__"})


def test_thresholds_of_the_design_exist():
    """A constant that was renamed or removed is not described any more."""
    text = (ROOT / "docs/design.md").read_text()
    table = text[text.index("## Thresholds") : text.index("## Layers")]
    names = re.findall(
        r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)
    )
    assert len(names) > 10
    sources = [
        file.read_text()
        for folder in ("csrc", "logo_kernels")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".h", ".cuh", ".cpp", ".cu", ".py")
    ]
    for name in names:
        defined = re.compile(rf"\b{name}\b.* = ")
        assert any(defined.search(source) for source in sources), name
