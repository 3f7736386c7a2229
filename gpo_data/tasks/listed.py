"""Lists as one reads them: words with commas between them, over as many lines as they need."""


def listed(text: str) -> tuple[str, ...]:
    """The entries of a list with commas between them."""
    return tuple(" ".join(entry.split()) for entry in text.split(","))
