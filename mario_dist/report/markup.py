"""HTML that cannot be broken by what stands in it: text is escaped unless it was made here."""

import html
import json
from typing import Any


class Html(str):
    """Markup, as against text."""

    __slots__ = ()


def text(value: object) -> Html:
    """Anything as text; what is markup already stays."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def element(tag: str, *children: object, **attributes: object) -> Html:
    """``<tag name="value">children</tag>``. ``class_`` is class, ``data_x`` is data-x; None leaves an
    attribute out and True gives it without a value."""
    shown = ""
    for name, value in attributes.items():
        name = name.rstrip("_").replace("_", "-")
        if value is True:
            shown += f" {name}"
        elif value is not None:
            shown += f' {name}="{html.escape(str(value))}"'
    if tag in ("meta", "input", "source"):
        return Html(f"<{tag}{shown}>")
    return Html(f"<{tag}{shown}>{''.join(map(text, children))}</{tag}>")


def json_element(identifier: str, value: Any) -> Html:
    """Data for a script. No text in it can end the element or begin another.

    Raises ``ValueError`` for NaN.
    """
    document = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        document = document.replace(character, f"\\u{ord(character):04x}")
    return element("script", Html(document), type="application/json", id=identifier)


def code_element(tag: str, source: str) -> Html:
    """A style or script of ours, as it stands. Raises ``ValueError`` where it would end its own element."""
    if f"</{tag}" in source.lower():
        raise ValueError(f"source must not hold </{tag}")
    return element(tag, Html(source))
