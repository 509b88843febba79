"""The project's commands. Only Python is needed; everything else is installed on the way.

    python run.py            install, train on the default corpus, sample; prints where the text is
    python run.py watch      install, and open the window with your newest model (or the one that
                             comes with the repository); takes sample_visual.py's options
    python run.py twin       install, run twin.ipynb: an autoregressive model to compare with
    python run.py blocks     install, run blocks.ipynb: between the two, and texts of any length
    python run.py sudoku     install, run sudoku.ipynb: a language whose truth is known
    python run.py test       install, check the style, run the tests; takes pytest's options
    python run.py page       open the included model as a page in the browser; installs nothing
    python run.py export     write the notebooks' code to mdlm/; what runs one does so by itself

An active virtual environment is used; if there is none, `.venv` is created beside this file.
"""

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMMANDS = {
    "all": ["train_model.ipynb", "sampling.ipynb"],
    "twin": ["twin.ipynb"],
    "blocks": ["blocks.ipynb"],
    "sudoku": ["sudoku.ipynb"],
}
WIDGET = "application/vnd.jupyter.widget-view+json"


def works(python, code):
    """Whether a Python is there, and runs `code`."""
    try:
        return subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False


def environment_python():
    """The Python of the active virtual environment, or of `.venv`, which is made if need be."""
    conda = os.environ.get("CONDA_PREFIX")
    if sys.prefix != sys.base_prefix or (conda and Path(conda) == Path(sys.prefix)):
        if not works(sys.executable, "import pip"):
            sys.exit("no pip in the active environment: python -m ensurepip")
        return sys.executable
    folder = HERE / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if works(python, "import pip"):
        return str(python)
    print(f"making a virtual environment in {folder.name}", flush=True)
    try:  # anew if the Python that it was made with is gone; what is in a working one stays
        venv.create(folder, with_pip=True, clear=not works(python, ""), symlinks=os.name != "nt")
    except subprocess.CalledProcessError:
        sys.exit("no pip: on Debian and Ubuntu, first sudo apt install python3-venv")
    except (OSError, ValueError) as error:  # ValueError: a ":" in the path
        sys.exit(f"{folder}: cannot be made ({getattr(error, 'strerror', None) or error})")
    return str(python)


def call(*command, folder=HERE):
    """Run a command in a folder; if it fails, end with its exit code."""
    with subprocess.Popen(command, cwd=folder) as process:
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:  # it is for the command: let that end in its own way
                if not sys.stdin.isatty() and os.name == "posix":
                    process.send_signal(signal.SIGINT)  # no terminal has told it
    if process.returncode:
        sys.exit(process.returncode)


def execute(notebook):
    """Run a notebook into runs/, showing what it prints. Runs inside the environment."""
    import papermill
    from jupyter_client import KernelManager

    output, kernel = Path("runs") / notebook, KernelManager(kernel_name="python3")
    output.parent.mkdir(exist_ok=True)
    print(f"\n== {notebook} (with its outputs: {output.as_posix()})", flush=True)
    presses = []

    def interrupt(*_):
        """Pass Ctrl-C on: a training saves what it has. Twice in two seconds ends everything."""
        presses.append(time.monotonic())
        if not kernel.has_kernel or (len(presses) > 1 and presses[-1] - presses[-2] < 2):
            raise KeyboardInterrupt
        kernel.interrupt_kernel()

    usual = signal.signal(signal.SIGINT, interrupt)
    choices = dict(
        kernel_name="python3", extra_arguments=["--log-level=ERROR"], progress_bar=False,
        stdout_file=sys.stdout, stderr_file=sys.stderr,
    )  # fmt: skip
    try:
        papermill.execute_notebook(notebook, str(output), km=kernel, **choices)
    except papermill.exceptions.PapermillExecutionError as error:
        # the notebook's traceback is in the output file; a user's mistake needs one line only
        kind = "" if error.ename == "UserError" else f"{error.ename}: "
        sys.exit(f"{notebook}, cell {error.exec_count}: {kind}{error.evalue}")
    except (KeyboardInterrupt, RuntimeError) as error:  # the kernel was not ready, or is dead
        sys.exit(f"{notebook}: broken off{'' if presses else f' ({error}): run it again'}")
    finally:
        signal.signal(signal.SIGINT, usual)
        if kernel.has_kernel:
            kernel.shutdown_kernel(now=True)
    tidy(output)


