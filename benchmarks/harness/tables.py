"""Tables in Markdown of what the benchmarks measured on one device.

"ours" is what backend="auto" chooses; where another backend of ours was measured beside it, it has
a column of its own. On a GPU, GPU time and wall time have columns of their own; a CPU has wall time
alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import forms
from .timing import OURS

PRODUCT, EMPTY = "matrix product", "empty Function"
BESIDE = (OURS, "copy", EMPTY, PRODUCT)  # contestants that are no peers
WALL, GPU = "wall", "GPU"  # the clocks
# Which step, where it is not plain.
STEPS = {"affinity": "affinity, all parameters learned", "affinity, frozen": "affinity, θd frozen"}

Row = dict[str, Any]
Columns = dict[str, Callable[[Row], str]]  # title -> cell


def tables(facts: dict[str, Any], rows: list[Row]) -> str:
    """All tables of one device."""
    parts = [_heading(facts, rows)]
    for operation, title, columns in (
        ("cosine", "`logo_loss`, cosine: (B, G, L, D)", _against_copy),
        ("similarity", "`block_cosine_similarity`: (B, V, W, D)", _against_copy),
        ("info_nce", "`logo_loss`, InfoNCE: (B, G, L, K, D)", _against_product),
        ("affinity", "`LocalAffinity`: (B, L, D)", _against_product),
        ("overhead", "Host overhead, beside an empty autograd Function", _overhead),
        ("training_step", "One training step: (B, G, L, D)", _training_step),
    ):
        chosen = [row for row in rows if row["operation"] == operation]
        if chosen:
            parts.append(f"**{title}**\n\n{_table(chosen, columns(chosen))}")
    excluded = sorted(
        f"- {name} at {row['case']}: {reason}"
        for row in rows
        for name, reason in row["excluded"].items()
    )
    if excluded:
        parts.append("Left out:\n\n" + "\n".join(excluded))
    return "\n\n".join(parts) + "\n"


def markdown(header: list[str], body: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


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


def kind_of(row: Row) -> str:
    layout = "view-major" if row["view_major"] else ""
    features = "own features" if row.get("features") else ""
    return ", ".join(part for part in (row["dtype"], layout, features) if part)


def ours_of(row: Row) -> list[str]:
    """The contestants of ours that were measured: auto's choice, then other backends."""
    return [name for name in row["contestants"] if name.split(",")[0] == OURS]


def is_peer(name: str) -> bool:
    return name.split(",")[0] not in BESIDE


def families_of(rows: list[Row]) -> list[str]:
    """Names of the peers without their forms, in the order they were run."""
    names = [name for row in rows for name in row["contestants"] if is_peer(name)]
    return list(dict.fromkeys(forms.split(name)[0] for name in names))


def forms_of(rows: list[Row]) -> list[str]:
    """In which forms anything was measured, in words and in order."""
    found = {forms.split(name)[1] for row in rows for name in row["contestants"]}
    return [word for form, word in forms.FORMS.items() if form in found]


def clocks_of(rows: list[Row]) -> list[str]:
    return [WALL, GPU] if any("gpu" in row for row in rows) else [WALL]


def best_of(row: Row, clock: str = WALL) -> tuple[str, str | None, float | None]:
    """The best form of ours, the best peer, and their ratio."""
    if clock == GPU:
        return (row["gpu"]["ours"], row["gpu"]["peer"], row["gpu"]["ratio"])
    return (row.get("best_ours", OURS), row["best_peer"], row["best_ratio"])


def time_of(row: Row, name: str, clock: str = WALL) -> float | None:
    """Of a contestant; None where it was left out."""
    figures = row["contestants"].get(name)
    if figures is None:
        return None
    return figures["median"] if clock == WALL else figures["device_seconds"]["cold"]


def ratio_of(row: Row, name: str, clock: str) -> float | None:
    """Times as long as the best form of ours; None where a contestant was left out."""
    figures = row["contestants"].get(name)
    if figures is None:
        return None
    return figures["ratio" if clock == WALL else "gpu_ratio"]["median"]


def _heading(facts: dict[str, Any], rows: list[Row]) -> str:
    backends = ", ".join(sorted({row["backend"] for row in rows}))
    others = " The other backend of ours is timed beside it." if _other_backends(rows) else ""
    by_gpu = ", in its own column by GPU time with a flushed L2" if GPU in clocks_of(rows) else ""
    return (
        f"{facts['device']}; {versions(facts)}; backend {backends}. Forward and backward. "
        f"Times are medians; a cell is {' / '.join(forms_of(rows))}, the best of ours and of all "
        f"peers in bold; a ratio says how many times longer a peer takes than the best form of ours"
        f"{by_gpu}.{others}"
    )


def versions(facts: dict[str, Any]) -> str:
    named = {"torch": "torch", "CUDA": "cuda", "Triton": "triton", "driver": "driver_version"}
    return ", ".join(f"{name} {facts[key]}" for name, key in named.items() if facts.get(key))


