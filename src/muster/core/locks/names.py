"""Lockspaces, names of resources, buckets, and the bounds of all that a client can make grow (P12.1, P12.10)."""

import re
from typing import NamedTuple
from zlib import crc32

BUCKETS = 256
MAXIMUM_NAME = 255  # bytes
MAXIMUM_DEPTH = 16  # parts of a name
MAXIMUM_VALUE = 64  # bytes of a value block
MAXIMUM_SPACES = 65  # 64 of the configuration, and Muster's own
SPACE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,31}")
SPACE_RULE = "1 to 32 characters of a-z, A-Z, 0-9, dot, underscore and hyphen, a letter or digit first"
PART = re.compile(r"[^\x00-\x1f\x7f/]+")


class Bounds(NamedTuple):
    """How much one node keeps for its clients."""

    locks_of_client: int = 200_000
    locks: int = 500_000
    held_back: int = 100_000  # operations that wait for the end of a recovery
    idle: int = 4_096  # resources without a lock whose mastership is kept
    piece: int = 64  # resources that are looked at, told, built or thawed in one piece of a round's work


def space_problem(space: str) -> str:
    """What is wrong with the name of a lockspace; empty where nothing is."""
    return "" if SPACE.fullmatch(space) else f"a lockspace cannot be called {space[:60]!r}: a name has {SPACE_RULE}"


def name_problem(name: str) -> str:
    """What is wrong with the name of a resource; empty where nothing is."""
    if not name:
        return "the name of the resource is empty"
    if len(name) > MAXIMUM_NAME or len(name.encode(errors="replace")) > MAXIMUM_NAME:
        return f"the name of a resource has at most {MAXIMUM_NAME} bytes"
    parts = name.split("/")
    if len(parts) > MAXIMUM_DEPTH:
        return f"the name of a resource has at most {MAXIMUM_DEPTH} parts"
    if not all(map(PART.fullmatch, parts)):
        return "the parts of a resource's name, between slashes, are not empty and hold no control characters"
    return ""


def key_of(space: str, name: str) -> str:
    """What names a resource in the cluster: no lockspace has a colon in its name."""
    return f"{space}:{name}"


def bucket_of(key: str) -> int:
    """The bucket of the directory in which a resource is; the same on every machine and release."""
    return crc32(key.encode()) % BUCKETS
