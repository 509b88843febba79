"""Chromium without a window, driven over its DevTools protocol, as much of it as tests need."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-quic", "--no-first-run",
    "--hide-scrollbars", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--remote-debugging-port=0",
    "--enable-unsafe-webgpu", "--enable-features=Vulkan",
]  # fmt: skip
PLAYED = ["--use-webgpu-adapter=swiftshader", "--use-vulkan=swiftshader", "--use-angle=swiftshader"]


def find():
    """The browser's path, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page, and all that went wrong on it: uncaught errors, refused resources."""

    def __init__(self, address):
        self.socket = websocket.create_connection(address, suppress_origin=True, timeout=300)
        self.number, self.troubles = 0, []
        for domain in ("Page", "Runtime", "Log", "Performance"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Send a command, return its result; note what went wrong meanwhile."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            details = message.get("params", {})
            if message.get("method") == "Runtime.exceptionThrown":
                self.troubles.append(str(details["exceptionDetails"]))
            entry = details.get("entry", {})
            if message.get("method") == "Log.entryAdded" and entry.get("level") == "error":
                self.troubles.append(entry["text"])

    def run(self, code, **values):
        """Run the body of an async function, in which each of `values` is a constant."""
        head = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in values.items())
        expression = f"(async () => {{ {head}{code} }})()"
        result = self.send(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in result:
            error = result["exceptionDetails"]
            raise RuntimeError(error.get("exception", {}).get("description", error["text"]))
        return result["result"].get("value")

    def open(self, address, wait="true", seconds=300):
        """Go to an address, and wait until an expression is true there."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=address)
        here = "location.protocol !== 'about:' && document.readyState === 'complete'"
        self.wait(f"{here} && ({wait})", seconds)

    def wait(self, expression, seconds=300):
        """Wait until an expression is true; TimeoutError if it does not become so."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(RuntimeError):  # between two pages
                if self.run(f"return Boolean({expression})"):
                    return
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.03)

    def size(self, width, height, **features):
        """The window's size; features: what the reader prefers, prefers_color_scheme="dark"."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height,
            deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        wishes = [{"name": n.replace("_", "-"), "value": v} for n, v in features.items()]
        self.send("Emulation.setEmulatedMedia", features=wishes)

    def key(self, key, text=""):
        """Press a key, for example "Enter", "Tab", "ArrowLeft"."""
        for kind in ("keyDown", "keyUp"):
            code = {"Enter": 13, " ": 32, "Tab": 9, "Escape": 27}.get(key, 0)
            code = code or {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39}.get(key, 0)
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key,
                windowsVirtualKeyCode=code, **more,
            )  # fmt: skip

    def screenshot(self, path, full=False):
        """Write a picture of the page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=full)["data"]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def chromium(folder, flags=PLAYED):
    """Starts the browser with an empty profile in `folder`: a function that makes tabs.

    flags: usually those with which the CPU plays a graphics card, the same on every machine.
    """
    process = subprocess.Popen(
        [find(), *FLAGS, *flags, f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port, end = folder / "DevToolsActivePort", time.monotonic() + 300
        while not (port.exists() and port.read_text()):
            if time.monotonic() > end or process.poll() is not None:
                raise TimeoutError("Chromium did not start")
            time.sleep(0.05)
        server = f"http://127.0.0.1:{port.read_text().split()[0]}"

        def tab():
            request = urllib.request.Request(f"{server}/json/new?about:blank", method="PUT")
            with urllib.request.urlopen(request) as answer:
                return Tab(json.load(answer)["webSocketDebuggerUrl"])

        yield tab
    finally:
        process.terminate()
        process.wait(timeout=20)
