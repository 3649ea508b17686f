"""The endpoint that serves a node's metrics, to this machine only (SPEC 9.4). Off unless `musterd --metrics` is given.

A few lines of HTTP on the daemon's own loop: what a client may send, and for how long, is bounded, and it gets nothing
but the one page.
"""

import asyncio
import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Callable

from muster.daemon.loop import CONNECTION
from muster.drivers.image.descriptors import refuse_descriptors

VARIABLE = "MUSTER_METRICS"
UNIX = "unix:"
_REQUEST_BYTES = 8192
_REQUEST_S = 5.0
_MAXIMUM_CLIENTS = 8


class MetricsRefused(Exception):
    """The endpoint cannot be; the message says what, where and what to do."""


def check_endpoint(endpoint: str) -> tuple[str, int] | str:
    """HOST and port of a loopback address, or the path of a Unix socket. Raises `MetricsRefused`."""
    if endpoint.startswith(UNIX):
        path = endpoint.removeprefix(UNIX)
        if not os.path.isabs(path):
            raise MetricsRefused(f"--metrics {endpoint}: the path is not absolute; write unix:/run/muster/metrics.sock")
        return path
    host, separator, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 0x10000:
        raise MetricsRefused(f"--metrics {endpoint}: no endpoint; write 127.0.0.1:9464, or unix:/PATH")
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        text = "metrics are served to this machine only; give a loopback address (127.0.0.1:9464) or unix:/PATH"
        raise MetricsRefused(f"--metrics {endpoint}: {text}, and let a scraper or proxy of this machine pass them on")
    return host, int(port)


class Endpoint:
    """Serves the page on its endpoint until `close`."""

    def __init__(self, endpoint: str, page: Callable[[], bytes]) -> None:
        self._endpoint, self._page = endpoint, page
        self._server: asyncio.Server | None = None
        self._clients = 0

    async def start(self) -> None:
        """Begin to serve. Raises `MetricsRefused`."""
        found = check_endpoint(self._endpoint)
        try:
            if isinstance(found, str):
                self._server = await self._on_unix_socket(found)
            else:
                self._server = await asyncio.start_server(self._serve, *found, limit=_REQUEST_BYTES)
        except OSError as error:
            text = f"--metrics {self._endpoint}: {error.strerror or error}"
            raise MetricsRefused(f"{text}; choose another, or stop what uses it") from error

    async def _on_unix_socket(self, path: str) -> asyncio.Server:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):  # of a daemon that is gone: this node's home is locked
                os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            os.chmod(path, 0o660)
            with contextlib.suppress(OSError):  # an older kernel cannot
                refuse_descriptors(listener)
            return await asyncio.start_unix_server(self._serve, sock=listener, limit=_REQUEST_BYTES)
        except OSError:
            listener.close()
            raise

    async def close(self) -> None:
        """End it; harmless where it never began."""
        if self._server is not None:
            self._server.close()
            if self._endpoint.startswith(UNIX):
                with contextlib.suppress(OSError):
                    os.unlink(self._endpoint.removeprefix(UNIX))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients += 1
        try:
            if self._clients > _MAXIMUM_CLIENTS:
                writer.write(_page("503 Service Unavailable", b"too many clients\n"))
            else:
                async with asyncio.timeout(_REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                    writer.write(self._answer(head))
                    await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass  # no HTTP, or gone: there is nothing to say to it
        except Exception as error:  # noqa: BLE001 - this connection's alone (P10.6)
            context = {"message": "a page of metrics failed", "exception": error, CONNECTION: True}
            asyncio.get_running_loop().call_exception_handler(context)
        finally:
            self._clients -= 1
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _page("400 Bad Request", b"GET /metrics\n")
        if words[0] != b"GET":
            return _page("405 Method Not Allowed", b"GET /metrics\n")
        if words[1].split(b"?")[0] != b"/metrics":
            return _page("404 Not Found", b"the metrics are at /metrics\n")
        return _page("200 OK", self._page(), "text/plain; version=0.0.4; charset=utf-8")


def _page(status: str, body: bytes, kind: str = "text/plain") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body
