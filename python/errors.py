"""What goes wrong, in one line that says what to do."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UserError(Exception):
    """Something the user can mend: the message says what was wrong, what was got, what to do."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a request to end, after which all is on disk: the message says how to go on."""


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """End the program with a line on stderr, not with a traceback, where a user can mend it.

    Exit status 1, or 130 after Ctrl-C. What a user cannot mend is a bug and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt as stop:
        advice = "interrupted. Repeat the command, with --resume if it had begun to train."
        print(str(stop) or advice, file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output is gone; Python would try to flush it once more as it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit("error: nobody reads the output any more. Repeat the command with --resume.")
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        sys.exit(f"error: {where}{reason(error)}. {advice_on(error)}")
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        sys.exit(
            f"error: out of memory ({reason(error)}). Try a smaller --batch-size, smaller or fewer "
            "crops, --dim, --queue-size, or fewer or smaller images."
        )


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file when a disk is full or nothing may be written there."""
    try:
        yield
    except BrokenPipeError:  # stdout's, not the file's
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({reason(error)}). {advice_on(error)}"
        ) from error


def advice_on(error: OSError) -> str:
    if error.errno in NO_SPACE:
        return "Free some space, then repeat the command with --resume."
    return "Mend that or choose another --out, then repeat the command with --resume."


def reason(error: BaseException) -> str:
    """What an exception says, in one line; with its type, unless the operating system words it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = one_line(error)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def out_of_memory(error: BaseException) -> bool:
    """Torch has one exception for a GPU's memory, and none for the CPU's."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text
        for words in ("out of memory", "not enough memory", "bad_alloc", "cannot allocate memory")
    )
