"""What can go wrong for whoever talks to a node: what, where, and what to do next (SPEC 7.8)."""


class ClientError(Exception):
    """The base of all errors of this package."""

    def __init__(self, what: str, where: str, next_step: str) -> None:
        super().__init__(f"{where}: {what}; {next_step}")
        self.what, self.where, self.next_step = what, where, next_step


class Unreachable(ClientError):
    """No daemon answers at the control socket: what was asked has certainly not been carried out by this attempt."""


class ReplyLost(ClientError):
    """No answer came after a request was sent: it may have been carried out."""


class Refused(ClientError):
    """The daemon refuses: an unknown query, a bad argument, a missing role, a level that is taken; or it is none."""


class Lost(ClientError):
    """The registration is over without having been ended: the node has stopped or restarted, or gave the level up."""
