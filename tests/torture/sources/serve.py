# SPDX-License-Identifier: GPL-2.0-or-later
"""Servers under load, their data checked by a client: ``serve.py redis``; a line "ok" a round."""

import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path

HERE = Path.cwd()
QUIET = subprocess.DEVNULL
AS_NOBODY = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "--pdeathsig", "KILL"]
DIES_WITH_US = ["setpriv", "--pdeathsig", "KILL"]


def bad(*why: object) -> None:
    print("bad:", *why, flush=True)
    sys.exit(3)


def rounds(check: Callable[[int], None], *servers: "subprocess.Popen[bytes]") -> None:
    """Go on for ever; the servers must live."""
    for number in range(1 << 60):
        for server in servers:
            if server.poll() is not None:
                bad("a server has ended with status", server.returncode)
        check(number)
        print("ok", number, flush=True)


def start(*command: str, nobody: bool = False) -> "subprocess.Popen[bytes]":
    with open("server.log", "ab") as log:
        prefix = AS_NOBODY if nobody else DIES_WITH_US
        return subprocess.Popen([*prefix, *command], stdin=QUIET, stdout=log, stderr=log)


def connect(path: str) -> socket.socket:
    for _ in range(600):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(120)
        try:
            client.connect(path)
            return client
        except OSError:
            client.close()
            time.sleep(0.1)
    bad("the server does not listen")
    raise AssertionError


def value(number: int) -> bytes:
    return b"%d." % number * (100 + number % 700)


def redis() -> None:
    Path("redis.socket").unlink(missing_ok=True)
    server = start("redis-server", "--port", "0", "--unixsocket", "redis.socket", "--save", "", "--io-threads", "2")
    client = connect("redis.socket")
    answers = client.makefile("rb")

    def ask(*words: bytes) -> bytes:
        client.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
        line = answers.readline()
        if line[:1] == b"$" and line != b"$-1\r\n":
            return answers.read(int(line[1:]) + 2)[:-2]
        return line[1:-2]

    ask(b"SELECT", b"3")
    for number in range(2000):
        if ask(b"SET", b"check:%d" % number, value(number)) != b"OK":
            bad("SET")
    load = start("redis-benchmark", "-s", "redis.socket", "-q", "-n", "1000000000", "-r", "9000", "-d", "300",
                 "-t", "set,get,lpop,lpush")  # fmt: skip

    def check(number: int) -> None:
        for key in range(2000):
            if ask(b"GET", b"check:%d" % key) != value(key):
                bad("key", key, "differs")
        if number % 5 == 4 and b"rdb_bgsave_in_progress:0" in ask(b"INFO", b"persistence"):
            if b"rdb_last_bgsave_status:ok" not in ask(b"INFO", b"persistence"):
                bad("a child for a snapshot failed")
            ask(b"BGSAVE")
            ask(b"DEL", b"mylist")

    rounds(check, server, load)


def memcached() -> None:
    Path("memcached.socket").unlink(missing_ok=True)
    server = start("memcached", "-s", "memcached.socket", "-m", "64", "-t", "3", "-u", "root")
    client = connect("memcached.socket")
    answers = client.makefile("rb")
    rng = random.Random(1)
    kept: dict[int, int] = {}

    def check(_number: int) -> None:
        for _ in range(300):
            key = rng.randrange(3000)
            data = rng.randbytes(rng.randrange(1, 9000))
            client.sendall(b"set %d 0 0 %d\r\n%s\r\n" % (key, len(data), data))
            if answers.readline() != b"STORED\r\n":
                bad("set")
            kept[key] = zlib.crc32(data)
        for key, checksum in kept.items():
            client.sendall(b"get %d\r\n" % key)
            head = answers.readline().split()
            if head != [b"END"]:  # else it has made room for others
                data = answers.read(int(head[3]) + 2)[:-2]
                answers.readline()
                if zlib.crc32(data) != checksum:
                    bad("key", key, "differs")

    rounds(check, server)


NGINX = """
daemon off; worker_processes 2; pid nginx.pid; error_log nginx.log; user nobody nogroup;
events { worker_connections 64; }
http {
  access_log off; client_body_temp_path t; proxy_temp_path t; fastcgi_temp_path t; uwsgi_temp_path t; scgi_temp_path t;
  gzip on; gzip_types *; gzip_min_length 1;
  server { listen unix:nginx.socket; root www; location / { } }
  server { listen 127.0.0.1:%d; location / { proxy_pass http://unix:nginx.socket; } }
}
"""


