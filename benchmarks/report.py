"""Tables and charts of what was measured, by harness/report.py; `--help` tells more."""

from harness.report import main

if __name__ == "__main__":
    raise SystemExit(main())
