"""What a run of the hardware check leaves: the ledger, the figures it vouches for, one archive."""

from __future__ import annotations

import datetime
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness import report, tables

from . import ledger
from .counts import Tests
from .steps import ABSENT

Verdicts = dict[str, str]  # tool -> verdict; "plain" is without one
Of = tuple[str, str]  # backend, operation


def verdict_on(
    of: Of, counts: dict[Of, Tests], verdicts: dict[Of, Verdicts]
) -> dict[str, Mapping[str, Any]]:
    """What the ledger holds of a kernel of this backend and operation, apart from its source."""
    nothing = {"passed": 0, "failed": 0}
    return {"tests": counts.get(of, nothing), "sanitizer": verdicts.get(of, {"plain": ABSENT})}


def rows_of(measured: Path) -> list[dict[str, Any]]:
    return report.load(measured)[1] if measured.is_file() else []


def ledger_of(
    facts: dict[str, Any],
    counts: dict[Of, Tests],
    verdicts: dict[Of, Verdicts],
    rows: list[dict[str, Any]],
    root: Path,
) -> dict[str, Any]:
    """The ledger of this run: every kernel of the tree `root`, and figures of those that passed."""
    now = datetime.datetime.now(datetime.timezone.utc)
    entries: dict[str, Any] = {}
    for kernel, files in ledger.kernels(root).items():
        of = ledger.backend_of(kernel), ledger.operation_of(kernel)
        entries[kernel] = {
            "sha256": ledger.source_hash(files),
            **verdict_on(of, counts, verdicts),
        }
    shown = [kept for row in rows if (kept := report.restricted(row, passed_in(entries)))]
    for kernel, entry in entries.items():
        if ledger.passed(entry):
            entry["benchmarks"] = {
                row["case"]: figures
                for row in shown
                if (figures := figures_of(kernel, row)) is not None
            }
    return {
        "device": facts["device"],
        "driver": facts.get("driver_version", "unknown"),
        "clocks": {key: value for key, value in facts.items() if key.startswith("clocks.")}
        or {"unknown": "nvidia-smi did not answer"},
        "versions": {key: facts[key] for key in ("python", "torch", "triton", "cuda")},
        "date": now.isoformat(timespec="seconds"),
        "kernels": entries,
    }


def passed_in(entries: dict[str, Any]) -> Callable[[str], bool]:
    """Whether a kernel is among these entries, and passed."""
    return {kernel for kernel, entry in entries.items() if ledger.passed(entry)}.__contains__


def figures_of(kernel: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """What the ledger keeps of a row for a kernel: of auto's choice, else of who else ran it."""
    for name in tables.ours_of(row):
        if kernel not in report.kernels_of_row(row, name):
            continue
        measured = row["contestants"][name]
        figures = {
            "seconds": measured["median"],
            "device_seconds": measured.get("device_seconds"),
        }
        if name != tables.OURS:
            return {**figures, "times_of_ours": measured["ratio"]["median"]}
        keys = ("best_peer", "best_ratio", "fraction_of_copy")
        return {**figures, **{key: row.get(key) for key in keys}}
    return None


def write_results(results: Path, made: dict[str, Any], measured: list[Path]) -> None:
    """Ledger, and the figures of kernels that passed; old figures do not outlive their ledger."""
    (results / "ledger.json").write_text(json.dumps(made, indent=1) + "\n")
    for name in ("benchmarks.json", "table.md", "chart.png"):
        (results / name).unlink(missing_ok=True)
    passed = passed_in(made["kernels"])
    kept: list[dict[str, Any]] = []
    written = [json.loads(path.read_text()) for path in measured if path.is_file()]
    for data in written:
        for benchmark in data["benchmarks"]:
            row = benchmark["extra_info"]
            if "contestants" in row and (shown := report.restricted(row, passed)):
                kept.append({**benchmark, "extra_info": shown})
    if kept:
        data = {**written[0], "benchmarks": kept}
        (results / "benchmarks.json").write_text(json.dumps(data, indent=1) + "\n")
        report.record(results / "benchmarks.json", results.parent)


def archive(results: Path) -> None:
    """All results so far in one file, for where few come back; there is one at any time."""
    whole, begun = results / "results.tar.gz", results / "results.tar.gz.part"
    with tarfile.open(begun, "w:gz") as file:
        for path in sorted(results.rglob("*")):
            if path.is_file() and path not in (whole, begun):
                file.add(path, path.relative_to(results.parent))
    begun.replace(whole)
