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


@pytest.mark.skipif(importlib.util.find_spec("ensurepip") is None, reason="no ensurepip here")
@pytest.mark.skipif(sys.platform == "win32", reason="its environments hold copies, not links")
def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path, monkeypatch):
    """As after an upgrade of the system's Python."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(tmp_path / "gone")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    subprocess.run([run.environment_python(), "-m", "pip", "--version"], check=True)


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


def test_what_only_a_running_notebook_shows_is_taken_out(tmp_path):
    bar, warning = (
        nbformat.v4.new_output("stream", name="stderr", text=text)
        for text in ("\r50%\r", "a warning\n")
    )
    slider = nbformat.v4.new_output("display_data", {run.WIDGET: {}})
    cells = [nbformat.v4.new_code_cell(outputs=outputs) for outputs in ([bar, slider], [warning])]
    path = tmp_path / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    run.tidy(path)
    assert [len(cell.outputs) for cell in nbformat.read(path, 4).cells] == [0, 1]


COMMANDS = {  # what is given: (a part of what is printed, the exit code)
    "--help": ("python run.py watch", 0),
    "export --help": ("python run.py watch", 0),
    "twin --steps 10": ("takes no options, but got --steps 10", 2),
    "--in": ("takes no options, but got --in", 2),
    "paint": ("invalid choice: 'paint'", 2),
}


@pytest.mark.parametrize("given", COMMANDS)
def test_options_that_are_none_are_not_passed_over(given, monkeypatch, capsys):
    monkeypatch.setattr(run, "environment_python", None)  # it does not come to that
    monkeypatch.setattr(sys, "argv", ["run.py", *given.split()])
    message, code = COMMANDS[given]
    try:
        run.main()
    except SystemExit as end:
        assert end.code == code
    else:
        assert code == 0
    assert message in "".join(capsys.readouterr())


def test_the_window_gets_its_options(monkeypatch):
    called = []
    monkeypatch.setattr(run, "call", lambda *command, folder: called.append((folder, *command)))
    monkeypatch.setattr(sys, "argv", ["run.py", "watch", "--inside", "--race", "-h"])
    run.main()
    window = str(ROOT / "sample_visual.py")
    assert called == [
        (Path.cwd(), sys.executable, window, "--race", "-h")
    ]  # the user's folder stays


def end_with_children(pid):
    """Kill a process and all that it has started."""
    process = psutil.Process(pid)
    for each in [*process.children(recursive=True), process]:
        each.kill()
