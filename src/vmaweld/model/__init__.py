"""The machine in Python: address spaces, VMAs, anon_vmas, pages and the merge. Pure."""
