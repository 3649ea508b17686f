"""Where a node's daemon listens, and how to get there. Plain paths: the small watcher process has no room for more."""

import contextlib
import os
from collections.abc import Iterator

LOCAL_SOCKET = "/var/lib/muster/control.sock"
SOCKET_FILE = "control.sock"
_SUN_PATH_BYTES = 107  # sockaddr_un, without its final zero


def socket_path(
    directory: str | os.PathLike[str] | None, node: str | None, given: str | os.PathLike[str] | None
) -> str:
    """The control socket: `given`; or that of `node` in the development cluster in `directory`; or this machine's.

    Raises `ValueError` for a combination that names none.
    """
    if given is not None:
        if directory is not None or node is not None:
            raise ValueError("give either a socket, or a directory and a node of the development cluster in it")
        return os.fspath(given)
    if directory is None and node is None:
        return LOCAL_SOCKET
    if directory is None or not node or "/" in node or node in {".", ".."}:
        raise ValueError("a development cluster needs both: its directory, and the name of the node to register with")
    return os.path.join(os.path.realpath(directory), "nodes", node, SOCKET_FILE)


@contextlib.contextmanager
def reachable(path: str | os.PathLike[str]) -> Iterator[str]:
    """An address of `path` that fits into a socket address, however long the path is."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        yield os.fspath(path)
        return
    folder, name = os.path.split(os.fspath(path))
    directory = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)
