"""Ctrl-C and SIGTERM while training: the step at hand ends before the run does."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Within it the first signal only sets `requested`; the second ends the program at once."""

    def __init__(self) -> None:
        self.requested = False
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # what the shell asked for stands
                    self.previous[number] = signal.signal(number, self.request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if self.requested and error is None:  # it came too late for a step to see it
            raise KeyboardInterrupt

    def request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        for number in self.previous:
            signal.signal(number, signal.default_int_handler)
