"""What ends a search that would never end."""


class SearchTooLarge(Exception):
    """More states than a search may hold; the message says which bound to change."""
