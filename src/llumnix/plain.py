"""Texts that others wrote (ids and tenants of clients, names of models, reasons), for people at a terminal."""

from __future__ import annotations


def say(line: str) -> None:
    """To stdout, at once."""
    print(plain(line), flush=True)


def plain(text: str) -> str:
    """On one line, and nothing in it moves the cursor, colours what follows or turns the direction of the text: signs
    that are not printed, but for the space, stand as Python writes them."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def plain_lines(text: str) -> str:
    """As `plain`, of a text whose lines are its own."""
    return "\n".join(map(plain, text.split("\n")))
