"""Every step that a few nodes with the real mastership machine can take on one store (SPEC 2.6, 2.3, 1.5).

Theory of operation. The model's nodes run the functions of `core/mastership/machine.py`; what this file adds is the
store, the processes and the scheduler, each as hostile as its contract allows (`drivers/store/engine.py`):

* One register or journal read, and the completion of one write, is one step; any other node may act between two steps.
  Pauses of any length are therefore covered. A read of all claims takes one step a register, in order of node id.
* A register has two copies. While it is being written each reader sees the old or the new record, whatever another
  reader saw; a reader may also find the register unknown. A crash leaves the write under way: it may be seen or not
  for as long as its writer is down, and the next boot of that writer settles it either way.
* A half into which a checkpoint is being written is the old journal or unreadable; a crash may leave the old one, an
  unreadable one or the new one. A frame under way is there for a reader or is not. If `truncates`, the engine is
  worse than its contract: a half that is partly overwritten may also pass for its old journal with fewer frames.
* Between any two steps a process may crash, a crashed one restart (as the same incarnation after a crash of the daemon,
  as a new one after a crash of the node), a claimer or master withdraw, a master propose a frame, compact or abdicate.

Modes. With *silence* a node counts as out once its incarnation has ended or its guard hangs, so that its lease runs
out: its daemon may go on, notice it at once, later, or never; at any step the guard may wake, and stops the node. In
the mode *always out* every node always counts as out: what merely waits for the end of a lease is a slower run of the
same steps, so this one predicate covers every claim without proof, right or wrong, at any time. A guard that hangs may
also beat again while its node lives on, for a mastership's lease is shorter than the node's: then a process that was at
work has *lapsed* by its own clock. It acts as master no more until a read of all claims that began afterwards has shown
it that its own lease advances and nobody is above it; a master that waits for no read withdraws (P2.15).

In the mode *clone* a second process runs under the name of node 0, on the same register and journal, and every node
counts as out. The engine's comparison with the last own write is made in the same step as the write (`ForeignWrite`);
what a clone can do that is stopped between the two, only the lease prevents.

What is checked is in docs/PROTOCOL.md, section "Mastership and the commit rule". A node's step changes only its own
slot (register, journal, processes), so slots are interned and a state is one number: the ids of the slots, of the
decided history, and the budgets that are left.

Four kinds of steps are left out because each is equal to another order of steps that is explored:
(a) a process's read of its own register (except beside a clone): only it writes it, and nothing is in flight;
(b) the moment between a decision and the beginning of the write it leads to: a write under way may be seen as not begun
    for any length of time; likewise the moment between durable and known to be durable;
(c) a read of all claims that decides nothing (`again`, an unknown register, no proof yet): the machine is where it was;
(d) `sequence` numbers: they are compared for equality only, and are kept as 0 (durable) and 1 (under way), after it was
    checked that each write counts up by one. Fields of an idle machine that the next claim overwrites are cleared.
"""

from collections.abc import Hashable, Iterator
from enum import Enum
from typing import NamedTuple

from muster.core.mastership import machine as mastership
from muster.core.mastership.machine import Action, Mastership, Phase
from muster.records.registers import NO_MARK, Claim, ClaimFlag, Mark, Strip
from muster.records.terms import NO_TERM, Stamp, Term
from muster.sim.search.too_large import SearchTooLarge


class Mode(Enum):
    """When a node counts as out, and whether a clone of node 0 runs."""

    SILENCE = "silence"
    ALWAYS_OUT = "always-out"
    CLONE = "clone"


class Bounds(NamedTuple):
    """How much of each thing one run may contain, over all nodes; at most 15 each."""

    claims: int = 3
    frames: int = 2
    crashes: int = 1
    compactions: int = 1
    withdrawals: int = 1  # without need: abdications, failed loads and checkpoints, claims given up
    stale_claims: int = 1  # by a read of the claims that is as old as the store
    hangs: int = 0  # guards that hang, so that leases run out; each may wake later and stop its node, or beat again
    states: int = 100_000_000  # the search gives up beyond this many


class _Half(NamedTuple):
    mark: Mark
    checkpoint: bytes
    frames: tuple[bytes, ...]


class _Process(NamedTuple):
    """One life of a node's daemon. When `machine` is None it is down, and `awaits` is the write that it left."""

    machine: Mastership | None
    awaits: Action | None
    seen: tuple[Claim | None, ...]  # registers read so far, in order of node id
    known: Claim  # own register as this process last wrote or found it
    database: bytes  # what it has adopted and decided since: each frame ends with `;`
    lapsed: int = 0  # _FRESH_READ: acts only after a read that begins from now on; _NEXT_READ: after the one under way


class _Slot(NamedTuple):
    """All that belongs to one node: its register and journal in the store, and who writes them."""

    node: int
    register: Claim
    halves: tuple[_Half | None, _Half | None]
    processes: tuple[_Process, ...]
    incarnation: int
    gone: bool  # the incarnation has ended; else a process that is down may be restarted as the same one
    guard: int = 0  # it beats, _HANGS, or _FROZEN: it hangs, and nothing of its node ever takes a step


