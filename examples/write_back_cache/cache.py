"""A small write-back cache that stays right when nodes join, leave and die: a worked example for `muster.client`.

One process of it runs on each node. A value that is set stays in the memory of that node, unwritten, until somebody
says `flush` or the node leaves; the other nodes read it from there and keep a copy. That is quick, and it raises the
questions that transitions answer:

- The node leaves. Its values must reach the shared file before the layers that the file lives on go away. They are
  below this program's level, and a graceful leave goes top-down: so it flushes while it is told of its own leave. At
  the second barrier, when that is done for certain, the others drop their copies and read the file.
- The node dies. Its unwritten values are lost, and a copy of such a value elsewhere would be a lie: when the others
  are told of the forced leave, the node is proven to have stopped, and they drop what came from it. Once all have been
  told (second barrier), they stamp the file with the new epoch: a write that the dead node left under way somewhere
  would carry an older one, and is refused.
- The program dies. Its node has lost values then, as if the node itself had died: `on_loss="fail"`.
"""
# ruff: noqa: INP001  a program of its own, in no package

import argparse
import contextlib
import fcntl
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from muster.client import Barriers, Kind, Notification, Subsystem, register

LEVEL = 60
MAXIMUM_REQUEST_BYTES = 64 * 1024
PEER_TIMEOUT_S = 2.0


class Fenced(Exception):
    """The shared file has seen a newer epoch than the writer's."""


class SharedFile:
    """Entries on storage that all nodes share, and the newest epoch of any writer."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, str]:
        """All entries."""
        with self._locked():
            return self._load()[1]

    def write(self, epoch: int, changes: dict[str, str]) -> None:
        """Add or replace entries. Raises `Fenced` if somebody with a newer epoch has been here."""
        with self._locked():
            newest, entries = self._load()
            if epoch < newest:
                raise Fenced(f"{self._path} has been written in epoch {newest}, this writer is of epoch {epoch}")
            fresh = self._path.with_name(self._path.name + ".new")
            fresh.write_text(json.dumps({"epoch": epoch, "entries": entries | changes}))
            fresh.replace(self._path)

    def _load(self) -> tuple[int, dict[str, str]]:
        try:
            found = json.loads(self._path.read_text())
        except FileNotFoundError:
            return 0, {}
        return found["epoch"], found["entries"]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._path.with_name(self._path.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Cache:
    """The entries in the memory of one node."""

    def __init__(self, node: str, directory: Path, shared: SharedFile) -> None:
        self._node, self._directory, self._shared = node, directory, shared
        self._lock = threading.Lock()
        self._own: dict[str, str] = {}  # set here, in no file yet
        self._copies: dict[str, tuple[str, str]] = {}  # key -> the node whose own value it is, the value
        self._epoch = 0
        self._leaving = False

    # ---- for its users, and for the caches of other nodes -----------------------------------------------------------

    def get(self, key: str) -> str:
        """The newest value: this node's, another node's, or the file's; empty where there is none."""
        with self._lock:
            if key in self._own:
                return self._own[key]
            if key in self._copies:
                return self._copies[key][1]
        for peer in self._peers():
            found = ask(self._directory, peer, "peek", key)
            if found:
                with self._lock:
                    self._copies[key] = (peer, found)
                return found
        return self._shared.read().get(key, "")

    def peek(self, key: str) -> str:
        """This node's own unwritten value, if it has one."""
        with self._lock:
            return self._own.get(key, "")

    def set(self, key: str, value: str) -> str:
        """A new value: here only, and nowhere any other one."""
        for peer in self._peers():
            ask(self._directory, peer, "forget", key)
        with self._lock:
            if self._leaving:
                return "refused: this node is leaving"
            self._own[key] = value
            self._copies.pop(key, None)
        return "set"

    def forget(self, key: str) -> str:
        """Another node has set it."""
        with self._lock:
            self._own.pop(key, None)
            self._copies.pop(key, None)
        return "forgotten"

    def flush(self) -> str:
        """Write what only this node has."""
        with self._lock:
            self._shared.write(self._epoch, self._own)
            count = len(self._own)
            self._own.clear()
        return f"{count} flushed"

    def _peers(self) -> list[str]:
        return [path.stem.removeprefix("cache-") for path in self._directory.glob("cache-*.sock")
                if path != address(self._directory, self._node)]  # fmt: skip

    # ---- transitions ------------------------------------------------------------------------------------------------

    def take_part(self, told: Notification) -> None:
        """What this program does for one barrier of one transition."""
        self._epoch = max(self._epoch, told.epoch)
        own = told.node == self._node
        match told.kind, told.barrier:
            case Kind.LEAVING, 0 if own:
                with self._lock:
                    self._leaving = True
                self.flush()
            case (Kind.LEAVING, 1) | (Kind.FORCED_LEAVING, 0) if not own:
                self._drop_copies_from(told.node)
            case Kind.FORCED_LEAVING, 1:
                self._shared.write(self._epoch, {})

    def _drop_copies_from(self, node: str) -> None:
        with self._lock:
            self._copies = {key: copy for key, copy in self._copies.items() if copy[0] != node}


