"""Builds, tests, sanitizes and measures on a GPU, by hardware/check.py; `--help` tells more."""

from hardware.check import main

if __name__ == "__main__":
    raise SystemExit(main())
