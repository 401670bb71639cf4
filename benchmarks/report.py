"""Tables and charts of what was measured: `--help` tells more."""

from harness.report import main

if __name__ == "__main__":
    raise SystemExit(main())
