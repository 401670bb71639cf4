"""Builds, tests, sanitizes and measures on this machine's GPU: `--help` tells more."""

from hardware.check import main

if __name__ == "__main__":
    raise SystemExit(main())
