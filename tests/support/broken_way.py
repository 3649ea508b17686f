"""A file that passes on to a store, and that can be told what to refuse (`lab/faulty_store.py`): root and FUSE."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def broken_way(path: Path, store: Path) -> Iterator[Callable[[str], None]]:
    """Mount `path` over `store`; how to give it a command, one of those of `lab.faulty_store`."""
    command = [sys.executable, "-m", "lab.faulty_store", str(path), str(store)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        stdin = server.stdin

        def tell(command: str) -> None:
            stdin.write(f"{command}\n".encode())
            stdin.flush()

        try:
            assert server.stdout.readline() == b"ready\n"
            yield tell
        finally:
            server.kill()
            server.wait()
            subprocess.run(["umount", "--lazy", str(path)], check=False)
