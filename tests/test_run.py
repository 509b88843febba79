"""run.py: the environment that it makes, the options it knows, and how it passes Ctrl-C on."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import venv
from pathlib import Path

import nbformat
import pytest

import run
from conftest import ROOT


@pytest.fixture
def no_environment(tmp_path, monkeypatch):
    """A project's folder whose Python is not in an active environment."""
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("no ensurepip here")
    monkeypatch.setattr(run, "HERE", tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    return tmp_path


def test_an_environment_without_pip_gets_it_and_keeps_what_it_has(no_environment):
    """Its making was broken off, or another program made it without."""
    venv.create(no_environment / ".venv", with_pip=False)
    (no_environment / ".venv" / "mine").write_text("kept")
    python = run.environment_python()
    assert Path(python).is_relative_to(no_environment / ".venv")
    subprocess.run([python, "-m", "pip", "--version"], check=True)
    assert (no_environment / ".venv" / "mine").read_text() == "kept"


@pytest.mark.skipif(sys.platform == "win32", reason="its environments hold copies, not links")
def test_an_environment_whose_python_is_gone_is_made_anew(no_environment, monkeypatch):
    """As after an upgrade of the system's Python."""
    made, folder = [], no_environment / ".venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(no_environment / "gone")
    monkeypatch.setattr(venv, "create", lambda where, clear, **_: made.append((where, clear)))
    run.environment_python()
    assert made == [(folder, True)]


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
        "run.call(sys.executable, 'inner.py', folder='.')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "outer.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = threading.Timer(120, process.kill)
    deadline.start()
    while "under way" not in (line := process.stdout.readline()):
        assert line or process.poll() is None
    process.send_signal(signal.SIGINT)
    message = process.communicate()[1]
    deadline.cancel()
    assert process.returncode == 1 and "ValueError: saved" in message.splitlines()[-1]
    assert "Traceback" not in message


def test_what_only_a_running_notebook_shows_is_taken_out(tmp_path):
    stream = lambda name, text: nbformat.v4.new_output("stream", name=name, text=text)  # noqa: E731
    bars = [stream("stderr", "\r50%\n\rinner\x1b[A\r   "), stream("stderr", "\n\r     \x1b[A\r")]
    slider, warning = nbformat.v4.new_output("display_data", {run.WIDGET: {}}), "a warning\n"
    text = stream("stdout", "x\n")
    outputs = [text, bars[0], text, slider, bars[1]], [stream("stderr", warning)]
    cells = [nbformat.v4.new_code_cell(outputs=some, metadata={"papermill": 1}) for some in outputs]
    path = tmp_path / "some.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": 1}), path)
    run.tidy(path)
    notebook = nbformat.read(path, 4)
    assert [[o.text for o in cell.outputs] for cell in notebook.cells] == [["x\nx\n"], [warning]]
    assert "widgets" not in notebook.metadata and notebook.cells[0].metadata == {}


COMMANDS = {  # what is given: (a part of what is printed, the exit code)
    "--help": ("python run.py watch", 0),
    "export --help": ("python run.py watch", 0),
    "twin --steps 10": ("takes no options, but got --steps 10", 2),
    "--in": ("takes no options, but got --in", 2),
    "paint": ("invalid choice: 'paint'", 2),
}


@pytest.mark.parametrize("given", COMMANDS)
def test_unknown_options_are_rejected(given, monkeypatch, capsys):
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


def test_the_window_gets_its_options_and_the_users_folder(monkeypatch, tmp_path):
    called = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "call", lambda *command, folder: called.append((folder, *command)))
    monkeypatch.setattr(sys, "argv", ["run.py", "watch", "--inside", "--race", "-h"])
    run.main()
    window = str(ROOT / "sample_visual.py")
    assert called == [(tmp_path, sys.executable, window, "--race", "-h")]
