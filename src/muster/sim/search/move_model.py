"""Every step that a few nodes can take while their cluster moves to another store (P11.9-P11.14).

Theory of operation. The nodes of the model decide by the functions of `core/moving.py`; what this file adds is two
stores, processes and a scheduler.

* Claims, journals and adoption are those of section 2 of docs/PROTOCOL.md in few steps, by anybody at any time, as if
  every node always counted as out: a claim, the load of the newest journal, the mark, the read that follows; a frame,
  the read that follows. What they owe each other is searched in `mastership_model.py`, and taken for given here.
* Between any two steps anybody else may act, so a pause of any length is covered. A crash is possible between any two;
  so is, once, the loss of the old disk or of the new one, for all nodes and for good.
* A copy of the header that is being written shows the old or the new contents to each reader anew, and goes on so after
  a crash of its writer.
* A guard that runs beats in each store that `renewed_in` names, without a gap; a node whose process is down does not.
  So a lease is judged wrongly if somebody may go by a store in which a running member does not beat.
* The new store is made, with an id of its own, before the move is asked for; each attempt makes another.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from muster.core import moving
from muster.core.moving import Place, Sign, Stage, Start, Step

Entry = tuple[object, int]  # a step and the number of its move; or a word and a number
Log = tuple[Entry, ...]
_CLEAR, _WRITING, _WRITTEN = 0, 1, 2  # one copy of "moved to" in the old header


class MoveBounds(NamedTuple):
    """How much of each thing one run may contain."""

    claims: int = 2
    frames: int = 1  # other entries in the old store
    moves: int = 1
    crashes: int = 1
    boots: int = 1
    old_lost: int = 0
    new_lost: int = 0
    states: int = 5_000_000


class Node(NamedTuple):
    """One machine: its process, its lease, what it has seen and what it is about to do."""

    is_up: bool = True
    life: int = 1  # incarnation
    is_proven: bool = False  # the life before this one, or this one if it is down, has ended, and a proof says so
    sign: Sign = Sign.NONE  # the most that it has seen; its home keeps it once it is complete
    heard: int = 0  # so many of the decided entries of the old store
    beats_new: int = 0  # for which move it beats in the new store; 0: for none
    phase: str = "idle"
    term: int = 0
    log: Log = ()
    copied: int = -1  # how many entries the copy holds that it made in this term


class Store(NamedTuple):
    """One store: the claims, and the journals that marks name."""

    claims: tuple[int, ...]
    marks: tuple[tuple[int, Log], ...]  # of each node: term and journal
    decided: Log = ()
    number: int = 0  # of the move that it was made for
    is_lost: bool = False
    is_in_force: bool = False  # the new store: somebody has adopted there

    def newest(self) -> tuple[int, Log]:
        """The journal with the newest mark."""
        return max(self.marks, key=lambda mark: mark[0])


class State(NamedTuple):
    """Nodes, stores, the two copies of the old header, and what is left of each bound."""

    nodes: tuple[Node, ...]
    old: Store
    new: Store
    header: tuple[int, int]
    left: tuple[int, ...]  # of each bound but the last


class MoveViolated(Exception):
    """A property does not hold after the step in question."""


_CLAIM, _FRAME, _MOVE, _CRASH, _BOOT, _OLD_LOST, _NEW_LOST = range(7)


class MoveModel:
    """The steps of `count` nodes within `bounds`. `reached` says what some run has met."""

    def __init__(self, count: int, bounds: MoveBounds) -> None:
        blank = Store((0,) * count, ((0, ()),) * count)
        self.count, self.reached = count, set[str]()
        self.start = State((Node(),) * count, blank, blank, (_CLEAR, _CLEAR), bounds[:-1])

    def successors(self, state: State) -> Iterator[tuple[str, State]]:
        """Each step from `state`: its words, and where it leads. Raises `MoveViolated`."""
        yield from self._surroundings(state)
        for number, node in enumerate(state.nodes):
            if not node.is_up:
                yield from self._boot(state, number, node)
                continue
            if state.left[_CRASH]:
                yield f"n{number} crashes", _spent(_with(state, number, _down(node)), _CRASH)
            yield from self._look(state, number, node)
            yield from self._listen(state, number, node)
            place = moving.acts_in(node.sign)
            if node.phase.startswith("sign"):
                yield from self._write_sign(state, number, node)
            elif place is not None and not _store(state, place).is_lost:
                yield from self._lead(state, number, node, place)

    # ---- what happens to the cluster

    def _surroundings(self, state: State) -> Iterator[tuple[str, State]]:
        if state.left[_MOVE] and state.new.number == _asked(state.old.decided) and not state.new.is_lost:
            blank = Store((0,) * self.count, ((0, ()),) * self.count, number=state.new.number + 1)
            if moving.stage(_steps(state.old.decided)) is Stage.NONE:
                yield "the new store is made", _spent(state._replace(new=blank), _MOVE)
        if state.left[_OLD_LOST]:
            nodes = tuple(_stopped_by_loss(node, Place.OLD) for node in state.nodes)
            yield (
                "the old disk is lost",
                _spent(state._replace(nodes=nodes, old=state.old._replace(is_lost=True)), _OLD_LOST),
            )
        if state.left[_NEW_LOST] and state.new.number:
            nodes = tuple(_stopped_by_loss(node, Place.NEW) for node in state.nodes)
            yield (
                "the new disk is lost",
                _spent(state._replace(nodes=nodes, new=state.new._replace(is_lost=True)), _NEW_LOST),
            )
        for number, node in enumerate(state.nodes):
            if not node.is_up and not node.is_proven:
                yield f"n{number} is proven dead", _with(state, number, node._replace(is_proven=True))

    def _boot(self, state: State, number: int, node: Node) -> Iterator[tuple[str, State]]:
        """By the path in its home, or by the one that the operator gives."""
        if not state.left[_BOOT]:
            return
        fresh = Node(life=node.life + 1, is_proven=True)
        for sign in _shown(state):
            is_there = state.new.number > 0 and not state.new.is_lost
            if is_there and moving.start_on_new(state.new.is_in_force, sign) is Start.HERE:
                self.reached.add("booted on the new store")
                after = _with(state, number, fresh._replace(sign=Sign.BOTH))
                yield f"n{number} boots on the new store", _spent(after, _BOOT)
            if sign is None or node.sign is Sign.BOTH:
                continue  # no old store is there; or its home names the new one
            found = None if state.new.is_lost else bytes([state.new.number])
            start = moving.start_on_old(sign, bytes([_asked(state.old.decided)]), found)
            if start is Start.HERE and sign is not Sign.NONE:
                raise MoveViolated(f"n{number} boots on the old store, which says that it has moved")
            if start is Start.FOLLOW and state.new.is_lost:
                raise MoveViolated(f"n{number} follows to what is not the new store")
            if start is Start.HERE:
                yield f"n{number} boots on the old store", _spent(_with(state, number, fresh), _BOOT)
            elif start is Start.FOLLOW:
                self.reached.add("followed")
                phase = "idle" if sign is Sign.BOTH else "sign a"
                after = _with(state, number, fresh._replace(sign=sign, phase=phase))
                yield f"n{number} boots on the old store and follows", _spent(after, _BOOT)
            else:
                self.reached.add("refused")

    # ---- what every node does

    def _look(self, state: State, number: int, node: Node) -> Iterator[tuple[str, State]]:
        """A read of the old header."""
        for sign in _shown(state):
            if sign is not None and sign > node.sign:
                if sign is Sign.ONE:
                    self.reached.add("rolled forward")
                yield f"n{number} sees the sign ({sign.name})", _with(state, number, _signed(node, sign))

    def _listen(self, state: State, number: int, node: Node) -> Iterator[tuple[str, State]]:
        """Hear of all that is decided; begin to beat in the new store."""
        decided = state.old.decided
        if node.sign is Sign.BOTH:
            return
        if node.heard < len(decided):
            is_over = Step.GIVEN_UP in _steps(decided[node.heard :])
            after = node._replace(heard=len(decided), beats_new=0 if is_over else node.beats_new)
            yield f"n{number} hears {_said(decided[-1])}", _with(state, number, after)
        heard = decided[: node.heard]
        if (
            moving.stage(_steps(heard)) is Stage.BEGUN
            and not node.beats_new
            and not state.new.is_lost
            and state.new.number == _asked(heard)
            and _lives(self.count, heard).get(number) == node.life
        ):
            yield f"n{number} beats in both stores", _with(state, number, node._replace(beats_new=state.new.number))

    def _write_sign(self, state: State, number: int, node: Node) -> Iterator[tuple[str, State]]:
        """Copy A, then copy B, whatever is there."""
        if state.old.is_lost:
            return
        a, b = state.header
        words = f"n{number} {node.phase}"
        if node.phase == "sign a":
            after = state._replace(header=(max(a, _WRITING), b))
            yield f"{words} begins", _with(after, number, node._replace(phase="sign a ends"))
        elif node.phase == "sign a ends":
            yield words, _with(state._replace(header=(_WRITTEN, b)), number, node._replace(phase="sign b"))
        elif node.phase == "sign b":
            after = state._replace(header=(a, max(b, _WRITING)))
            yield f"{words} begins", _with(after, number, node._replace(phase="sign b ends"))
        else:
            after = state._replace(header=(a, _WRITTEN))
            self.reached.add("moved")
            yield words, _with(after, number, _signed(node, Sign.BOTH))

    # ---- a claimer and master, in either store

    def _lead(self, state: State, number: int, node: Node, place: Place) -> Iterator[tuple[str, State]]:
        store = _store(state, place)
        words = f"n{number} in the {place.value} store"
        if node.phase == "idle":
            if state.left[_CLAIM] and (place is Place.OLD or state.new.number):
                known = max(*store.claims, *(mark[0] for mark in store.marks), state.old.claims[number])
                term = (known // self.count + 1) * self.count + number
                claims = (*store.claims[:number], term, *store.claims[number + 1 :])
                after = _put(state, place, store._replace(claims=claims))
                yield (
                    f"{words} claims {term}",
                    _spent(_with(after, number, node._replace(phase="load", term=term)), _CLAIM),
                )
        elif node.phase == "load":
            _, log = store.newest()
            if place is Place.NEW and not store.is_in_force:
                log = (*log, (Step.CLOSED, store.number))
            yield f"{words} loads", _with(state, number, node._replace(phase="mark", log=log))
        elif node.phase == "mark":
            after = self._marked(state, place, number, node.term, node.log)
            yield f"{words} marks", _with(after, number, node._replace(phase="check"))
        elif node.phase == "check":
            yield from self._check(state, number, node, place, words)
        elif place is Place.OLD:
            yield from self._work(state, number, node, words)
        elif state.left[_FRAME]:
            yield from self._propose(state, number, node, place, ("y", 0), words)

    def _marked(self, state: State, place: Place, number: int, term: int, log: Log) -> State:
        store = _store(state, place)
        marks = (*store.marks[:number], (term, log), *store.marks[number + 1 :])
        return _put(state, place, store._replace(marks=marks, is_in_force=store.is_in_force or place is Place.NEW))

    def _check(self, state: State, number: int, node: Node, place: Place, words: str) -> Iterator[tuple[str, State]]:
        """The read after a mark or a frame: no higher claim, and it is decided (P2.6)."""
        store = _store(state, place)
        if max(store.claims) > node.term:
            yield f"{words} gives way", _with(state, number, _idle(node))
            return
        if node.log[: len(store.decided)] != store.decided:
            raise MoveViolated(f"what was decided in the {place.value} store is lost")
        if place is Place.OLD:
            self._judge_decision(state, node.log)
        after = _put(state, place, store._replace(decided=node.log))
        self.reached.add(f"decided in the {place.value} store")
        for step, _ in node.log[len(store.decided) :]:
            if isinstance(step, Step):
                self.reached.add(step.value)
        yield (
            f"{words} has decided {_said(node.log[-1]) if node.log else 'nothing'}",
            _with(after, number, node._replace(phase="lead")),
        )

    def _propose(
        self, state: State, number: int, node: Node, place: Place, entry: Entry, words: str
    ) -> Iterator[tuple[str, State]]:
        log = (*node.log, entry)
        store = _store(state, place)
        marks = (*store.marks[:number], (node.term, log), *store.marks[number + 1 :])
        after = _with(_put(state, place, store._replace(marks=marks)), number, node._replace(phase="check", log=log))
        yield f"{words} writes {_said(entry)}", _spent(after, _FRAME) if isinstance(entry[0], str) else after

    def _work(self, state: State, number: int, node: Node, words: str) -> Iterator[tuple[str, State]]:
        """What a master of the old store may do next."""
        reached, new = moving.stage(_steps(node.log)), state.new
        move = _asked(node.log)
        if moving.decides(reached):
            if state.left[_FRAME]:
                yield from self._propose(state, number, node, Place.OLD, ("x", 0), words)
            for joiner, other in enumerate(state.nodes):
                is_new = other.is_up and other.life != _lives(self.count, node.log).get(joiner)
                if is_new and moving.acts_in(other.sign) is Place.OLD:
                    entry = (f"join of n{joiner}", other.life)
                    yield from self._join(state, number, node, entry, words)
        if reached is Stage.NONE and new.number > move and not moving.refusal(self._standings(state, node.log)):
            yield from self._propose(state, number, node, Place.OLD, (Step.BEGUN, new.number), words)
        if moving.may_give_up(reached):
            yield from self._propose(state, number, node, Place.OLD, (Step.GIVEN_UP, move), words)
        if reached is Stage.BEGUN and new.number == move and not new.is_lost and node.copied != len(node.log):
            marks = (*new.marks[:number], (node.term, node.log), *new.marks[number + 1 :])
            after = state._replace(new=new._replace(marks=marks))
            yield f"{words} copies", _with(after, number, node._replace(copied=len(node.log)))
        if self._may_close(state, reached, node, move):
            yield from self._propose(state, number, node, Place.OLD, (Step.CLOSED, move), words)
        if moving.may_sign(reached):
            yield f"{words} finds it closed", _with(state, number, node._replace(phase="sign a", log=(), term=0))

    def _join(self, state: State, number: int, node: Node, entry: Entry, words: str) -> Iterator[tuple[str, State]]:
        for said, after in self._propose(state, number, node, Place.OLD, entry, words):
            yield said, after._replace(left=state.left)

    def _may_close(self, state: State, reached: Stage, node: Node, move: int) -> bool:
        if state.new.is_lost or state.new.number != move:
            return False
        members = _lives(self.count, node.log)
        beats = {i: other.life for i, other in enumerate(state.nodes) if other.is_up and other.beats_new == move}
        proven = frozenset(i for i, life in members.items() if _is_proven(state.nodes[i], life))
        return moving.may_close(reached, len(node.log), node.copied, members, beats, proven)

    def _standings(self, state: State, log: Log) -> list[moving.Standing]:
        members = _lives(self.count, log)
        return [
            moving.Standing(f"n{i}", members[i] == node.life, node.is_up, _is_proven(node, members[i]))
            for i, node in enumerate(state.nodes)
        ]

    # ---- what must hold

    def judge(self, state: State) -> None:
        """Raise `MoveViolated` where a state breaks a property that is not that of one step."""
        old, new = state.old, state.new
        if new.decided and new.decided[: len(old.decided)] != old.decided:
            raise MoveViolated("the old store has decided what the new one lacks")
        if new.decided and moving.Step.CLOSED not in _steps(old.decided):
            raise MoveViolated("the new store decides, and the old one has not been closed")
        if state.header != (_CLEAR, _CLEAR) and moving.Step.CLOSED not in _steps(old.decided):
            raise MoveViolated("the sign is written, and the old store is not closed")
        self._judge_places(state)
        self._judge_masters(state)
        lives = _lives(self.count, old.decided)
        for number, node in enumerate(state.nodes):
            if node.is_up and lives.get(number) == node.life:
                self._judge_lease(state, number, node)

    def _judge_decision(self, state: State, log: Log) -> None:
        """That a history of the old store ends with its closing, and that the newest copy is whole by then (P11.10)."""
        ends = [number for number, (step, _) in enumerate(log) if step is Step.CLOSED]
        if ends and ends[0] != len(log) - 1:
            raise MoveViolated("the old store decides after it has been closed")
        if ends and not state.new.is_in_force and not state.new.is_lost and state.new.newest()[1] != log[:-1]:
            raise MoveViolated("the old store is closed, and the copy is not whole")

    def _judge_places(self, state: State) -> None:
        for number, node in enumerate(state.nodes):
            is_known = state.header[1] == _WRITTEN or state.new.is_in_force or self._may_show_both(state)
            if node.is_up and moving.acts_in(node.sign) is Place.NEW and not is_known:
                raise MoveViolated(f"n{number} acts in the new store, and the sign is not complete")

    @staticmethod
    def _may_show_both(state: State) -> bool:
        """Copy A is durable, and some reader may have seen the new copy B already."""
        return state.header == (_WRITTEN, _WRITING)

    def _judge_masters(self, state: State) -> None:
        able = set()
        for number, node in enumerate(state.nodes):
            place = moving.acts_in(node.sign)
            if node.is_up and node.phase in ("lead", "check") and place is not None:
                is_highest = max(_store(state, place).claims) == node.term
                if is_highest and (place is Place.NEW or moving.Step.CLOSED not in _steps(node.log)):
                    able.add((place, number))
        if len({place for place, _ in able}) == len(Place):
            raise MoveViolated("there is a master who can decide in each store")

    def _judge_lease(self, state: State, number: int, node: Node) -> None:
        beats = moving.renewed_in(bool(node.beats_new), node.sign)
        for other, observer in enumerate(state.nodes):
            if other == number or not observer.is_up:
                continue
            for shown in _shown(state):  # by the very read that would judge
                place = moving.acts_in(max(observer.sign, shown or Sign.NONE))
                if place is not None and place not in beats and not _store(state, place).is_lost:
                    raise MoveViolated(
                        f"n{other} judges n{number} by the {place.value} store, in which it does not beat"
                    )


# ---- small helpers


def _steps(log: Log) -> list[Step]:
    return [step for step, _ in log if isinstance(step, Step)]


def _asked(log: Log) -> int:
    """The number of the newest move that a history speaks of."""
    return max((number for step, number in log if isinstance(step, Step)), default=0)


def _lives(count: int, log: Log) -> dict[int, int]:
    """The incarnation in which each node is a member."""
    lives = dict.fromkeys(range(count), 1)
    for step, number in log:
        if isinstance(step, str) and step.startswith("join"):
            lives[int(step[-1])] = number
    return lives


def _is_proven(node: Node, life: int) -> bool:
    return node.life > life or (not node.is_up and node.is_proven)


def _said(entry: Entry) -> str:
    return entry[0].value if isinstance(entry[0], Step) else str(entry[0])


def _shown(state: State) -> Sequence[Sign | None]:
    """What a look at the old header may show now."""
    if state.old.is_lost:
        return [None]
    a, b = ({_CLEAR: (False,), _WRITING: (False, True), _WRITTEN: (True,)}[copy] for copy in state.header)
    return sorted({moving.sign_of(shows_a, shows_b) for shows_a in a for shows_b in b})


def _store(state: State, place: Place) -> Store:
    return state.old if place is Place.OLD else state.new


def _put(state: State, place: Place, store: Store) -> State:
    return state._replace(old=store) if place is Place.OLD else state._replace(new=store)


def _with(state: State, number: int, node: Node) -> State:
    return state._replace(nodes=(*state.nodes[:number], node, *state.nodes[number + 1 :]))


def _spent(state: State, what: int) -> State:
    return state._replace(left=(*state.left[:what], state.left[what] - 1, *state.left[what + 1 :]))


def _idle(node: Node) -> Node:
    return node._replace(phase="idle", term=0, log=(), copied=-1)


def _signed(node: Node, sign: Sign) -> Node:
    """A node that has seen the sign leads no more; if it saw one copy, it writes both."""
    beats = 0 if sign is Sign.BOTH else node.beats_new
    return _idle(node)._replace(sign=sign, phase="idle" if sign is Sign.BOTH else "sign a", beats_new=beats)


def _down(node: Node) -> Node:
    kept = node.sign if node.sign is Sign.BOTH else Sign.NONE  # what its home holds
    return Node(is_up=False, life=node.life, sign=kept)


def _stopped_by_loss(node: Node, place: Place) -> Node:
    """A node none of whose renewals counts any more; where it is the new disk, giving up may come in time."""
    beats = moving.renewed_in(bool(node.beats_new), node.sign)
    is_ended = place in beats and (place is Place.OLD or beats == {Place.NEW})
    return _down(node) if node.is_up and is_ended else node
