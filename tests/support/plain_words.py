"""What people read must be easy to read at night: short sentences of everyday words (P10.14).

The texts are collected from the source: every literal with a space in it, a command's docstring, an f-string with each
of its placeholders as one word. Left out are what only developers read: other docstrings, what is raised where Muster
itself is wrong, and the simulator's account of its worlds.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST = 19  # words of a sentence
PACKAGE = Path(__file__).parents[2] / "src" / "muster"
FOR_DEVELOPERS = ("sim/checkers", "sim/faults", "sim/search", "sim/world")
_OF_DEVELOPERS = {"AssertionError", "InvariantBroken", "RuntimeError", "TypeError", "NotImplementedError"}
_PLACEHOLDER = "X"

# Words that few learn early, and what to write instead.
RARE = {
    "ail": "is wrong with", "albeit": "though", "amiss": "wrong", "anew": "again, new", "befall": "happen to",
    "bereft": "without", "deem": "take for", "dwell": "stay", "forsake": "leave", "forthwith": "at once",
    "heed": "follow", "hence": "so", "henceforth": "from now on", "hereby": "", "hinder": "keep from",
    "hitherto": "until now", "in vain": "without success, does not help", "lest": "so that not", "mend": "fix",
    "naught": "nothing", "notwithstanding": "though", "of late": "recently", "oft": "often", "once more": "again",
    "perish": "end, die", "seldom": "not often", "shun": "avoid", "slain": "killed", "sever": "cut",
    "all the same": "anyway", "stand still": "be paused", "thereof": "of it", "thereupon": "then", "thus": "so",
    "void": "not valid", "vouch": "confirm", "whatever": "all that", "whence": "from where",
    "whereby": "by which", "wherein": "in which", "whereupon": "then", "wherever": "where, everywhere",
    "whichever": "the one that", "whilst": "while", "whither": "where to", "whoever": "who, the one that",
    "withal": "", "wont": "", "wrought": "made", "yonder": "there",
}  # fmt: skip
_FORMS = {"stand still": r"(?:stand|stands|stood) still", "slain": "slain|slay|slays", "perish": r"perish\w*"}
_RARE = re.compile(
    r"\b(?:" + "|".join(_FORMS.get(word, f"{re.escape(word)}(?:s|es|ed|d|ing)?") for word in RARE) + r")\b",
    re.IGNORECASE,
)
_COMMAND = re.compile(r"`[^`]*`|\((?:as |see )?muster [^()]*\)|\bmuster [a-z-]+(?: (?:--[a-z-]+|[A-Z]{2,}|X)\b)*")
_MARKS = re.compile(r"[.!?;](?=[\s\"')]|$)|[\[\]]")


class Text(NamedTuple):
    """A text that people read, and where it stands."""

    file: str  # below the package
    line: int
    words: str


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text. A semicolon ends one, as a full stop does; what is shown as a command is one word."""
    for sentence in _MARKS.split(_COMMAND.sub(_PLACEHOLDER, text)):
        if sentence.strip():
            yield " ".join(sentence.split())


def faults(text: str) -> Iterator[str]:
    """What makes a text hard to read."""
    for sentence in sentences(text):
        count = sum(1 for word in sentence.split() if re.search(r"\w", word))
        if count > LONGEST:
            yield f"{count} words: {sentence}"
    for found in _RARE.finditer(text):
        yield f"rare word {found.group()!r}: {' '.join(text[max(0, found.start() - 40) : found.end() + 40].split())}"


def texts() -> Iterator[Text]:
    """Every text of the package that people may read."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE).as_posix()
        if not file.startswith(FOR_DEVELOPERS):
            yield from texts_of(file, path.read_text())


def texts_of(file: str, source: str) -> Iterator[Text]:
    """Every text of one file that people may read."""
    tree = ast.parse(source)
    hidden = set(_hidden(tree))
    for node in ast.walk(tree):
        docstring = _docstring(node) if _is_command(node) else None
        if docstring is not None:
            for paragraph in re.split(r"\n\s*\n", str(docstring.value)):
                if "\b" not in paragraph:  # a table or an example, as it is printed
                    yield Text(file, docstring.lineno, paragraph)
        if id(node) in hidden:
            continue
        text = _literal(node)
        if " " in text.strip():
            for line in text.split("\n"):
                yield Text(file, getattr(node, "lineno", 0), line)


def _hidden(tree: ast.AST) -> Iterator[int]:
    """What is no text of its own: docstrings, parts of f-strings, what is said where Muster itself is wrong."""
    for node in ast.walk(tree):
        docstring = _docstring(node)
        if docstring is not None:
            yield id(docstring)
        if isinstance(node, ast.Expr):
            yield id(node.value)  # what stands below a constant and explains it
        if isinstance(node, ast.JoinedStr):
            yield from (id(part) for part in node.values if isinstance(part, ast.Constant))
            yield from (id(part.format_spec) for part in node.values if isinstance(part, ast.FormattedValue))
        if isinstance(node, ast.Assert):
            yield from map(id, ast.walk(node))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and _name(node.exc.func) in _OF_DEVELOPERS:
            yield from map(id, ast.walk(node))


def _docstring(node: ast.AST) -> "ast.Constant | None":
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or not node.body:
        return None
    first = node.body[0]
    found = first.value if isinstance(first, ast.Expr) else None
    return found if isinstance(found, ast.Constant) and isinstance(found.value, str) else None


def _is_command(node: ast.AST) -> bool:
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef) else []
    return any(_name(each.func if isinstance(each, ast.Call) else each) in ("command", "group") for each in decorators)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _literal(node: ast.AST) -> str:
    """A text as people see it, each placeholder one word; empty where the node is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_literal(part) if isinstance(part, ast.Constant) else _PLACEHOLDER for part in node.values)
    return ""
