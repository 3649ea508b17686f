"""The lock manager's rules (P12.1-P12.14): tables whole, one resource beside a naive one, few nodes step by step."""

from collections import deque
from collections.abc import Callable
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lock_transitions import LOCKS, Master, Seat
from muster.core.locks.channel import Channel
from muster.core.locks.deadlock import victim_of
from muster.core.locks.directory import layout
from muster.core.locks.machine import LockManager, LockRefused
from muster.core.locks.messages import (
    Acknowledge,
    Blocking,
    Edge,
    Effect,
    EndClient,
    Found,
    Frame,
    Given,
    Granted,
    LockId,
    Message,
    NotGranted,
    Reason,
    Rebuilt,
    Released,
    Send,
)
from muster.core.locks.modes import (
    COMPATIBLE,
    CONFLICTS,
    FIELD_BITS,
    GIVES_UP,
    KNOWS,
    NONE,
    UNIT,
    WRITES,
    Mode,
    meanwhile,
)
from muster.core.locks.names import BUCKETS, MAXIMUM_VALUE, Bounds, bucket_of, name_problem, space_problem
from muster.core.locks.recovery import Phase, life_of
from muster.core.locks.resource import Lock, News, Resource, What
from muster.records.levels import EVENT_MANAGER_LEVEL, TransitionKind
from muster.records.transitions import Acknowledgement

NL, CR, CW, PR, PW, EX = Mode
SPACE, NAME, KEY = "s", "orders/42", "s:orders/42"


class Few:
    """Lock managers whose messages arrive at once, in order; `cut` keeps those to a node until `heal`."""

    def __init__(self, nodes: int, bounds: Bounds = Bounds()) -> None:  # noqa: B008
        self.managers: dict[int, LockManager] = {}
        self.seats: dict[int, Seat] = {}
        self.master_of_level = Master(8)
        self.bounds = bounds
        self.told: list[tuple[int, Effect]] = []
        self.sent: list[tuple[int, int, Message | None]] = []  # sender, receiver
        self.slow: set[tuple[int, int]] = set()  # what these senders say to these receivers arrives later
        self.slow_from: tuple[int, int, type] | None = None  # the same, from the first such message on
        self.late: list[tuple[int, int, Frame]] = []
        self.queue: deque[tuple[int, int, Frame]] = deque()
        self.silent: set[int] = set()  # nothing that they send arrives
        for node in range(nodes):
            self.join(node)

    def join(self, node: int, incarnation: int = 1) -> None:
        """A node boots, and joins."""
        manager = self.managers[node] = LockManager(node, life_of(incarnation, 0), self.bounds)
        manager.follow_spaces([SPACE])
        self.seats[node] = Seat(self.master_of_level, node, incarnation, (LOCKS, EVENT_MANAGER_LEVEL))
        for other, peer in self.managers.items():
            if other != node:
                manager.connected(other, peer.incarnation)
                peer.connected(node, manager.incarnation)
        self.pump()

    def leave(self, node: int) -> None:
        """A graceful leave begins, and goes as far as it can."""
        self.master_of_level.leave(node)
        self.pump()

    def die(self, node: int) -> None:
        """A node dies, and that is proven at once."""
        del self.managers[node]
        self.master_of_level.dead.add((node, self.seats[node].incarnation))
        del self.seats[node]
        self.pump()

    def restart(self, node: int) -> None:
        """The lock process of a node ends by its own wish, and another one registers before anybody has noticed."""
        seat = self.seats[node]
        seat.end_locks()
        manager = self.managers[node] = LockManager(node, seat.life, self.bounds)
        manager.follow_spaces([SPACE])
        seat.begin_locks()
        for other, peer in self.managers.items():
            if other != node:
                peer.lost(node)
                manager.connected(other, peer.incarnation)
                peer.connected(node, manager.incarnation)
        self.pump()

    def is_at_work(self) -> bool:
        """Whether a transition is not over."""
        return bool(self.master_of_level.database.transitions)

    def pump(self) -> None:
        """All that is under way arrives."""
        goes_on = True
        while goes_on:
            goes_on = self._tell()
            for node, manager in list(self.managers.items()):
                for effect in manager.take():
                    goes_on = True
                    if isinstance(effect, Send):
                        self.sent.append((node, effect.node, effect.frame.message))
                        self.queue.append((node, effect.node, effect.frame))
                    elif isinstance(effect, Acknowledge):
                        self.seats[node].acknowledge(*effect)
                    else:
                        self.told.append((node, effect))
            if self.queue and not goes_on:
                self._arrive(*self.queue.popleft())
                goes_on = True

    def _tell(self) -> bool:
        """The master decides, and the nodes are told; whether anything was."""
        for node, seat in self.seats.items():
            self.master_of_level.reports[node] = seat.report()
        goes_on = self.master_of_level.decide()
        for node, seat in self.seats.items():
            while seat.is_behind:
                seat.apply()
                steps, others = seat.due()
                for step in steps:
                    self.managers[node].told(step)
                for other in others:
                    seat.subsystems.acknowledge(other)
                goes_on = True
        return goes_on

    def _arrive(self, sender: int, receiver: int, frame: Frame) -> None:
        if (sender, receiver, type(frame.message)) == self.slow_from:
            self.slow.add((sender, receiver))
        if (sender, receiver) in self.slow:
            self.late.append((sender, receiver, frame))
        elif receiver in self.managers and sender in self.managers and sender not in self.silent:
            self.managers[receiver].received(sender, self.managers[sender].incarnation, frame)

    def arrive(self) -> None:
        """What is late arrives."""
        self.slow.clear()
        self.slow_from = None
        late, self.late = self.late, []
        self.queue.extendleft(reversed(late))
        self.pump()

    def hear(self, node: int) -> None:
        """What a silent node has said arrives after all."""
        self.silent.discard(node)
        for other, manager in self.managers.items():
            if other != node:
                manager.lost(node)
                self.managers[node].lost(other)
                manager.connected(node, self.managers[node].incarnation)
                self.managers[node].connected(other, manager.incarnation)
        self.pump()

    def lock(self, node: int, mode: int, client: int = 1, name: str = NAME, *, no_queue: bool = False) -> LockId:
        """A client asks for a lock."""
        number = self.managers[node].request(client, SPACE, name, mode, no_queue=no_queue)
        self.pump()
        return number

    def unlock(self, node: int, number: LockId, client: int = 1, value: bytes | None = None) -> None:
        """A client gives one up."""
        self.managers[node].unlock(client, number, value=value)
        self.pump()

    def grants(self, number: LockId) -> list[Granted]:
        """All that a client was told of its lock."""
        return [each for _, each in self.told if isinstance(each, Granted) and each.lock == number]

    def grant(self, number: LockId) -> Granted:
        """The newest grant of a lock."""
        return self.grants(number)[-1]

    def refusals(self, number: LockId) -> list[Reason]:
        """Why waits of a lock have ended."""
        return [each.reason for _, each in self.told if isinstance(each, NotGranted) and each.lock == number]

    def master(self, key: str = KEY) -> int:
        """The one node that masters the resource."""
        masters = [node for node, manager in self.managers.items() if key in manager.tables.resources]
        assert len(masters) == 1
        return masters[0]


