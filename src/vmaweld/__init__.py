"""How Linux merges virtual memory areas, why it often cannot, and what to do about it."""

__version__ = "0.1.0"
