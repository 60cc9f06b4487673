# SPDX-License-Identifier: GPL-2.0-or-later
"""The standing test: real programs check their data while they are welded and welders killed."""