def name_at(directory: int, nodes: tuple[int, ...]) -> str:
    """A resource whose bucket is at that node."""
    places = layout(nodes)
    return next(f"r/{number}" for number in range(10_000) if places[bucket_of(f"{SPACE}:r/{number}")] == directory)


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_p12_2_the_table_of_compatible_modes_is_the_standard_one() -> None:
    """What a mode allows itself and others: read or write, alone or not. The table follows from that, pair by pair."""
    reads, writes = {CR, CW, PR, PW, EX}, {CW, PW, EX}
    bars_readers, bars_writers = {EX}, {PR, PW, EX}
    for one, other in product(Mode, repeat=2):
        excluded = any(
            (a in bars_readers and b in reads) or (a in bars_writers and b in writes)
            for a, b in ((one, other), (other, one))
        )
        assert COMPATIBLE[one][other] is not excluded, (one, other)
        assert bool(CONFLICTS[one] & UNIT[other]) is excluded
    assert len({*UNIT}) == len(Mode) and max(UNIT) < 1 << FIELD_BITS * len(Mode)


def test_p12_3_a_conversion_never_waits_exactly_where_it_can_disturb_nobody() -> None:
    for held, wanted in product(Mode, repeat=2):
        disturbs = any(COMPATIBLE[held][other] and not COMPATIBLE[wanted][other] for other in Mode)
        assert GIVES_UP[held][wanted] is not disturbs, (held, wanted)


def test_p12_3_who_goes_sideways_uses_only_what_both_modes_allow_meanwhile() -> None:
    for held, wanted in product(Mode, repeat=2):
        if not GIVES_UP[held][wanted]:
            used = meanwhile(held, wanted)
            assert GIVES_UP[held][used] and GIVES_UP[wanted][used]


def test_p12_4_who_may_write_the_block_and_who_knows_it() -> None:
    for mode in Mode:
        assert WRITES[mode] is (GIVES_UP[mode][PW])
        assert KNOWS[mode] is not any(COMPATIBLE[mode][writer] for writer in (PW, EX))


@pytest.mark.parametrize(("first", "second"), list(product(Mode, repeat=2)))
def test_p12_2_two_requests_of_all_modes(first: Mode, second: Mode) -> None:
    resource, news = Resource(KEY), News()
    resource.request(Lock(KEY, 1, 1, first), 1, news)
    resource.request(Lock(KEY, 2, 2, second), 1, news)
    granted = [lock.id for what, lock, _ in news if what is What.GRANTED]
    assert granted == ([1, 2] if COMPATIBLE[first][second] else [1])


@pytest.mark.parametrize(("held", "other", "wanted"), list(product(Mode, repeat=3)))
def test_p12_3_a_conversion_beside_another_lock_of_all_modes(held: Mode, other: Mode, wanted: Mode) -> None:
    if not COMPATIBLE[held][other]:
        return
    resource, news = Resource(KEY), News()
    lock = Lock(KEY, 1, 1, held)
    resource.request(lock, 1, news)
    resource.request(Lock(KEY, 2, 2, other), 1, news)
    if GIVES_UP[held][wanted]:
        resource.give_up(lock, wanted, None, 0, 1, news)
        assert (lock.mode, lock.wanted) == (wanted, NONE)
        return
    resource.convert(lock, wanted, 1, news)
    assert (lock.mode, lock.wanted) == ((wanted, NONE) if COMPATIBLE[other][wanted] else (held, wanted))


