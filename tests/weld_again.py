# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands a process still again and again, as a weld does: ``weld_again.py PID``, until stdin ends.

Each time a thread of it makes single calls and a batch that takes some milliseconds. A line on stdin makes it rest
until the next one; it answers each with the number of standstills so far.
"""

import random
import select
import sys
import time

from test_weld_killed import Slow

from vmaweld.kernel import procfs
from vmaweld.welding import machine_code as mc
from vmaweld.welding.program import Program
from vmaweld.welding.puppet import Puppet
from vmaweld.welding.standstill import Standstill
from vmaweld.welding.workshop import Workshop

NR_SELECT = 23


def a_batch(micros: int) -> Program:
    """A batch that only waits."""
    work = Slow()
    Program.add(work, "", mc.JUMP, on_error=work._at(2))
    time_at = Program.add(work, "", mc.SET, 0, (0, micros))
    call = Program.add(work, "", mc.CALL, NR_SELECT, (0, 0, 0, 0, 0))
    work._fix(call, mc.ARGUMENTS + 4, work._at(time_at), mc.ARGUMENTS * 8)
    work.finish()
    return work


def stand_still(pid: int, micros: int) -> None:
    with Standstill(pid) as still:
        puppet = Puppet(still, procfs.read_maps(pid).rows)
        with Workshop() as shop:
            try:
                shop.set_up(puppet)
                shop.run(puppet, a_batch(micros))
            finally:
                shop.take_down(puppet)
                puppet.restore()


def main() -> None:
    pid = int(sys.argv[1])
    count = 0
    while True:
        if select.select([sys.stdin], [], [], 0)[0]:
            for _rest_and_go_on in range(2):
                if not sys.stdin.readline():
                    return
                print(count, flush=True)
        stand_still(pid, random.randrange(1, 10_000))
        count += 1
        time.sleep(random.uniform(0, 0.005))


if __name__ == "__main__":
    main()
