"""The cleanups of this node's starts: kept in its home before they run, void once their service has stopped (P6.34).

All work with the home's disk is done by a thread of its own: nothing else waits for that disk, and a start waits for it
no longer than a bound. Between the daemon's commands and the runner this is the only place where one waits: what comes
later may overtake it, and then its generation is refused.
"""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from msgspec.structs import replace

from muster.core.effects import RunCommand
from muster.core.services.commands import Probe, cleanup_of
from muster.drivers.image.kept_cleanups import PROBES, Kept, all_kept, drop, keep, keep_probes, lock_kept
from muster.records.services import CommandState

DISK_S = 20.0  # for the home's disk to take a cleanup, and for an earlier one to end
_HELD_S = 10.0
_SERVICES_OWN = ("MUSTER_CLUSTER", "MUSTER_SERVICE", "MUSTER_UID", "MUSTER_NODE", "MUSTER_INCARNATION")
_OF_OWNERS = ("MUSTER_EPOCH", "MUSTER_TOKEN")  # a cleanup runs while others may own the service


class Cleanups:
    """What one daemon keeps, and takes back."""

    def __init__(
        self, home: Path, incarnation: int, boot_id: bytes, failed: Callable[[CommandState], None],
        note: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        """`failed` is told of a command that cannot be given to the runner, `note` of what people should know."""
        self._home, self._incarnation, self._boot_id = str(home), incarnation, boot_id.hex()
        self._failed, self._note = failed, note
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cleanups")
        self._joined = False
        self._probes: tuple[Kept, ...] | None = None  # that the home has, as far as is known
        self._probed_entry = -1
        self._probing: Future[None] | None = None
        self._not_kept = ""  # why the probes could not be kept, as it was told last

    def close(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def concerns(self, command: RunCommand) -> bool:
        """Whether the command has to wait for the home's disk."""
        return command.cleanup is not None or command.clears

    async def prepare(self, command: RunCommand, run: Callable[[RunCommand], None]) -> None:
        """Keep the cleanup of a start, or find that of a stop; then `run` it."""
        work = self._keep if command.cleanup is not None else self._find
        loop = asyncio.get_running_loop()
        try:
            ready = await asyncio.wait_for(loop.run_in_executor(self._thread, work, command), DISK_S)
        except (OSError, TimeoutError) as error:
            words = f"has not answered for {DISK_S:g} s" if isinstance(error, TimeoutError) else str(error)
            detail = (
                f"its cleanup cannot be kept in {self._home}/cleanups: {words}; free space there, or replace the disk"
            )
            self._failed(CommandState(command.service, command.generation, command.action, True, False, detail))
        else:
            run(ready)

    def _keep(self, command: RunCommand) -> RunCommand:
        """Durably, as it is now. Raises `OSError`."""
        cleanup = command.cleanup
        assert cleanup is not None
        said = {name: command.environment[name] for name in _SERVICES_OWN if name in command.environment}
        said["MUSTER_GENERATION"] = str(command.generation)
        keep(
            self._home,
            Kept(
                command.service, command.uid, command.generation, self._incarnation, self._boot_id, cleanup.command,
                cleanup.timeout_ms, cleanup.retries, cleanup.retry_pause_ms, {**cleanup.environment, **said},
                probe=cleanup.probe,
            ),
        )  # fmt: skip
        return command

    def _find(self, command: RunCommand) -> RunCommand:
        """The stop as the kept cleanup of the newest start: without epoch and token (P6.32). Raises `OSError`."""
        said = {name: value for name, value in command.environment.items() if name not in _OF_OWNERS}
        said |= {"MUSTER_ACTION": "cleanup"}
        found = [kept for kept in all_kept(self._home) if (kept.uid, kept.service) == (command.uid, command.service)]
        found = [kept for kept in found if not kept.problem]
        if not found:
            return replace(command, environment=said)
        kept = found[-1]
        return replace(
            command, command=cleanup_of(command, kept.command), timeout_ms=kept.timeout_ms, retries=kept.retries,
            retry_pause_ms=kept.retry_pause_ms,
            environment={**kept.environment, "MUSTER_ACTION": "cleanup", "MUSTER_REASON": said["MUSTER_REASON"]},
        )  # fmt: skip

    def ended(self, commands: Iterable[CommandState]) -> None:
        """A stop that succeeded leaves nothing: what was kept for earlier starts is void."""
        stops = {each.service: each.generation for each in commands if each.action == "stop" and each.succeeded}
        if stops:
            self._thread.submit(self._drop, lambda kept: kept.generation < stops.get(kept.service, 0))

    def member_is(self, *, joining: bool) -> None:
        """This incarnation is a member: its machine is clean of earlier ones, or an operator has said so (P6.33)."""
        if joining and not self._joined:
            self._joined = True
            self._thread.submit(self._drop, lambda kept: kept.incarnation != self._incarnation)

    def keep_probes(self, probes: Callable[[], Sequence[Probe]], entry: int) -> None:
        """Have the home remember what to ask this machine before its next join (P7.45).

        `probes` are as of that entry, and called where one has come since. That is tried again where the disk fails.
        """
        if not self._joined or entry == self._probed_entry or (self._probing is not None and not self._probing.done()):
            return
        self._probed_entry, wanted = entry, tuple(map(_kept_probe, probes()))
        if wanted != self._probes:
            self._probes = wanted
            self._probing = self._thread.submit(self._write_probes, wanted)

    def _write_probes(self, probes: Sequence[Kept]) -> None:
        try:
            keep_probes(str(self._home), probes)
        except OSError as error:
            self._probes, self._probed_entry = None, -1
            words = f"{error}; free space there, or replace the disk"
            if words != self._not_kept:  # it is tried again at every turn
                self._note("probes not kept", f"{self._home}/cleanups/{PROBES}: {words}")
            self._not_kept = words
            return
        self._not_kept = ""

    def _drop(self, is_void: Callable[[Kept], bool]) -> None:
        try:
            for kept in all_kept(self._home):
                if is_void(kept):
                    self._drop_one(kept)
        except OSError as error:
            self._note(
                "cleanups kept", f"{self._home}/cleanups: {error}; the cleanups that are left there are run again"
            )

    def _drop_one(self, kept: Kept) -> None:
        """Not in the middle of a run: what a start of today makes is not to be cleared by it."""
        held = lock_kept(self._home, kept, _HELD_S)
        drop(self._home, kept)
        if held is not None:
            os.close(held)


def _kept_probe(probe: Probe) -> Kept:
    """As the home keeps it: of no start."""
    cleanup = probe.cleanup
    return Kept(
        probe.service, probe.uid, 0, 0, "", cleanup.command, cleanup.timeout_ms, cleanup.retries,
        cleanup.retry_pause_ms, cleanup.environment, probe=cleanup.probe,
    )  # fmt: skip
