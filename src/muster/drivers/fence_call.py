"""`python -m muster.drivers.fence_call`: one call of a fence agent, a command of the image (P7.24, P7.28, P7.29).

A fence agent of the kind of Debian's `fence-agents` reads `name=value` lines on its standard input, one of which names
the action, and answers by its exit status: 0 for done. Of `status` it is 0 for on and 2 for off, and it prints
`Status: ON` or `Status: OFF`; since 2 stands for wrong parameters as well, off is believed only with both.

What is to be called stands in the environment (`MUSTER_FENCE_CALL`, JSON), without any secret. Their values are read
here from the node's home, and go to the agent's standard input only. Exit status: 0 where the call has succeeded; of
`status`: where it says `off`. What is printed is one line for people, freed of the secrets' values.

Standard library only: a running daemon executes this by name, with whatever release is installed by then.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

VARIABLE = "MUSTER_FENCE_CALL"
FOLDER = "fence"  # of the home, with a file of secrets for each device
PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/bin"
MAXIMUM_FILE_BYTES = 64 * 1024
MAXIMUM_OUTPUT_CHARACTERS = 300
OFF_STATUSES = (0, 2)  # older agents end with 0 whatever they say
EXIT_FAILED = 1
HIDDEN = "***"
_SAYS_OFF = re.compile(r"(?mi)^\s*status:\s*off\s*$")
_SAYS_ON = re.compile(r"(?mi)^\s*status:\s*on\s*$")


class CallFailed(Exception):
    """The call has failed, or cannot be made; the message says why and what to do."""


class Call(NamedTuple):
    """What is to be called."""

    device: str
    agent: str
    action: str
    parameters: list[list[str]]
    secrets: list[str]
    home: str
    timeout_ms: int


def encoded(call: Call) -> str:
    """For the environment of this program."""
    return json.dumps(call._asdict())


def read_secrets(path: Path, names: list[str]) -> dict[str, str]:
    """The values of these secrets: `name=value` lines of a file that nobody else can read. Raises `CallFailed`.

    Nobody else: a plain file of the node's user or root, with no rights for group and others (P7.28).
    """
    if not names:
        return {}
    fix = f"muster fence secret {path.name}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CallFailed(f"the secrets of {path.name} cannot be read from {path}: {error.strerror}; {fix}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o077:
            raise CallFailed(f"{path} may be read by others than its owner: chmod 600, chown to the user of the node")
        data = file.read(MAXIMUM_FILE_BYTES + 1)
    if len(data) > MAXIMUM_FILE_BYTES:
        raise CallFailed(f"{path} is longer than {MAXIMUM_FILE_BYTES} bytes")
    values: dict[str, str] = {}
    for line in data.decode(errors="replace").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() in names:
            values[name.strip()] = value
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise CallFailed(f"{path} does not hold {', '.join(missing)}: {fix}")
    return values


def find_agent(agent: str) -> str:
    """The path of an agent's program. Raises `CallFailed`."""
    found = shutil.which(agent, path=PATH)
    if found is None:
        where = "is not on this machine" if "/" not in agent else "is not there, or cannot be executed"
        raise CallFailed(f"the agent {agent} {where}: install it (fence-agents), or name another one")
    return found


def says_off(status: int, output: str) -> bool:
    """Whether an agent's answer to `status` says that what it switches is off: by its word and its exit status."""
    return status in OFF_STATUSES and bool(_SAYS_OFF.search(output)) and not _SAYS_ON.search(output)


def said(output: str, secrets: dict[str, str]) -> str:
    """What an agent printed, for people: the end of it, on one line, without the values of the secrets."""
    for value in sorted(secrets.values(), key=len, reverse=True):
        output = output.replace(value, HIDDEN)
    lines = [" ".join(line.split()) for line in output.splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-MAXIMUM_OUTPUT_CHARACTERS:]


def run(program: str, lines: list[str], timeout_s: float | None) -> tuple[int, str]:
    """Exit status and output of an agent. Raises `CallFailed` if it does not end in time, or cannot be started."""
    environment = {"PATH": PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
    try:
        process = subprocess.Popen(
            [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            cwd="/", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CallFailed(f"the agent {program} cannot be started: {error.strerror}") from error
    with process:
        try:
            output, _ = process.communicate("".join(f"{line}\n" for line in lines).encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise CallFailed(f"the agent has not ended within {timeout_s:g} s") from error
    return process.returncode, output.decode(errors="replace")


def make(call: Call) -> str:
    """Make the call; what there is to say about its success. Raises `CallFailed`."""
    program = find_agent(call.agent)
    secrets = read_secrets(Path(call.home) / FOLDER / call.device, call.secrets)
    given = [*((name, value) for name, value in call.parameters), *secrets.items()]
    lines = [f"action={call.action}", *(f"{name}={value}" for name, value in given)]
    status, output = run(program, lines, call.timeout_ms / 1000)
    words = said(output, secrets)
    if call.action == "status":
        if says_off(status, output):
            return words
        raise CallFailed(f"it does not say that it is off (exit status {status}): {words or 'it prints nothing'}")
    if status:
        raise CallFailed(f"exit status {status}: {words or 'it prints nothing'}")
    return words


def main() -> None:
    """Make the call that the environment names; print what there is to say of it, and end with its status."""
    try:
        print(make(Call(**json.loads(os.environ[VARIABLE]))))
    except CallFailed as error:
        print(error)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
