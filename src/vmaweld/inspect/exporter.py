# SPDX-License-Identifier: GPL-2.0-or-later
"""VMA counts and open seams for Prometheus: one count of all processes for each scrape."""

import threading
import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from vmaweld.inspect.census import Census
from vmaweld.inspect.words import user_name
from vmaweld.words import printable

LABELS = ("pid", "name", "user")


class VmaCollector(Collector):
    """Counts when asked.

    at_least: processes with fewer VMAs are left out, to keep the number of series small.
    """

    def __init__(self, at_least: int = 0) -> None:
        self._census = Census()
        self._at_least = at_least
        self._lock = threading.Lock()  # scrapes may overlap, and a census remembers the one before

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One scrape."""
        began = time.perf_counter()
        with self._lock:
            counted = self._census.take()
            limit, refused = self._census.limit, self._census.refused
        vmas = GaugeMetricFamily("vmaweld_process_vmas", "VMAs of the process.", labels=LABELS)
        seams = GaugeMetricFamily("vmaweld_process_seams", "Borders between VMAs that touch.", labels=LABELS)
        opened = GaugeMetricFamily(
            "vmaweld_process_open_seams",
            "Seams that nothing but the page offset or the anon_vma holds open.",
            labels=LABELS,
        )
        reasons = GaugeMetricFamily(
            "vmaweld_process_open_seam_reasons",
            "Open seams by reason; a seam with two reasons counts for both.",
            labels=(*LABELS, "reason"),
        )
        for one in counted:
            if one.vmas < self._at_least:
                continue
            labels = (str(one.pid), printable(one.name), user_name(one.uid))
            vmas.add_metric(labels, one.vmas)
            seams.add_metric(labels, one.seams)
            opened.add_metric(labels, one.open_seams)
            for reason, count in one.reasons.items():
                reasons.add_metric((*labels, reason), count)
        yield vmas
        yield seams
        yield opened
        yield reasons
        yield GaugeMetricFamily("vmaweld_max_map_count", "The most VMAs a process may have.", value=limit)
        yield GaugeMetricFamily("vmaweld_processes_refused", "Processes that may not be read.", value=refused)
        yield GaugeMetricFamily(
            "vmaweld_exact",
            "1 if page offsets and anon_vmas are read, 0 if reasons are by elimination.",
            value=float(self._census.exact),
        )
        yield GaugeMetricFamily("vmaweld_scrape_seconds", "What this scrape took.", value=time.perf_counter() - began)
