"""The calls: one family of system calls a file."""
