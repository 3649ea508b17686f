"""The configuration as text: a file that `muster apply` takes, and commands for what no such file holds (SPEC 9.3)."""

import shlex
from typing import NamedTuple

import msgspec

from muster.client.errors import ClientError
from muster.files.writing import NotWritten, text_of
from muster.records.events import GroupDefinition
from muster.records.services import Definition
from muster.setup.nodes import Document

_GROUPS = {"observer": "observer_group", "operator": "operator_group", "administrator": "administrator_group"}
MS_PER_S = 1000
_SETTINGS = ("required_levels", "required_levels_within", "lockspaces")


class Export(NamedTuple):
    """What was written."""

    text: str
    commands: tuple[str, ...]  # for what no such file holds
    version: int

    @property
    def whole(self) -> str:
        """The file, with the commands as comments."""
        head = [f"# version {self.version} of the configuration, by muster config export", *_commented(self.commands)]
        return "\n".join([*head, "", self.text])


def _commented(commands: tuple[str, ...]) -> list[str]:
    return ["# what no such file holds:", *(f"#   {command}" for command in commands)] if commands else []


def export_of(shown: Document, fencing: Document) -> Export:
    """The export of answers to the queries `config_show` and `fencing` (or nothing). Raises `ClientError`."""
    try:
        services = [msgspec.convert(each, Definition) for each in shown["services"].values()]
        groups = [msgspec.convert(each, GroupDefinition) for each in shown["event_groups"].values()]
        text = text_of(services, groups)
    except (msgspec.ValidationError, NotWritten) as error:
        next_step = "run muster on a node, with the release that it has"
        raise ClientError(f"the configuration cannot be written: {error}", "muster config export", next_step) from error
    commands = (*_of_settings(shown["settings"]), *_of_fencing(fencing))
    return Export(text, tuple(commands), int(shown["version"]))


def _of_settings(found: Document) -> list[str]:
    groups = {f"{role}_group": group for role, group in found.get("groups", {}).items()}
    values = {name: groups.get(name, "") for name in _GROUPS.values()}
    values |= {name: found[name] for name in _SETTINGS if name in found}
    return [_command("config", "set", name, str(value)) for name, value in values.items() if value]


def _of_fencing(fencing: Document) -> list[str]:
    """Devices, the names of their secrets, and the methods of each node: the answer to the query `fencing`."""
    commands = []
    for name, device in fencing.get("devices", {}).items():
        words = ["fence", "add", name, "--agent", device["agent"]]
        words += [f"{key}={value}" for key, value in device["parameters"].items()]
        words += [word for secret in device["secrets"] for word in ("--secret", secret)]
        words += [word for node in device["from"] for word in ("--from", node)]
        commands.append(_command(*words, "--limit", str(device["timeout_ms"] // MS_PER_S)))
    for node, found in fencing.get("nodes", {}).items():
        commands += [_command(*_method(node, method)) for method in found["methods"]]
    return commands


def _method(node: str, method: Document) -> list[str]:
    words = ["fence", "method", node, method["name"]]
    for step in method["devices"]:
        outlet = ",".join(f"{key}={value}" for key, value in step["parameters"].items())
        words += ["--device", step["device"] + (f":{outlet}" if outlet else "")]
    return [*words, "--action", method["action"]]


def _command(*words: str) -> str:
    return shlex.join(("muster", *words))
