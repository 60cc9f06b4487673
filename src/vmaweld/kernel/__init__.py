"""The machine that is running: procfs, BPF snapshots, system calls, guests."""
