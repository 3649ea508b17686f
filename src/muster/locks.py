"""The cluster's locks, for programs (SPEC 4.1; docs/LOCKS.md).

    from muster.locks import EX, connect

    with connect() as locks:
        orders = locks.space("orders")
        with orders.lock("42", EX) as grant:
            database.execute("UPDATE orders SET ..., token = ? WHERE id = 42 AND token <= ?", (str(grant.token),) * 2)

The same for asyncio: `async with await connect_async() as locks`, `async with orders.lock("42", EX) as grant`. Without
`directory` and `node`, or `socket`, the program talks to this machine's own node.

A lock belongs to the process that has connected: it is free when it was given up, or when the kernel says that the
process has ended, and not when the connection breaks. A program that was paused may come back and believe that it still
has a lock which is another's by now; so whatever the lock protects must compare the token, as above, in one step with
what it does.

This module needs the standard library only.
"""

from muster.client.errors import ClientError, Refused, Unreachable
from muster.client.locks.asynchronous import AsyncGrant, AsyncLocks, AsyncSpace, connect_async
from muster.client.locks.blocking import Grant, Locks, Space, connect
from muster.client.locks.terms import CR, CW, EX, NL, PR, PW, LocksLost, Mode, NotGranted, Token

__all__ = [
    "CR", "CW", "EX", "NL", "PR", "PW", "AsyncGrant", "AsyncLocks", "AsyncSpace", "ClientError", "Grant", "Locks",
    "LocksLost", "Mode", "NotGranted", "Refused", "Space", "Token", "Unreachable", "connect", "connect_async",
]  # fmt: skip
