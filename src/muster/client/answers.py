"""What all clients of the control socket have in common: its answers, their bounds, why nobody answers (SPEC 7.8).

Plain functions: the small watcher process has no room for more.
"""

import json
from typing import Any

from muster.client.errors import Refused, Unreachable

MAXIMUM_LINE_BYTES = 1024 * 1024  # of what a daemon tells level programs and watchers
FIRST_PAUSE_S = 0.02  # between two attempts to reach a daemon; each is twice as long as the one before
LONGEST_PAUSE_S = 0.5
_WHERE = "control socket"

Document = dict[str, Any]


def answer_in(line: bytes, where: str = _WHERE) -> Document:
    """An answer with `ok` true. Raises `Refused` for any other: with what the daemon says, or because it is none."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if isinstance(answer, dict) and answer.get("ok") is True:
        return answer
    parts = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(parts, dict):
        raise foreign(where)
    raise Refused(*(str(parts.get(key, "")) for key in ("what", "where", "next")))


def foreign(where: str = _WHERE) -> Refused:
    """The error for an answer that no daemon of Muster gives."""
    return Refused("what answers there is no Muster daemon", where, "check the path of the control socket")


def unreachable(path: str, error: BaseException, tried_s: float) -> Unreachable:
    """The error for a daemon that did not answer; `tried_s`: for how long that was tried."""
    words = {
        FileNotFoundError: "there is no such socket",
        ConnectionRefusedError: "no daemon serves it",
        PermissionError: "you may not use it",
    }
    cause = getattr(error, "strerror", None) or str(error) or "no answer"
    what = next((text for kind, text in words.items() if isinstance(error, kind)), cause)
    where = f"{_WHERE} {path}"
    tried = f" (tried for {tried_s:g} s)" if tried_s else ""
    return Unreachable(f"{what}{tried}", where, "see to it that the node runs, as this very user")
