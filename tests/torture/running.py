# SPDX-License-Identifier: GPL-2.0-or-later
"""A program of the test, running: its lines are counted, its processes looked at."""

import contextlib
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import psutil

from vmaweld.kernel import syscalls
from vmaweld.welding import names

from .programs import Program

_OURS = f"memfd:{names.NAMES}"
STALL = 90.0
"""Seconds that a round may take while nobody welds the program, as `_Patience` counts them."""
_MOST_CORE = 64 << 20
_SETTLE = 5.0


class Running:
    """`program`, started in `folder`; output goes to `folder`/`stem`.program."""

    def __init__(self, program: Program, folder: Path, stem: str) -> None:
        self.program = program
        self.beats = 0
        self.bad = ""
        self._output = folder / f"{stem}.program"
        self._rest = b""
        self._at = 0
        parent = os.getpid()

        def bind() -> None:
            """Nothing that is started here outlives this test; a core is kept, but a small one."""
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            resource.setrlimit(resource.RLIMIT_CORE, (_MOST_CORE, _MOST_CORE))
            if os.getppid() != parent:
                os._exit(1)

        with self._output.open("wb") as out:
            self.process = subprocess.Popen(
                ["sh", "-c", program.run],
                cwd=folder,
                env=os.environ | program.environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=bind,
            )

    def look(self) -> None:
        """Count the new lines, and note the reason if one says that data is wrong."""
        with self._output.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        self.beats += sum(line.startswith(b"ok") for line in lines)
        wrong = [line for line in lines if line.startswith(b"bad")]
        if wrong:
            self.bad = self.bad or wrong[0].decode(errors="replace")

    def fault(self) -> str:
        """What is wrong with it: an end, or data that differs; "" for nothing."""
        ended = self.process.poll() is not None
        self.look()
        if ended or self.bad:
            code = self.process.returncode
            tail = self._output.read_bytes()[-300:].decode(errors="replace").split("\n")
            last = " / ".join(line for line in tail if line and not line.startswith("ok"))
            return f"it has ended, status {code}: {self.bad or last}" if ended else self.bad
        return ""

    def await_beats(self, count: int) -> bool:
        """Wait for so many rounds more than the last look saw; False where it has ended, or takes too long."""
        seen = self.beats
        patience = _Patience()
        while self.beats < seen + count:
            if self.fault() or patience.spent(self.tree()) > STALL:
                return False
            time.sleep(0.1)
        return True

    def tree(self) -> list[psutil.Process]:
        """All its processes."""
        try:
            me = psutil.Process(self.process.pid)
            return [me, *me.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def targets(self) -> list[int]:
        """The processes to weld, at this moment."""
        if not self.program.targets:
            return [self.process.pid]
        return [process.pid for process in self.tree() if self.program.is_target(name_of(process))]

    def left_behind(self) -> list[str]:
        """What a weld has left in it, and which threads are stopped; [] for nothing."""
        end = time.monotonic() + _SETTLE
        while found := [trace for process in self.tree() for trace in _traces(process.pid)]:
            if time.monotonic() > end:
                break
            time.sleep(0.2)
        return found

    def picture(self) -> str:
        """What /proc tells of all its processes, for whoever looks for the cause."""
        parts = []
        for process in self.tree():
            parts.append(f"process {process.pid}\n")
            base = Path(f"/proc/{process.pid}")
            files = [base / "cmdline", base / "status", base / "maps"]
            with contextlib.suppress(OSError):
                for task in sorted((base / "task").iterdir()):
                    files += [task / "stat", task / "syscall", task / "wchan", task / "stack"]
            for file in files:
                with contextlib.suppress(OSError):
                    parts.append(f"{file}: {file.read_text(errors='replace')}\n")
        return "".join(parts)

    def cores(self) -> list[Path]:
        """Cores that its processes have left."""
        return sorted(self._output.parent.glob("core*"))

    def end(self) -> None:
        """Kill all its processes, by their ids. Those whose parent died first have come to us."""
        while found := psutil.Process().children(recursive=True):
            for process in found:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.poll()
            for process in found:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
            time.sleep(0.01)


class _Patience:
    """Counts the time in which a program could have worked.

    While none of its threads wants a processor, that is the time of the clock; while one does, the
    time that they get one. So a machine that is busy with others is no fault of the program.
    """

    def __init__(self) -> None:
        self._spent = 0.0
        self._clock = time.monotonic()
        self._work: float | None = None

    def spent(self, tree: list[psutil.Process]) -> float:
        """Seconds until now; call it several times a second with all processes of the program."""
        clock, work = time.monotonic(), sum(map(_work, tree))
        got = work - self._work if self._work is not None else 0.0
        ready = any(state in ("R", "D") for process in tree for _, state in _states(process.pid))
        self._spent += max(got, 0.0) if ready else clock - self._clock
        self._clock, self._work = clock, work
        return self._spent


def _work(process: psutil.Process) -> float:
    """Seconds of processor time of a process and the children it has waited for."""
    try:
        return sum(process.cpu_times()[:4])
    except psutil.NoSuchProcess:
        return 0.0


def _states(pid: int) -> list[tuple[int, str]]:
    """The threads of a process with their states, as letters."""
    found = []
    with contextlib.suppress(OSError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/stat", encoding="utf-8", errors="replace") as file:
                found.append((int(tid), file.read().rpartition(")")[2].split()[0]))
    return found


def name_of(process: psutil.Process) -> str:
    """The name of a process, "" where it is gone."""
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def has_workshop(pid: int) -> bool:
    """Whether something of a weld is mapped or open in process `pid`."""
    return any(_OURS in trace for trace in _traces(pid))


def _traces(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            found += [f"process {pid} maps {line.split()[0]} {_OURS}" for line in file if _OURS in line]
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if _OURS in os.readlink(f"/proc/{pid}/fd/{name}"):
                    found.append(f"process {pid} has descriptor {name} for {_OURS}")
    stopped = [(tid, state) for tid, state in _states(pid) if state in ("T", "t")]
    return found + [f"thread {tid} of process {pid} is stopped ({state})" for tid, state in stopped]