def _table(rows: list[Row], columns: Columns) -> str:
    return markdown(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def _other_backends(rows: list[Row]) -> list[str]:
    """Contestants of ours besides auto's choice, of any row; none on a CPU."""
    names = [name for row in rows for name in ours_of(row) if forms.split(name)[0] != OURS]
    return list(dict.fromkeys(names))


def _cell(row: Row, rows: list[Row], family: str, clock: str, value: Callable, text: Any) -> str:
    """One contestant's forms side by side, the best of ours and of the peers in bold."""
    best = best_of(row, clock)[:2]
    cells = []
    for form, word in forms.FORMS.items():
        if word not in forms_of(rows):
            continue
        found = value(row, family + form, clock)
        shown = "–" if found is None else text(found)
        cells.append(f"**{shown}**" if family + form in best else shown)
    return " / ".join(cells) if set(cells) != {"–"} else "–"


def _seconds_of(row: Row, name: str, clock: str = WALL) -> str:
    time = time_of(row, name, clock)
    return "–" if time is None else seconds(time)


def _times_columns(rows: list[Row]) -> Columns:
    """By each clock ours, other backends of ours, and the best peer."""
    columns: Columns = {}
    for clock in clocks_of(rows):
        before = f"{clock}: " if len(clocks_of(rows)) > 1 else ""

        def ours(row: Row, clock: str = clock) -> str:
            return _cell(row, rows, OURS, clock, time_of, seconds)

        def best_peer(row: Row, clock: str = clock) -> str:
            _, peer, ratio = best_of(row, clock)
            return "–" if ratio is None else f"{times(ratio)} ({peer})"

        columns[f"{before}ours"] = ours
        for name in _other_backends(rows):
            columns[f"{before}{name}"] = partial(_seconds_of, name=name, clock=clock)
        columns[f"{before}best peer"] = best_peer
    return columns


def _peer_columns(rows: list[Row]) -> Columns:
    """Each peer's ratios, by GPU time where there is any."""
    clock = clocks_of(rows)[-1]

    def cell(row: Row, family: str) -> str:
        return _cell(row, rows, family, clock, ratio_of, times)

    return {family: partial(cell, family=family) for family in families_of(rows)}


def _instructions(rows: list[Row]) -> Columns:
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

    ours, peer, _ = best_of(row)
    return megabytes_of(ours) + (f" (best peer {megabytes_of(peer)})" if peer else "")


def _against_copy(rows: list[Row]) -> Columns:
    return {
        "size": lambda row: row["size"],
        "dtype, layout": kind_of,
        **_instructions(rows),
        **_times_columns(rows),
        **_peer_columns(rows),
        "MB moved": lambda row: megabytes(row["moved_bytes"]),
        "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:.3g}",
        "of a copy": lambda row: f"{100 * row['fraction_of_copy']:.0f} %",
        "peak MB": _peak,
    }


def _against_product(rows: list[Row]) -> Columns:
    clock = clocks_of(rows)[-1]

    def rate(row: Row) -> str:
        time = time_of(row, best_of(row, clock)[0], clock)
        return "–" if time is None else f"{row['flops'] / time / 1e9:.3g}"

    def of_product(row: Row) -> str:
        """Of its rate: it has about as many operations, not as many."""
        share = ratio_of(row, PRODUCT, clock)
        if share is None:
            return "–"
        return f"{100 * share * row['flops'] / row.get('product_flops', row['flops']):.0f} %"

    return {
        "size": lambda row: row["size"],
        "dtype": lambda row: row["dtype"],
        **_instructions(rows),
        **_times_columns(rows),
        **_peer_columns(rows),
        "GFLOP/s": rate,
        "of a matrix product": of_product,
        "peak MB": _peak,
    }


def _overhead(rows: list[Row]) -> Columns:
    """Ratios are of ours eagerly, as an empty Function is called."""
    return {
        "operation": lambda row: STEPS.get(row["of"], row["of"]),
        "size": lambda row: row["size"],
        **_instructions(rows),
        "ours": lambda row: _cell(row, rows, OURS, WALL, time_of, seconds),
        **{name: partial(_seconds_of, name=name) for name in _other_backends(rows)},
        EMPTY: partial(_seconds_of, name=EMPTY),
        "ours, eager, of it": lambda row: times(row["times_of_empty"]["median"]),
        "goal": lambda row: f"{row['goal']:g}×",
    }


def _training_step(rows: list[Row]) -> Columns:
    return {
        "size": lambda row: row["size"],
        **_instructions(rows),
        "with ours": partial(_seconds_of, name=OURS),
        "with the loss pair by pair": partial(_seconds_of, name="pairs"),
        "times longer": lambda row: times(row["contestants"]["pairs"]["ratio"]["median"]),
    }
