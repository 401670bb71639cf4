"""metrics.csv: what a run logs every few steps."""

import csv
import io
from pathlib import Path

import numpy as np

from errors import UserError, reason

CSV_COLUMNS = (
    "step", "epoch", "lr", "total", "gg", "lg", "ll", "objective", "z_std", "z_rank", "ms_per_step",
)  # fmt: skip


def read_metrics(path: Path, size: int | None = None) -> dict[str, np.ndarray]:
    """The columns of metrics.csv, or of its first `size` bytes."""
    try:
        text = path.read_bytes()[:size].decode()
        reader = csv.DictReader(io.StringIO(text, newline=""))
        if reader.fieldnames != list(CSV_COLUMNS):
            raise ValueError("its first line names other columns")
        rows = list(reader)
        return {name: np.array([float(row[name]) for row in rows]) for name in CSV_COLUMNS}
    except Exception as error:  # A file that was changed may hold anything.
        raise UserError(
            f"{path}: not the rows that a run wrote ({reason(error)}). Start again with another "
            "--out."
        ) from error