_BEATS, _HANGS, _FROZEN = 0, 1, 2
_FRESH_READ, _NEXT_READ = 1, 2


class _Move(NamedTuple):
    """One step of a node: its slot afterwards, what it costs, what it tells the world."""

    slot: int  # id; NO_SLOT for a violation
    cost: int
    mask: int  # of the budget that must not be empty; 0 is free
    commit: int  # id of (term, database) told, or 0
    words: str


class Violated(Exception):
    """A property does not hold; `state` is where the offending step starts from."""

    def __init__(self, state: int, problem: str, words: str) -> None:
        super().__init__(problem)
        self.state, self.problem, self.words = state, problem, words


# A state is an integer: budgets, then the decided history, then the slots.
_FIELD_BITS = 4
_FREE, _CLAIM, _FRAME, _CRASH, _COMPACTION, _WITHDRAWAL, _STALE_CLAIM, _HANG, _REBOOT = -1, 0, 1, 2, 3, 4, 5, 6, 7
_BUDGET_BITS = 32
_BUDGET_MASK = (1 << _BUDGET_BITS) - 1
_SLOT_BITS = _HISTORY_BITS = 24
_SLOT_MASK = _HISTORY_MASK = (1 << _SLOT_BITS) - 1
_NO_SLOT = -1


class _Interner(dict[Hashable, int]):
    """Numbers for values, in order of first appearance."""

    def number(self, value: Hashable) -> tuple[int, bool]:
        """The number of `value`, and whether it is new. Raises `SearchTooLarge`."""
        count = len(self)
        number = self.setdefault(value, count)
        if number >> _SLOT_BITS:
            raise SearchTooLarge(f"more than {count} distinct parts of a state: lower the bounds of the search")
        return number, number == count


