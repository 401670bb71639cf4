"""The compiled extension, or the reason why it is not there.

torch is imported first, on purpose: its wheel carries an OpenMP runtime under the plain soname,
which the extension then shares. So `torch.set_num_threads` holds and only one thread pool exists.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch  # noqa: F401  (see above)


def load() -> tuple[ModuleType | None, str | None]:
    """(extension, None), or (None, what is wrong and what to do)."""
    try:
        return importlib.import_module("logo_kernels._C"), None
    except ImportError as error:
        return None, (
            f"the C++ extension cannot be imported ({error}); "
            f"build and install the package: pip install ."
        )


extension, reason = load()
