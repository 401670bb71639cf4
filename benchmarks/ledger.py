"""Which GPU kernels have passed on hardware, by hardware/ledger.py; `--help` tells more."""

from hardware.ledger import main

if __name__ == "__main__":
    raise SystemExit(main())
