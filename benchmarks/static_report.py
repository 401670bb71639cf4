"""What nvcc makes of the CUDA kernels, by hardware/static_report.py; `--help` tells more."""

from hardware.static_report import main

if __name__ == "__main__":
    raise SystemExit(main())