class MastershipModel:
    """The nodes, their store, and every step that can be taken."""

    def __init__(self, nodes: int, bounds: Bounds, mode: Mode, *, truncates: bool = True) -> None:
        self.nodes = nodes
        self.mode = mode
        self._truncates = truncates
        self.shifts = [_BUDGET_BITS + _HISTORY_BITS + node * _SLOT_BITS for node in range(nodes)]
        self.slots: list[_Slot] = []
        self.reached: set[str] = set()
        self._slot_numbers = _Interner()
        self._views = _Interner()
        self._register_views: list[int] = []  # by slot: what others can see of the register, as a number
        self._journal_views: list[int] = []
        self._lives: list[int] = []
        self._masters: list[bool] = []  # by slot: whether a process of it acts as master while its lease advances
        self._terms: list[Term] = []  # by slot: the highest that a reader may find in its register
        self._frozen: dict[int, int] = {}  # by slot whose guard hangs: the same, of which nothing goes on
        self._steps: list[tuple[tuple[_Move, ...], tuple[tuple[int, bool], ...]] | None] = []
        self._remote_steps: dict[tuple[int, int, int], tuple[_Move, ...]] = {}
        self._commits: list[tuple[Term, bytes]] = [(NO_TERM, b"")]
        self._commit_numbers = _Interner()
        self._commit_numbers.number(self._commits[0])
        self._histories: dict[tuple[int, int], int] = {}
        self._single_master = mode is Mode.SILENCE
        self.judges_histories = True
        self.start = self._start(bounds)

    def _start(self, bounds: Bounds) -> int:
        """The store as `muster init` leaves it, every node booted once and idle (SPEC 1.5)."""
        state = _pack_budget(bounds)
        for node in range(self.nodes):
            register = _blank(node)
            halves: tuple[_Half | None, _Half | None] = (None, None)
            if node == 0:
                mark = Mark(Term(1, 0), 0, 1)
                register = register._replace(stamp=register.stamp._replace(term=mark.term), mark=mark)
                halves = (_Half(mark, b"", ()), None)
            booted, _ = mastership.written(mastership.boot(register, 1)[0])
            process = _Process(_cleared(booted._replace(claim=register)), None, (), register, b"")
            processes: tuple[_Process, ...] = (process,)
            if node == 0 and self.mode is Mode.CLONE:
                processes += (_Process(None, None, (), register, b""),)
            slot = self.intern(_Slot(node, register, halves, processes, 1, gone=False), "")
            state |= slot.slot << self.shifts[node]
        return state

    def leads_for_good(self, state: int) -> bool:
        """Whether a process acts as master while its lease advances, and no register may show a higher term."""
        slots = self.slots_of(state)
        highest = max(self._terms[slot] for slot in slots)
        return any(self._masters[slot] and self._terms[slot] == highest for slot in slots)

    def resting(self, state: int) -> int:
        """The state as it goes on when crashes stop and nobody gives up without need: one claim more is allowed, and
        a boot if no node is up whose guard beats. Nothing of a node whose guard hangs goes on: nobody may need that.
        The history is dropped: what may be decided next does not depend on it.
        """
        up, slots = False, 0
        for number, shift in zip(self.slots_of(state), self.shifts, strict=True):
            slot = self.slots[number]
            up = up or (slot.guard == _BEATS and any(process.machine is not None for process in slot.processes))
            slots |= (self._freeze(number) if slot.guard else number) << shift
        return slots | _unit(_CLAIM) | (0 if up else _unit(_REBOOT))

    def _freeze(self, number: int) -> int:
        found = self._frozen.get(number)
        if found is None:
            slot = self.slots[number]
            stopped = _with_process(slot, 0, _stopped(slot.processes[0]))
            found = self._frozen[number] = self.intern(stopped._replace(guard=_FROZEN), "").slot
        return found

    # ---- states --------------------------------------------------------------------------------------------------

    def slots_of(self, state: int) -> list[int]:
        """The ids of the slots of a state."""
        return [state >> shift & _SLOT_MASK for shift in self.shifts]

    def successors(self, state: int, words: list[str] | None = None) -> list[int]:
        """Every state that one step leads to, `words` for each if asked for. Raises `Violated`."""
        found: list[int] = []
        budget, history = state & _BUDGET_MASK, state >> _BUDGET_BITS & _HISTORY_MASK
        slots = self.slots_of(state)
        lives = 0
        if self.mode is Mode.SILENCE:
            for slot in slots:
                lives = lives << 8 | self._lives[slot]
        for node, slot in enumerate(slots):
            steps = self._steps[slot]
            if steps is None:
                steps = self._steps[slot] = self._own_steps(slot)
            groups = [steps[0]]
            for target, journal in steps[1]:
                view = (self._journal_views if journal else self._register_views)[slots[target]]
                key = (slot, view, lives)
                moves = self._remote_steps.get(key)
                if moves is None:
                    moves = self._remote_steps[key] = self._steps_with(slots, node, target, journal)
                groups.append(moves)
            shift = self.shifts[node]
            for moves in groups:
                for move in moves:
                    after, cost, mask, commit, told = move
                    if mask and not budget & mask:
                        continue
                    if after < 0:
                        raise Violated(state, told, told)
                    following = state + (after - slot << shift) - cost
                    if commit and self.judges_histories:
                        following += self._commit(state, history, commit, told) - history << _BUDGET_BITS
                    if self._single_master and self._masters[after] and not self._masters[slot]:
                        self._check_single_master(state, slots, node, told)
                    found.append(following)
                    if words is not None:
                        words.append(told)
        return found

    def _check_single_master(self, state: int, slots: list[int], node: int, words: str) -> None:
        if any(self._masters[slot] for other, slot in enumerate(slots) if other != node):
            problem = f"n{node} becomes master while another one acts as master whose lease advances (SPEC 2.3)"
            raise Violated(state, problem, words)

    def _commit(self, state: int, history: int, commit: int, words: str) -> int:
        """The decided history after `commit` is told. All that was ever decided is one chain (SPEC 2.6).

        A history is the longest database told by the highest term so far. A master of that term or a higher one must
        extend it; one of a lower term, whose check was overtaken by the adoption of the higher, must lie within it.
        """
        after = self._histories.get((history, commit))
        if after is not None:
            return after
        (old_term, old), (term, told) = self._commits[history], self._commits[commit]
        if term >= old_term:
            if not told.startswith(old):
                problem = f"{term} tells {_words_of(told)}, but {old_term} had decided {_words_of(old)}"
                raise Violated(state, problem, words)
            after = commit
        elif old.startswith(told):
            after = history
        else:
            problem = f"{term} decides {_words_of(told)}, but {old_term} had adopted {_words_of(old)} before"
            raise Violated(state, problem, words)
        self._histories[history, commit] = after
        self.reached.add(f"decided {told.count(b';')}")
        return after

    def intern(self, slot: _Slot, words: str, cost: int = _FREE, commit: int = 0) -> _Move:
        """The move that leads to `slot`; a violation if the slot breaks a property of its own."""
        number, new = self._slot_numbers.number(slot)
        unit, mask = _unit(cost), _unit(cost) * ((1 << _FIELD_BITS) - 1)
        if new:
            self.slots.append(slot)
            self._steps.append(None)
            self._register_views.append(self._views.number((slot.node, _visible_claims(slot)))[0])
            able = (process.awaits for process in slot.processes if process.known == slot.register)
            under_way = tuple(action for action in able if _writes_journal(action))
            self._journal_views.append(self._views.number((slot.node, slot.halves, under_way))[0])
            self._lives.append(slot.incarnation << 1 | is_out_of(slot))
            running = [process.machine for process in slot.processes if process.machine is not None]
            acting = [
                process.machine for process in slot.processes if process.machine is not None and not process.lapsed
            ]
            self._masters.append(slot.guard == _BEATS and any(machine.is_master for machine in acting))
            self._terms.append(max(claim.stamp.term for claim in _visible_claims(slot)))
            self.reached.update(machine.phase.name for machine in running)
        problem = _problem_of(slot)
        if problem:
            return _Move(_NO_SLOT, unit, mask, 0, f"{words}: {problem}")
        return _Move(number, unit, mask, commit, words)

    # ---- steps of a slot that concern nobody else ------------------------------------------------------------------

    def _own_steps(self, number: int) -> tuple[tuple[_Move, ...], tuple[tuple[int, bool], ...]]:
        """The steps that depend on the slot alone; the nodes that its other steps read, and whether their journals."""
        slot = self.slots[number]
        moves: list[_Move] = []
        targets: set[tuple[int, bool]] = set()
        for position, process in enumerate(slot.processes):
            moves += self._guard_steps(slot, position, process)
            if process.machine is None:
                moves += self._restarts(slot, position, process)
                continue
            moves += self._crashes(slot, position, process)
            moves += self._completions(slot, position, process, process.machine)
            moves += self._choices(slot, position, process, process.machine)
            target = self._target(slot, process, process.machine)
            loads = isinstance(process.awaits, mastership.Load)
            if process.machine.phase is Phase.MASTER:
                targets.update((node, False) for node in range(self.nodes) if node != slot.node)
            elif target == slot.node and loads:
                moves += self._load_step(slot, position, slot)
            elif target == slot.node:
                moves += self._read_step(slot, position, slot, lambda _node, _incarnation: True)
            elif target >= 0:
                targets.add((target, loads))
        return tuple(moves), tuple(sorted(targets))

    def _target(self, slot: _Slot, process: _Process, machine: Mastership) -> int:
        """The node that this process's next read is of; -1 if it reads nothing."""
        match process.awaits:
            case mastership.Read():
                return len(self._with_own(slot, process.seen))
            case mastership.Load(owner=owner):
                return owner
            case None if machine.phase is Phase.IDLE:
                return len(self._with_own(slot, process.seen))
            case _:
                return -1

    def _with_own(self, slot: _Slot, seen: tuple[Claim | None, ...]) -> tuple[Claim | None, ...]:
        if len(seen) == slot.node and len(slot.processes) == 1:
            return (*seen, slot.register)
        return seen

    def _crashes(self, slot: _Slot, position: int, process: _Process) -> Iterator[_Move]:
        if self.mode is Mode.CLONE:
            return
        crashed = _with_process(slot, position, _stopped(process))
        yield self.intern(crashed, f"n{slot.node}: the daemon crashes", _CRASH)
        if self.mode is Mode.SILENCE:
            ended = crashed._replace(gone=True, guard=_BEATS)
            yield self.intern(ended, f"n{slot.node}: the node crashes, and is proven dead", _CRASH)

    def _guard_steps(self, slot: _Slot, position: int, process: _Process) -> Iterator[_Move]:
        """A guard hangs, wakes after its node's lease has run out and stops the node before anything else (P7.4), or
        beats again before that: only the lease of a mastership has run out meanwhile (P2.15).
        """
        if slot.gone or self.mode is not Mode.SILENCE:
            return
        if slot.guard == _BEATS:
            yield self.intern(slot._replace(guard=_HANGS), f"n{slot.node}: its guard hangs, its lease runs out", _HANG)
        elif slot.guard == _HANGS:
            ended = _with_process(slot, position, _stopped(process))._replace(gone=True, guard=_BEATS)
            yield self.intern(ended, f"n{slot.node}: its guard wakes and stops the node")
            going = process._replace(lapsed=lapse_of(process))
            beats = _with_process(slot, position, going)._replace(guard=_BEATS)
            yield self.intern(beats, f"n{slot.node}: its guard beats again, its node lives on")

    def _restarts(self, slot: _Slot, position: int, process: _Process) -> Iterator[_Move]:
        """A boot settles what the last life left under way, one way or the other, and finds its own register."""
        clone = position > 0
        if self.mode is Mode.CLONE and not clone:
            return  # it has halted
        ended = slot.gone or slot.guard == _FROZEN  # that one wakes, ends and boots in one step
        incarnation = slot.incarnation + (ended or clone)
        for settled, how in _settled(slot, process.awaits, truncates=self._truncates):
            # A clone finds the register as it is; the first process still runs and is settled by nobody.
            found = _without_sequence(settled.register)
            booted = settled._replace(register=found, incarnation=incarnation if not clone else 1, gone=False)
            if ended:
                booted = booted._replace(guard=_BEATS)
            cost = _FREE if self.mode is Mode.SILENCE and not ended else _REBOOT
            what = "a clone boots" if clone else f"boots as incarnation {incarnation}"
            fresh = _Process(None, None, (), found, b"")
            outcome = mastership.boot(found, incarnation)
            yield self._follow(booted, position, fresh, outcome, f"n{slot.node}: {what}{how}", cost)

    def _completions(self, slot: _Slot, position: int, process: _Process, machine: Mastership) -> Iterator[_Move]:
        """The write that the process waits for becomes durable, or is refused by the engine."""
        action = process.awaits
        name = _name(slot, position)
        if not isinstance(action, mastership.Write) and not _writes_journal(action):
            return
        if process.known != slot.register:  # the engine looks at the own register before it writes (SPEC 1.5)
            yield self._halted(slot, position, f"{name}: finds a foreign record in its register")
            return
        match action:
            case mastership.Write(claim=claim):
                durable = _without_sequence(claim)
                settled = machine._replace(claim=durable)
                after = slot._replace(register=durable)
                ready, words = process._replace(known=durable), f"{name}: {_said(claim)} is durable"
                yield self._follow(after, position, ready, mastership.written(settled), words)
            case mastership.Checkpoint(mark=mark, blob=blob):
                after = _with_half(slot, mark.half, _Half(mark, blob, ()))
                words = f"{name}: checkpoint {_words_of(blob)} of {_named(mark)} is durable"
                yield self._follow(after, position, process, mastership.written(machine), words)
                refuse = mastership.failed if machine.phase is Phase.ADOPT_CHECKPOINT else mastership.withdraw
                for half in (slot.halves[mark.half], *_torn(slot.halves[mark.half], truncates=self._truncates)):
                    left = _with_half(slot, mark.half, half)
                    words = f"{name}: the checkpoint of {_named(mark)} is refused, its half is as it was, or torn"
                    yield self._follow(left, position, process, refuse(machine), words, _WITHDRAWAL)
            case mastership.WriteFrame(mark=mark, frame=frame):
                half = slot.halves[mark.half]
                assert half is not None, "_problem_of lets no append begin without its journal"
                after = _with_half(slot, mark.half, half._replace(frames=(*half.frames, frame)))
                words = f"{name}: frame {frame.decode()} is durable"
                yield self._follow(after, position, process, mastership.written(machine), words)
                words = f"{name}: no room for frame {frame.decode()}"
                yield self._follow(slot, position, process, mastership.full(machine), words, _COMPACTION)
            case _:
                raise AssertionError(f"{action} is no write")
        if machine.phase is not Phase.SETTLING and self.mode is not Mode.CLONE:
            yield from self._gives_way(slot, position, process, machine)

    def _gives_way(self, slot: _Slot, position: int, process: _Process, machine: Mastership) -> Iterator[_Move]:
        """The store refuses a write until its bound is over: it happened all the same, or not (P2.11).

        The engine compares the own register with both; the machine goes on from what is there.
        """
        for settled, how in _settled(slot, process.awaits, truncates=self._truncates):
            found = _without_sequence(settled.register)
            ready = process._replace(known=found)
            going = machine._replace(claim=machine.claim._replace(stamp=machine.claim.stamp._replace(sequence=0)))
            words = f"{_name(slot, position)}: gives way after a failed write{how}"
            yield self._follow(settled, position, ready, mastership.give_way(going), words, _WITHDRAWAL)

    def _choices(self, slot: _Slot, position: int, process: _Process, machine: Mastership) -> Iterator[_Move]:
        """What a process does of its own accord, and reads of its own journal."""
        name = _name(slot, position)
        phase = machine.phase
        if phase is Phase.MASTER and (slot.guard == _HANGS or process.lapsed):
            nothing_new = _strip(tuple(_blank(node) for node in range(self.nodes)))
            late = mastership.observe(machine, nothing_new, may_lead=False)
            yield self._gives_up(slot, position, process, late, f"{name}: notices that its own lease has run out")
        if phase is Phase.MASTER and machine.abdicating:
            yield self._follow(slot, position, process, mastership.withdraw(machine), f"{name}: abdicates as decided")
        elif phase is Phase.MASTER and not process.lapsed:
            # Unique: within a term frames are decided one after the other, and no two lives share a term.
            frame = f"{machine.term}/{process.database.count(b';')};".encode()
            words = f"{name}: proposes frame {frame.decode()}"
            yield self._follow(slot, position, process, mastership.propose(machine, frame), words, _FRAME)
            yield self._follow(slot, position, process, mastership.abdicate(machine), f"{name}: abdicates", _WITHDRAWAL)
        elif phase is Phase.IDLE and slot.guard == _BEATS:
            # The oldest read there can be; between it and a fresh one lie the terms that other stale reads lead to.
            ancient = _strip(tuple(_blank(node) for node in range(self.nodes)))
            words = f"{name}: claims by a read from long ago"
            yield self._follow(slot, position, process, mastership.claim(machine, ancient), words, _STALE_CLAIM)
        elif phase in (Phase.COMMIT_WRITE, Phase.COMMIT_CHECK) and not machine.abdicating:
            words = f"{name}: is to abdicate"
            yield self._follow(slot, position, process, mastership.abdicate(machine), words, _WITHDRAWAL)
        if isinstance(process.awaits, mastership.Read):
            words = f"{name}: gives up while it reads the claims"
            yield self._follow(slot, position, process, mastership.withdraw(machine), words, _WITHDRAWAL)
        if isinstance(process.awaits, mastership.Load):
            words = f"{name}: cannot read the journal"
            yield self._follow(slot, position, process, mastership.failed(machine), words, _WITHDRAWAL)

    # ---- steps that read what another node wrote ---------------------------------------------------------------------

    def _steps_with(self, slots: list[int], node: int, target: int, journal: bool) -> tuple[_Move, ...]:
        slot, other = self.slots[slots[node]], self.slots[slots[target]]
        lives = [(self._lives[number] >> 1, bool(self._lives[number] & 1)) for number in slots]

        def is_out(judged: int, incarnation: int) -> bool:
            if self.mode is not Mode.SILENCE:
                return True
            newest, out = lives[judged]
            return incarnation < newest or (incarnation == newest and out)

        moves: list[_Move] = []
        for position, process in enumerate(slot.processes):
            if process.machine is None:
                continue
            wanted = self._target(slot, process, process.machine) == target
            if process.machine.phase is Phase.MASTER and not journal:
                moves += self._observe_step(slot, position, other)
            elif wanted and journal and isinstance(process.awaits, mastership.Load):
                moves += self._load_step(slot, position, other)
            elif wanted and not journal and not isinstance(process.awaits, mastership.Load):
                moves += self._read_step(slot, position, other, is_out)
        return tuple(moves)

    def _observe_step(self, slot: _Slot, position: int, other: _Slot) -> Iterator[_Move]:
        process = slot.processes[position]
        assert process.machine is not None, "only a running process reads"
        for claim in _visible_claims(other):
            claims: list[Claim | None] = [None] * self.nodes
            claims[other.node] = claim
            state, action = mastership.observe(process.machine, _strip(tuple(claims)))
            if action is not None:
                yield self._follow(
                    slot, position, process, (state, action), f"{_name(slot, position)}: notices {_said(claim)}"
                )

    def _read_step(self, slot: _Slot, position: int, other: _Slot, is_out: mastership.IsOut) -> Iterator[_Move]:
        """Read one register; the last one completes the read of all claims, and the machine goes on."""
        process = slot.processes[position]
        machine = process.machine
        assert machine is not None, "only a running process reads"
        for claim in (*_visible_claims(other), None):
            found = "nothing valid" if claim is None else _said(claim)
            words = f"{_name(slot, position)}: reads the claim of n{other.node}: {found}"
            seen = self._with_own(slot, (*self._with_own(slot, process.seen), claim))
            if len(seen) < self.nodes:
                yield self.intern(_with_process(slot, position, process._replace(seen=seen)), words)
                continue
            strip, ready = _strip(seen), process._replace(seen=())
            if machine.phase is not Phase.IDLE:
                if slot.guard == _HANGS or process.lapsed:
                    late = mastership.read(machine, strip, is_out, may_lead=False)
                    yield self._gives_up(slot, position, ready, late, f"{words}, and its own lease run out")
                if process.lapsed == _NEXT_READ:
                    continue  # it began before the beats went on: what it shows of them is too old
                outcome = mastership.read(machine, strip, is_out)
                if not isinstance(outcome[1], mastership.Read):
                    ready = ready._replace(lapsed=0)
                foreign = seen[slot.node] not in (machine.claim, None)
                if foreign and not isinstance(outcome[1], mastership.Halt):
                    words += ": goes on although its own register holds what it did not write"
                    yield _Move(_NO_SLOT, 0, 0, 0, words)
                yield self._follow(slot, position, ready, outcome, words)
            elif slot.guard == _BEATS and mastership.may_claim(strip, slot.node, is_out):
                yield self._follow(slot, position, ready, mastership.claim(machine, strip), f"{words}, claims", _CLAIM)
            elif process.seen:
                yield self.intern(_with_process(slot, position, ready), f"{words}, does not claim")

    def _load_step(self, slot: _Slot, position: int, other: _Slot) -> Iterator[_Move]:
        process = slot.processes[position]
        action, machine = process.awaits, process.machine
        assert machine is not None, "only a running process loads"
        assert isinstance(action, mastership.Load), "the caller looked"
        for half in _visible_halves(other, action.mark.half, truncates=self._truncates):
            if half is None or half.mark != action.mark:
                words = f"{_name(slot, position)}: finds {_named(action.mark)} unreadable"
                yield self._follow(slot, position, process, mastership.failed(machine), words)
            else:
                blob = half.checkpoint + b"".join(half.frames)
                words = f"{_name(slot, position)}: loads {_named(action.mark)}: {_words_of(blob)}"
                ready = process._replace(database=blob)
                yield self._follow(slot, position, ready, mastership.loaded(machine, blob), words)

    # ---- what the machine asked for ----------------------------------------------------------------------------------

    def _follow(
        self,
        slot: _Slot,
        position: int,
        process: _Process,
        outcome: tuple[Mastership, Action | None],
        words: str,
        cost: int = _FREE,
    ) -> _Move:
        """The move after which the process is in the machine's new state and waits for what the machine asked for."""
        machine, action = outcome
        commit, database, awaits = 0, process.database, action
        if isinstance(action, mastership.Compact):
            machine, awaits = mastership.compact(machine, database)
        match action:
            case None:
                awaits = process.awaits
            case mastership.Read():
                awaits = mastership.Read()
            case mastership.Became(term=term):
                commit, awaits = self._commit_number(term, database), None
                words += f", is master of {term} with {_words_of(database)}"
            case mastership.Decided(frame=frame):
                database += frame
                commit, awaits = self._commit_number(machine.term, database), None
                words += f", decides {frame.decode()}"
            case mastership.Withdrawn():
                awaits = None
            case mastership.Halt():
                return self._halted(slot, position, words)
            case _:
                pass
        if machine.phase in (Phase.SETTLING, Phase.IDLE):
            machine, database = _cleared(machine), b""
        lapsed = process.lapsed if machine.phase not in (Phase.SETTLING, Phase.IDLE) else 0
        if lapsed and isinstance(awaits, mastership.Read):
            lapsed = _FRESH_READ  # one that begins from here on
        after = _Process(machine, awaits, process.seen if action is None else (), process.known, database, lapsed)
        return self.intern(_with_process(slot, position, after), words, cost, commit)

    def _gives_up(
        self, slot: _Slot, position: int, process: _Process, outcome: tuple[Mastership, Action | None], words: str
    ) -> _Move:
        """A process that reads that its own lease has run out must withdraw (P2.13)."""
        if outcome[0].phase is not Phase.SETTLING and not isinstance(outcome[1], mastership.Read | mastership.Halt):
            return _Move(_NO_SLOT, 0, 0, 0, f"{words}, and leads on (P2.13)")
        return self._follow(slot, position, process, outcome, words)

    def _halted(self, slot: _Slot, position: int, words: str) -> _Move:
        if self.mode is not Mode.CLONE:
            return _Move(_NO_SLOT, 0, 0, 0, f"{words}, halts although no clone runs (SPEC 1.5)")
        self.reached.add("halted")
        down = _Process(None, None, (), slot.register, b"")
        return self.intern(_with_process(slot, position, down), f"{words}, halts")

    def _commit_number(self, term: Term, database: bytes) -> int:
        number, new = self._commit_numbers.number((term, database))
        if new:
            self._commits.append((term, database))
        return number


