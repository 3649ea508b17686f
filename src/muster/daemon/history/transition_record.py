"""What one node has recorded of its recent transitions (SPEC 8.2, 9.4): bounded, and apart from other events.

A transition's record holds the committed entries that the node applied, what its own subsystems were told and
acknowledged, and on a master what it heard of others. A forced leave also holds the evidence about its node that came
before it or during it: lost links, proofs of death. An election goes to every transition that is at work.
"""

from collections import deque

from msgspec.structs import replace

from muster.core.transitions import narration as history
from muster.records.levels import TransitionKind
from muster.records.messages import Happened

MAXIMUM_TRANSITIONS = 128
MAXIMUM_EVENTS = 16_384  # of all transitions together
MAXIMUM_EVENTS_OF_ONE = 2048
MAXIMUM_EVIDENCE = 256
MAXIMUM_DETAIL_CHARACTERS = 1000
FIRST_EVENTS = (history.OPENED, history.FOUND)
LAST_EVENTS = (history.DONE, history.REPLACED, history.GONE)


class _Chapter:
    """What has happened of one transition, in the order in which it did."""

    def __init__(self, happened: list[Happened], replaced: int) -> None:
        self.happened = happened
        self.replaced = replaced  # the transition whose place it took, or 0
        self.omitted = 0
        self.is_over = False


class TransitionRecord:
    """The newest `MAXIMUM_TRANSITIONS` transitions, as far as they have `MAXIMUM_EVENTS` events together."""

    def __init__(self) -> None:
        self._chapters: dict[int, _Chapter] = {}  # in the order in which the node met them
        self._events = 0
        self._evidence: deque[Happened] = deque(maxlen=MAXIMUM_EVIDENCE)
        self._successions: deque[tuple[int, int]] = deque(maxlen=MAXIMUM_TRANSITIONS)  # (new, old)

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
            own = [each for each in chapter.happened if each.transition]
            first = next((each for each in own if each.event in FIRST_EVENTS), own[0])
            found.append(first)
            if chapter.is_over:
                found.append(next(each for each in reversed(own) if each.event in LAST_EVENTS))
        return tuple(found)

    def _at_work(self) -> list[int]:
        return [identity for identity, chapter in self._chapters.items() if not chapter.is_over]

    def _is_forced_leave_of(self, identity: int, node: int) -> bool:
        own = next(each for each in self._chapters[identity].happened if each.transition)
        return own.about == node and own.kind == TransitionKind.FORCED_LEAVING

    def _add(self, identity: int, happened: Happened) -> None:
        chapter = self._chapters.get(identity)
        if chapter is None:
            chapter = self._chapters[identity] = self._begin(identity, happened)
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
            self._successions.append((happened.successor, identity))
        while len(self._chapters) > MAXIMUM_TRANSITIONS or self._events > MAXIMUM_EVENTS:
            oldest = next(iter(self._chapters))
            self._events -= len(self._chapters.pop(oldest).happened)

    def _begin(self, identity: int, happened: Happened) -> _Chapter:
        """A chapter about a transition that the node meets: evidence goes into a forced leave, or was about nothing."""
        about = [each for each in self._evidence if each.about == happened.about]
        self._evidence = deque((each for each in self._evidence if each.about != happened.about), MAXIMUM_EVIDENCE)
        kept = about if happened.kind == TransitionKind.FORCED_LEAVING else []
        self._events += len(kept)
        return _Chapter(kept, dict(self._successions).get(identity, 0))


def _shortened(happened: Happened) -> Happened:
    return replace(happened, detail=happened.detail[: MAXIMUM_DETAIL_CHARACTERS - 4] + " ...")
