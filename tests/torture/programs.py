# SPDX-License-Identifier: GPL-2.0-or-later
"""The programs that are welded, as data.

Each prints a line "ok" whenever it has found all of its data as it should be, and ends or prints "bad" when it has not.
"""

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parent / "sources"
_GCC = ("gcc:gcc", "libc6-dev:/usr/include/stdio.h")
_C = "gcc -O2 -Wall -Wno-return-type -pthread"


@dataclass(frozen=True)
class Program:
    """A program that checks its own data.

    name: what the command line and the table call it.
    run: the shell command that becomes the program; its output are the lines "ok". In `run` and
    `prepare`, $SOURCES is the folder of sources and $PYTHON this Python.
    needs: Debian packages as "package:command", a command or a file by which its presence is seen.
    prepare: a shell command that builds what `run` needs, once in each folder.
    targets: a pattern for the names of the processes that are welded; "" for the program's own.
    sample: whether it belongs to the two-minute sample.
    crack: whether seams are made in it. Otherwise it makes its own: seams made from outside would
    harm memory that the kernel is just reading a file into, come too late in an image that lives
    for a moment, and cut up what must stay whole.
    """

    name: str
    run: str
    needs: tuple[str, ...] = ()
    prepare: str = ""
    targets: str = ""
    sample: bool = False
    crack: bool = True

    def missing(self) -> list[str]:
        """The packages that are not there."""
        needs = [need.split(":") for need in self.needs]
        return [package for package, file in needs if not (shutil.which(file) or Path(file).exists())]

    def environment(self) -> dict[str, str]:
        """Variables for `run` and `prepare`."""
        return {"SOURCES": str(SOURCES), "PYTHON": sys.executable}

    def is_target(self, name: str) -> bool:
        """Whether a process of that name is to be welded."""
        return bool(self.targets) and re.fullmatch(self.targets, name) is not None


def _python(mode: str, *, sample: bool = False) -> Program:
    # The forks of the multiprocessing pools are targets like their parent.
    targets = "python.*" if mode == "multiprocessing" else ""
    return Program(f"python-{mode}", f"exec $PYTHON $SOURCES/check.py {mode}", targets=targets, sample=sample)


def _c(name: str, *, options: str = "", sample: bool = True, crack: bool = True, arguments: str = "") -> Program:
    source = f"$SOURCES/{name.partition('-')[0]}.c"
    needs = (*_GCC, "liburing-dev:/usr/include/liburing.h") if options else _GCC
    build = f"{_C} {source} -o {name} {options}"
    return Program(f"c-{name}", f"exec ./{name} {arguments}", needs, build, "", sample, crack)


def _java(name: str, options: str, *, sample: bool = False) -> Program:
    command = f"exec java -Xmx192m -Xss512k {options} $SOURCES/Check.java"
    return Program(f"java-{name}", command, ("default-jre-headless:java",), sample=sample)


def _repeat(name: str, command: str, targets: str, *needs: str, prepare: str = "", sample: bool = False) -> Program:
    return Program(name, f"exec $PYTHON $SOURCES/repeat.py '{command}'", needs, prepare, targets, sample)


def _serve(name: str, targets: str, *needs: str, sample: bool = False, mode: str = "") -> Program:
    return Program(name, f"exec $PYTHON $SOURCES/serve.py {mode or name}", needs, "", targets, sample)


_NOISE = (
    "head -c 3000000 /dev/urandom > noise; for i in 1 2 3 4 5 6; do cat noise; yes $i | head -c 1000000; done > data"
)
_LARGE_C = "$PYTHON $SOURCES/large_c.py > large.c"
_MARIADB = ("mariadb-server:mariadbd", "mariadb-client:mariadb")

