"""Turns the JSON of `pytest benchmarks --benchmark-json` into tables, a chart and two pages.

    python benchmarks/report.py results.json              prints the tables
    python benchmarks/report.py results.json --png a.png  and draws the chart
    python benchmarks/report.py results.json --record     files both in benchmarks/results/<device>
    python benchmarks/report.py --write                   from those files, the tables of
                                                          docs/benchmarks.md and the README's rows
    python benchmarks/report.py --check                   fails where either page is out of date

GPU figures enter a page only where the ledger says that their kernel, as it is now, passed its
tests on that GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hardware import ledger

from . import forms, machine
from .chart import chart
from .tables import OURS, Row, best_of, markdown, ours_of, seconds, tables, time_of, times, versions

RESULTS = ledger.ROOT / "benchmarks/results"
DOCS, README = Path("docs/benchmarks.md"), Path("README.md")

# The README's rows: what a user asks first, and the case that answers it.
SPEED = {
    "`logo_loss`, cosine: B = 256, G = 2, L = 8, D = 2048": "cosine-256x2x8x2048-float32",
    "`block_cosine_similarity`: 256 images, 10 crops with each other, D = 2048":
        "similarity-256x10xselfx2048-float32",
    "`logo_loss`, InfoNCE, a queue: B = 256, G = L = 2, K = 65,536, D = 128":
        "info_nce-256x2x2x65536x128-float32",
    "`logo_loss`, InfoNCE in the batch: B = 2048, G = L = 2, D = 128":
        "info_nce-2048x2x2xbatchx128-float32",
    "`LocalAffinity`, all parameters learned: B = 256, L = 8, D = 2048":
        "affinity-256x8x2048-float32",
}  # fmt: skip


class Recorded(NamedTuple):
    """What is filed of a device and may be shown."""

    folder: Path
    facts: dict[str, Any]
    rows: list[Row]

    @property
    def on_gpu(self) -> bool:
        return self.rows[0]["device"] != "cpu"


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The machine, and one row per benchmark that was timed."""
    data = json.loads(path.read_text())
    rows = [benchmark["extra_info"] for benchmark in data["benchmarks"]]
    return data["machine_info"], [row for row in rows if "contestants" in row]


def record(source: Path, results: Path = RESULTS) -> Path:
    """Files JSON, tables and chart under the name of the device."""
    facts, rows = load(source)
    folder = results / machine.folder_name(facts["device"])
    folder.mkdir(parents=True, exist_ok=True)
    if source.resolve() != (folder / "benchmarks.json").resolve():
        shutil.copyfile(source, folder / "benchmarks.json")
    (folder / "table.md").write_text(tables(facts, rows))
    chart(facts, rows, folder / "chart.png")
    return folder


def recorded(root: Path = ledger.ROOT) -> list[Recorded]:
    """Every device with something to show, CPUs first."""
    found = []
    for path in sorted((root / "benchmarks/results").glob("*/benchmarks.json")):
        facts, rows = load(path)
        rows = [kept for row in rows if (kept := printable(facts, row, root)) is not None]
        if rows:
            found.append(Recorded(path.parent, facts, rows))
    return sorted(found, key=lambda device: device.on_gpu)


def printable(facts: dict[str, Any], row: Row, root: Path = ledger.ROOT) -> Row | None:
    """CPU figures always; GPU figures of kernels that passed on that device as they are now."""
    if row["device"] == "cpu":
        return row
    return restricted(row, lambda kernel: ledger.is_verified(kernel, facts["device"], root))


def restricted(row: Row, allowed: Callable[[str], bool]) -> Row | None:
    """The row without contestants of ours with a kernel that is not allowed; None without `OURS`.

    All else is told in relation to `OURS`. A contestant that names no kernels shows nothing.
    """
    refused = [
        name
        for name in ours_of(row)
        if not (kernels := kernels_of_row(row, name)) or not all(map(allowed, kernels))
    ]
    if OURS in refused:
        return None
    kept = {name: row["contestants"][name] for name in row["contestants"] if name not in refused}
    return {**row, "contestants": kept}