# ---- slots -----------------------------------------------------------------------------------------------------------


def _problem_of(slot: _Slot) -> str:
    """The property that this slot breaks by itself, in words; empty if none."""
    for claim in _visible_claims(slot):
        half = slot.halves[claim.mark.half]
        if claim.mark != NO_MARK and (half is None or half.mark != claim.mark):
            return f"{_said(claim)} names a journal that is not whole (P2.5)"
    for process in slot.processes:
        if process.machine is None or process.known != slot.register:
            continue  # a process whose register was overwritten is stopped by the engine before it writes
        problem = _problem_of_write(slot, process, process.machine)
        if problem:
            return problem
    return ""


def _problem_of_write(slot: _Slot, process: _Process, machine: Mastership) -> str:
    known = process.known
    match process.awaits:
        case mastership.Write(claim=claim):
            if claim.stamp.term < known.stamp.term:
                return f"the term in the register gets lower: {known.stamp.term} to {claim.stamp.term} (P2.1)"
            if machine.phase is Phase.CLAIM_WRITE and claim.stamp.term <= known.stamp.term:
                return f"{claim.stamp.term} is claimed for the second time (P2.2)"
            if claim.stamp.term != known.stamp.term and claim.stamp.term.node != slot.node:
                return f"it claims {claim.stamp.term}, a term of another node (SPEC 2.6)"
            if claim.stamp.owner != slot.node or claim.stamp.sequence != known.stamp.sequence + 1:
                return f"the stamp {claim.stamp} does not follow {known.stamp} (SPEC 1.5)"
        case mastership.Checkpoint(mark=mark):
            if known.mark != NO_MARK and mark.half == known.mark.half:
                return "it overwrites its own journal before the new one is marked (P2.5)"
            if (mark.term, mark.generation) <= (known.mark.term, known.mark.generation):
                return f"{_named(mark)} is not newer than its own {_named(known.mark)} (P2.5)"
        case mastership.WriteFrame(mark=mark, number=number):
            half = slot.halves[mark.half]
            if mark != known.mark or half is None or half.mark != mark or number != len(half.frames):
                return f"frame {number} of {_named(mark)} does not continue its own journal (P2.6)"
        case _:
            pass
    return ""


