"""One node's part in the kernels' lockspaces, message by message (P12.31-P12.36); histories: `kernel_world.py`."""

from muster.core.locks.kernel import Command, End, KernelSpaces, Refuse, Standing
from muster.core.locks.machine import LockManager
from muster.core.locks.messages import (
    Acknowledge,
    KernelGo,
    KernelHalt,
    KernelHalted,
    KernelStarted,
    KernelWish,
    Message,
)
from muster.core.locks.recovery import Kind, Member, Phase, Recovery, Step

EPOCH, NAME, IDENTITY = 5, "fs", 77


class Node:
    """The lockspaces of one node after a round, and a kernel that does what it is told when it is let."""

    def __init__(self, node: int, *, coordinator: int = 0, nodes: tuple[int, ...] = (0, 1, 3)) -> None:
        self.sent: list[tuple[int, Message]] = []
        self.commands: list[Command] = []
        self.spaces = KernelSpaces(node, 1, lambda to, message: self.sent.append((to, message)))
        self.spaces.is_on = True
        self.spaces.begin(EPOCH)
        self.spaces.say()
        roster = dict.fromkeys(nodes, 1)
        self.spaces.settle(roster, coordinator)
        self.spaces.resume(roster, is_alone=False)
        self.work()

    def work(self) -> None:
        """The kernel carries out all that there is."""
        for number, command in self.spaces.take():
            self.commands.append(command)
            self.spaces.done(number)

    def is_done(self) -> bool:
        """Whether nothing more comes of it."""
        return self.spaces.is_done_with

    def told(self, message: Message, node: int = 0) -> None:
        """Something that another node, or this one, says."""
        self.spaces.heard(node, 1, message)


def test_p12_35_nothing_more_comes_of_a_node_only_when_its_last_answer_is_given() -> None:
    """The lockspace is off its list at once, and the answer waits for its kernel: nobody may see it off before."""
    leaving = Node(3)
    leaving.spaces.entering(NAME, is_leaving=False)
    leaving.spaces.ending(NAME)
    leaving.told(KernelGo(EPOCH, 6, NAME, IDENTITY, (), 3))
    assert not leaving.spaces.spaces
    assert not leaving.is_done()
    assert (0, KernelStarted(EPOCH, 6)) not in leaving.sent
    leaving.work()
    assert leaving.sent[-1] == (0, KernelStarted(EPOCH, 6))
    assert leaving.is_done()


def test_p12_34_who_is_refused_at_the_end_of_its_process_is_taken_out_by_the_coordinator() -> None:
    """That one may be letting it in at this moment: then it is asked to stop it, and to start it, and does nothing."""
    ending = Node(1)
    ending.spaces.entering(NAME, is_leaving=False)
    ending.spaces.give_up()
    ending.work()
    assert ending.commands[-1] == Refuse(NAME)
    assert ending.sent[-1] == (0, KernelWish(EPOCH, NAME, enters=False))
    done = len(ending.commands)
    ending.told(KernelGo(EPOCH, 1, NAME, IDENTITY, ((1, "1"),), 1))
    ending.told(KernelHalt(EPOCH, 2, NAME))
    assert ending.spaces.spaces[NAME].standing is Standing.REFUSED
    ending.told(KernelGo(EPOCH, 3, NAME, IDENTITY, (), 1))
    ending.work()
    assert [each for _, each in ending.sent[-3:]] == [
        KernelStarted(EPOCH, 1),
        KernelHalted(EPOCH, 2),
        KernelStarted(EPOCH, 3),
    ]
    assert len(ending.commands) == done  # its kernel has nothing of it, or another one that is refused, too
    assert not ending.spaces.spaces
    ending.spaces.entering(NAME, is_leaving=False)
    ending.work()
    assert ending.commands[-1] == Refuse(NAME)
    assert not ending.spaces.spaces


def test_p12_36_the_last_coordinator_has_a_duty_while_anybody_is_in_a_lockspace_or_wishes() -> None:
    last = Node(0)
    assert last.is_done()
    last.told(KernelWish(EPOCH, NAME, enters=True), node=3)
    assert last.sent[-1][0] == 3
    assert not last.is_done()  # a change is under way
    last.told(KernelStarted(EPOCH, 1), node=3)
    assert not last.is_done()  # somebody is in it
    last.told(KernelWish(EPOCH, NAME, enters=False), node=3)
    last.told(KernelHalted(EPOCH, 2), node=3)
    last.told(KernelStarted(EPOCH, 3), node=3)
    assert last.is_done()
    last.spaces.has_emptied = True
    said = list(last.sent)
    last.told(KernelWish(EPOCH, NAME, enters=True), node=1)
    assert last.sent == said  # it has said its last word


def test_p12_36_without_a_coordinator_nobody_waits_for_it() -> None:
    """Its last word says that nobody is in a lockspace: who waits is refused, who has given up is let go."""
    other = Node(3)
    other.spaces.entering("a", is_leaving=False)
    other.spaces.entering("b", is_leaving=False)
    other.spaces.ending("b")
    other.spaces.emptied(1)  # another one that leaves
    assert set(other.spaces.spaces) == {"a", "b"}
    other.spaces.emptied(0)
    other.work()
    assert other.commands[-2:] == [Refuse("a"), End("b")]
    assert other.is_done()


def test_p12_36_the_last_coordinator_is_one_that_has_not_said_its_last_word() -> None:
    recovery = Recovery(2, 1)
    recovery.roster = {0: Member(1, stays=False), 1: Member(1, stays=False), 2: Member(1, stays=False)}
    assert recovery.coordinator == 0
    recovery.emptied = {0: 1}
    assert recovery.coordinator == 1
    recovery.roster[2] = Member(1)
    assert recovery.coordinator == 2


def test_p12_32_a_node_has_told_all_only_when_its_kernel_has_done_all() -> None:
    """Else others would go on where a silent node, for whose barriers nobody waits, has not stopped yet."""
    manager = LockManager(0, 1)
    manager.kernel.is_on = True
    roster = {0: Member(1)}
    manager.told(Step(1, Kind.JOINING, 0, 1, 0, 10, roster))
    manager.told(Step(1, Kind.JOINING, 0, 1, 1, 10, roster))
    [(number, _)] = manager.kernel.take()  # whom it may reach: its kernel takes its time
    manager.take()
    manager.told(Step(2, Kind.FORCED_LEAVING, 3, 1, 0, 20, roster))
    phases = [manager.recovery.phase]
    manager.kernel_has_done(number)
    phases.append(manager.recovery.phase)
    assert phases == [Phase.REBUILDING, Phase.READY]
    assert Acknowledge(2, 0) in manager.take()
