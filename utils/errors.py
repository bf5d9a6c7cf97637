"""What strangers wrote, such as names of files, fit to stand in one line on any terminal."""


def printable(text, longest: int | None = None) -> str:
    """`text` with line ends, control characters and what UTF-8 cannot hold as escapes; its beginning if it is long."""
    text = str(text)
    if longest is not None and len(text) > longest:
        text = f"{text[:longest]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")
