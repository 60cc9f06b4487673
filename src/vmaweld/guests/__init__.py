"""Other kernels: fetched from the archives of distributions, booted in QEMU, run in."""
