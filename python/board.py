"""TensorBoard, beside the CSV and with the same numbers."""

import math
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from errors import UserError, reason


def summary_writer() -> Callable[..., Any]:
    """torch.utils.tensorboard.SummaryWriter, which wants a package that torch does not bring."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except Exception as error:  # One that does not fit raises nearly anything.
        raise UserError(
            f"--tensorboard: the package is missing or cannot be imported ({reason(error)}). "
            'pip install "logo_kernels[tensorboard]" brings it.'
        ) from error
    return SummaryWriter


class Board:
    """An event file in the folder of the run; nothing at all unless it is asked for."""

    def __init__(self, asked: bool, out: Path, step: int) -> None:
        """What an earlier process wrote after `step` comes again, so TensorBoard forgets it."""
        self.writer = summary_writer()(str(out), purge_step=step + 1) if asked else None

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """A row of the CSV by its columns; without what it has no number for."""
        if self.writer is not None:
            for name, value in values.items():
                if name != "step" and not math.isnan(number := float(value)):
                    self.writer.add_scalar(name, number, step)

    def flush(self) -> None:
        """What a checkpoint counts must be in the file."""
        if self.writer is not None:
            self.writer.flush()
