"""The BPF iterator over VMAs: its program, its records, the types of the running kernel, and what reads through it."""
