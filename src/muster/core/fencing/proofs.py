"""Which proofs of its end there can be for a node, for people (SPEC 7.1): by itself, by others, or by a person only."""

from typing import NamedTuple

from muster.records.database import Database


class Proofs(NamedTuple):
    """In words: what needs nobody, if anything, and the methods by which it is fenced."""

    alone: str  # empty: between machines nothing proves the end of a node that is silent
    methods: tuple[str, ...]

    @property
    def words(self) -> str:
        """What there is beside a tombstone, the next boot and a person's word, which there always is."""
        fenced = f"fence agents ({', '.join(self.methods)})" if self.methods else ""
        return ", ".join(filter(None, (self.alone, fenced))) or "a person's word only"


def proofs_of(database: Database, node: int, *, one_machine: bool) -> Proofs:
    """What can prove that this node has stopped, if it falls silent."""
    plan = database.fence_plans.get(node)
    methods = tuple(method.name for method in plan.methods) if plan is not None and not one_machine else ()
    return Proofs("the kernel's word" if one_machine else "", methods)