# ---- one resource beside a naive one ---------------------------------------------------------------------------------


class Naive:
    """One resource, straight from the rules: lists of (lock, mode), no counts, no shortcuts."""

    def __init__(self) -> None:
        self.granted: dict[int, Mode] = {}
        self.converting: list[tuple[int, Mode]] = []
        self.waiting: list[tuple[int, Mode]] = []

    def fits(self, lock: int, mode: Mode) -> bool:
        """Whether all other granted locks allow the mode."""
        return all(COMPATIBLE[held][mode] for other, held in self.granted.items() if other != lock)

    def serve(self) -> None:
        """Grant from the heads."""
        for queue in (self.converting, self.waiting):
            while queue and self.fits(*queue[0]):
                lock, mode = queue.pop(0)
                self.granted[lock] = mode
            if queue:
                return

    def request(self, lock: int, mode: Mode, no_queue: bool) -> None:
        """P12.2."""
        free = not self.converting and not self.waiting and self.fits(lock, mode)
        if mode is NL or free:
            self.granted[lock] = mode
        elif not no_queue:
            self.waiting.append((lock, mode))

    def convert(self, lock: int, mode: Mode, no_queue: bool) -> None:
        """P12.3."""
        gift = all(COMPATIBLE[mode][other] for other in Mode if COMPATIBLE[self.granted[lock]][other])
        if gift or (not self.converting and self.fits(lock, mode)):
            self.granted[lock] = mode
            self.serve()
        elif not no_queue:
            self.converting.append((lock, mode))

    def free(self, lock: int) -> None:
        """It is no more."""
        self.granted.pop(lock, None)
        self.withdraw(lock)

    def withdraw(self, lock: int) -> None:
        """It waits no more."""
        self.converting = [each for each in self.converting if each[0] != lock]
        self.waiting = [each for each in self.waiting if each[0] != lock]
        self.serve()


def test_p12_3_who_waits_for_what_a_sideways_conversion_ends_is_granted_with_it() -> None:
    few = Few(1)
    manager = few.managers[0]
    first = manager.request(1, SPACE, NAME, Mode.CW)
    second = manager.request(1, SPACE, NAME, Mode.PR)
    manager.convert(1, first, Mode.PR)
    locks = manager.tables.resources[KEY].locks
    assert (locks[first].mode, locks[second].mode) == (Mode.PR, Mode.PR)


Move = tuple[int, int, Mode, bool]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from(Mode), st.booleans()), max_size=40))
def test_p12_2_p12_3_one_node_beside_a_naive_one(moves: list[Move]) -> None:
    """Grants, both queues and their order are the same after each step; and each wait ends in exactly one way."""
    few, naive = Few(1), Naive()
    manager = few.managers[0]
    numbers: list[LockId] = []
    for what, which, mode, no_queue in moves:
        lock = numbers[which % len(numbers)] if numbers else None
        held = naive.granted.get(lock) if lock is not None else None
        converting = any(lock == each for each, _ in naive.converting)
        waiting = any(lock == each for each, _ in naive.waiting)
        if lock is None or what < 2:
            number = manager.request(1, SPACE, NAME, mode, no_queue=no_queue)
            naive.request(number, mode, no_queue)
            numbers.append(number)
        elif what < 4 and held is not None and not converting:
            manager.convert(1, lock, mode, no_queue=no_queue)
            naive.convert(lock, mode, no_queue)
        elif what == 4 and held is not None:
            manager.unlock(1, lock)
            naive.free(lock)
        elif what == 5 and (converting or waiting):
            manager.cancel(1, lock)
            naive.withdraw(lock)
        resource = manager.tables.resources[KEY]
        assert {each.id: each.mode for each in resource.locks.values() if each.mode != NONE} == naive.granted
        queued = [(each.id, each.wanted) for each in resource.queued()]
        assert queued == naive.converting + naive.waiting
        assert resource.granted == sum(UNIT[each] for each in naive.granted.values())
    few.pump()
    for number in numbers:
        if number not in naive.granted and all(number != each for each, _ in naive.waiting):
            assert number not in manager.tables.clients.get(1, {})


def test_p12_2_nobody_overtakes_so_a_writer_does_not_starve() -> None:
    few = Few(1)
    reader = few.lock(0, PR)
    writer = few.lock(0, EX)
    late = [few.lock(0, PR) for _ in range(5)]
    few.unlock(0, reader)
    assert few.grants(writer) and not any(few.grants(each) for each in late)
    few.unlock(0, writer)
    assert all(few.grants(each) for each in late)


