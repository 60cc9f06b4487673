#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Record the traces that come with the package anew: `make samples`, where perf is permitted.

Each command runs on a copy of the examples in a directory of its own, with the system's own Python, so that the traces
hold no paths of whoever records them; of the kernel's release the upstream part is kept.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

from vmaweld.events import Event
from vmaweld.trace.recorders.protocol import RecorderError
from vmaweld.trace.recording import record
from vmaweld.trace.store import TraceWriter, open_trace

EXAMPLES = Path(__file__).resolve().parent
TARGET = EXAMPLES.parent / "src/vmaweld/trace/sample_traces"
PYTHON = "/usr/bin/python3"
SAMPLES = {
    "growing-buffers": [PYTHON, "-I", "growing_buffers.py"],
    "forking-workers": [PYTHON, "-I", "forking_workers.py"],
    "small-compile": ["make", "-s", "-C", "small_c_project"],
}
MOST = 2 << 20


def anonymous_copy(source: Path, target: Path) -> int:
    """Copy a trace without the local part of the kernel's release; its size."""
    with open_trace(source) as trace:
        metadata = trace.metadata
        found = re.match(r"\d+\.\d+(\.\d+)?", metadata.kernel)
        metadata.kernel = found[0] if found else metadata.kernel
        items = list(trace.items())
    with TraceWriter(target, metadata) as writer:
        for item in items:
            if isinstance(item, Event):
                writer.append(item)
            else:
                writer.append_snapshot(item.snapshot, item.time)
    return target.stat().st_size


def main() -> int:
    """Record all; 1 where a command failed, records were lost or the traces grew too large."""
    TARGET.mkdir(exist_ok=True)
    os.environ["PATH"] = "/usr/bin:/bin"
    total = 0
    with tempfile.TemporaryDirectory(prefix="samples-") as directory:
        shutil.copytree(EXAMPLES, directory, dirs_exist_ok=True)
        os.chdir(directory)
        for name, command in SAMPLES.items():
            try:
                recording = record(command, f"{name}.trace", recorder="perf")
            except RecorderError as error:
                sys.exit(f"cannot record: {error}")
            if recording.exit_status or recording.metadata.losses:
                sys.exit(f"{name}: exit status {recording.exit_status}, losses {recording.metadata.losses}")
            size = anonymous_copy(recording.path, TARGET / recording.path.name)
            total += size
            print(f"{name}: {recording.metadata.events} events, {size} bytes")
    print(f"{total} bytes in all, of {MOST} allowed")
    return 1 if total > MOST else 0


if __name__ == "__main__":
    sys.exit(main())
