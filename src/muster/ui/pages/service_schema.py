"""The keys of a service file for people: on the terminal, as JSON, and in docs/SERVICES.md."""

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from muster.files.service_keys import INNER_KEYS, KEYS, Key


def tables() -> dict[str, dict[str, Key]]:
    """Each table of a service file by the place where it stands: `[[service]]` first, then those inside it."""
    return {"[[service]]": KEYS, **INNER_KEYS}


def document() -> dict[str, dict[str, dict[str, str]]]:
    """The keys ready for JSON: {table: {key: {type, default, meaning}}}; a default in brackets is no value."""
    return {
        title: {name: {"type": key.kind, "default": key.default, "meaning": key.meaning} for name, key in keys.items()}
        for title, keys in tables().items()
    }


def pages() -> Iterator[Table]:
    """A table of keys for each table of a service file."""
    for title, keys in tables().items():
        page = Table(title=escape(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for heading in ("KEY", "TYPE", "DEFAULT", "MEANING"):
            page.add_column(heading, overflow="fold", header_style="dim")
        for name, key in keys.items():
            page.add_row(name, *map(escape, (key.kind, key.default, key.meaning)))
        yield page


def markdown(title: str) -> str:
    """The table of `title` as docs/SERVICES.md has it."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, key in tables()[title].items():
        in_words = key.default.startswith("[") and key.default[1:2].isalpha()
        default = key.default.strip("[]") if in_words else f"`{key.default}`"
        rows.append(f"| `{name}` | {key.kind} | {default} | {key.meaning} |")
    return "\n".join(rows) + "\n"