# ---- clients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "name", "words"),
    [
        ("t", "a", "there is no lockspace 't'; there are: s"),
        ("s", "", "is empty"),
        ("s", "a//b", "parts of a resource's name"),
        ("s", "a\nb", "control characters"),
        ("s", "x" * 256, "at most 255 bytes"),
        ("s", "\u00fc" * 128, "at most 255 bytes"),
        ("s", "/".join("a" * 17), "at most 16 parts"),
    ],
)
def test_p12_1_names_that_cannot_be_are_refused_in_words_and_change_nothing(space: str, name: str, words: str) -> None:
    few = Few(1)
    with pytest.raises(LockRefused, match=words):
        few.managers[0].request(1, space, name, EX)
    assert not few.managers[0].tables.clients and not few.managers[0].tables.resources


def test_p12_1_names_and_lockspaces_that_can_be() -> None:
    assert not name_problem("orders/42") and not name_problem("a b/\u00fc") and not name_problem("/".join("a" * 16))
    assert not space_problem("gfs2.home-1") and space_problem("a:b") and space_problem("x" * 33)
    for spaces in (["a:b"], [f"s{number}" for number in range(66)]):  # 64 may be configured, and one is Muster's own
        with pytest.raises(LockRefused):
            LockManager(0, 1).follow_spaces(spaces)


def test_p12_1_what_a_client_asks_wrongly_is_refused_and_changes_nothing() -> None:
    few = Few(1)
    manager = few.managers[0]
    held, reads = few.lock(0, EX), few.lock(0, CR, name="b")
    waits = few.lock(0, EX)
    wrong: list[Callable[[], object]] = [
        lambda: manager.request(1, SPACE, NAME, 6),
        lambda: manager.convert(1, held, -1),
        lambda: manager.unlock(2, held),
        lambda: manager.unlock(1, 12345),
        lambda: manager.unlock(1, waits),
        lambda: manager.convert(1, waits, NL),
        lambda: manager.unlock(1, held, value=b"x" * (MAXIMUM_VALUE + 1)),
        lambda: manager.unlock(1, reads, value=b"x"),
        lambda: manager.convert(1, reads, EX, value=b"x"),
    ]
    for each in wrong:
        with pytest.raises(LockRefused):
            each()
    assert not manager.take()
    few.unlock(0, held)
    assert few.grant(waits).mode is EX


def test_p12_5_a_connection_that_ends_frees_nothing_until_its_processes_have_ended() -> None:
    few = Few(2)
    held = few.lock(0, EX, client=7)
    waits, queued = few.lock(1, PR), few.lock(0, EX, client=7)
    few.managers[0].disconnected(7)
    few.pump()
    assert (0, EndClient(7)) in few.told and few.refusals(queued) == [Reason.CLIENT_GONE]
    assert not few.grants(waits)
    few.managers[0].emptied(7)
    few.pump()
    assert (0, Released(7, held)) in few.told and few.grants(waits)


def test_p12_5_each_holder_is_told_once_for_each_mode_that_somebody_waits() -> None:
    few = Few(2)
    held = [few.lock(0, PR), few.lock(1, PR)]
    few.lock(1, NL)  # in nobody's way
    for _ in range(3):
        few.lock(0, PW, client=2)
    few.lock(1, EX, client=2)
    told = [(node, each.lock, each.mode) for node, each in few.told if isinstance(each, Blocking)]
    assert sorted(told) == [(0, held[0], PW), (0, held[0], EX), (1, held[1], PW), (1, held[1], EX)]


def test_p12_9_a_wait_ends_in_one_way_and_a_cancel_that_is_late_changes_nothing() -> None:
    few = Few(2)
    held = few.lock(0, EX)
    waits = few.lock(1, EX)
    few.managers[0].unlock(1, held)
    few.managers[1].cancel(1, waits)  # the grant is on its way already, or is not: either is an end
    few.pump()
    assert len(few.grants(waits)) + len(few.refusals(waits)) == 1
    third, fourth = few.lock(0, EX), few.lock(1, EX)
    few.managers[1].expire(1, fourth)
    few.pump()
    assert few.refusals(fourth) in ([Reason.TIMED_OUT], [Reason.WOULD_WAIT]) or few.grants(fourth) or few.grants(third)
    refused = few.lock(0, EX, no_queue=True)
    assert few.refusals(refused) == [Reason.WOULD_WAIT]


def test_p12_10_what_a_client_makes_grow_is_bounded_and_others_are_unharmed() -> None:
    few = Few(1, Bounds(locks_of_client=5, locks=8, idle=3))
    manager = few.managers[0]
    for number in range(5):
        few.lock(0, EX, name=f"a/{number}")
    with pytest.raises(LockRefused, match="this client has 5 locks"):
        few.lock(0, EX, name="a/5")
    for number in range(3):
        assert few.grants(few.lock(0, EX, client=2, name=f"b/{number}"))
    with pytest.raises(LockRefused, match="this node has 8 locks"):
        few.lock(0, EX, client=3, name="c")
    for client in (1, 2):
        manager.emptied(client)
    few.pump()
    assert (
        len(manager.tables.resources) == 3
        and not manager.tables.clients
        and not set(manager.tables.directory.keys()) - manager.tables.resources.keys()
    )


# ---- value blocks and tokens -----------------------------------------------------------------------------------------


def test_p12_4_the_block_is_what_was_written_last_and_goes_with_the_last_lock() -> None:
    few = Few(2)
    keeper, writer = few.lock(0, NL), few.lock(1, EX)
    few.unlock(1, writer, value=b"one")
    reader = few.lock(0, PR)
    assert (few.grant(reader).value, few.grant(reader).valid) == (b"one", True)
    few.unlock(0, reader)
    few.unlock(0, keeper)
    assert few.grant(few.lock(1, PR)).value == b""


