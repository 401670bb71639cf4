"""Which GPU kernels have passed on hardware as they are now: `--help` tells more."""

from hardware.ledger import main

if __name__ == "__main__":
    raise SystemExit(main())