def address(directory: Path, node: str) -> Path:
    """Where a node's cache listens."""
    return directory / f"cache-{node}.sock"


def ask(directory: Path, node: str, *words: str) -> str:
    """One request to a node's cache; an empty answer if it is not there."""
    with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
        connection.settimeout(PEER_TIMEOUT_S)
        connection.connect(str(address(directory, node)))
        with connection.makefile("rw") as lines:
            lines.write(json.dumps(words) + "\n")
            lines.flush()
            return str(json.loads(lines.readline() or '""'))
    return ""


def listen(cache: Cache, path: Path) -> socketserver.ThreadingUnixStreamServer:
    """Serve `get`, `set`, `flush` and the other caches, in threads."""
    commands: dict[str, Callable[..., str]] = {
        "get": cache.get,
        "peek": cache.peek,
        "set": cache.set,
        "forget": cache.forget,
        "flush": cache.flush,
    }

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                command, *words = json.loads(self.rfile.readline(MAXIMUM_REQUEST_BYTES))
                answer = commands[command](*map(str, words))
            except (ValueError, KeyError, TypeError, Fenced) as error:
                answer = f"refused: {error}"
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    path.unlink(missing_ok=True)
    server = socketserver.ThreadingUnixStreamServer(str(path), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def serve(directory: Path, node: str, shared: Path) -> None:
    """Register with the node, and take part until it has left."""
    cache = Cache(node, directory, SharedFile(shared))
    two = Barriers(leaving=2, forced_leaving=2)
    subsystem: Subsystem = register("cache", LEVEL, barriers=two, on_loss="fail", directory=directory, node=node)
    with subsystem, listen(cache, address(directory, node)) as server:
        for told in subsystem:
            cache.take_part(told)
            told.acknowledge()
            print(f"{node}: {told.node} {told.kind}, barrier {told.barrier}, epoch {told.epoch}", flush=True)
        server.shutdown()
    address(directory, node).unlink()


def main() -> None:
    """`cache.py serve`, or one request to a cache that runs."""
    parser = argparse.ArgumentParser(description="A write-back cache on every node of a development cluster.")
    parser.add_argument("--dir", type=Path, required=True, help="the development cluster")
    parser.add_argument("--node", required=True, help="the node whose cache this is")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve").add_argument("--file", type=Path, required=True, help="the shared file")
    commands.add_parser("get").add_argument("words", nargs=1, metavar="KEY")
    commands.add_parser("set").add_argument("words", nargs=2, metavar=("KEY", "VALUE"))
    commands.add_parser("flush")
    options = parser.parse_args()
    if options.command == "serve":
        serve(options.dir, options.node, options.file)
        return
    answer = ask(options.dir, options.node, options.command, *getattr(options, "words", []))
    print(answer)
    sys.exit(1 if not answer or answer.startswith("refused") else 0)


if __name__ == "__main__":
    main()
