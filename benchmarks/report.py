"""Turns the JSON of `pytest benchmarks --benchmark-json` into a table and a chart.

    python benchmarks/report.py results.json              prints the tables
    python benchmarks/report.py results.json --png a.png  and draws the chart
    python benchmarks/report.py results.json --record     files both in benchmarks/results/<device>
    python benchmarks/report.py --readme README.md        writes the README's block from those files
    python benchmarks/report.py --readme README.md --check   fails where the block is out of date

GPU figures enter the README only where the ledger says that their kernel, as it is now, passed its
tests on that GPU. There "ours" is what backend="auto" chooses; where another backend of ours was
measured beside it, it has a column of its own. GPU time and wall time have columns of their own; a
CPU has wall time alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import forms
import ledger
import machine

BEGIN = "<!-- benchmarks:begin -->"
END = "<!-- benchmarks:end -->"
OURS = "ours"
PRODUCT, EMPTY = "matrix product", "empty Function"
BESIDE = (OURS, "copy", EMPTY, PRODUCT)  # contestants that are no peers
RESULTS = ledger.ROOT / "benchmarks/results"
WALL, GPU = "wall", "GPU"  # the clocks

Row = dict[str, Any]


def load(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """The machine, and one row per benchmark that was timed."""
    data = json.loads(path.read_text())
    rows = [benchmark["extra_info"] for benchmark in data["benchmarks"]]
    return data["machine_info"], [row for row in rows if "contestants" in row]


def seconds(value: float) -> str:
    """Three digits with the unit that fits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-6:.2f} µs"


def times(ratio: float) -> str:
    return (
        f"{ratio:.2f}×" if ratio < 9.995 else f"{ratio:.1f}×" if ratio < 99.95 else f"{ratio:.0f}×"
    )


def megabytes(count: int) -> str:
    return f"{count / 1e6:.3g}" if count < 999.5e6 else f"{count / 1e6:.0f}"


def tables(facts: dict[str, Any], rows: list[Row]) -> str:
    """All tables of one device in Markdown."""
    parts = [_heading(facts, rows)]
    for operation, title, columns in (
        ("cosine", "`logo_loss`, cosine: (B, G, L, D)", _against_peers),
        ("similarity", "`block_cosine_similarity`: (B, V, W, D)", _against_peers),
        ("info_nce", "`logo_loss`, InfoNCE: (B, G, L, K, D)", _against_contrast),
        ("affinity", "`LocalAffinity`: (B, L, D)", _against_contrast),
        ("overhead", "Host overhead, beside an empty autograd Function", _overhead),
        ("training_step", "One training step: (B, G, L, D)", _training_step),
    ):
        chosen = [row for row in rows if row["operation"] == operation]
        if chosen:
            parts.append(f"**{title}**\n\n{columns(chosen)}")
    excluded = sorted(
        f"- {name} at {row['case']}: {reason}"
        for row in rows
        for name, reason in row["excluded"].items()
    )
    if excluded:
        parts.append("Left out:\n\n" + "\n".join(excluded))
    return "\n\n".join(parts) + "\n"


def _heading(facts: dict[str, Any], rows: list[Row]) -> str:
    backends = ", ".join(sorted({row["backend"] for row in rows}))
    others = " The other backend of ours is timed beside it." if _other_backends(rows) else ""
    versions = ", ".join(
        f"{name} {facts[key]}"
        for name, key in (
            ("torch", "torch"), ("CUDA", "cuda"), ("Triton", "triton"), ("driver", "driver_version")
        )
        if facts.get(key)
    )  # fmt: skip
    by_gpu = ", in its own column by GPU time with a flushed L2" if GPU in _clocks(rows) else ""
    return (
        f"{facts['device']}; {versions}; backend {backends}. Forward and backward. "
        f"Times are medians; a cell is {' / '.join(_forms(rows))}, the best of ours and of all "
        f"peers in bold; a ratio says how many times longer a peer takes than the best form of ours"
        f"{by_gpu}.{others}"
    )


