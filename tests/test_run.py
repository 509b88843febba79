"""run.py: the environment that it makes, and how it passes Ctrl-C on."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import venv
from pathlib import Path

import nbformat
import psutil
import pytest

import run

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="no ensurepip here")
def test_an_environment_without_pip_gets_it_and_keeps_what_it_has(tmp_path, monkeypatch):
    """Its making was broken off, or another program made it without."""
    venv.create(tmp_path / ".venv", with_pip=False)
    (tmp_path / ".venv" / "mine").write_text("kept")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)  # as if none were active
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    python = run.environment_python()
    assert Path(python).is_relative_to(tmp_path / ".venv")
    subprocess.run([python, "-m", "pip", "--version"], check=True)
    assert (tmp_path / ".venv" / "mine").read_text() == "kept"


@pytest.mark.skipif(sys.platform == "win32", reason="no Ctrl-C can be sent to one process there")
def test_ctrl_c_reaches_what_runs_in_the_notebook(tmp_path):
    """And the program waits until that has saved its work, and says in one line how it ended."""
    cell = nbformat.v4.new_code_cell(
        "import time\n"
        "try:\n    print('under way', flush=True)\n    time.sleep(100)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    raise ValueError('saved') from None"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "long.ipynb")
    (tmp_path / "inner.py").write_text("import run; run.execute('long.ipynb')")
    (tmp_path / "outer.py").write_text(
        "import signal, sys, run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it\n"
        "run.HERE = '.'\n"
        "run.call(sys.executable, 'inner.py')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "outer.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = threading.Timer(120, end_with_children, [process.pid])
    deadline.start()
    while "under way" not in (line := process.stdout.readline()):
        assert line or process.poll() is None
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1]
    deadline.cancel()
    assert process.returncode == 1 and "ValueError: saved" in message.splitlines()[-1]
    assert "Traceback" not in message


def end_with_children(pid):
    """Kill a process and all that it has started."""
    process = psutil.Process(pid)
    for each in [*process.children(recursive=True), process]:
        each.kill()
