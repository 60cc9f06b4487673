"""Replaying traces under policies, and saying what came of it."""
