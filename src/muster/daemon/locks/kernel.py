"""The kernel's lock manager beside the one of this process: the machine's commands, and what the kernel asks (P12.30).

The kernel is told in a thread of its own, one command after the other: a stop may take its time, and clients' locks go
on meanwhile. This process holds the kernel's monitor: it outlives the daemon, and its end ends the node.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from muster.core.locks.kernel import Command, Refuse
from muster.core.locks.machine import LockManager
from muster.drivers.machine.kernel_locks import NAME, CannotDrive, KernelLocks


class KernelSide:
    """Drives `kernel` as `manager` says. `settle` carries out what the machine wants done."""

    def __init__(
        self, manager: LockManager, kernel: KernelLocks, settle: Callable[[], None], tell: Callable[[str], None]
    ) -> None:
        self._manager, self._kernel, self._settle, self._tell = manager, kernel, settle, tell
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "kernel-locks")
        self._is_open = False
        self._said = ""
        self._rests = asyncio.Event()
        self._rests.set()

    async def unused(self) -> None:
        """Wait until this node's kernel has no lockspace: until then its monitor must stay open (P12.34)."""
        self._manager.kernel.give_up()
        self.carry_out()
        if not self._rests.is_set():
            self._tell(
                f"the kernel's lockspaces are in use, and wait for their ends: {', '.join(self._manager.kernel.spaces)}"
            )
        await self._rests.wait()

    def follow(self, *, is_on: bool) -> None:
        """The cluster's setting: take the kernel over when it is on, if that can be (P12.33)."""
        if is_on and not self._is_open:
            try:
                self._kernel.open()
            except CannotDrive as error:
                if self._said != str(error):
                    self._tell(f"the kernel's locks are not driven here: {error}")
                self._said = str(error)
                return
            assert self._kernel.events is not None
            self._loop.add_reader(self._kernel.events.fileno(), self._hear)
            self._is_open = True
            self._tell("the kernel's lock manager is driven here")
        self._manager.kernel.is_on = is_on and self._is_open

    def _hear(self) -> None:
        for name, enters in self._kernel.read_asked():
            if not NAME.fullmatch(name):
                self._tell(f"the kernel has a lockspace with a name that is not driven: {name!r}")
                self._loop.run_in_executor(self._thread, self._kernel.carry_out, Refuse(name))
                continue
            if enters and name in self._manager.kernel.spaces:
                continue  # it was found by its folder, and is told again
            self._tell(f"lockspace {name} of the kernel: {'to be entered' if enters else 'given up'}")
            self._manager.kernel_asks(name, enters=enters)
        self._settle()

    def carry_out(self) -> None:
        """Hand the machine's commands to the thread, in order."""
        self._look()
        for number, command in self._manager.kernel.take():
            done = self._loop.run_in_executor(self._thread, self._kernel.carry_out, command)
            done.add_done_callback(lambda done, number=number, command=command: self._done(done, number, command))  # type: ignore[misc]

    def _look(self) -> None:
        """Whether the kernel has no lockspace and all was carried out."""
        kernel = self._manager.kernel
        (self._rests.set if kernel.has_done_all and not kernel.spaces else self._rests.clear)()

    def _done(self, done: "asyncio.Future[None]", number: int, command: Command) -> None:
        """A command that the kernel refuses ends this process, and so the node: nobody knows what it does then."""
        done.result()
        self._tell(f"kernel: {command}")
        self._manager.kernel_has_done(number)
        self._look()
        self._settle()