PROGRAMS = (
    *(_python(mode) for mode in ("data", "threads", "multiprocessing")),
    *(_python(mode, sample=True) for mode in ("asyncio", "sqlite")),
    Program("node", "exec node $SOURCES/check.js", ("nodejs:node",), sample=True),
    _java("g1", "-XX:+UseG1GC", sample=True),
    _java("serial", "-XX:+UseSerialGC"),
    _java("parallel", "-XX:+UseParallelGC"),
    _java("zgc", "-XX:+UseZGC"),
    Program("perl", "exec perl $SOURCES/check.pl", ("perl-base:perl",), sample=True),
    Program("ruby", "exec ruby $SOURCES/check.rb", ("ruby:ruby",)),
    Program("php", "exec php -d memory_limit=256M $SOURCES/check.php", ("php-cli:php",)),
    Program("lua", "exec lua5.4 $SOURCES/check.lua", ("lua5.4:lua5.4",)),
    Program("luajit", "exec luajit $SOURCES/check.lua", ("luajit:luajit",)),
    Program("guile", "exec guile --no-auto-compile $SOURCES/check.scm", ("guile-3.0:guile",)),
    Program("sbcl", "exec sbcl --dynamic-space-size 256 --script $SOURCES/check.lisp", ("sbcl:sbcl",)),
    Program("r", "exec Rscript $SOURCES/check.R", ("r-base-core:Rscript",)),
    Program(
        "erlang",
        "exec erl -noshell -s check main",
        ("erlang-base:erl",),
        prepare="erlc $SOURCES/check.erl",
        targets="beam.smp",
    ),
    Program(
        "go", "exec ./check-go", ("golang-go:go",), prepare="GOCACHE=$PWD/go go build -o check-go $SOURCES/check.go"
    ),
    Program(
        "ocaml",
        "exec ./check-ml",
        ("ocaml-nox:ocamlopt",),
        prepare="cp $SOURCES/check.ml . && ocamlopt check.ml -o check-ml",
    ),
    _c("blocks", sample=False),
    _c("coroutine", crack=False),
    _c("robust"),
    _c("maps", crack=False),
    _c("forker", crack=False),
    _c("waits"),
    _c("reexec", sample=False, crack=False),
    Program(
        "c-reexec-fixed",
        "exec setarch -R ./reexec",
        (*_GCC, "util-linux:setarch"),
        prepare=f"{_C} $SOURCES/reexec.c -o reexec",
        sample=True,
        crack=False,
    ),
    Program(
        "c-musl-static",
        "exec ./blocks-musl",
        ("musl-tools:musl-gcc",),
        prepare="musl-gcc -O2 -static -pthread $SOURCES/blocks.c -o blocks-musl",
    ),
    _c("direct", options="-luring", sample=False, crack=False),
    _c("direct-uring", options="-luring", sample=False, crack=False, arguments="uring"),
    _repeat("gcc", "gcc -O3 -c large.c -o large.o && cksum < large.o", "cc1", "gcc:gcc", prepare=_LARGE_C, sample=True),
    _repeat("clang", "clang -O2 -c large.c -o large.o && cksum < large.o", "clang.*", "clang:clang", prepare=_LARGE_C),
    _repeat("xz", "xz -6 -T2 < data | xz -dc -T2 | cksum", "xz", "xz-utils:xz", prepare=_NOISE, sample=True),
    _repeat("zstd", "zstd -q -19 -T2 < data | zstd -dcq | cksum", "zstd", "zstd:zstd", prepare=_NOISE),
    _repeat(
        "ffmpeg",
        "ffmpeg -v error -f lavfi -i testsrc2=size=640x360:rate=25:duration=12 -threads 2 -c:v mpeg4 -flags bitexact "
        "-f framemd5 - && ffmpeg -v error -f lavfi -i testsrc2=size=640x360:duration=12 -f framemd5 -",
        "ffmpeg",
        "ffmpeg:ffmpeg",
    ),
    _repeat(
        "git",
        "git -C repository fsck --full --strict 2>&1; git -C repository log -p --stat | cksum; "
        "git -C repository repack -adfq --threads=2 --window=60; git -C repository rev-parse HEAD",
        "git",
        "git:git",
        prepare="sh $SOURCES/repository.sh",
    ),
    _serve("redis", "redis-server", "redis-server:redis-server", "redis-tools:redis-benchmark", sample=True),
    _serve("memcached", "memcached", "memcached:memcached"),
    _serve("nginx", "nginx", "nginx-light:nginx"),
    _serve("postgresql", "postgres", "postgresql:initdb", "postgresql-client:psql", mode="postgres"),
    _serve("mariadb", "mariadbd", *_MARIADB),
    _serve("mariadb-nobody", "mariadbd", *_MARIADB),
)
BY_NAME = {program.name: program for program in PROGRAMS}
