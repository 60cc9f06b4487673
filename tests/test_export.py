# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld export` scraped over HTTP and read by prometheus_client's own parser."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import require
from inspect_support import TIMEOUT, Started, Target, inspect_json, vmaweld, wait_until
from prometheus_client.parser import text_string_to_metric_families

from vmaweld.kernel import snapshots

pytestmark = pytest.mark.live


@contextmanager
def exporter(*arguments: str) -> Iterator[str]:
    """The address of a running exporter."""
    command = [str(Path(sys.executable).with_name("vmaweld")), "export", "--port", "0", *arguments]
    with Started(command, stderr=subprocess.PIPE) as running:
        assert running.process.stderr is not None
        said = running.process.stderr.readline().decode()
        found = re.search(r"http://\S+/metrics", said)
        assert found, said
        yield found[0]
        os.kill(running.pid, signal.SIGINT)
        assert running.process.wait(TIMEOUT) == 130


Samples = dict[tuple[str, str, str], float]


def scrape(address: str) -> Samples:
    """Values by (metric, pid, reason)."""
    with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
        text = response.read().decode()
    return {
        (sample.name, sample.labels.get("pid", ""), sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_scrape_tells_what_inspect_tells() -> None:
    require(*snapshots.bpf_available())
    with Target("mixed") as target, exporter() as address:
        pid = str(target.pid)
        got = scrape(address)
        data = inspect_json(target.pid)
        assert got["vmaweld_process_vmas", pid, ""] == data["vmas"]
        assert got["vmaweld_process_seams", pid, ""] == data["seams"]
        assert got["vmaweld_process_open_seams", pid, ""] == data["open"] >= len(target.seams)
        for reason in ("page-offset", "anon-vma"):
            expected = sum(reason in one["reasons"] for one in data["open_seams"])
            assert got["vmaweld_process_open_seam_reasons", pid, reason] == expected
        assert got["vmaweld_max_map_count", "", ""] == data["limit"]
        assert got["vmaweld_exact", "", ""] == 1
        target.process.kill()
        target.process.wait(TIMEOUT)
        assert wait_until(lambda: ("vmaweld_process_vmas", pid, "") not in scrape(address))


def test_json_is_one_scrape_and_the_end() -> None:
    with Target("mixed") as target, exporter() as address:
        done = vmaweld("export", "--json")
        assert (done.returncode, done.stderr) == (0, "")
        data = json.loads(done.stdout)
        got = {
            (metric["name"], sample["labels"].get("pid", ""), sample["labels"].get("reason", "")): sample["value"]
            for metric in data["metrics"]
            for sample in metric["samples"]
        }
        served = scrape(address)
        mine = {key: value for key, value in served.items() if key[1] == str(target.pid)}
        assert mine
        assert mine == {key: value for key, value in got.items() if key[1] == str(target.pid)}
        assert {key[0] for key in served if key[0].startswith("vmaweld_")} == {
            metric["name"] for metric in data["metrics"]
        }
    documented = (Path(__file__).parents[1] / "docs" / "inspect.md").read_text()
    for key in (*data, *data["metrics"][0], *data["metrics"][0]["samples"][0]):
        assert f"`{key}`" in documented


def test_small_processes_are_left_out_on_request() -> None:
    with exporter("--at-least", "1000000") as address:
        got = scrape(address)
        assert ("vmaweld_max_map_count", "", "") in got
        assert not [key for key in got if key[0] == "vmaweld_process_vmas"]


def test_a_process_with_an_odd_name(tmp_path: Path) -> None:
    odd = tmp_path / 'a"b\\c\nd'
    odd.symlink_to("/bin/sleep")
    with Started([str(odd), "60"]) as sleeper, exporter() as address:
        assert ("vmaweld_process_vmas", str(sleeper.pid), "") in scrape(address)


def test_a_taken_port_is_told_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = vmaweld("export", "--port", port)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"port {port}" in done.stderr
