"""Whether heads share features evenly, and what to say where they do not."""


def check_heads(heads: int, width: int, what: str, *, even: bool = False) -> None:
    """Raises a ValueError that names fitting numbers if `heads` do not divide `width` features into (even) widths."""
    step = 2 if even else 1
    if width % (step * heads):
        fitting = [count for count in range(1, width + 1) if width % (step * count) == 0 and count <= 64]
        each = " of even width" if even else ""
        raise ValueError(f"{heads} heads{each} do not divide {what} {width}; {', '.join(map(str, fitting))} would")
