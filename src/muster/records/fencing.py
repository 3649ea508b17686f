"""Fence agents: devices, the methods of each node, what is asked of them and what became of it (SPEC 7.1, P7.22-P7.29).

No record holds a secret: a device names those of its parameters whose values each node keeps in a file of its home.
"""

import re
from enum import IntEnum

from msgspec import Struct

from muster.records.names import NAME, NAME_RULE, shown
from muster.records.numbers import Count, NodeNumber
from muster.records.terms import NO_NODE

Parameters = tuple[tuple[str, str], ...]

MAXIMUM_DEVICES = 64
MAXIMUM_METHODS = 8  # of one node
MAXIMUM_STEPS = 8  # devices of one method
MAXIMUM_PARAMETERS = 32
MAXIMUM_VALUE_CHARACTERS = 512
MAXIMUM_AGENT_CHARACTERS = 256
MAXIMUM_ANSWERS = 256
KEPT_OUTCOMES = 8  # of one node
KEPT_FENCINGS = 8  # that count for its quarantine
LEAST_TIMEOUT_MS, DEFAULT_TIMEOUT_MS, LONGEST_TIMEOUT_MS = 1000, 30_000, 600_000
ACTIONS = ("off", "reboot")  # of a method: it stays off, or it is turned on again once its death is recorded
SECRET_NAMES = re.compile(r"(?i).*(passw|secret|token|passphrase|community|priv_key|api_?key).*")
_PARAMETER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
RESERVED_PARAMETERS = ("action", "option")  # which action it is, Muster says
NO_SECRET = ("passwd_script", "password_script", "snmp_priv_passwd_script", "ssh_options")  # what only sounds like one


class FencePhase(IntEnum):
    """What is asked for."""

    IDLE = 0  # nothing
    OFF = 1
    ON = 2  # its death is recorded: it may boot again

    @property
    def word(self) -> str:
        """Which way it is to be turned, for people."""
        return self.name.lower()


class FenceOutcome(IntEnum):
    """What became of what was asked."""

    OFF = 1  # all devices of the method say that it is off
    ON = 2
    FAILED = 3
    NOT_NEEDED = 4  # its end was proven otherwise, or it has booted

    @property
    def words(self) -> str:
        """What has become of it, for people."""
        return {1: "off", 2: "on again", 3: "failed", 4: "not needed any more"}[int(self)]


class FenceDevice(Struct, frozen=True, array_like=True, tag="fence_device"):
    """A device that can cut the power of nodes, and the agent that speaks with it."""

    name: str
    agent: str  # a program of `fence-agents`, by its name, or the path of another one
    parameters: Parameters = ()  # what it is told beside the action; never a secret
    secrets: tuple[str, ...] = ()  # parameters whose values the file `fence/NAME` of each node's home holds
    askers: tuple[NodeNumber, ...] = ()  # the nodes that can reach it; none: all
    timeout_ms: Count = DEFAULT_TIMEOUT_MS  # of one call of its agent


class FenceStep(Struct, frozen=True, array_like=True):
    """One device of a method, and which of its outlets: parameters beside those of the device."""

    device: str
    parameters: Parameters = ()


class FenceMethod(Struct, frozen=True, array_like=True):
    """One way to end a node. All its devices must say that they are off."""

    name: str
    action: str  # one of ACTIONS
    steps: tuple[FenceStep, ...]


class FencePlan(Struct, frozen=True, array_like=True, tag="fence_plan"):
    """How one node is fenced: the first method first."""

    node: int
    methods: tuple[FenceMethod, ...]


class FencePast(Struct, frozen=True, array_like=True):
    """What became of one request."""

    number: Count
    incarnation: Count
    phase: FencePhase
    method: str
    asker: NodeNumber
    outcome: FenceOutcome
    detail: str
    entry: Count  # index of the entry that recorded it


class Fencing(Struct, frozen=True, array_like=True, tag="fencing"):
    """What is asked about one node, committed before any agent runs (P7.22), and what became of it."""

    node: int
    incarnation: Count = 0  # that is to end
    phase: FencePhase = FencePhase.IDLE
    number: Count = 0  # of the request: each has another one
    method: Count = 0  # which of the node's methods
    attempt: Count = 0  # requests of this phase before this one
    asker: NodeNumber = NO_NODE  # the member that is to call the agents; none while there is a pause
    asker_incarnation: Count = 0
    since: Count = 0  # index of the entry that made the request, or began the pause
    cause: str = ""
    quarantined: bool = False  # it was fenced too often: it stays off, and does not join (P7.27)
    past: tuple[FencePast, ...] = ()  # the newest last
    fenced: tuple[Count, ...] = ()  # indexes of the entries that began to fence an incarnation of it


class FenceAnswer(Struct, frozen=True, array_like=True):
    """What a member that was asked to fence says: of this request, and of no other."""

    node: NodeNumber
    incarnation: Count
    number: Count
    outcome: FenceOutcome
    detail: str


