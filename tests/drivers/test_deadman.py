"""What ties a process to its parent (P7.7): one that begins after its parent's end ends itself."""

import os

from muster.drivers.image.deadman import Leash
from muster.records.registers import Deadman


def test_p7_7_a_process_whose_parent_is_gone_before_it_is_tied_ends_at_once() -> None:
    child = os.fork()
    if child == 0:
        try:
            Leash(Deadman.PID_NAMESPACE).bind(os.getppid() + 1)  # not the parent that it was told of
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0