def is_out_of(slot: _Slot) -> bool:
    """Whether the present incarnation counts as out where silence is enough: it has ended, or its lease has run out."""
    return slot.gone or slot.guard != _BEATS


def lapse_of(process: _Process) -> int:
    """What a process whose beats go on may do no more before which read has ended (P2.15)."""
    if process.machine is None or process.machine.phase in (Phase.SETTLING, Phase.IDLE):
        return 0
    return _NEXT_READ if process.seen else _FRESH_READ


def _blank(node: int) -> Claim:
    return Claim(Stamp(node, 1, NO_TERM, 0), ClaimFlag.WITHDRAWN, NO_MARK)


def _writes_journal(action: Action | None) -> bool:
    return isinstance(action, mastership.Checkpoint | mastership.WriteFrame)


def _visible_claims(slot: _Slot) -> tuple[Claim, ...]:
    """What a reader may find in the register: the durable record, or one that is under way."""
    # A process whose register a clone has overwritten is refused before it writes.
    under_way = [process.awaits for process in slot.processes if process.known == slot.register]
    new = [_without_sequence(action.claim) for action in under_way if isinstance(action, mastership.Write)]
    return (slot.register, *(claim for claim in new if claim != slot.register))


def _visible_halves(slot: _Slot, index: int, *, truncates: bool) -> list[_Half | None]:
    """What a reader may find in a half; `None` is unreadable."""
    half = slot.halves[index]
    found: list[_Half | None] = [half]
    for process in slot.processes:
        if process.known != slot.register:
            continue
        match process.awaits:
            case mastership.Checkpoint(mark=mark) if mark.half == index:
                found += _torn(half, truncates=truncates)
            case mastership.WriteFrame(mark=mark, frame=frame) if half is not None and half.mark == mark:
                found.append(half._replace(frames=(*half.frames, frame)))
            case _:
                pass
    return found


