"""What nvcc makes of the CUDA kernels: `--help` tells more."""

from hardware.static_report import main

if __name__ == "__main__":
    raise SystemExit(main())