def nginx() -> None:
    Path("nginx.socket").unlink(missing_ok=True)
    Path("www").mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path("nginx.conf").write_text(NGINX % port)
    rng = random.Random(1)
    wanted = {}
    for number in range(60):
        data = rng.randbytes(40000).hex().encode()
        Path(f"www/{number}").write_bytes(data)
        wanted[number] = zlib.crc32(data)
    server = start("nginx", "-p", str(HERE), "-c", "nginx.conf", "-e", "nginx.log")
    connect("nginx.socket").close()

    def check(_number: int) -> None:
        for number, checksum in wanted.items():
            request = urllib.request.Request(f"http://127.0.0.1:{port}/{number}", headers={"Accept-Encoding": "gzip"})
            with urllib.request.urlopen(request, timeout=120) as answer:
                if zlib.crc32(zlib.decompress(answer.read(), 47)) != checksum:
                    bad("page", number, "differs")

    rounds(check, server)


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        bad(command[0], done.returncode, done.stdout[-500:], done.stderr[-1000:])
    return done.stdout


SUMS = """
select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches),
       (select sum(tbalance) from pgbench_tellers), (select sum(delta) from pgbench_history)
"""


def postgres() -> None:
    programs = Path(shutil.which("initdb") or max(Path("/usr/lib/postgresql").glob("*/bin/initdb"))).resolve().parent
    shutil.chown(HERE, "nobody", "nogroup")
    at = ("-h", str(HERE), "-U", "nobody")
    fresh = not Path("data").exists()
    if fresh:
        _run(*AS_NOBODY, f"{programs}/initdb", "-D", "data", "-A", "trust", "-U", "nobody", "--no-sync")
    Path("data/postmaster.pid").unlink(missing_ok=True)
    settings = ("-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "fsync=off", "-k", str(HERE))
    server = start(f"{programs}/postgres", "-D", "data", *settings, nobody=True)
    for _ in range(600):
        if subprocess.run([f"{programs}/pg_isready", *at], check=False, stdout=QUIET).returncode == 0:
            break
        time.sleep(0.1)
    if fresh:
        _run(f"{programs}/pgbench", *at, "-i", "-s", "1", "-q", "postgres")

    def check(_number: int) -> None:
        _run(f"{programs}/pgbench", *at, "-n", "-c", "3", "-j", "1", "-T", "2", "postgres")
        sums = set(_run(f"{programs}/psql", *at, "-AtF", "\n", "-c", SUMS, "postgres").split())
        if len(sums) != 1:
            bad("the sums differ:", sums)

    rounds(check, server)


TABLE = "create table if not exists blocks (id int primary key, data mediumblob, checksum int unsigned) engine=innodb"
FILL = """
set @n = {round}; replace into blocks
select (seq * 7 + @n) mod 900, @d := repeat(sha2(concat(seq, @n), 512), 20), crc32(@d) from seq_1_to_100;
select count(*) from blocks where crc32(data) <> checksum; check table blocks
"""


def mariadb(nobody: bool) -> None:
    user = "nobody" if nobody else "root"
    shutil.chown(HERE, user)
    for name in ("mariadb.socket", "data/aria_log_control.lock"):
        Path(name).unlink(missing_ok=True)
    where = (f"--datadir={HERE}/data", f"--user={user}")
    if not Path("data/mysql").exists():
        _run("mariadb-install-db", "--no-defaults", *where, "--auth-root-authentication-method=normal")
    sizes = ("--innodb-buffer-pool-size=48M", "--key-buffer-size=1M", "--innodb-flush-log-at-trx-commit=0")
    socket_at = f"--socket={HERE}/mariadb.socket"
    server = start("mariadbd", "--no-defaults", *where, socket_at, "--skip-networking", "--skip-grant-tables", *sizes,
                   f"--pid-file={HERE}/pid", nobody=nobody)  # fmt: skip
    connect("mariadb.socket").close()
    client = ("mariadb", "--no-defaults", socket_at, "-N", "-B")
    _run(*client, "-e", "create database if not exists torture")
    _run(*client, "torture", "-e", TABLE)

    def check(number: int) -> None:
        answer = _run(*client, "torture", "-e", FILL.format(round=number)).split()
        if answer[0] != "0" or answer[-1] != "OK":
            bad("the table:", answer)

    rounds(check, server)


MODES: dict[str, Callable[[], None]] = {
    "redis": redis,
    "memcached": memcached,
    "nginx": nginx,
    "postgres": postgres,
    "mariadb": lambda: mariadb(nobody=False),
    "mariadb-nobody": lambda: mariadb(nobody=True),
}

if __name__ == "__main__":
    MODES[sys.argv[1]]()
