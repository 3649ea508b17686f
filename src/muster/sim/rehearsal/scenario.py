"""The scenario of a rehearsal: a TOML file into a cluster and a script, every problem named at once (SPEC 8.4, 7.8).

A scenario has a `title`; a table `[cluster]` with its `nodes`, and as one likes the `levels` of its subsystems, the
`work` of each for one barrier, and `barriers`; and tables `[[step]]`, each with the time `at` which it happens and what
to `do` then. `VERBS` lists what can be done. Services are tables `[[service]]`, as in a service file, with the key
`rehearsal` beside (`rehearsed_services.py`).
"""

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from muster.files.toml_lines import Place, Problem, document_of, key_lines, nearest_line
from muster.records.durations import duration_of
from muster.records.levels import Barriers
from muster.records.names import NAME, NAME_RULE, shown
from muster.sim.rehearsal.rehearsed_services import RehearsedService, read_services

MAXIMUM_FILE_BYTES = 1024 * 1024
MAXIMUM_NODES = 40
MAXIMUM_LEVELS = 32
MAXIMUM_LEVEL = 65_535
MAXIMUM_BARRIERS = 64  # as for programs
MAXIMUM_STEPS = 10_000
MAXIMUM_AT_MS = 60 * 60 * 1000
MAXIMUM_WORK_MS = 60 * 60 * 1000
DEFAULT_LEVELS = {"dlm": 10, "vdm": 20, "sfs": 30, "em": 40}  # SPEC 3.3
DEFAULT_WORK_MS = 10
SUFFIX = ".toml"

VERBS = {  # what each is followed by
    "boot": ("NODE",),
    "leave": ("NODE",),
    "kill": ("NODE",),
    "pause": ("NODE",),
    "resume": ("NODE",),
    "isolate": ("NODE",),
    "blind": ("NODE",),
    "heal": ("NODE",),
    "hang": ("NODE", "LEVEL"),
    "unhang": ("NODE", "LEVEL"),
    "stall": ("NODE", "PROCESS"),
    "wake": ("NODE",),
    "power-cycle": (),
    "copy-store": (),
    "replace-store": ("STORE",),
    "register": ("SERVICE",),
    "deregister": ("SERVICE",),
    "transfer": ("SERVICE", "NODE"),
    "fail": ("SERVICE", "NODE"),
}
PROCESSES = ("guard", "init", "runner", "writer")  # that can wait in the kernel, where no signal ends them
STORES = ("copy", "other", "nothing", "itself")  # what may come to lie at the store's path
_TYPES = ("joining", "leaving", "forced_leaving")  # of transitions


class RehearsedLevel(NamedTuple):
    """A subsystem that runs on every node: its place in the order, and how long it works for one barrier."""

    name: str
    number: int
    work_us: int
    barriers: Barriers


class ScriptStep(NamedTuple):
    """What the script does at one moment. Of `node`, `level`, `service` and `what` the verb has only some."""

    at_us: int
    verb: str
    node: str
    level: str
    line: int
    service: str = ""
    what: str = ""  # process or store

    def __str__(self) -> str:
        words = {"NODE": self.node, "LEVEL": self.level, "SERVICE": self.service}
        words |= {"PROCESS": self.what, "STORE": self.what}
        return " ".join((self.verb, *(words[what] for what in VERBS[self.verb])))


class Scenario(NamedTuple):
    """One rehearsal; `levels` in their order, `steps` in the order of their times."""

    title: str
    nodes: tuple[str, ...]
    levels: tuple[RehearsedLevel, ...]
    steps: tuple[ScriptStep, ...]
    services: tuple[RehearsedService, ...] = ()


