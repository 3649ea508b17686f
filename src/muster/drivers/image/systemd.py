"""Telling systemd how the node is: READY, STATUS, WATCHDOG, STOPPING (sd_notify; SPEC 9.4).

One datagram to the socket that NOTIFY_SOCKET names; without that variable nothing happens. The guard, systemd's main
process, pets the watchdog and says that the node stops; the daemon says when it is ready and what it is doing. Services
do not get the variable: they are not the ones to speak for the node.

The guard's image imports this module: the standard library only. Never waits; a message that is not taken is lost.
"""

import os
import socket

NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
VARIABLES = (NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID)
_WATCHDOG_PART = 3  # it is petted so many times as often as it must be


def has_manager() -> bool:
    """Whether there is a service manager to be told."""
    return os.environ.get(NOTIFY_SOCKET, "").startswith(("/", "@"))


def notify(*lines: str) -> bool:
    """Tell the service manager, each line as NAME=VALUE; False where there is none, or where it takes nothing now."""
    if not has_manager():
        return False
    address = os.environ[NOTIFY_SOCKET]
    message = "\n".join(line.replace("\n", " ") for line in lines).encode(errors="replace")
    target = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            return end.sendto(message, socket.MSG_DONTWAIT, target) == len(message)
    except OSError:
        return False


def watchdog_pause_us() -> int:
    """Time between two `WATCHDOG=1` of this process (us); 0 where nobody asks this process for them."""
    text, pid = os.environ.get(WATCHDOG_USEC, ""), os.environ.get(WATCHDOG_PID, "")
    if not (text.isascii() and text.isdecimal()) or (pid and pid != str(os.getpid())):
        return 0
    return int(text) // _WATCHDOG_PART
