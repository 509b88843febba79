"""Chromium without a window, driven by Playwright: for the tests of the page, and benchmarks."""

import contextlib
import shutil

from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--enable-unsafe-webgpu", "--enable-features=Vulkan"]
PLAYED = ["--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader", "--use-angle=swiftshader"]
WAIT = 120_000  # milliseconds at most for anything, as the machine may be busy


@contextlib.contextmanager
def chromium(flags=PLAYED):
    """The browser that is installed here, or None.

    flags: usually those with which the CPU plays a graphics card, the same on every machine.
    """
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        yield browser
        browser.close()


def open_tab(browser, address):
    """A page of its own at this address."""
    tab = browser.new_page(viewport={"width": 1000, "height": 900})
    tab.set_default_timeout(WAIT)
    tab.goto(address)
    return tab


def run(tab, code, **values):
    """What the body of an async function returns, in which each of `values` is a constant."""
    return tab.evaluate(f"async ({{ {', '.join(values)} }}) => {{ {code} }}", values)


def says(tab, start):
    """Wait until the page tells a screen reader something that begins like this."""
    said = "document.querySelector('#live').textContent"
    tab.wait_for_function(f"(start) => {said}.startsWith(start)", arg=start)
