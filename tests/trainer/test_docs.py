"""The documents' Python blocks run, in order, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
# Written by the sweep, not by hand: it may not be there yet.
MADE = {"../python/results/ablation/README.md"}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_blocks_run_and_links_exist(path):
    text = path.read_text()
    namespace: dict = {}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        line = text[: block.start()].count("\n") + 1
        exec(compile("\n" * line + block[1], str(path), "exec"), namespace)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http") and target not in MADE:
            assert (path.parent / target).exists(), target
    assert path.stem != "migrating" or "logo_loss" in namespace  # the blocks were found
