"""The model held against a kernel, on programs at random."""
