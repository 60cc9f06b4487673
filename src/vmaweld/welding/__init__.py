"""Merging VMAs for real, in this process and in others, through userfaultfd."""
