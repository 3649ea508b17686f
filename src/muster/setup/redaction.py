"""Taking secrets out of what leaves a machine in a bug report (SPEC 9.4).

Keys, tokens, passwords and the values of environment variables are replaced, by their shape and by the name that they
stand under; when in doubt, out. What a program calls its secret nobody can know: who sends a bundle should look at it.
"""

import json
import re
from typing import Any

LEFT_OUT = "(left out)"
_TELLING = (
    r"pass(?:word|wd|phrase|code)?s?|pwd|secrets?|tokens?|credentials?|cookie|bearer|authorization"
    r"|(?:api|private|access|shared|signing|encryption)[-_ ]?keys?|key_pem"
)
_NAME = re.compile(rf"(?i)(?:^|[-_.\s])(?:{_TELLING})(?:$|[-_.\s])")
_ENVIRONMENT_NAME = re.compile(r"(?i)(?:^|_)(?:env|environ|environment)$")
_VALUE = r"""(?:\\?"(?:[^"\\]|\\.)*\\?"|'[^']*'|\S+)"""
_PATTERNS = (
    (re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@]*@"), r"\1"),
    (re.compile(rf"(?i)(\bauthorization\s*[:=]\s*(?:(?:bearer|basic|digest)\s+)?|\bbearer\s+){_VALUE}"), r"\1"),
    (re.compile(rf"(?i)((?:^|\s)--?[\w-]*(?:{_TELLING})[\w-]*(?:=|\s+)){_VALUE}"), r"\1"),
    (re.compile(rf"(?i)(\b[\w.-]*(?:{_TELLING})[\"']?\s*[:=]\s*){_VALUE}"), r"\1"),
    (re.compile(rf"(\b[A-Z_][A-Z0-9_]{{2,}}=){_VALUE}"), r"\1"),
)
_KEY_BLOCK = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)"
    r"|[A-Za-z0-9+/=\s]*-----END [A-Z0-9 ]*PRIVATE KEY-----",  # of a key whose beginning was cut off
    re.DOTALL,
)
_OPTION = re.compile(rf"(?i)--?[\w-]*(?:{_TELLING})[\w-]*")


def clean_text(text: str) -> str:
    """The text without what looks like a secret."""
    text = _KEY_BLOCK.sub(LEFT_OUT, text)
    for pattern, before in _PATTERNS:
        text = pattern.sub(before + LEFT_OUT, text)
    return text


def clean_log(text: str) -> str:
    """A log without secrets. Its JSON lines stay JSON."""
    return "".join(_clean_line(line) for line in _KEY_BLOCK.sub(f"{LEFT_OUT}\n", text).splitlines(keepends=True))


def _clean_line(line: str) -> str:
    if line.startswith("{"):
        try:
            return json.dumps(clean(json.loads(line))) + "\n"
        except (ValueError, RecursionError):
            pass
    return clean_text(line)


def clean(document: Any) -> Any:
    """A JSON document without secrets: by the names of its keys, and by what its texts hold."""
    match document:
        case dict():
            return {str(key): _clean_member(str(key), value) for key, value in document.items()}
        case list() | tuple():
            return _clean_list(list(document))
        case str():
            return clean_text(document)
        case _:
            return document


def _clean_member(key: str, value: Any) -> Any:
    if _ENVIRONMENT_NAME.search(key):
        return dict.fromkeys(value, LEFT_OUT) if isinstance(value, dict) else LEFT_OUT
    if _NAME.search(key) and value not in (None, "", 0, False, [], {}):
        return LEFT_OUT
    return clean(value)


def _clean_list(values: list[Any]) -> list[Any]:
    """A list, which may be a command: what follows an option that takes a secret goes, too."""
    found: list[Any] = []
    follows = False
    for value in values:
        found.append(LEFT_OUT if follows and isinstance(value, str) else clean(value))
        follows = isinstance(value, str) and _OPTION.fullmatch(value) is not None
    return found