def _markdown(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _kind(row: Row) -> str:
    layout = "view-major" if row["view_major"] else ""
    features = "own features" if row.get("features") else ""
    return ", ".join(part for part in (row["dtype"], layout, features) if part)


def ours_of(row: Row) -> list[str]:
    """The contestants of ours that were measured: auto's choice, then other backends."""
    return [name for name in row["contestants"] if name.split(",")[0] == OURS]


def _other_backends(rows: list[Row]) -> list[str]:
    """Contestants of ours besides auto's choice, of any row; none on a CPU."""
    names = [name for row in rows for name in ours_of(row) if forms.split(name)[0] != OURS]
    return list(dict.fromkeys(names))


def _families(rows: list[Row]) -> list[str]:
    """Names of the peers without their forms, in the order they were run."""
    names = [name for row in rows for name in row["contestants"] if _is_peer(name)]
    return list(dict.fromkeys(forms.split(name)[0] for name in names))


def _is_peer(name: str) -> bool:
    return name.split(",")[0] not in BESIDE


def _forms(rows: list[Row]) -> list[str]:
    """In which forms anything was measured, in words and in order."""
    found = {forms.split(name)[1] for row in rows for name in row["contestants"]}
    return [word for form, word in forms.FORMS.items() if form in found]


def _clocks(rows: list[Row]) -> list[str]:
    return [WALL, GPU] if any("gpu" in row for row in rows) else [WALL]


def _best(row: Row, clock: str) -> tuple[str, str | None, float | None]:
    """The best form of ours, the best peer, and their ratio."""
    if clock == GPU:
        return (row["gpu"]["ours"], row["gpu"]["peer"], row["gpu"]["ratio"])
    return (row.get("best_ours", OURS), row["best_peer"], row["best_ratio"])


def _time(row: Row, name: str, clock: str) -> float | None:
    """Of a contestant; None where it was left out."""
    figures = row["contestants"].get(name)
    if figures is None:
        return None
    return figures["median"] if clock == WALL else figures["device_seconds"]["cold"]


def _ratio(row: Row, name: str, clock: str) -> float | None:
    """Times as long as the best form of ours; None where a contestant was left out."""
    figures = row["contestants"].get(name)
    if figures is None:
        return None
    return figures["ratio" if clock == WALL else "gpu_ratio"]["median"]


Show = Callable[[Row, str, str], "float | None"]


def _cell(row: Row, rows: list[Row], family: str, clock: str, value: Show, text: Any) -> str:
    """One contestant's forms side by side, the best of ours and of the peers in bold."""
    best = _best(row, clock)[:2]
    cells = []
    for form, word in forms.FORMS.items():
        if word not in _forms(rows):
            continue
        found = value(row, family + form, clock)
        shown = "–" if found is None else text(found)
        cells.append(f"**{shown}**" if family + form in best else shown)
    return " / ".join(cells) if set(cells) != {"–"} else "–"


def _times_columns(rows: list[Row]) -> dict[str, Callable[[Row], str]]:
    """Title -> cell: by each clock ours, other backends of ours, and the best peer."""
    others = _other_backends(rows)
    columns: dict[str, Callable[[Row], str]] = {}
    for clock in _clocks(rows):
        before = f"{clock}: " if len(_clocks(rows)) > 1 else ""

        def ours(row: Row, clock: str = clock) -> str:
            return _cell(row, rows, OURS, clock, _time, seconds)

        def other(row: Row, name: str, clock: str = clock) -> str:
            time = _time(row, name, clock)
            return "–" if time is None else seconds(time)

        def best_peer(row: Row, clock: str = clock) -> str:
            _, peer, ratio = _best(row, clock)
            return "–" if ratio is None else f"{times(ratio)} ({peer})"

        columns[f"{before}ours"] = ours
        columns |= {f"{before}{name}": partial(other, name=name) for name in others}
        columns[f"{before}best peer"] = best_peer
    return columns


def _peer_columns(rows: list[Row]) -> dict[str, Callable[[Row], str]]:
    """Title -> cell: each peer's ratios, by GPU time where there is any."""
    clock = _clocks(rows)[-1]

    def cell(row: Row, family: str) -> str:
        return _cell(row, rows, family, clock, _ratio, times)

    return {family: partial(cell, family=family) for family in _families(rows)}


def _instructions(rows: list[Row]) -> dict[str, Callable[[Row], str]]:
    """Of a CPU: which of its instruction sets was measured."""
    if not any(row.get("simd") for row in rows):
        return {}
    return {"instructions": lambda row: (row.get("simd") or "–").upper()}


def _peak(row: Row) -> str:
    """Of the best form of ours and of the best peer.

    A graph's memory is its own and not seen: it counts as what is compiled.
    """

    def megabytes_of(name: str) -> str:
        family, form = forms.split(name)
        plain = family + (forms.COMPILED if form == forms.GRAPH else form)
        figures = row["contestants"].get(plain)
        return "–" if figures is None else megabytes(figures["peak_bytes"])

    ours, peer, _ = _best(row, WALL)
    return megabytes_of(ours) + (f" (best peer {megabytes_of(peer)})" if peer else "")


def _table(rows: list[Row], columns: dict[str, Callable[[Row], str]]) -> str:
    body = [[cell(row) for cell in columns.values()] for row in rows]
    return _markdown(list(columns), body)


def _against_peers(rows: list[Row]) -> str:
    return _table(
        rows,
        {
            "size": lambda row: row["size"],
            "dtype, layout": _kind,
            **_instructions(rows),
            **_times_columns(rows),
            **_peer_columns(rows),
            "MB moved": lambda row: megabytes(row["moved_bytes"]),
            "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:.3g}",
            "of a copy": lambda row: f"{100 * row['fraction_of_copy']:.0f} %",
            "peak MB": _peak,
        },
    )


def _against_contrast(rows: list[Row]) -> str:
    clock = _clocks(rows)[-1]

    def rate(row: Row) -> str:
        time = _time(row, _best(row, clock)[0], clock)
        return "–" if time is None else f"{row['flops'] / time / 1e9:.3g}"

    def of_product(row: Row) -> str:
        """Of its rate: it has about as many operations, not as many."""
        share = _ratio(row, PRODUCT, clock)
        if share is None:
            return "–"
        return f"{100 * share * row['flops'] / row.get('product_flops', row['flops']):.0f} %"

    return _table(
        rows,
        {
            "size": lambda row: row["size"],
            "dtype": lambda row: row["dtype"],
            **_instructions(rows),
            **_times_columns(rows),
            **_peer_columns(rows),
            "GFLOP/s": rate,
            "of a matrix product": of_product,
            "peak MB": _peak,
        },
    )


def _overhead(rows: list[Row]) -> str:
    """Ratios are of ours eagerly, as an empty Function is called."""

    def other(row: Row, name: str) -> str:
        time = _time(row, name, WALL)
        return "–" if time is None else seconds(time)

    return _table(
        rows,
        {
            "operation": lambda row: row["of"],
            "size": lambda row: row["size"],
            **_instructions(rows),
            "ours": lambda row: _cell(row, rows, OURS, WALL, _time, seconds),
            **{name: partial(other, name=name) for name in _other_backends(rows)},
            EMPTY: partial(other, name=EMPTY),
            "ours, eager, of it": lambda row: times(row["times_of_empty"]["median"]),
            "goal": lambda row: f"{row['goal']:g}×",
        },
    )


def _training_step(rows: list[Row]) -> str:
    return _table(
        rows,
        {
            "size": lambda row: row["size"],
            **_instructions(rows),
            "with ours": lambda row: seconds(row["contestants"][OURS]["median"]),
            "with the loss pair by pair": lambda row: seconds(
                row["contestants"]["pairs"]["median"]
            ),
            "times longer": lambda row: times(row["contestants"]["pairs"]["ratio"]["median"]),
        },
    )


def chart(facts: dict[str, Any], rows: list[Row], png: Path) -> None:
    """Left: how many times longer the best peer takes. Right: the share of a copy's bandwidth.

    Of GPU time, where there is any.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in rows if row["operation"] in ("cosine", "similarity")]
    labels = [f"{row['operation']} {row['size']}\n{_kind(row)}" for row in rows]
    clock = _clocks(rows)[-1]
    places = range(len(rows))
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(11, 1.6 + 0.46 * len(rows)), layout="constrained",
        width_ratios=(3, 2),
    )  # fmt: skip
    styles = {"eager": "o", "compiled": "D", "CUDA graph": "s"}
    best_ratios = [_best(row, clock)[2] for row in rows]
    colours = {"pairs": "#b0413e", "broadcast": "#7d5ba6", "products": "#d99a3d", "sums": "#4a7c59"}
    for place, row, best in zip(places, rows, best_ratios, strict=True):
        for name in filter(_is_peer, row["contestants"]):
            family, form = forms.split(name)
            left.plot(
                _ratio(row, name, clock), place, styles[forms.FORMS[form]],
                color=colours.get(family, "#666666"), markersize=6, alpha=0.9,
            )  # fmt: skip
        if best:
            left.barh(place, best - 1, left=1, height=0.62, color="#3b6ea5", zorder=0)
            left.annotate(
                times(best), (1, place), xytext=(-5, 0),
                textcoords="offset points", ha="right", va="center", fontsize=8,
            )  # fmt: skip
    left.set_xscale("log")
    left.axvline(1, color="black", linewidth=1)
    lowest = min([1.0, *(best for best in best_ratios if best)])
    left.set_xlim(left=0.45 * lowest)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_yticks(list(places), labels, fontsize=8)
    left.set_xlabel(f"{clock} time of a peer / of the best form of ours (log scale)")
    left.set_title("Bars: the best peer takes so many times longer", fontsize=10)
    handles = [
        plt.Line2D([], [], marker=marker, linestyle="", color="#666666", label=label)
        for label, marker in styles.items() if label in _forms(rows)
    ] + [
        plt.Line2D([], [], marker="s", linestyle="", color=colours.get(family, "#666666"),
                   label=family)
        for family in _families(rows)
    ]  # fmt: skip
    left.legend(handles=handles, fontsize=8, loc="upper center", ncols=len(handles),
                bbox_to_anchor=(0.5, -0.8 / (1 + len(rows))), frameon=False)  # fmt: skip
    bars = right.barh(
        places, [100 * row["fraction_of_copy"] for row in rows], height=0.62, color="#3b6ea5"
    )
    right.bar_label(bars, fmt="%.0f %%", fontsize=8, padding=3)
    right.axvline(100, color="black", linewidth=1)
    right.set_xlim(0, max(118, *(115 * row["fraction_of_copy"] for row in rows)))
    right.set_xlabel("bandwidth, % of that of a copy of the same bytes")
    right.set_title("100 %: as fast as a copy of the bytes", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"Forward and backward on {facts['device']}", fontsize=11)
    figure.savefig(png, dpi=130)
    plt.close(figure)


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


def readme_block(root: Path = ledger.ROOT) -> str:
    """What stands between the README's markers: every device's tables, CPUs first."""
    recorded = []
    for path in sorted((root / "benchmarks/results").glob("*/benchmarks.json")):
        facts, rows = load(path)
        rows = [kept for row in rows if (kept := printable(facts, row, root)) is not None]
        if rows:
            recorded.append((rows[0]["device"] != "cpu", path, facts, rows))
    parts = []
    for _, path, facts, rows in sorted(recorded, key=lambda entry: entry[:2]):
        picture = (path.parent / "chart.png").relative_to(root).as_posix()
        parts.append(tables(facts, rows))
        if (root / picture).is_file():
            parts.append(f"![times of the peers and share of a copy's bandwidth]({picture})\n")
    return "\n".join(parts)


def with_block(text: str, block: str) -> str:
    """The README with its marked block replaced; ValueError where the markers are not one pair."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"the README needs one {BEGIN} and, below it, one {END}")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{block}\n{END}{after}"


def readme_is_current(readme: Path, root: Path = ledger.ROOT) -> bool:
    text = readme.read_text()
    return with_block(text, readme_block(root)) == text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, nargs="?", help="of pytest --benchmark-json")
    parser.add_argument("--png", type=Path, help="draw the chart here")
    parser.add_argument("--record", action="store_true", help="file it in benchmarks/results")
    parser.add_argument("--readme", type=Path, help="write the block of this README")
    parser.add_argument("--check", action="store_true", help="only compare the README's block")
    options = parser.parse_args(arguments)
    if options.json is None and options.readme is None:
        parser.error("name a JSON file, or --readme")
    if options.json is None and (options.png or options.record):
        parser.error("--png and --record need a JSON file")
    if options.json is not None:
        facts, rows = load(options.json)
        print(tables(facts, rows))
        if options.png:
            chart(facts, rows, options.png)
        if options.record:
            print(f"filed in {record(options.json).relative_to(ledger.ROOT)}", file=sys.stderr)
    if options.readme is None:
        return 0
    if options.check:
        current = readme_is_current(options.readme)
        if not current:
            print(
                f"{options.readme} does not show what benchmarks/results holds; run "
                f"python benchmarks/report.py --readme {options.readme}",
                file=sys.stderr,
            )
        return 0 if current else 1
    options.readme.write_text(with_block(options.readme.read_text(), readme_block()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
