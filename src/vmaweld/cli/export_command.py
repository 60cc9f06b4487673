# SPDX-License-Identifier: GPL-2.0-or-later
"""`vmaweld export`: VMA counts and open seams, served to Prometheus."""

import signal
import threading

import click
from prometheus_client import CollectorRegistry, start_http_server

from vmaweld.cli.common import NO, fail, print_json
from vmaweld.inspect.as_json import metrics_data
from vmaweld.inspect.exporter import VmaCollector

EXAMPLES = """\b
Examples:
  vmaweld export                              http://127.0.0.1:9765/metrics
  vmaweld export --address 0.0.0.0 --port 80  for a Prometheus on another machine
  vmaweld export --at-least 1000              only processes worth an alert
  vmaweld export --json                       one scrape as JSON, nothing served
An alert at 80 %:
  vmaweld_process_vmas / ignoring(pid, name, user) group_left vmaweld_max_map_count > 0.8
"""


@click.command(epilog=EXAMPLES)
@click.option("--port", type=click.IntRange(0, 65535), default=9765, show_default=True, help="0 takes any free one.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen there.")
@click.option("--at-least", type=click.IntRange(min=0), default=0, help="Leave out processes with fewer VMAs.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics once and end; keys in docs/inspect.md.")
def command(port: int, address: str, at_least: int, as_json: bool) -> None:
    """Serve per-process VMA counts, the limit and open seams by reason as Prometheus text, until interrupted.

    Each scrape counts anew. As root all processes are served, else one's own, with open seams by elimination.

    Exit status: 0 done, or ended by SIGTERM; 1 cannot listen there; 2 bad usage; 130 interrupted.
    """
    collector = VmaCollector(at_least)
    if as_json:
        print_json(metrics_data(collector.collect()))
        return
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        fail(f"cannot listen on {address} port {port}: {error.strerror}; choose another with --port", NO)
    except UnicodeError:  # what the resolver makes of a name that can be none
        fail(f"cannot listen on {address}: that is no address", NO)
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