def test_p12_4_the_loss_of_a_writer_marks_the_block_until_somebody_writes() -> None:
    few = Few(3)
    keeper = few.lock(0, NL)
    first = few.lock(1, PW)
    few.unlock(1, first, value=b"one")
    few.lock(2, EX)
    few.die(2)
    reader = few.lock(1, PR)
    assert not few.grant(reader).valid
    few.unlock(1, reader)
    few.unlock(1, few.lock(1, EX), value=b"two")
    reader = few.lock(0, PR)
    assert (few.grant(reader).value, few.grant(reader).valid) == (b"two", True)
    assert few.grants(keeper)


def test_p12_4_the_loss_of_the_master_marks_the_block_unless_somebody_keeps_writers_out() -> None:
    for kept in (NL, CR, CW, PR):
        few = Few(3)
        few.unlock(0, few.lock(0, EX), value=b"gone with the last lock")
        writer = few.lock(0, EX)
        keeper = few.lock(1, NL)
        few.unlock(0, writer, value=b"one")
        few.managers[1].convert(1, keeper, kept)
        few.pump()
        few.die(0)
        told = few.grant(few.lock(2, CR))
        assert told.value == (b"one" if kept is not NL else b"") and told.valid is (kept in (CW, PR))


def test_p12_6_tokens_rise_through_drops_leaves_and_deaths() -> None:
    few = Few(3, Bounds(idle=0))
    tokens = []
    for node in (0, 1, 2, 1):
        number = few.lock(node, EX)
        tokens.append(few.grant(number).token)
        few.unlock(node, number)
    few.leave(0)
    del few.managers[0], few.seats[0]
    for node in (1, 2):
        number = few.lock(node, EX)
        tokens.append(few.grant(number).token)
        few.unlock(node, number)
    few.die(1)
    tokens.append(few.grant(few.lock(2, EX)).token)
    assert tokens == sorted(set(tokens))


# ---- channels and the directory --------------------------------------------------------------------------------------


def test_p12_7_each_message_once_and_in_order_over_connections_that_lose() -> None:
    for seed in range(200):
        random = Random(seed)
        ends, heard = (Channel(1), Channel(1)), ([], [])  # type: ignore[var-annotated]
        wires: tuple[deque[Frame], deque[Frame]] = (deque(), deque())
        sent = [0, 0]
        for _ in range(200):
            side = random.randrange(2)
            what = random.random()
            if what < 0.5:
                sent[side] += 1
                wires[side].append(ends[side].sent(Found("", sent[side], 0, (0, 0))))
            elif what < 0.93 and wires[side]:
                message = ends[1 - side].taken(wires[side].popleft())
                if message is not None:
                    heard[1 - side].append(message)
            elif what >= 0.93:  # the connection is lost with what is on it, and there is another
                for each in (0, 1):
                    wires[each].clear()
                    wires[each].extend(ends[each].again())
        for side in (0, 1):
            wires[side].clear()
            for frame in ends[side].again():
                message = ends[1 - side].taken(frame)
                if message is not None:
                    heard[1 - side].append(message)
            assert [each.turn for each in heard[1 - side]] == list(range(1, sent[side] + 1))


def test_p12_7_nothing_of_an_incarnation_that_is_gone_is_honoured() -> None:
    few = Few(2)
    held = few.lock(0, EX)
    late = few.managers[1].request(1, SPACE, NAME, EX)
    frames = [each.frame for each in few.managers[1].take() if isinstance(each, Send)]
    few.die(1)
    before = dict(few.managers[0].tables.resources[KEY].locks) if KEY in few.managers[0].tables.resources else {}
    for frame in frames:
        few.managers[0].received(1, life_of(1, 0), frame)
    few.pump()
    assert late not in few.managers[0].tables.resources[KEY].locks
    assert few.managers[0].tables.resources[KEY].locks == before and held in before


def test_p12_8_a_join_moves_only_buckets_to_the_new_node() -> None:
    for size in range(1, 9):
        before, after = layout(tuple(range(size))), layout(tuple(range(size + 1)))
        moved = [bucket for bucket in range(BUCKETS) if before[bucket] != after[bucket]]
        assert all(after[bucket] == size for bucket in moved)
        assert BUCKETS / (size + 1) / 2 < len(moved) < BUCKETS / (size + 1) * 2


def test_p12_8_the_first_user_is_the_master_and_pays_no_network_afterwards() -> None:
    few = Few(3)
    name = name_at(2, (0, 1, 2))
    few.unlock(0, few.lock(0, EX, name=name))
    assert few.master(f"{SPACE}:{name}") == 0
    number = few.managers[0].request(1, SPACE, name, EX)
    effects = few.managers[0].take()
    assert [type(each) for each in effects] == [Granted] and effects[0][1] == number  # type: ignore[misc]
    assert few.grants(few.lock(1, NL, name=name))  # found by way of the directory


# ---- recovery --------------------------------------------------------------------------------------------------------


