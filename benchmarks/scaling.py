"""What InfoNCE over several processes costs.

python benchmarks/scaling.py            prints bytes and operations of a rank, up to 1,024 ranks
python benchmarks/scaling.py --write    writes these tables into docs/scaling.md
python benchmarks/scaling.py --measure  a step by 1 and by 2 processes on this CPU
"""

import argparse
from pathlib import Path

from harness import machine, processes, report, traffic

PAGE = Path(__file__).resolve().parents[1] / "docs/scaling.md"


def page() -> str:
    """The page with today's tables."""
    block = "\n".join(traffic.tables()).strip() + "\n"
    return report.with_block(PAGE.read_text(), block, "traffic")


def measured() -> str:
    lines = [
        f"{machine.device_name('cpu')}; one thread for each process.",
        "",
        "| B, G, L, D | one process | two | one / two | in collectives |",
        "|---|--:|--:|--:|--:|",
    ]
    for row in processes.measured():
        lines.append(
            f"| {row['case']} | {row['one'] * 1e3:.3g} ms | {row['two'] * 1e3:.3g} ms "
            f"| {row['ratio']:.2f}× | {row['share']:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", action="store_true")
    asked = parser.parse_args()
    if asked.measure:
        print(measured())
    elif asked.write:
        PAGE.write_text(page())
    else:
        print("\n".join(traffic.tables()))


if __name__ == "__main__":
    main()
