"""What a daemon keeps in memory: no code of the node's other processes, and nothing that loading has used and freed."""

import subprocess
import sys

import pytest


def _said_by(program: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_daemon_loads_no_code_of_the_other_processes_of_its_node() -> None:
    loaded = set(_said_by("import sys, muster.daemon.run; print(*sys.modules)"))
    image = "muster.drivers.image"
    parts = ("caretaker", "guard", "init_process", "keeper", "lease_writer", "lock_process", "runner", "watchdog")
    others = {"muster.daemon.main", "muster.drivers.clearing", *(f"{image}.{name}" for name in parts)}
    assert f"{image}.environment" in loaded, "what is looked for has other names now"
    assert not others & loaded


def test_settled_memory_goes_back_to_the_kernel_and_is_not_collected_again() -> None:
    program = """
import ctypes, gc
from muster.drivers.image.deadman import settle_memory
def anonymous_kib():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Anonymous:"))
blocks = [bytearray(8000) for _ in range(2000)]  # more than the interpreter's own arenas hold
kept = blocks[-1]  # above all that is freed, so that the C library does not give it back by itself
del blocks
before = anonymous_kib()
settle_memory()
print(hasattr(ctypes.CDLL(None), "malloc_trim"), before - anonymous_kib(), gc.get_freeze_count())
"""
    can_give_back, given_back_kib, frozen = _said_by(program)
    assert int(frozen) > 0
    if can_give_back == "False":
        pytest.skip("this C library cannot be told to give memory back")
    assert int(given_back_kib) > 8000  # of 16,000