def test_p12_11_a_join_stops_no_grant_on_what_is_mastered() -> None:
    few = Few(2)
    held = few.lock(0, EX)
    waits = few.lock(1, EX)
    few.silent.add(2)  # who comes says nothing yet, so the round does not end
    few.join(2)
    assert few.managers[0].recovery.phase is Phase.STOPPING
    few.unlock(0, held)
    assert few.grants(waits)


def test_p12_11_a_graceful_leave_hands_over_and_disturbs_no_lock_of_another() -> None:
    few = Few(3)
    first = few.lock(0, NL)
    assert few.master() == 0
    writer = few.lock(1, EX)
    queue = [few.lock(2, PR, client=2), few.lock(1, EX, client=2), few.lock(2, PR, client=3)]
    few.unlock(0, first)
    few.leave(0)
    assert not few.is_at_work() and few.master() in (1, 2)
    few.unlock(1, writer, value=b"one")
    assert (few.grant(queue[0]).value, few.grant(queue[0]).valid) == (b"one", True)
    assert not few.grants(queue[1]) and not few.grants(queue[2])
    few.unlock(2, queue[0], client=2)
    assert few.grants(queue[1]) and not few.grants(queue[2])


def test_p12_11_a_leave_waits_for_the_locks_of_its_own_clients_and_others_go_on() -> None:
    few = Few(2)
    held = few.lock(0, EX, client=9)
    few.leave(0)
    assert (0, EndClient(9)) in few.told and few.is_at_work()
    assert few.grants(few.lock(1, EX, name="other"))
    with pytest.raises(LockRefused, match="is leaving"):
        few.lock(0, NL)
    waits = few.lock(1, EX)
    assert not few.grants(waits)
    few.managers[0].emptied(9)
    few.pump()
    assert not few.is_at_work() and few.grants(waits) and (0, Released(9, held)) in few.told


def test_p12_12_nothing_is_granted_before_the_recovery_has_ended() -> None:
    """Where the master died, and where another part of it did; what it had no part in goes on."""
    few = Few(4)
    elsewhere, own = few.lock(1, EX, name="elsewhere"), few.lock(1, EX, name="own")
    few.lock(0, EX, name="own", client=2)  # waits there
    few.lock(0, EX)
    waits = [few.lock(1, PR), few.lock(2, PR)]
    few.silent.add(3)
    few.die(0)
    few.unlock(1, own)
    late = few.lock(1, EX, name="own", client=3)
    assert not few.grants(late) and not any(map(few.grants, waits))
    next_elsewhere = few.lock(2, EX, name="elsewhere")
    few.unlock(1, elsewhere)
    assert few.grants(next_elsewhere)
    few.hear(3)
    assert few.grants(late) and all(map(few.grants, waits)) and not few.is_at_work()


def test_p12_12_what_survivors_hold_is_held_after_the_loss_of_the_master() -> None:
    few = Few(4)
    few.lock(0, NL)
    held = few.lock(1, PR), few.lock(2, PR)
    waits = few.lock(3, EX)
    few.die(0)
    assert not few.grants(waits)
    few.unlock(1, held[0])
    assert not few.grants(waits)
    few.unlock(2, held[1])
    assert few.grant(waits).mode is EX


def test_p12_13_a_second_death_in_the_middle_begins_again() -> None:
    """The new master of what the first death orphaned dies in the middle: all is told again, and nothing is lost."""
    for second in (1, 2, 3):
        few = Few(4)
        few.lock(0, NL)
        locks = {node: few.lock(node, PR) for node in (1, 2, 3)}
        writer = few.lock(next(node for node in (1, 2, 3) if node != second), EX, client=2)
        few.silent.add(second)
        few.die(0)
        assert few.is_at_work() and not few.grants(writer)
        few.silent.clear()
        few.die(second)
        assert not few.is_at_work() and not few.grants(writer)
        for node, number in locks.items():
            if node != second:
                few.unlock(node, number)
        assert few.grant(writer).mode is EX


def test_p3_8_of_the_steps_that_a_node_learns_of_together_first_barriers_are_told_first() -> None:
    """A join begins before the leave's second barrier: who resumed by that in the round before would be alone in it."""
    master, levels = Master(3), (LOCKS, EVENT_MANAGER_LEVEL)
    seats = {node: Seat(master, node, 1, levels) for node in (0, 1)}

    def tell(node: int) -> list[tuple[TransitionKind, int]]:
        seat = seats[node]
        while seat.is_behind:
            seat.apply()
        told = seat.subsystems.due(seat.database)
        for each in told:
            seat.subsystems.acknowledge(Acknowledgement(each.transition, each.level, each.barrier))
        return [(each.kind, each.barrier) for each in told]

    def hear(*nodes: int) -> bool:
        master.reports.update({node: seats[node].report() for node in nodes})
        return master.decide()

    while hear(0, 1):
        tell(0), tell(1)
    master.leave(0)
    assert master.decide() and tell(0) and tell(1)[-1] == (TransitionKind.LEAVING, 0)
    while seats[0].database.transitions and hear(0, 1):  # down to the locks' level
        if any(each.level == LOCKS.number for each in master.database.transitions.values()):
            break
        tell(0), tell(1)
    tell(0), tell(1)
    seats[2] = Seat(master, 2, 1, levels)
    assert hear(2) and tell(2)
    assert hear(0, 1, 2)
    assert tell(1) == [(TransitionKind.JOINING, 0), (TransitionKind.LEAVING, 1)]


