"""What one node has recorded of its recent transitions (SPEC 8.2, 9.4): bounded, and apart from other events.

A transition's record holds the committed entries that the node applied, what its own subsystems were told and
acknowledged, and on a master what it heard of others. A forced leave also holds the evidence about its node that came
before it or during it: lost links, proofs of death. An election goes to every transition that is at work.
"""

from collections import deque

from muster.core import history
from muster.records.messages import Happened
from muster.records.state import TransitionKind

MAXIMUM_TRANSITIONS = 128
MAXIMUM_EVENTS = 16_384  # of all transitions together
MAXIMUM_EVENTS_OF_ONE = 2048
MAXIMUM_EVIDENCE = 256
MAXIMUM_DETAIL_CHARACTERS = 1000
FIRST_EVENTS = (history.OPENED, history.FOUND)
LAST_EVENTS = (history.DONE, history.REPLACED, history.GONE)


class _Chapter:
    """One transition."""

    def __init__(self) -> None:
        self.happened: list[Happened] = []
        self.omitted = 0
        self.is_over = False
        self.replaced = 0  # the transition whose place it took


class TransitionRecord:
    """The newest `MAXIMUM_TRANSITIONS` transitions, as far as they have `MAXIMUM_EVENTS` events together."""

    def __init__(self) -> None:
        self._chapters: dict[int, _Chapter] = {}  # in the order in which the node met them
        self._events = 0
        self._evidence: deque[Happened] = deque(maxlen=MAXIMUM_EVIDENCE)

    def add(self, happened: Happened) -> None:
        """Record an event, if it belongs to a transition or is evidence for one."""
        if happened.transition:
            self._add(happened.transition, happened)
        elif happened.about >= 0:
            at_work = [key for key in self._at_work() if self._is_forced_leave_of(key, happened.about)]
            for identity in at_work:
                self._add(identity, happened)
            if not at_work:
                self._evidence.append(happened)
        elif happened.event == history.ELECTED:
            for identity in self._at_work():
                self._add(identity, happened)

    def of(self, transition: int) -> tuple[tuple[Happened, ...], int]:
        """The events of a transition and of the one whose place it took; how many there was no room for."""
        found: list[Happened] = []
        omitted = 0
        own = self._chapters.get(transition)
        for chapter in (self._chapters.get(own.replaced) if own else None, own):
            if chapter is not None:
                found += chapter.happened
                omitted += chapter.omitted
        kept = found[-MAXIMUM_EVENTS_OF_ONE:]
        return tuple(kept), omitted + len(found) - len(kept)

    def milestones(self) -> tuple[Happened, ...]:
        """How each transition began, as far as it is known, and how it ended."""
        found = []
        for chapter in self._chapters.values():
            first = next((each for each in chapter.happened if each.event in FIRST_EVENTS), chapter.happened[0])
            found.append(first)
            if chapter.is_over:
                found.append(next(each for each in reversed(chapter.happened) if each.event in LAST_EVENTS))
        return tuple(found)

    def _at_work(self) -> list[int]:
        return [identity for identity, chapter in self._chapters.items() if not chapter.is_over]

    def _is_forced_leave_of(self, identity: int, node: int) -> bool:
        first = self._chapters[identity].happened[0]
        return first.about == node and first.kind == TransitionKind.FORCED_LEAVING

    def _add(self, identity: int, happened: Happened) -> None:
        chapter = self._chapters.get(identity)
        if chapter is None:
            chapter = self._chapters[identity] = self._begin(happened)
        is_last = happened.event in LAST_EVENTS
        if len(chapter.happened) < MAXIMUM_EVENTS_OF_ONE or is_last:
            if len(happened.detail) > MAXIMUM_DETAIL_CHARACTERS:
                happened = _shortened(happened)
            chapter.happened.append(happened)
            self._events += 1
        else:
            chapter.omitted += 1
        chapter.is_over = chapter.is_over or is_last
        if happened.event == history.REPLACED:
            self._succeed(happened)
        while len(self._chapters) > MAXIMUM_TRANSITIONS or self._events > MAXIMUM_EVENTS:
            oldest = next(iter(self._chapters))
            self._events -= len(self._chapters.pop(oldest).happened)

    def _begin(self, happened: Happened) -> _Chapter:
        """A chapter about a transition that the node meets: evidence goes into a forced leave, or was about nothing."""
        chapter = _Chapter()
        about = [each for each in self._evidence if each.about == happened.about]
        self._evidence = deque((each for each in self._evidence if each.about != happened.about), MAXIMUM_EVIDENCE)
        if happened.kind == TransitionKind.FORCED_LEAVING:
            chapter.happened += about
            self._events += len(about)
        return chapter

    def _succeed(self, replaced: Happened) -> None:
        successor = self._chapters.get(replaced.successor)
        if successor is None:
            successor = self._chapters[replaced.successor] = _Chapter()
        successor.replaced = replaced.transition


def _shortened(happened: Happened) -> Happened:
    words = happened.detail[: MAXIMUM_DETAIL_CHARACTERS - 4] + " ..."
    return Happened(*(words if key == "detail" else getattr(happened, key) for key in happened.__struct_fields__))