def kernels_of_row(row: Row, name: str = OURS) -> list[str]:
    """The kernels that a contestant of ours launched, as they were recorded with its eager form."""
    return row.get("kernels", {}).get(forms.split(name)[0], [])


def docs_block(root: Path = ledger.ROOT) -> str:
    """Every device's tables and pictures, for docs/benchmarks.md."""
    parts = []
    for device in recorded(root):
        parts.append(tables(device.facts, device.rows))
        for name, words in (
            ("chart.png", "times of the peers and share of a copy's bandwidth"),
            ("info_nce_over_k.png", "time and peak memory of InfoNCE over the number of negatives"),
        ):
            if (device.folder / name).is_file():
                path = os.path.relpath(device.folder / name, (root / DOCS).parent)
                parts.append(f"![{words}]({Path(path).as_posix()})\n")
    return "\n".join(parts)


def speed_block(root: Path = ledger.ROOT) -> str:
    """Five cases on every device, ours beside the best peer, for the README."""
    devices = recorded(root)
    header = ["forward and backward"]
    for device in devices:
        header += [f"{device.facts['device']}: ours", "best peer"]
    no_gpu = not any(device.on_gpu for device in devices)
    body = []
    for words, case in SPEED.items():
        cells = [cell for device in devices for cell in _speed(device, case)]
        body.append([words, *cells] + ["not verified"] * no_gpu)
    told = "; ".join(dict.fromkeys(versions(device.facts) for device in devices))
    return (
        f"{markdown(header + ['GPU'] * no_gpu, body)}\n\n"
        f"float32, medians of the wall clock, the fastest form of each{told and '; ' + told}.\n"
    )


def _speed(device: Recorded, case: str) -> tuple[str, str]:
    """Ours and the best peer, with how many times longer that takes."""
    row = next((row for row in device.rows if row["case"] == case), None)
    if row is None:
        absent = "not verified" if device.on_gpu else "–"
        return absent, absent
    ours, peer, ratio = best_of(row)
    time = time_of(row, ours)
    if time is None or peer is None or ratio is None:
        return ("–" if time is None else seconds(time)), "–"
    return seconds(time), f"{seconds(time_of(row, peer) or 0.0)}, {times(ratio)} ({peer})"


# A page, the name of its markers, and what stands between them.
PAGES: tuple[tuple[Path, str, Callable[[Path], str]], ...] = (
    (DOCS, "benchmarks", docs_block),
    (README, "speed", speed_block),
)


def with_block(text: str, block: str, name: str) -> str:
    """A page with its marked block replaced; ValueError where the markers are not one pair."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"a page needs one {begin} and, below it, one {end}")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{block}\n{end}{after}"


def written(root: Path = ledger.ROOT) -> Iterator[tuple[Path, str, str]]:
    """Of each page its path, what it says and what it should say."""
    for page, name, block in PAGES:
        text = (root / page).read_text()
        yield root / page, text, with_block(text, block(root), name)


def main(arguments: list[str] | None = None, root: Path = ledger.ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, nargs="?", help="of pytest --benchmark-json")
    parser.add_argument("--png", type=Path, help="draw the chart here")
    parser.add_argument("--record", action="store_true", help="file it in benchmarks/results")
    parser.add_argument("--write", action="store_true", help=f"write {DOCS} and {README}")
    parser.add_argument("--check", action="store_true", help="only compare them")
    options = parser.parse_args(arguments)
    pages = options.write or options.check
    if options.json is None and (options.png or options.record or not pages):
        parser.error("got no JSON file; without one, it takes --write or --check alone")
    if options.json is not None:
        facts, rows = load(options.json)
        print(tables(facts, rows))
        if options.png:
            chart(facts, rows, options.png)
        if options.record:
            print(f"filed in {record(options.json).relative_to(ledger.ROOT)}", file=sys.stderr)
    if not pages:
        return 0
    try:
        found = list(written(root))
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    stale = [page for page, text, wanted in found if text != wanted]
    if options.check:
        for page in stale:
            print(f"{page}: out of date; run python benchmarks/report.py --write", file=sys.stderr)
        return 1 if stale else 0
    for page, _, wanted in found:
        page.write_text(wanted)
    return 0
