"""Markup that text cannot break."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mario_dist.report.markup import Html, code_element, element, json_element


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, str | None] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


HOSTILE = "</p><script>alert(1)</script>&amp;\"'"


@given(st.text(st.characters(exclude_categories=["C"])) | st.just(HOSTILE))
def test_text_and_attributes_come_back_as_they_were(text: str) -> None:
    reader = read(element("p", text, title=text))
    assert reader.tags == ["p"]
    assert reader.text == text
    assert reader.attributes == {"title": text}


def test_markup_stays_and_attributes_are_spelt() -> None:
    inner = element("b", "x", data_of="1", class_="c", hidden=True, id=None)
    assert inner == '<b data-of="1" class="c" hidden>x</b>'
    assert element("p", inner, Html("<i></i>")) == f"<p>{inner}<i></i></p>"
    assert element("input", type="radio") == '<input type="radio">'


def test_data_cannot_leave_its_script() -> None:
    value = {"name": HOSTILE + "<!--\u2028", "n": [1, 2.5]}
    markup = json_element("data", value)
    content = markup[markup.index(">") + 1 : markup.rindex("<")]
    assert not set(content) & set("<>&\u2028")
    assert json.loads(content) == value
    with pytest.raises(ValueError, match="JSON"):
        json_element("data", float("nan"))


def test_code_that_would_end_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="must not hold"):
        code_element("script", 'x = "</Script>"')
