# SPDX-License-Identifier: GPL-2.0-or-later
"""Recording a command; reading perf and strace; the trace store."""
