"""Values of a definition as one line of text, each as it would be typed (SPEC 8.1)."""

import shlex


def as_typed(value: object) -> str:
    """A list as words that a shell tells apart; pairs, as an environment, as NAME=VALUE; anything else as it is."""
    if isinstance(value, list):
        return " ".join(map(_word, value))
    return str(value)


def _word(value: object) -> str:
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        return f"{value[0]}={shlex.quote(str(value[1]))}"
    return shlex.quote(str(value))