# ---- what random histories have found (PROTOCOL 12), each as it was shrunk -------------------------------------------


def test_p12_11_a_leaver_that_becomes_a_master_after_it_has_stopped_grants_nothing() -> None:
    """Seed 303733: the directory answers before it knows of the leave, and that arrives after the leaver's stop."""
    few = Few(3)
    name = name_at(2, (0, 1, 2))
    few.slow.add((2, 0))
    few.managers[0].request(1, SPACE, name, EX)
    few.pump()
    waits = few.lock(1, EX, name=name)  # the directory says that node 0 is the master: it is asked there
    few.leave(0)
    assert few.is_at_work() and not few.grants(waits)
    few.arrive()
    assert not any(sender == 0 and isinstance(message, Given) for sender, _, message in few.sent)
    assert len(few.grants(waits)) == 1 and not few.is_at_work()
    few.unlock(1, waits)
    assert few.grants(few.lock(2, EX, name=name))


def test_p12_8_no_directory_makes_a_node_that_leaves_a_master() -> None:
    few = Few(3)
    name = name_at(2, (0, 1, 2))
    few.slow.add((0, 2))
    few.managers[0].request(1, SPACE, name, EX)
    few.leave(0)
    few.arrive()
    assert not any(isinstance(message, Found) and message.master == 0 for _, _, message in few.sent)
    assert not few.is_at_work() and few.grants(few.lock(1, EX, name=name))


def test_p12_13_a_new_lock_on_a_resource_that_came_in_a_round_outlives_the_rounds_beginning_again() -> None:
    """Seed 200859: who asks knows the new master from an earlier time, and nothing of the round."""
    few = Few(4, Bounds(idle=1))
    name = name_at(1, (0, 1, 2, 3))
    few.unlock(1, few.lock(1, EX, name=name))
    few.unlock(2, few.lock(2, EX, name=name))  # knows node 1 as the master from now on
    few.unlock(1, few.lock(1, EX, name="other"))
    few.unlock(1, few.lock(1, EX, name="another"))
    first = few.lock(0, NL, name=name)
    assert few.grants(first) and few.master(f"{SPACE}:{name}") == 0  # node 1 has dropped it
    holds, waits = few.lock(3, PR, name=name), few.lock(1, EX, name=name)
    assert few.managers[2].tables.uses[f"{SPACE}:{name}"].master == 1
    few.slow_from = (3, 2, Rebuilt)  # so node 2 is not ready, and nobody resumes
    few.die(0)
    assert f"{SPACE}:{name}" in few.managers[1].tables.resources
    assert few.managers[1].recovery.phase is Phase.READY  # it has heard all, and waits for node 2
    new = few.lock(2, EX, name=name)
    few.die(3)
    assert not few.is_at_work() and few.grants(holds) and few.grants(waits) and not few.grants(new)
    few.unlock(1, waits)
    assert few.grants(new)


def test_p12_11_who_joins_during_anothers_leave_waits_for_the_last_that_it_frees() -> None:
    """Seeds 6787 and 10803: it takes part in the leave, whenever it came."""
    few = Few(2)
    held = few.lock(0, EX, client=9)
    few.slow.add((1, 0))
    few.leave(0)  # its first barrier is not over
    few.join(2)
    few.arrive()
    waits = few.lock(2, EX)
    assert few.is_at_work() and not few.grants(waits)
    few.slow.add((0, 2))
    few.managers[0].emptied(9)
    few.pump()
    assert few.is_at_work()  # node 2 has not heard that this was the last
    few.arrive()
    assert not few.is_at_work() and (0, Released(9, held)) in few.told and few.grants(waits)
    assert 0 not in few.managers[2].recovery.roster


def test_p12_4_a_block_is_valid_where_a_master_that_left_had_dropped_its_resource() -> None:
    """Seed 3130: nobody had a lock on it, so it begins anew; where that master has died, nobody knows."""
    for dies in (False, True):
        few = Few(3, Bounds(idle=1))
        name = name_at(2, (0, 1, 2))
        few.unlock(0, few.lock(0, EX, name=name))
        few.unlock(1, few.lock(1, EX, name=name))  # knows node 0 as the master from now on
        few.slow.add((1, 0))
        waits = few.lock(1, EX, name=name)
        few.unlock(0, few.lock(0, EX, name="another"))
        assert f"{SPACE}:{name}" not in few.managers[0].tables.resources
        if dies:
            few.slow.clear()
            few.late.clear()
            few.die(0)
        else:
            few.leave(0)
            few.arrive()
        assert few.grant(waits).valid is not dies


def test_p12_7_what_is_said_to_a_node_is_not_heard_by_its_next_incarnation() -> None:
    """The next life connects before the last one is forced out."""
    few = Few(2)
    few.lock(1, EX)
    few.managers[0].connected(1, life_of(2, 0))
    waits = few.managers[0].request(1, SPACE, NAME, EX)
    assert not [each for each in few.managers[0].take() if isinstance(each, Send)]
    few.die(1)
    few.join(1, incarnation=2)
    assert not few.is_at_work() and few.grants(waits) and few.grants(few.lock(1, NL))


