"""The two pages that are written from the recorded results."""

import json

import pytest

from benchmarks.made import KERNEL, figures, on_gpu, row, write
from hardware import ledger
from harness import report

PAGES = {page: name for page, name, _ in report.PAGES}


def markers(name):
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def write_pages(root, text="# Title\n{}\nold\n{}\nend\n"):
    for page, name in PAGES.items():
        path = root / page
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.format(*markers(name)))


def shown(root, page):
    """What stands between the markers of a page."""
    begin, end = markers(PAGES[page])
    return (root / page).read_text().partition(begin)[2].partition(end)[0]


def verify(tree, kernel=KERNEL):
    """A ledger of an H200 in which the kernel passed as it is."""
    entry = {
        "sha256": ledger.source_hash(ledger.kernels(tree)[kernel]),
        "tests": {"passed": 1, "failed": 0}, "sanitizer": {},
    }  # fmt: skip
    facts = {"device": "NVIDIA H200", "date": "2026-11-22"}
    path = tree / "benchmarks/results/nvidia-h200/ledger.json"
    path.write_text(json.dumps({**facts, "kernels": {kernel: entry}}))


def test_pages_are_written_and_then_current(tmp_path, capsys):
    folder = tmp_path / "benchmarks/results/amd-epyc"
    write(folder / "benchmarks.json", [row()])
    for picture in ("chart.png", "info_nce_over_k.png"):
        (folder / picture).touch()
    write_pages(tmp_path)
    assert report.main(["--check"], tmp_path) == 1
    assert "README.md: out of date" in capsys.readouterr().err
    assert report.main(["--write"], tmp_path) == 0
    assert report.main(["--check"], tmp_path) == 0
    for page in PAGES:
        text = (tmp_path / page).read_text()
        assert text.startswith("# Title\n")
        assert text.endswith("\nend\n")
    docs = tmp_path / report.DOCS
    assert "**2.00×**" in shown(tmp_path, report.DOCS)
    assert "](../benchmarks/results/amd-epyc/chart.png)" in docs.read_text()
    assert "](../benchmarks/results/amd-epyc/info_nce_over_k.png)" in docs.read_text()
    docs.write_text(docs.read_text().replace("**2.00×**", "**3.00×**"))
    assert report.main(["--check"], tmp_path) == 1


@pytest.mark.parametrize("text", ["no markers", "{1}{0}", "{0}{1}{0}{1}"])
@pytest.mark.parametrize("option", ["--write", "--check"])
def test_markers_must_be_one_pair(tmp_path, capsys, text, option):
    write_pages(tmp_path)
    (tmp_path / "README.md").write_text(text.format(*markers("speed")))
    before = (tmp_path / report.DOCS).read_text()
    assert report.main([option], tmp_path) == 1
    assert "needs one <!-- speed:begin -->" in capsys.readouterr().err
    assert (tmp_path / report.DOCS).read_text() == before  # both pages, or neither


@pytest.mark.parametrize("arguments", [[], ["--record"], ["--png", "a.png", "--check"]])
def test_there_must_be_something_to_do(arguments, capsys):
    with pytest.raises(SystemExit):
        report.main(arguments)
    assert "got no JSON file" in capsys.readouterr().err


def speed(root):
    """The README's table: header, and cells by case."""
    header, _, *body = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in report.speed_block(root).splitlines()
        if line.startswith("|")
    )
    return header, dict(zip(report.SPEED.values(), (cells[1:] for cells in body), strict=True))


def test_five_rows_beside_the_best_peer(tmp_path):
    """Of every instruction set that was recorded; a GPU is named where one was verified."""
    results = tmp_path / "benchmarks/results"
    narrow = row()
    narrow["contestants"]["ours"] = figures(3e-3, 1.0)
    write(results / "amd-avx512/benchmarks.json", [row()], device="AMD, AVX512")
    write(results / "amd-avx2/benchmarks.json", [narrow], device="AMD, AVX2")
    header, cells = speed(tmp_path)
    assert header[1:] == ["AMD, AVX2: ours", "best peer", "AMD, AVX512: ours", "best peer", "GPU"]
    peer = "5 ms, 2.00× (sums, compiled)"
    assert cells.pop("cosine-256x2x8x2048-float32") == [
        "3 ms",
        peer,
        "2.5 ms",
        peer,
        "not verified",
    ]
    assert list(cells.values()) == [["–", "–", "–", "–", "not verified"]] * 4
    assert "torch 2.13.0" in report.speed_block(tmp_path)


def test_a_row_without_peers_has_ours_alone(tmp_path):
    alone = row(best_peer=None, best_ratio=None)
    write(tmp_path / "benchmarks/results/amd/benchmarks.json", [alone])
    assert speed(tmp_path)[1][alone["case"]] == ["2.5 ms", "–", "not verified"]


def test_gpu_figures_only_of_verified_kernels(tree):
    folder = tree / "benchmarks/results/nvidia-h200"
    write(folder / "benchmarks.json", [on_gpu()], device="NVIDIA H200")
    assert report.docs_block(tree) == ""
    assert speed(tree)[0][1:] == ["GPU"]
    verify(tree)
    assert "**21.5 µs** / 22 µs" in report.docs_block(tree)
    header, cells = speed(tree)
    assert header[1:] == ["NVIDIA H200: ours", "best peer"]
    graphs = ["1.25 ms", "2 ms, 1.60× (sums, compiled, CUDA graph)"]  # by the wall clock
    assert cells.pop("cosine-256x2x8x2048-float32") == graphs
    assert list(cells.values()) == [["not verified"] * 2] * 4
    (tree / KERNEL).write_text((tree / KERNEL).read_text() + "# changed\n")
    assert report.docs_block(tree) == ""
    assert speed(tree)[0][1:] == ["GPU"]


@pytest.mark.parametrize("page", PAGES)
def test_the_projects_pages_show_only_verified_gpu_figures(page):
    """Whatever stands in a block must be what the committed results give today."""
    path = ledger.ROOT / page
    if not path.is_file() or markers(PAGES[page])[0] not in path.read_text():
        pytest.skip(f"{page} has no block yet")
    (wanted,) = (
        report.with_block(path.read_text(), block(ledger.ROOT), name)
        for name_of, name, block in report.PAGES
        if name_of == page
    )
    assert path.read_text() == wanted