def tidy(path):
    """Remove from an executed notebook what only works while it runs: bars, times, sliders."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for key in ("papermill", "widgets"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
        kept = []
        bars = "".join(o.text for o in cell.get("outputs", []) if o.get("name") == "stderr")
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr" and is_cleared(bars):
                continue
            if kept and output.get("name") == kept[-1].get("name", "none"):
                kept[-1].text += output.text
            elif WIDGET not in output.get("data", {}):
                kept.append(output)
        if cell.cell_type == "code":
            cell.outputs = kept
    nbformat.write(notebook, path)


def is_cleared(text):
    """Whether nothing of a text is left to read, because every line of it was written over."""
    lines, row = [""], 0
    for part in re.split(r"(\r|\n|\x1b\[A)", text):
        if part in ("\n", "\x1b[A"):  # a line down, a line up: two bars, one below the other
            row = max(0, row + (1 if part == "\n" else -1))
            lines += [""] * (row == len(lines))
        elif part.strip("\r"):
            lines[row] = part
    return not "".join(lines).strip()


def export_notebooks(folder):
    """Write the cells marked `#| export NAME` to mdlm/NAME.py, and say so if that changed them."""
    from identity import NOTEBOOKS, check_exported

    with contextlib.suppress(ValueError):  # UserError: something has been edited
        return check_exported(folder)
    from nbdev.export import nb_export
    from nbdev.maker import ModuleMaker

    def whole_module(**options):  # nbdev would add to a module that a cell names; write it anew
        return ModuleMaker(**{**options, "is_new": True})

    modules = folder / "mdlm"
    before = {path: path.read_bytes() for path in modules.glob("*.py")}
    for notebook in NOTEBOOKS:
        nb_export(str(folder / notebook), lib_path=str(modules), mod_maker=whole_module)
    changed = [p.name for p in sorted(modules.glob("*.py")) if before.get(p) != p.read_bytes()]
    print(f"exported from the notebooks: mdlm/ ({', '.join(changed)})", flush=True)


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 (there is no package whose installer would say so)
        sys.exit(f"Python 3.11 or later is needed, and this is {sys.version.split()[0]}")
    from files import Parser, use_utf8

    use_utf8()
    parser = Parser(__doc__, add_help=False)
    commands = ["all", "watch", "twin", "blocks", "sudoku", "test", "page", "export"]
    parser.add_argument("command", nargs="?", default="all", choices=commands)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    command = arguments.command
    if command == "page":
        from publish import main as page

        return page(rest)
    if command not in ("watch", "test"):  # these two hand their options on
        if {"-h", "--help"} & set(rest):
            return parser.print_help()
        if rest:
            parser.error(f"{command} takes no options, but got {' '.join(rest)}")
    if not arguments.inside:
        python, needed = environment_python(), "requirements.txt"
        if command == "test":
            needed = "requirements-dev.txt"
        print(f"installing what {needed} lists (the first time some minutes)", flush=True)
        call(python, "-m", "pip", "install", "--quiet", "-r", needed)
        folder = Path.cwd() if command == "watch" else HERE  # where the files are that it names
        call(python, __file__, command, "--inside", *rest, folder=folder)
    elif command == "test":
        for check in (
            ["ruff", "check", "."],
            ["ruff", "format", "--check", "."],
            ["pytest", "-n2", "--dist=loadfile", "--no-loadscope-reorder", *rest],
        ):
            call(sys.executable, "-m", *check)
    else:
        export_notebooks(HERE)
        if command == "watch":
            call(sys.executable, str(HERE / "sample_visual.py"), *rest, folder=Path.cwd())
        for notebook in COMMANDS.get(command, []):
            os.chdir(HERE)
            execute(notebook)
        if command == "all":
            print("\nThe text is in runs/samples.txt, the notebooks with all outputs in runs/.")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
