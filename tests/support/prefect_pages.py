"""Prefect's pages of an installation in a browser."""

from __future__ import annotations

import json

from tests.support.browser import Browser
from tests.support.installation import Installation, wait_for


def logged_in(installation: Installation, browser: Browser) -> str:
    """The address of the pages, which the browser may see from now on."""
    from flows import local_services
    from flows.settings import Settings

    settings = Settings.load(installation.home)
    browser.do("POST", "/url", {"url": settings.prefect_ui_url + "/"})
    wait_for(lambda: browser.script("return document.querySelectorAll('a, button, input').length"), "the first page")
    secret = json.dumps(local_services.password(installation.home))
    login = f"""
        const field = document.querySelector('input[type=password]');
        if (!field) return false;
        Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(field, {secret});
        field.dispatchEvent(new Event('input', {{bubbles: true}}));
        document.querySelector('form')?.requestSubmit();
        return true;
    """
    wait_for(
        lambda: browser.script(login) or browser.script("return !!document.querySelector('a[href*=deployments]')"),
        "the login",
    )
    wait_for(lambda: browser.script("return !!document.querySelector('a[href*=deployments]')"), "the dashboard")
    return settings.prefect_ui_url


def press(browser: Browser, name: str, last: bool = False) -> None:
    """Click the button of this name, once it is there. last: of several the last one, which is the dialog's."""
    click = f"""
        const named = [...document.querySelectorAll('button')].filter(
            one => one.innerText.trim() === {json.dumps(name)} && one.offsetParent && !one.disabled);
        if (!named.length) return false;
        named[{"named.length - 1" if last else 0}].click();
        return true;
    """
    wait_for(lambda: browser.script(click), f"the button {name}")
