"""`vmaweld export`: VMA counts and open seams, served to Prometheus."""

import signal
import threading

import click
from prometheus_client import CollectorRegistry, start_http_server

from vmaweld.cli.common import NO, fail
from vmaweld.inspect.exporter import VmaCollector

EXAMPLES = """\b
Examples:
  vmaweld export                              http://127.0.0.1:9765/metrics
  vmaweld export --address 0.0.0.0 --port 80  for a Prometheus on another machine
  vmaweld export --at-least 1000              only processes worth an alert
An alert at 80 %:
  vmaweld_process_vmas / ignoring(pid, name, user) group_left vmaweld_max_map_count > 0.8
"""


@click.command(epilog=EXAMPLES)
@click.option("--port", type=click.IntRange(0, 65535), default=9765, show_default=True, help="0 takes any free one.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen there.")
@click.option("--at-least", type=click.IntRange(min=0), default=0, help="Leave out processes with fewer VMAs.")
def command(port: int, address: str, at_least: int) -> None:
    """Serve per-process VMA counts, the limit and open seams by reason as Prometheus text, until interrupted.

    Each scrape counts anew. As root all processes are served, else one's own, with open seams by elimination.

    Exit status: 130 after Ctrl-C, 0 after SIGTERM; 1 the port cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(VmaCollector(at_least))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        fail(f"cannot listen on {address} port {port}: {error.strerror}; choose another with --port", NO)
    shown = f"[{address}]" if ":" in address else address
    click.echo(f"vmaweld: serving http://{shown}:{server.server_port}/metrics", err=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        stop.wait()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
