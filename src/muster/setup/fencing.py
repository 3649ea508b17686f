"""What `muster fence` does on this machine itself: ask an agent for its metadata, keep a secret in a node's home."""

import os
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as ET

from muster.drivers.fence_call import FOLDER, CallFailed, find_agent, run
from muster.setup.errors import Mistaken

METADATA_S = 20.0
MAXIMUM_METADATA_CHARACTERS = 1 << 20
ALWAYS_KNOWN = frozenset({"plug", "port", "nodename", "delay", "verbose"})  # agents leave some of these out
NEEDED_ACTIONS = ("off", "on", "status", "monitor")


class Metadata(NamedTuple):
    """What an agent says of itself."""

    parameters: frozenset[str]
    required: frozenset[str]
    actions: frozenset[str]


def metadata(agent: str) -> Metadata:
    """Ask the agent, here. Raises `Mistaken`."""
    try:
        status, output = run(find_agent(agent), ["action=metadata"], METADATA_S)
    except CallFailed as error:
        raise Mistaken(str(error), agent, "run this where the agent is, or add --unchecked") from error
    start, end = output.find("<resource-agent"), output.rfind("</resource-agent>")
    if start < 0 or end < 0 or len(output) > MAXIMUM_METADATA_CHARACTERS or "<!ENTITY" in output:
        what = f"it prints no metadata (exit status {status})"
        raise Mistaken(what, agent, "name a fence agent, as fence_ipmilan; or add --unchecked")
    try:
        tree = ET.fromstring(output[start : end + len("</resource-agent>")])  # noqa: S314 - it declares no entity
    except ET.ParseError as error:
        raise Mistaken(f"its metadata cannot be read: {error}", agent, "or add --unchecked") from error
    found = [each for each in tree.iter("parameter") if each.get("name")]
    return Metadata(
        frozenset(each.get("name", "") for each in found),
        frozenset(each.get("name", "") for each in found if each.get("required") == "1") - {"action"},
        frozenset(each.get("name", "") for each in tree.iter("action")),
    )


def check(agent: str, parameters: dict[str, str], secrets: tuple[str, ...]) -> None:
    """Compare a device with what its agent says of itself. Raises `Mistaken`.

    What is required may be given with a node's method, so it is not missed here.
    """
    says = metadata(agent)
    if missing := [action for action in NEEDED_ACTIONS if says.actions and action not in says.actions]:
        raise Mistaken(f"it cannot {', '.join(missing)}", agent, "use an agent that can, or add --unchecked")
    unknown = [name for name in (*parameters, *secrets) if name not in says.parameters | ALWAYS_KNOWN]
    if unknown:
        known = ", ".join(sorted(says.parameters)) or "none"
        raise Mistaken(f"it knows no parameter {', '.join(unknown)}", agent, f"it knows: {known}")


def secret_file(home: Path, device: str) -> Path:
    """Where a node's home holds the secrets of a device."""
    return home / FOLDER / device


def keep_secret(home: Path, device: str, name: str, value: str) -> Path:
    """Put a secret into a node's home, durably, in place of the one of that name. Raises `Mistaken`."""
    if not value or "\n" in value or "\0" in value:
        raise Mistaken(f"the value of {name} is empty, or not of one line", device, "give one line")
    path = secret_file(home, device)
    try:
        owner = home.stat()
        path.parent.mkdir(mode=0o700, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if line.partition("=")[0].strip() != name]
        fresh = path.with_name(f".{path.name}.new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o600)
            file.write("".join(f"{line}\n" for line in (*kept, f"{name}={value}")))
            file.flush()
            os.fsync(descriptor)
        if os.geteuid() == 0:  # the node may run as another user
            for each in (path.parent, fresh):
                os.chown(each, owner.st_uid, owner.st_gid)
        fresh.replace(path)
    except OSError as error:
        what = f"the secret cannot be kept: {error.strerror}"
        raise Mistaken(what, str(path), "run this as the user of the node, or as root") from error
    return path
