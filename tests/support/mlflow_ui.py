"""A registered model's page in MLflow's own web UI, used as a person does: with a mouse and a keyboard.

It knows the page of MLflow 3.17 by the ids that its controls have for tests and telemetry.
"""

import json
from urllib.parse import quote

from support.browser import Browser

_TABLE = "[data-testid=model-version-table]"
_ASSISTANT_CLOSE = '[data-component-id="mlflow.assistant.chat_panel.close"]'
_SAVE = '[data-component-id="mlflow.edit-aliases-modal.save-button"]'
_REFUSAL = '[data-component-id="mlflow.edit-aliases-modal.error-alert"]'

_READ_ALIASES = f"""
Object.fromEntries([...document.querySelectorAll('{_TABLE} a[href*="/versions/"]')].flatMap(link => {{
  const tags = link.closest('[role=row]').querySelectorAll('[title][data-component-id*=modelversionaliastag]')
  return [...tags].map(tag => [tag.title, Number(link.getAttribute('href').split('/').pop())])
}}))
"""

# The middle of an element once a click there reaches it: it is on the screen, stands still, is not disabled,
# and nothing covers it, such as a dialog that is still fading.
_REACHABLE = """
(async () => {
  const find = () => FIND
  const box = () => JSON.stringify(find()?.getBoundingClientRect())
  const frame = () => new Promise(requestAnimationFrame)
  find()?.scrollIntoView({block: 'nearest', inline: 'nearest'})
  const before = box()
  await frame()
  await frame()
  const element = find()
  if (!element || element.disabled || box() !== before) return null
  const {x, y, width, height} = element.getBoundingClientRect()
  const middle = {x: x + width / 2, y: y + height / 2}
  return element.contains(document.elementFromPoint(middle.x, middle.y)) ? middle : null
})()
"""


def open_model(browser: Browser, server: str, model: str, *, width: int = 1400, height: int = 900) -> None:
    """Show a model's page with its versions, without the assistant that opens by itself at a first visit."""
    # From a page to the same address, Chromium does not load anew.
    browser.open("about:blank", width=width, height=height)
    browser.open(f"{server.rstrip('/')}/#/models/{quote(model, safe='')}", width=width, height=height)
    browser.wait_for(_exists(f'{_TABLE} a[href*="/versions/"]'))
    # The assistant is part of the frame, which is there before the table is.
    if browser.evaluate(_exists(_ASSISTANT_CLOSE)):
        _click(browser, _element(_ASSISTANT_CLOSE))
        browser.wait_for(f"!{_exists(_ASSISTANT_CLOSE)}")


def shown_aliases(browser: Browser) -> dict[str, int]:
    """Each alias on the open page of a model, with its version. The page shows the newest 25 versions."""
    aliases: dict[str, int] = browser.evaluate(_READ_ALIASES)
    return aliases


def set_alias(
    browser: Browser,
    server: str,
    model: str,
    version: int,
    alias: str,
    *,
    width: int = 1400,
    height: int = 900,
) -> None:
    """Give a version an alias as a person does: by the controls of the model's page in MLflow's UI.

    The version is one of the newest 25, which the page shows. The alias is in lower case: the UI makes it so.
    Where another version has it, it moves. In the end the page shows the version with its alias, ready for a
    screenshot. Raises ``RuntimeError`` with MLflow's words where it refuses the alias.
    """
    open_model(browser, server, model, width=width, height=height)
    link = f'{_TABLE} a[href$="/versions/{version}"]'
    browser.wait_for(_exists(link))
    row = f"{_element(link)}.closest('[role=row]')"
    if shown_aliases(browser).get(alias) != version:
        _click(browser, f"{row}.querySelector('[data-component-id*=modelversiontablealiasescell]')")
        _click(browser, _element("[role=dialog] input[type=search]"))
        browser.call("Input.insertText", text=alias)
        # The suggestion that is what was typed: Enter would take the highlighted one.
        _click(browser, _element(f".rc-virtual-list [label={json.dumps(alias)}]"))
        _click(browser, _element(_SAVE))
        # The dialog goes once the server has the alias.
        browser.wait_for(f"!{_exists(_SAVE)} || {_exists(_REFUSAL)}")
        if browser.evaluate(_exists(_REFUSAL)):
            raise RuntimeError(f"MLflow's UI: {browser.evaluate(f'{_element(_REFUSAL)}.textContent')}")
        # MLflow 3.17.2 shows it only when the page is loaded again: its own refresh fails.
        open_model(browser, server, model, width=width, height=height)
        browser.wait_for(f"({_READ_ALIASES})[{json.dumps(alias)}] === {version}")
    # The pointer would leave a row highlighted.
    browser.call("Input.dispatchMouseEvent", type="mouseMoved", x=0, y=0)
    browser.evaluate(f"{row}.scrollIntoView({{block: 'nearest'}})")


def _element(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"


def _exists(selector: str) -> str:
    return f"({_element(selector)} !== null)"


def _click(browser: Browser, element: str) -> None:
    """Click on what a JavaScript expression finds, once a click reaches it."""
    point = browser.wait_for(_REACHABLE.replace("FIND", element))
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        button = "none" if kind == "mouseMoved" else "left"
        browser.call("Input.dispatchMouseEvent", type=kind, **point, button=button, clickCount=1)