def _torn(half: _Half | None, *, truncates: bool) -> list[_Half | None]:
    """What is left of a half that is partly overwritten."""
    if half is None or not truncates:
        return [None]
    return [None, *(half._replace(frames=half.frames[:count]) for count in range(len(half.frames)))]


def _settled(slot: _Slot, left: Action | None, *, truncates: bool) -> Iterator[tuple[_Slot, str]]:
    """What the store may hold after a crash with the write `left` under way."""
    yield slot, "" if left is None else "; the write of its last life is lost"
    match left:
        case mastership.Write(claim=claim):
            yield slot._replace(register=_without_sequence(claim)), "; the write of its last life had happened"
        case mastership.Checkpoint(mark=mark, blob=blob):
            for torn in _torn(slot.halves[mark.half], truncates=truncates):
                yield _with_half(slot, mark.half, torn), "; the checkpoint of its last life is torn"
            yield _with_half(slot, mark.half, _Half(mark, blob, ())), "; the checkpoint of its last life is whole"
        case mastership.WriteFrame(mark=mark, frame=frame):
            half = slot.halves[mark.half]
            if half is not None and half.mark == mark:
                grown = half._replace(frames=(*half.frames, frame))
                yield _with_half(slot, mark.half, grown), "; the frame of its last life had been written"
        case _:
            pass


