"""The option `--wait`: a command returns when what it asked for has come about, or says why it has not (SPEC 8.1)."""

import re
import time
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

import click

from muster.client.errors import ClientError, Unreachable
from muster.setup.nodes import Connection, Document
from muster.ui.parameter_types import Seconds

DEFAULT_WAIT_S = 600.0
_LOOK_S = 0.1
_NUMBER = re.compile(r"\d+(?:\.\d+)?")

R = TypeVar("R")


class WaitingCommand(click.Command):
    """A command with the option `--wait`, which may be followed by how many seconds: `--wait`, `--wait 30`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As every command, with the number behind `--wait` as the value of `--wait-limit`."""
        words: list[str] = []
        for word in args:
            is_limit = bool(words) and words[-1] == "--wait" and _NUMBER.fullmatch(word) is not None
            name, equals, value = word.partition("=")
            if is_limit or (name == "--wait" and equals):
                words += ["--wait-limit", word] if is_limit else ["--wait", "--wait-limit", value]
            else:
                words.append(word)
        return super().parse_args(ctx, words)


def wait_option(function: Callable[..., R]) -> Callable[..., R]:
    """The options of waiting; the command gets `wait_s`: for how long at most, None: not at all."""

    @wraps(function)
    def wrapper(*arguments: Any, wait: bool, wait_limit: float, **keywords: Any) -> R:
        return function(*arguments, wait_s=wait_limit if wait else None, **keywords)

    text = "Return when it has come about, or has failed; `--wait 30`: after 30 seconds at the latest."
    first = click.option("--wait", is_flag=True, help=text)
    second = click.option(
        "--wait-limit", type=Seconds(min=0.1, max=86_400), default=DEFAULT_WAIT_S, show_default=True,
        metavar="SECONDS", help="Of --wait: for so long at most.",
    )  # fmt: skip
    return first(second(wrapper))


class Awaited:
    """Services that are to be registered after an operation."""

    def __init__(
        self, connection: Connection, names: Iterable[str], index: int, *, anew: bool = False, target: str = ""
    ) -> None:
        """`index`: of the operation's entry; `anew`: each must have been started after it; `target`: on that node."""
        self._connection, self._names, self._index = connection, tuple(names), index
        self._anew, self._target = anew, target

    def wait(self, wait_s: float) -> dict[str, Document]:
        """The services as they are once all are settled. Raises `ClientError` for one that fails, or is late."""
        deadline_s = time.monotonic() + wait_s
        seen: dict[str, Document] = {}
        while True:
            try:
                seen = self._services()
            except Unreachable:
                if time.monotonic() > deadline_s:
                    raise
            open_ = [name for name, each in seen.items() if not self._is_settled(each)]
            if seen and not open_:
                return self._where_it_should_be(seen)
            for name in open_:
                if self._has_failed(seen[name]):
                    raise self._failed(name, seen[name])
            if time.monotonic() > deadline_s:
                raise self._late(wait_s, open_, seen)
            time.sleep(_LOOK_S)

    def _where_it_should_be(self, seen: dict[str, Document]) -> dict[str, Document]:
        for name, each in seen.items():
            if self._target and each["node"] != self._target:
                what = f"{name} is {each['state']} on {each['node']}, not on {self._target}"
                raise ClientError(what, f"service {name}", f"see what has failed: muster service log {name}")
        return seen

    def _services(self) -> dict[str, Document]:
        answer = self._connection.query("services")
        if answer["index"] < self._index:
            return {}
        found = {}
        for name, each in answer["services"].items():
            if name not in self._names and name.rpartition("@")[0] not in self._names:
                continue
            if each["definition"].get("on_all") and "@" not in name:
                continue  # its instances tell
            found[name] = each
        return found

    def _is_settled(self, service: Document) -> bool:
        if not service["wanted"]:
            return bool(service["state"] == "de-registered")
        is_new = not self._anew or service["generation"] >= self._index
        return bool(service["state"] == "registered" and is_new and "T" not in service["flags"])

    def _has_failed(self, service: Document) -> bool:
        is_stuck = service["state"] in ("stopping", "de-registered") and bool(service["cause"])
        return is_stuck and not service["cause"].startswith("it waits")

    def _failed(self, name: str, service: Document) -> ClientError:
        state = f"{service['state']}{' on ' + service['node'] if service['node'] else ''}"
        return ClientError(f"{name} did not come up: {service['cause']}", f"service {name}, {state}", _next_of(name))

    def _late(self, wait_s: float, open_: list[str], seen: dict[str, Document]) -> ClientError:
        if not open_:
            what = f"no node has got to index {self._index} within {wait_s:g} s"
            return ClientError(what, "waiting for services", "see `muster status`")
        name = open_[0]
        about = seen[name]["cause"] or seen[name].get("held") or seen[name].get("down") or "no cause is known"
        more = f", and {len(open_) - 1} more" if len(open_) > 1 else ""
        what = f"{name} is {seen[name]['state']} after {wait_s:g} s{more}: {about}"
        return ClientError(what, "waiting for services", f"{_next_of(name)}; it goes on meanwhile")


def _next_of(name: str) -> str:
    return f"muster why {name}"


def settled_words(services: dict[str, Document]) -> list[str]:
    """Where each has come to, a line each."""
    return [
        f"{name} is {each['state']}{' on ' + each['node'] if each['node'] else ''}" for name, each in services.items()
    ]
