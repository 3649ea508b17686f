"""Names for inputs: what an event in the log or the flight recorder follows from (SPEC 9.4)."""

from muster.core.inputs import (
    CommandFinished,
    Input,
    MessageReceived,
    OperationRequested,
    PeerConnected,
    PeerLost,
    StoreDone,
    StoreRefused,
    StripRead,
    StripUnread,
)
from muster.records.messages import Append, Request

_OPERATION_CHARACTERS = 24  # of an operation's identity: enough to find it on another node


def described(happened: Input) -> str:
    """An input in a few words. An operation has the same on every node that it passes through."""
    match happened:
        case OperationRequested(identity=identity):
            return f"operation {identity[:_OPERATION_CHARACTERS]}"
        case MessageReceived(sender=sender, message=Request(identity=identity)):
            return f"operation {identity[:_OPERATION_CHARACTERS]} from {sender}"
        case MessageReceived(sender=sender, message=Append(entries=entries)) if entries:
            return f"entry {entries[-1].index} from {sender}"
        case MessageReceived(sender=sender, message=message):
            return f"{type(message).__name__.lower()} from {sender}"
        case PeerConnected(node=node) | PeerLost(node=node):
            return f"{'link with' if isinstance(happened, PeerConnected) else 'loss of the link with'} {node}"
        case CommandFinished(command=command):
            return f"end of {command.action} {command.generation}"
        case StoreDone(operation=operation) | StoreRefused(operation=operation):
            return f"store operation {operation}"
        case StripRead(read=read) | StripUnread(read=read):
            return f"strip read {read}"
        case _:
            return type(happened).__name__.lower()