class SetFenceDevice(Struct, frozen=True, array_like=True, tag="set_fence_device"):
    """Define a fence device, or change it; `askers` by name."""

    name: str
    agent: str
    parameters: Parameters = ()
    secrets: tuple[str, ...] = ()
    askers: tuple[str, ...] = ()
    timeout_ms: Count = DEFAULT_TIMEOUT_MS


class RemoveFenceDevice(Struct, frozen=True, array_like=True, tag="remove_fence_device"):
    """Forget a fence device that no method uses."""

    name: str


class SetFenceMethods(Struct, frozen=True, array_like=True, tag="set_fence_methods"):
    """Say how a node is fenced; without methods, that it is not."""

    node: str
    methods: tuple[FenceMethod, ...]


class FenceNow(Struct, frozen=True, array_like=True, tag="fence_now"):
    """Fence a member now, whether or not it lives."""

    node: str
    cause: str = ""


class ReleaseNode(Struct, frozen=True, array_like=True, tag="release_node"):
    """End the quarantine of a node: it may join again, and is turned on again when it is fenced (P7.27)."""

    node: str


def device_problem(device: SetFenceDevice) -> str:
    """What is wrong with the definition of a device; empty where nothing is."""
    if not NAME.fullmatch(device.name):
        return f"a fence device cannot be called {shown(device.name)}: a name has {NAME_RULE}"
    if problem := _agent_problem(device.agent):
        return problem
    if problem := parameters_problem(device.parameters):
        return problem
    if len(device.secrets) > MAXIMUM_PARAMETERS or len(set(device.secrets)) < len(device.secrets):
        return f"each secret is named once, and there are at most {MAXIMUM_PARAMETERS}"
    for name in device.secrets:
        if not _PARAMETER.fullmatch(name) or name in RESERVED_PARAMETERS:
            return f"{shown(name)} cannot be the name of a parameter"
        if name in dict(device.parameters):
            return f"{name} is given as a parameter and as a secret: give it as a secret only"
    if not LEAST_TIMEOUT_MS <= device.timeout_ms <= LONGEST_TIMEOUT_MS:
        return f"a call may take {LEAST_TIMEOUT_MS // 1000} to {LONGEST_TIMEOUT_MS // 1000} s"
    return ""


def _agent_problem(agent: str) -> str:
    if not agent or len(agent) > MAXIMUM_AGENT_CHARACTERS or any(character.isspace() for character in agent):
        return f"{shown(agent)} is no agent: give the name of a program, as fence_ipmilan, or its path from the root"
    if "\0" in agent or ("/" in agent and not agent.startswith("/")):
        return f"{shown(agent)} is no agent: a path begins at the root"
    return ""


def parameters_problem(parameters: Parameters) -> str:
    """What is wrong with the parameters of a device or of a step; empty where nothing is."""
    if len(parameters) > MAXIMUM_PARAMETERS:
        return f"there are {len(parameters)} parameters, and {MAXIMUM_PARAMETERS} at most"
    if len(dict(parameters)) < len(parameters):
        return "a parameter is given twice"
    for name, value in parameters:
        if not _PARAMETER.fullmatch(name):
            return f"{shown(name)} cannot be the name of a parameter"
        if name in RESERVED_PARAMETERS:
            return f"{name} is said by Muster itself: leave it out"
        if SECRET_NAMES.fullmatch(name) and name not in NO_SECRET:
            return f"{name} is a secret, and parameters are readable by every node: name it as a secret instead"
        if len(value) > MAXIMUM_VALUE_CHARACTERS or any(character in value for character in "\n\r\0"):
            return f"the value of {name} is longer than {MAXIMUM_VALUE_CHARACTERS} characters, or not of one line"
    return ""


def methods_problem(methods: tuple[FenceMethod, ...]) -> str:
    """What is wrong with the methods of a node, as far as they say themselves; empty where nothing is."""
    if len(methods) > MAXIMUM_METHODS:
        return f"there are {len(methods)} methods, and {MAXIMUM_METHODS} at most"
    names = [method.name for method in methods]
    if len(set(names)) < len(names):
        return "two methods have the same name"
    for method in methods:
        if not NAME.fullmatch(method.name):
            return f"a method cannot be called {shown(method.name)}: a name has {NAME_RULE}"
        if method.action not in ACTIONS:
            return f"method {method.name}: its action is {' or '.join(ACTIONS)}, not {shown(method.action)}"
        if not 0 < len(method.steps) <= MAXIMUM_STEPS:
            return f"method {method.name} has {len(method.steps)} devices: give it 1 to {MAXIMUM_STEPS}"
        for step in method.steps:
            if problem := parameters_problem(step.parameters):
                return f"method {method.name}, device {step.device}: {problem}"
    return ""
