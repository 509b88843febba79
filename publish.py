"""The page in `page/`: opened from this machine, or written as a folder that any host can serve.

    python run.py page                   open it in the browser
    python run.py page --build site      write all that a static host needs into site/

Only Python's standard library is needed.
"""

import contextlib
import os
import shutil
import sys
import webbrowser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from files import Parser, UserError

HERE = Path(__file__).parent
GUIDE = "learning_guide.md"
MODELS = ("kjv", "kjv-twin", "sudoku")
PLAIN = "text/plain; charset=utf-8"
TYPES = {".js": "text/javascript", ".wasm": "application/wasm", ".wat": PLAIN, ".md": PLAIN}


def site_files():
    """What the page consists of: {name on the site: file here}."""
    models = [HERE / "checkpoints" / f"{name}.safetensors" for name in MODELS]
    return {path.name: path for path in [*sorted(HERE.glob("page/*")), *models, HERE / GUIDE]}


class Handler(SimpleHTTPRequestHandler):
    """Serves the files of the page and nothing else, as they are at this moment."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | TYPES

    def translate_path(self, path):
        name = path.partition("?")[0].lstrip("/") or "index.html"
        return str(site_files().get(name, HERE / "no such file"))

    def end_headers(self):
        self.send_header("Cache-Control", "no-cache")  # an edit is seen after a reload
        super().end_headers()

    def log_message(self, *_):
        pass


def server(port=0):
    """A server on this machine's loopback address only; port 0: any that is free. UserError."""
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} cannot be used ({error})") from None


def build(folder):
    """Write all files of the site into a folder, which is made. Raises UserError.

    In the workflow that publishes the page, its links to the guide lead to the repository.
    """
    folder, repository = Path(folder), os.environ.get("GITHUB_REPOSITORY")
    host = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
    guide = f"{host}/{repository}/blob/main/{GUIDE}" if repository else GUIDE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in site_files().items():
            shutil.copyfile(path, folder / name)
        index = folder / "index.html"
        text = index.read_text(encoding="utf-8").replace(f"../{GUIDE}", guide)
        index.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None


def main(options):
    """What `python run.py page` does."""
    parser = Parser(__doc__.split("\n")[0], prog="run.py page")
    parser.add_argument("--build", metavar="FOLDER", help="write the site into this folder")
    parser.add_argument("--port", type=int, default=0, help="where to serve it (0: any free port)")
    parser.add_argument("--no-browser", action="store_true", help="only serve it")
    arguments = parser.parse_args(options)
    try:
        if arguments.build:
            return build(arguments.build)
        with server(arguments.port) as httpd, contextlib.suppress(KeyboardInterrupt):
            address = f"http://127.0.0.1:{httpd.server_port}/"
            print(f"{address} (Ctrl-C ends it)", flush=True)
            if not arguments.no_browser:
                webbrowser.open(address)
            httpd.serve_forever()
    except UserError as error:
        sys.exit(str(error))