def _stopped(process: _Process) -> _Process:
    """What is left of a process that has ended: perhaps a write under way."""
    writes = isinstance(process.awaits, mastership.Write) or _writes_journal(process.awaits)
    return _Process(None, process.awaits if writes else None, (), _without_sequence(process.known), b"")


def _with_process(slot: _Slot, position: int, process: _Process) -> _Slot:
    processes = slot.processes
    return slot._replace(processes=(*processes[:position], process, *processes[position + 1 :]))


def _with_half(slot: _Slot, index: int, half: _Half | None) -> _Slot:
    return slot._replace(halves=(half, slot.halves[1]) if index == 0 else (slot.halves[0], half))


def _without_sequence(claim: Claim) -> Claim:
    return claim._replace(stamp=claim.stamp._replace(sequence=0))


def _cleared(machine: Mastership) -> Mastership:
    """Without what a later claim overwrites before it is looked at."""
    return machine._replace(next_mark=machine.claim.mark, frame_number=0, frame=b"", blob=b"", abdicating=False)


def _strip(claims: tuple[Claim | None, ...]) -> Strip:
    return Strip((), claims, (), ())


def _unit(field: int) -> int:
    return 0 if field == _FREE else 1 << field * _FIELD_BITS


def _pack_budget(bounds: Bounds) -> int:
    limits = (*bounds[: Bounds._fields.index("states")], bounds.crashes + bounds.hangs)  # each end allows one boot
    largest = (1 << _FIELD_BITS) - 1
    if not all(0 <= limit <= largest for limit in limits):
        raise ValueError(f"{bounds}: each bound must be between 0 and {largest}")
    return sum(limit * _unit(field) for field, limit in enumerate(limits))


def _name(slot: _Slot, position: int) -> str:
    return f"n{slot.node}'s clone" if position else f"n{slot.node}"


def _said(claim: Claim) -> str:
    return f"{claim.flag.name.lower()} {claim.stamp.term} with {_named(claim.mark)}"


def _named(mark: Mark) -> str:
    return f"mark {mark.term}/{mark.generation}"


def _words_of(database: bytes) -> str:
    return f"[{database.decode().replace(';', ' ').strip()}]"
