"""What nodes, services, variables and addresses may be called, and how a message shows a value (SPEC 7.8)."""

import re

from muster.records.addresses import NoAddress, address_of

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}")
NAME_RULE = "1 to 64 characters of a-z, A-Z, 0-9, dot, underscore and hyphen, a letter or digit first"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
RESERVED = "MUSTER_"  # the beginning of the variables that Muster itself gives to every command
MAXIMUM_LINKS = 8  # addresses of one node
RESERVED_NAMES = frozenset({"authority"})  # of nodes: the folder of the authority's keys has that name
_SHOWN_CHARACTERS = 60


def shown(value: object) -> str:
    """A value for a message, in short."""
    try:
        text = str(value).lower() if isinstance(value, bool) else repr(value)
    except ValueError:  # Python does not write out a number of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 3] + "..."


def node_name_problem(name: str) -> str:
    """What is wrong with a node's name; empty where nothing is."""
    if not NAME.fullmatch(name):
        return f"a node cannot be called {shown(name)}: a name has {NAME_RULE}"
    if name in RESERVED_NAMES:
        return f"a node cannot be called {name!r}: the authority's keys have that name"
    return ""


def address_problem(text: str) -> str:
    """What is wrong with an address of the interconnect; empty where nothing is."""
    try:
        address_of(text)
    except NoAddress as error:
        return f"{shown(text)} is no address: {error}"
    return ""


def addresses_problem(addresses: tuple[str, ...]) -> str:
    """What is wrong with the addresses of one node; empty where nothing is."""
    if not 0 < len(addresses) <= MAXIMUM_LINKS:
        return f"it has {len(addresses)} addresses: give it 1 to {MAXIMUM_LINKS}"
    if problem := next(filter(None, map(address_problem, addresses)), ""):
        return problem
    if len(set(map(address_of, addresses))) < len(addresses):
        return "an address is given twice: name each once"
    return ""