def test_p12_12_what_is_given_up_while_a_recovery_goes_on_is_not_granted_at_its_end() -> None:
    few = Few(3)
    few.lock(0, NL)
    blocks, waits = few.lock(1, EX, client=2), few.lock(1, NL)
    few.managers[1].convert(1, waits, PR)
    few.slow.add((2, 1))
    few.leave(0)
    few.managers[1].unlock(2, blocks)
    few.managers[1].unlock(1, waits)
    few.arrive()
    assert [each.mode for each in few.grants(waits)] == [NL] and (1, Released(1, waits)) in few.told


# ---- deadlocks -------------------------------------------------------------------------------------------------------


def test_p12_14_a_deadlock_of_three_nodes_ends_by_one_victim() -> None:
    few = Few(3)
    held = [few.lock(node, EX, client=node, name=f"r{node}") for node in range(3)]
    waits = [few.lock(node, EX, client=node, name=f"r{(node + 1) % 3}") for node in range(3)]
    few.managers[2].suspect()
    few.pump()
    assert [few.refusals(each) for each in waits] == [[], [], [Reason.DEADLOCK]]
    few.unlock(2, held[2], client=2)
    assert few.grants(waits[1]) and not few.grants(waits[0])


def test_p12_14_two_conversions_that_wait_for_each_other_are_a_deadlock() -> None:
    few = Few(2)
    locks = [few.lock(node, PR) for node in (0, 1)]
    for node in (0, 1):
        few.managers[node].convert(1, locks[node], EX)
    few.pump()
    few.managers[0].suspect()
    few.pump()
    assert [few.refusals(each) for each in locks] == [[], [Reason.DEADLOCK]]
    few.unlock(1, locks[1])
    assert few.grant(locks[0]).mode is EX


def test_p12_14_who_waits_behind_others_for_what_it_has_itself_is_in_no_deadlock() -> None:
    """As a client does in which several tasks want the same lock."""
    few = Few(2)
    held = few.lock(0, EX)
    other, again = few.lock(1, EX), few.lock(0, EX)
    few.managers[1].suspect()
    few.pump()
    assert not few.refusals(other) and not few.refusals(again)
    few.unlock(0, held)
    few.unlock(1, other)
    assert few.grants(again)


def test_p12_14_waits_without_a_circle_have_no_victim_and_a_search_ends_with_its_round() -> None:
    few = Few(2)
    few.lock(0, EX)
    waits = few.lock(1, EX), few.lock(0, EX, client=2)
    few.managers[0].suspect()
    few.pump()
    assert not few.refusals(waits[0]) and not few.refusals(waits[1])
    assert [_is_searching(few)] == [False]
    few.silent.add(1)
    few.managers[0].suspect()
    few.pump()
    assert [_is_searching(few)] == [True]
    few.die(1)
    assert [_is_searching(few)] == [False]


def _is_searching(few: Few) -> bool:
    return few.managers[0].search.is_under_way


def test_p12_14_waits_of_different_moments_make_no_circle() -> None:
    one = Edge((0, 1), 1, 1, "s:a", (1, 1), 2, (1, 1, 5))
    other = Edge((1, 1), 3, 1, "s:b", (0, 1), 4, (1, 1, 5))
    assert victim_of([one, other]) == other and victim_of([one]) is None
    assert victim_of({one, other} & {one, other._replace(serial=2)}) is None


# ---- lives -----------------------------------------------------------------------------------------------------------


def test_p12_22_each_lock_process_has_a_name_above_all_of_its_node_before() -> None:
    second_ns = 1_000_000_000
    lives = [
        life_of(3, 5 * second_ns),
        life_of(3, 5 * second_ns + second_ns // 2),
        life_of(4, 0),
        life_of(4, second_ns),
    ]
    assert lives == sorted(set(lives))
    assert life_of(3, 1 << 62) < life_of(4, 0), "whatever the clock says"


def test_p12_22_a_lock_process_that_ends_and_comes_again_at_once_joins_and_has_nothing_of_the_last_one() -> None:
    few = Few(3)
    few.lock(1, EX)
    waits = few.lock(0, EX)
    kept = few.lock(2, EX, name="orders/43")
    assert not few.grants(waits)
    few.restart(1)
    assert not few.is_at_work()
    assert few.grants(waits), "the last process is over, with all that it held"
    assert few.grants(kept) and not few.grant(waits).valid, "it may have been about to write"
    again = few.lock(1, PR, name="orders/43")
    few.unlock(2, kept)
    assert few.grants(again)


def test_p12_22_what_an_earlier_process_has_said_is_not_heard() -> None:
    few = Few(2)
    few.lock(0, NL)
    last = few.managers[1]
    late = last.request(1, SPACE, NAME, EX)
    frames = [each.frame for each in last.take() if isinstance(each, Send)]
    assert frames
    few.restart(1)
    for frame in frames:
        few.managers[0].received(1, last.incarnation, frame)
    few.pump()
    assert late not in few.managers[0].tables.resources[KEY].locks
    assert few.grants(few.lock(1, EX))
