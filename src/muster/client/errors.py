"""What can go wrong for a program that takes part in transitions: what, where, and what to do next (SPEC 7.8)."""


class ClientError(Exception):
    """The base of all errors of this package."""

    def __init__(self, what: str, where: str, next_step: str) -> None:
        super().__init__(f"{where}: {what}; {next_step}")
        self.what, self.where, self.next_step = what, where, next_step


class Unreachable(ClientError):
    """No daemon answers at the control socket."""


class Refused(ClientError):
    """The daemon refuses: a level that is taken, barrier counts that differ from another node's, a bad argument."""


class Lost(ClientError):
    """The registration is over without having been ended: the node has stopped or restarted, or gave the level up."""
