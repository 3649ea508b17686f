"""P10.14: what an operator reads at night is short and plain, wherever in the source it stands."""

from pathlib import Path

import plain_words
from muster.core.leases.diagnosis import CONDITIONS
from plain_words import faults, sentences, texts, texts_of

# A fault that stays, as (file, a part of the text): why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("core/services/explanation.py", "; mend"): "causes that older releases have recorded are read by it, not written",
}


def is_exception(file: str, words: str) -> bool:
    """Whether this text may stay as it is."""
    return any(file == where and part in " ".join(words.split()) for where, part in EXCEPTIONS)


def test_p10_14_every_text_that_people_may_read_has_short_sentences_and_everyday_words() -> None:
    found = [
        f"{text.file}:{text.line}: {fault}"
        for text in texts()
        if not is_exception(text.file, text.words)
        for fault in faults(text.words)
    ]
    assert not found, "write it shorter, or in other words (tests/support/plain_words.py):\n" + "\n".join(found)


def test_p10_14_each_exception_is_still_needed() -> None:
    needed = {
        (where, part)
        for text in texts()
        for where, part in EXCEPTIONS
        if text.file == where and part in " ".join(text.words.split()) and any(faults(text.words))
    }
    assert set(EXCEPTIONS) == needed
    assert all(EXCEPTIONS.values()), "each has a reason"


def test_p10_14_texts_are_found_where_they_stand_and_read_as_people_see_them() -> None:
    source = '''
"""No text."""
@click.command("x")
def show(name):
    """Shows it.

    \\b
    An example, as it is printed
    """
    assert name, "no text either"
    raise Refused(f"{name} is not {'here or there' if name else ''} now", "where it was")

def other():
    """Nor this."""
    raise InvariantBroken("nor that one")
'''
    found = [" ".join(text.words.split()) for text in texts_of("a.py", source)]
    assert sorted(found) == ["Shows it.", "X is not X now", "here or there", "where it was"]


def test_p10_14_long_sentences_and_rare_words_are_faults() -> None:
    nineteen = " ".join(["word"] * plain_words.LONGEST)
    assert not list(faults(f"{nineteen}; {nineteen}. {nineteen}"))
    assert len(list(faults(f"{nineteen}, word"))) == 1
    assert [
        len(list(faults(f"{nineteen} {shown}"))) for shown in ("", "(muster why NAME)", "and `muster why web`")
    ] == [0, 1, 1]
    assert list(sentences("say so: muster why NAME --past; e.g. 1.5 s [none]")) == ["say so: X", "e.g", "1.5 s", "none"]
    for rare in ("it is Mended", "it stands still", "they perished", "in vain", "of late", "whoever asks"):
        assert len(list(faults(rare))) == 1, rare
    assert not list(faults("amend the recommended mailbox, once, more coupons"))


def test_p10_14_the_glossary_has_a_word_for_each_condition_that_pages_show() -> None:
    glossary = (Path(__file__).parents[2] / "docs" / "SPECIFICATION.md").read_text().partition("\n## Glossary")[2]
    (row,) = [line for line in glossary.splitlines() if line.startswith("| condition |")]
    assert [condition for condition in CONDITIONS if f"*{condition}*" not in row] == []
