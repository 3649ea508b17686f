"""The refusal that people read: what is wrong, where, and what to do next (SPEC 7.8)."""


class ControlRefused(Exception):
    """What a handler raises to answer with an error: what is wrong, where, and what to do next (SPEC 7.8)."""

    def __init__(self, what: str, where: str, next_step: str) -> None:
        super().__init__(f"{where}: {what}; {next_step}")
        self.what, self.where, self.next_step = what, where, next_step
