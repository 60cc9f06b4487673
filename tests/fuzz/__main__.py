# SPDX-License-Identifier: GPL-2.0-or-later
"""Fuzz one reader: ``python -m tests.fuzz READER --inputs N``.

With atheris (``pip install -e '.[fuzz]'``) inputs are led by what they reach; without it, or with ``--plain``, they are
changes at random of the corpus, the same for the same seed. Every input gets bounded time and memory. What fails is
written to ``--findings``; put it into ``tests/fuzz/corpus/READER`` with its mending: the tests run the corpus too.

Exit status: 0 nothing found, 1 something.
"""

import argparse
import hashlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Final

from .mutation import mutated

CORPUS: Final = Path(__file__).parent / "corpus"
_MEMORY: Final = 3 << 30  # bytes of address space, of which Arrow's threads and pools take most
_SECONDS: Final = 10
"""Processor time, so that a full machine makes no difference; an input takes milliseconds."""

_PROGRESS_EVERY: Final = 10_000


class TooSlow(BaseException):
    """An input took longer than any should."""


def _too_slow(*_: object) -> None:
    raise TooSlow(f"more than {_SECONDS} s of processor time")


class Findings:
    """Runs inputs through a reader and keeps the first input of every kind of failure."""

    def __init__(self, reader: Any, folder: Path | None) -> None:
        self._reader = reader
        self._folder = folder
        self.kinds: dict[str, bytes] = {}
        self.inputs = 0
        self.slowest = 0.0
        signal.signal(signal.SIGPROF, _too_slow)

    def take(self, data: bytes) -> None:
        """Run one input."""
        self.inputs += 1
        begin = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
            self._reader(data)
            signal.setitimer(signal.ITIMER_PROF, 0)
        except (Exception, TooSlow) as error:
            signal.setitimer(signal.ITIMER_PROF, 0)
            place = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            if kind not in self.kinds:
                self.kinds[kind] = data
                print(f"found: {kind}: {str(error)[:200]!r}", file=sys.stderr, flush=True)
                traceback.print_exception(error, file=sys.stderr)
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    (self._folder / hashlib.sha1(data).hexdigest()[:12]).write_bytes(data)
        self.slowest = max(self.slowest, time.process_time() - begin)
        if not self.inputs % _PROGRESS_EVERY:
            most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
            print(f"{self.inputs:,} inputs, {most} MiB at most, {len(self.kinds)} kinds of failure", flush=True)


def _plain(name: str, findings: Findings, corpus: Sequence[bytes], inputs: int, seed: int) -> None:
    for number in range(inputs):
        data = corpus[number] if number < len(corpus) else mutated(name, random.Random(f"{seed} {number}"), corpus)
        findings.take(data)


def _led(atheris: Any, name: str, findings: Findings, inputs: int, finish: Callable[[], int]) -> None:
    with tempfile.TemporaryDirectory(prefix="vmaweld-fuzz-") as grown:

        def take(data: bytes) -> None:
            findings.take(data)
            if findings.inputs >= inputs:  # atheris does not come back
                status = finish()
                shutil.rmtree(grown, ignore_errors=True)
                os._exit(status)

        options = ["-timeout=600", "-report_slow_units=600", f"-rss_limit_mb={_MEMORY >> 20}", "-len_control=0"]
        options += ["-verbosity=0", f"-artifact_prefix={grown}/"]
        atheris.Setup([sys.argv[0], *options, grown, str(CORPUS / name)], take)
        atheris.Fuzz()


def main() -> int:
    """Fuzz as the command line says; its exit status."""
    parser = argparse.ArgumentParser(description="Fuzz one reader.")
    parser.add_argument("reader", choices=sorted(path.name for path in CORPUS.iterdir()))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0, help="of the plain inputs")
    parser.add_argument("--plain", action="store_true", help="changes at random, though atheris is there")
    parser.add_argument("--findings", type=Path, help="write failing inputs into this folder")
    options = parser.parse_args()
    atheris: Any = None
    if not options.plain and importlib.util.find_spec("atheris") is not None:
        atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["vmaweld"]) if atheris is not None else nullcontext():
        from .readers import READERS, clean_up
    findings = Findings(READERS[options.reader], options.findings)
    begin = time.monotonic()

    def finish() -> int:
        print(
            f"{options.reader}: {findings.inputs:,} inputs in {time.monotonic() - begin:.0f} s, the slowest took "
            f"{findings.slowest * 1000:.0f} ms; {len(findings.kinds)} kinds of failure",
            flush=True,
        )
        clean_up()
        return 1 if findings.kinds else 0

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    if atheris is not None:
        _led(atheris, options.reader, findings, options.inputs, finish)
    corpus = [path.read_bytes() for path in sorted((CORPUS / options.reader).iterdir())]
    _plain(options.reader, findings, corpus, options.inputs, options.seed)
    return finish()


if __name__ == "__main__":
    sys.exit(main())
