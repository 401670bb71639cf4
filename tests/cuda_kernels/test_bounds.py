"""No kernel touches a byte beside its tensors: AddressSanitizer watches, arrays fit exactly."""

import subprocess

from emulation.build import build


def test_nothing_outside_is_touched():
    done = subprocess.run([build("bounds")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "182 problems within bounds" in done.stdout