class ScenarioError(ValueError):
    """The scenario cannot be used; `problems` is everything wrong with it, in the order of its lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line))
        super().__init__("\n".join(map(str, self.problems)))


def shipped() -> tuple[str, ...]:
    """The names of the scenarios that come with Muster."""
    names = (entry.name for entry in resources.files("muster.sim").joinpath("scenarios").iterdir())
    return tuple(sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)))


def find(name: str) -> Scenario:
    """The scenario shipped under this name, or else the one in the file of this name. Raises `ScenarioError`."""
    if name in shipped():
        file = resources.files("muster.sim").joinpath("scenarios", name + SUFFIX)
        return parse(file.read_text(encoding="utf-8"), name)
    return read(Path(name))


def read(path: Path) -> Scenario:
    """The scenario in a file. Raises `ScenarioError` with every problem, also for a file that cannot be read."""
    source = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_FILE_BYTES + 1)
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        what = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        known = ", ".join(shipped())
        problem = Problem(source, 0, "the scenario", what, f"name a readable file, or a shipped scenario: {known}")
        raise ScenarioError([problem]) from error
    if len(data) > MAXIMUM_FILE_BYTES:
        what = f"is larger than {MAXIMUM_FILE_BYTES // 1024} KiB"
        raise ScenarioError([Problem(source, 0, "the scenario", what, "rehearse it in parts")])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = Problem(source, line, "the scenario", "is not UTF-8 text", "save it as UTF-8, as TOML demands")
        raise ScenarioError([problem]) from error
    return parse(text, source)


def parse(text: str, source: str) -> Scenario:
    """As `read`, of a text; `source` is its name in problems. Raises `ScenarioError`."""
    document = document_of(text, source)
    if isinstance(document, Problem):
        raise ScenarioError([document])
    return _Reading(source, key_lines(text)).scenario(document)


class _Reading:
    """One reading of one scenario: collects problems."""

    def __init__(self, source: str, lines: dict[Place, int]) -> None:
        self._source, self._lines = source, lines
        self._problems: list[Problem] = []

    def scenario(self, document: dict[str, Any]) -> Scenario:
        """Everything in the file. Raises `ScenarioError`."""
        self._check_keys((), "the scenario", document, ("title", "cluster", "step", "service"))
        title = document.get("title", "")
        if not isinstance(title, str):
            self._add(("title",), "title", f"is {shown(title)}", 'a text, as title = "N0 fails"')
        cluster = document.get("cluster")
        if not isinstance(cluster, dict):
            self._add(("cluster",), "cluster", "is missing", 'add [cluster] with nodes = ["N0", "N1"]')
            cluster = {}
        self._check_keys(("cluster",), "cluster", cluster, ("nodes", "levels", "work", "barriers"))
        nodes = self._nodes(cluster)
        levels = self._levels(cluster)
        services, problems = read_services(document, self._lines, self._source, nodes)
        self._problems += problems
        tables = document.get("service", [])
        named = [table.get("name") for table in tables if isinstance(table, dict)] if isinstance(tables, list) else []
        known = {
            "NODE": nodes,
            "LEVEL": tuple(level.name for level in levels),
            "PROCESS": PROCESSES,
            "STORE": STORES,
            "SERVICE": tuple(name for name in named if isinstance(name, str)),
        }
        steps = self._steps(document, known)
        if self._problems:
            raise ScenarioError(self._problems)
        return Scenario(title, nodes, levels, steps, services)

    def _nodes(self, cluster: dict[str, Any]) -> tuple[str, ...]:
        example = 'a list of names, as nodes = ["N0", "N1"]'
        nodes = cluster.get("nodes")
        place = ("cluster", "nodes")
        if nodes is None:
            self._add(place, "cluster", "has no nodes", example)
            return ()
        if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
            self._add(place, "nodes", f"is {shown(nodes)}", example)
            return ()
        if not 1 <= len(nodes) <= MAXIMUM_NODES:
            self._add(place, "nodes", f"names {len(nodes)} nodes", f"1 to {MAXIMUM_NODES} can be rehearsed")
        for position, node in enumerate(nodes):
            if not NAME.fullmatch(node):
                self._add(place, "nodes", f"names {shown(node)}", f"a name has {NAME_RULE}")
            elif node in nodes[:position]:
                self._add(place, "nodes", f"names {node!r} twice", "name each node once")
        return tuple(nodes)

    def _levels(self, cluster: dict[str, Any]) -> tuple[RehearsedLevel, ...]:
        numbers = self._table(cluster, "levels", "levels = {dlm = 10, em = 40}", DEFAULT_LEVELS)
        if not numbers or len(numbers) > MAXIMUM_LEVELS:
            self._add(("cluster", "levels"), "levels", f"has {len(numbers)} levels", f"1 to {MAXIMUM_LEVELS}")
        known: dict[str, int] = {}
        for name, number in numbers.items():
            place: Place = ("cluster", "levels", name)
            if not NAME.fullmatch(name):
                self._add(place, "levels", f"names {shown(name)}", f"a name has {NAME_RULE}")
            elif not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= MAXIMUM_LEVEL:
                self._add(place, f"level {name!r}", f"is {shown(number)}", f"a whole number from 1 to {MAXIMUM_LEVEL}")
            elif number in known.values():
                other = next(other for other, taken in known.items() if taken == number)
                self._add(place, f"level {name!r}", f"is {number}, as is {other!r}", "give each a number of its own")
            known[name] = number
        work = self._work(cluster, known)
        barriers = self._barriers(cluster, known)
        found = (
            RehearsedLevel(name, number, work.get(name, DEFAULT_WORK_MS) * 1000, barriers.get(name, Barriers()))
            for name, number in known.items()
        )
        return tuple(sorted(found, key=lambda level: level.number)) if not self._problems else tuple(found)

    def _work(self, cluster: dict[str, Any], levels: Iterable[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, value in self._table(cluster, "work", 'work = {dlm = "50ms"}', {}).items():
            place: Place = ("cluster", "work", name)
            duration_ms = duration_of(value)
            if name not in levels:
                self._add(place, "work", f"names the unknown level {shown(name)}", _nearest(name, levels))
            elif duration_ms is None or duration_ms > MAXIMUM_WORK_MS:
                self._add(place, f"work of {name!r}", f"is {shown(value)}", 'a duration, as "50ms" or "2s", at most 1h')
            else:
                found[name] = duration_ms
        return found

    def _barriers(self, cluster: dict[str, Any], levels: Iterable[str]) -> dict[str, Barriers]:
        example = "barriers = {dlm = {joining = 2}}"
        found: dict[str, Barriers] = {}
        for name, table in self._table(cluster, "barriers", example, {}).items():
            place: Place = ("cluster", "barriers", name)
            if name not in levels:
                self._add(place, "barriers", f"names the unknown level {shown(name)}", _nearest(name, levels))
                continue
            if not isinstance(table, dict):
                self._add(place, f"barriers of {name!r}", f"is {shown(table)}", f"write {example}")
                continue
            counts: dict[str, int] = {}
            for key, count in table.items():
                kind = key.replace("-", "_")
                if kind not in _TYPES or kind in counts:
                    what = f"names the unknown transition {shown(key)}" if kind not in counts else f"has {kind} twice"
                    self._add((*place, key), f"barriers of {name!r}", what, _nearest(key, _TYPES))
                elif not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAXIMUM_BARRIERS:
                    what = f"has {shown(count)} for {key}"
                    self._add(
                        (*place, key), f"barriers of {name!r}", what, f"a whole number from 1 to {MAXIMUM_BARRIERS}"
                    )
                else:
                    counts[kind] = count
            found[name] = Barriers(**counts)
        return found

    def _steps(self, document: dict[str, Any], known: dict[str, tuple[str, ...]]) -> tuple[ScriptStep, ...]:
        tables = document.get("step", [])
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self._add(("step",), "step", "is no list of tables", "begin each step with a line [[step]]")
            return ()
        if not 1 <= len(tables) <= MAXIMUM_STEPS:
            what = f"has {len(tables) or 'no'} steps"
            self._add((), "the scenario", what, f"1 to {MAXIMUM_STEPS}, each beginning with a line [[step]]")
        found = [self._step(number, table, known) for number, table in enumerate(tables[:MAXIMUM_STEPS])]
        return tuple(sorted((step for step in found if step is not None), key=lambda step: step.at_us))

    def _step(self, number: int, table: dict[str, Any], known: dict[str, tuple[str, ...]]) -> ScriptStep | None:
        place: Place = ("step", number)
        subject = f"step {number + 1}"
        self._check_keys(place, subject, table, ("at", "do"))
        at_ms = duration_of(table.get("at"))
        if "at" not in table:
            self._add(place, subject, "does not say when", 'add at = "60s"')
        elif at_ms is None or at_ms > MAXIMUM_AT_MS:
            what = f"at is {shown(table['at'])}"
            self._add((*place, "at"), subject, what, 'a duration with its unit, as "500ms", "60s" or "2m", at most 1h')
        deed = table.get("do")
        if not isinstance(deed, str):
            what = "does not say what to do" if "do" not in table else f"do is {shown(deed)}"
            self._add((*place, "do"), subject, what, 'add do = "boot NODE"')
            return None
        words = deed.split()
        problem = _deed_problem(words, known)
        if problem is not None:
            self._add((*place, "do"), subject, *problem)
        if problem is not None or at_ms is None:
            return None
        line = self._lines.get((*place, "do"), 0)
        named = dict(zip(VERBS[words[0]], words[1:], strict=True))
        about = (named.get("NODE", ""), named.get("LEVEL", ""))
        what = named.get("PROCESS", "") or named.get("STORE", "")
        return ScriptStep(at_ms * 1000, words[0], *about, line, named.get("SERVICE", ""), what)

    def _table(self, cluster: dict[str, Any], key: str, example: str, default: dict[str, Any]) -> dict[str, Any]:
        table = cluster.get(key, default)
        if isinstance(table, dict):
            return table
        self._add(("cluster", key), key, f"is {shown(table)}", f"write {example}")
        return default

    def _check_keys(self, place: Place, subject: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
        for key in table:
            if key not in known:
                self._add((*place, key), subject, f"unknown key {shown(key)}", _nearest(key, known))

    def _add(self, place: Place, subject: str, what: str, allowed: str) -> None:
        line = nearest_line(self._lines, place)
        self._problems.append(Problem(self._source, line, subject, what, allowed))


def _deed_problem(words: list[str], known: dict[str, tuple[str, ...]]) -> tuple[str, str] | None:
    """What is wrong with the words of a deed, and what is allowed."""
    if not words:
        return "do is empty", 'write do = "boot NODE"'
    verb = words[0]
    if verb not in VERBS:
        return f"unknown verb {shown(verb)}", _nearest(verb, VERBS)
    usage = " ".join((verb, *VERBS[verb]))
    if len(words) != 1 + len(VERBS[verb]):
        return f"do is {shown(' '.join(words))}", f"write {usage}"
    for what, word in zip(VERBS[verb], words[1:], strict=True):
        if word not in known[what]:
            return f"unknown {what.lower()} {shown(word)}", _nearest(word, known[what])
    return None


def _nearest(word: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else "there are " + (", ".join(known) or "none")
