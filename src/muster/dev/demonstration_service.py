"""A cluster-unaware service for `muster demo`: an HTTP server that says where it runs.

    python demonstration_service.py PORT

Starts the server in the background and returns when it listens: what runs the command then knows that the service is
up. The program is run by its path and imports nothing of Muster, as any user's service; and little else, because the
time it takes to start is part of the outage that the demonstration measures.
"""

import os
import socket
import sys

REQUEST_LIMIT_BYTES = 4096
ENVIRONMENT = ("MUSTER_NODE", "MUSTER_INCARNATION", "MUSTER_EPOCH", "MUSTER_GENERATION")


def listen(port: int) -> socket.socket:
    """A listening socket on loopback. Raises `OSError` while another instance still holds the port."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # past connections may linger, listeners may not
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener


def serve(listener: socket.socket) -> None:
    """Answer every request with the service's environment, one `NAME=VALUE` a line, until killed."""
    body = "".join(f"{name}={os.environ.get(name, '')}\n" for name in ENVIRONMENT).encode()
    answer = b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    while True:
        connection, _ = listener.accept()
        with connection:
            try:
                connection.settimeout(1.0)
                connection.recv(REQUEST_LIMIT_BYTES)
                connection.sendall(answer)
            except OSError:
                continue  # a client that went away or dawdled concerns nobody else


def main() -> None:
    """Listen, let go of the terminal, serve."""
    port = int(sys.argv[1])
    try:
        listener = listen(port)
    except OSError as error:
        sys.exit(f"127.0.0.1:{port}: {error.strerror}; end what listens there, or choose another port")
    if os.fork():
        os._exit(0)
    os.setsid()
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    serve(listener)


if __name__ == "__main__":
    main()
