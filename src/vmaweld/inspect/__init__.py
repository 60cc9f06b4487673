# SPDX-License-Identifier: GPL-2.0-or-later
"""One snapshot of a live process read for a person: counts, seams by reason, what welding would leave, a picture."""
