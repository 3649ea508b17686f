"""Texts in records: cut to a stated length, so that what a record can grow to is known before it is accepted (P9.3)."""

LEAST_TEXT_BYTES = 120  # of each text that a service's record keeps: what always has its room
MAXIMUM_TEXT_BYTES = 1500  # the same where there is room to spare
NODE_TEXT_BYTES = 240  # of each text in the records of a node: evidence, refusals, causes
OUTCOME_BYTES = 400  # of what became of an operation
ENTRY_CAUSE_BYTES = 1500
USER_BYTES = 64
_ELLIPSIS = "..."


def clipped(text: str, limit: int) -> str:
    """The text in at most `limit` bytes of UTF-8; what is cut off leaves three dots."""
    if len(text) * 4 <= limit:
        return text
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    return data[: limit - len(_ELLIPSIS)].decode(errors="ignore") + _ELLIPSIS
