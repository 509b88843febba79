"""The project's commands. Only Python is needed; everything else is installed on the way.

    python run.py            install, train on the default corpus, sample; prints where the text is
    python run.py watch      install, and open the window with your newest model (or the one that
                             comes with the repository); takes sample_visual.py's options
    python run.py twin       install, run twin.ipynb: an autoregressive model to compare with
    python run.py test       install, check the style, run the tests; takes pytest's options
    python run.py export     write the notebooks' code to mdlm/ (after you changed a notebook)

An active virtual environment is used; if there is none, `.venv` is created beside this file.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAIN = ["train_model.ipynb", "sampling.ipynb"]
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
    try:
        if not works(python, ""):  # there is none, or the Python that it was made with is gone
            print(f"making a virtual environment in {folder.name}", flush=True)
            symlinks = os.name != "nt"  # as `python -m venv` does
            venv.create(folder, with_pip=True, clear=True, symlinks=symlinks)
        elif not works(python, "import pip"):
            print(f"adding pip to {folder.name}", flush=True)  # its making had been broken off
            subprocess.run([python, "-m", "ensurepip"], check=True)
    except subprocess.CalledProcessError:
        sys.exit(
            "no pip for the virtual environment: on Debian and Ubuntu, first "
            "sudo apt install python3-venv"
        )
    except (OSError, ValueError) as error:  # ValueError: a ":" in the path
        sys.exit(f"{folder}: cannot be made ({getattr(error, 'strerror', None) or error})")
    return str(python)


def call(*command, folder=None):
    """Run a command in a folder, or in the project's; if it fails, end with its exit code."""
    with subprocess.Popen(command, cwd=folder or HERE) as process:
        while process.poll() is None:
            try:
                process.wait()
            except KeyboardInterrupt:  # it is for the command: let that end in its own way
                if not sys.stdin.isatty() and os.name == "posix":
                    process.send_signal(signal.SIGINT)  # no terminal has told it
    if process.returncode:
        sys.exit(process.returncode)


def install(python, requirements):
    """Install what `requirements` lists, unless it is there already."""
    print(f"installing {requirements} (the first time this takes some minutes)", flush=True)
    call(python, "-m", "pip", "install", "--quiet", "-r", requirements)


def execute(notebook):
    """Run a notebook into runs/, showing what it prints. Runs inside the environment."""
    import papermill
    from jupyter_client import KernelManager
    from papermill.exceptions import PapermillExecutionError

    output, kernel = Path("runs") / notebook, KernelManager(kernel_name="python3")
    try:
        output.parent.mkdir(exist_ok=True)
    except OSError as error:
        sys.exit(f"{HERE / output.parent}: cannot be made ({error.strerror})")
    print(f"\n== {notebook} (with its outputs: {output.as_posix()})", flush=True)

    presses = []

    def interrupt(*_):
        """Pass Ctrl-C on: a training saves what it has. Twice in two seconds ends everything."""
        presses.append(time.monotonic())
        if not kernel.has_kernel or (len(presses) > 1 and presses[-1] - presses[-2] < 2):
            raise KeyboardInterrupt
        kernel.interrupt_kernel()

    usual = signal.signal(signal.SIGINT, interrupt)
    try:
        papermill.execute_notebook(
            notebook,
            str(output),
            progress_bar=False,
            stdout_file=sys.stdout,
            stderr_file=sys.stderr,
            kernel_name="python3",
            km=kernel,
        )
    except PapermillExecutionError as error:
        # the notebook's traceback is in the output file; a user's mistake needs one line only
        sys.exit(f"{notebook}: {error.ename}: {error.evalue} (cell {error.exec_count})")
    except (KeyboardInterrupt, RuntimeError):
        if not presses:
            raise
        sys.exit(f"{notebook}: broken off")  # the kernel was not ready to save anything
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
        if cell.cell_type == "code":
            bars = [o for o in cell.outputs if o.get("name") == "stderr"]
            if has_cleared("".join(o.text for o in bars)):
                cell.outputs = [o for o in cell.outputs if o not in bars]
            sliders = [o for o in cell.outputs if WIDGET in o.get("data", {})]
            cell.outputs = [o for o in cell.outputs if o not in sliders]
    nbformat.write(notebook, path)


def has_cleared(text):
    """Whether nothing of a text is left to read, because every line of it was written over."""
    return all(not line.split("\r")[-1].strip() for line in text.split("\n"))


def main():
    if sys.version_info < (3, 11):  # noqa: UP036 (there is no package whose installer would say so)
        sys.exit(f"Python 3.11 or later is needed, and this is {sys.version.split()[0]}")
    from files import use_utf8

    use_utf8()
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "command", nargs="?", default="all", choices=["all", "watch", "twin", "test", "export"]
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments, rest = parser.parse_known_args()
    if arguments.command not in ("watch", "test"):  # these two hand their options on
        if {"-h", "--help"} & set(rest):
            return parser.print_help()
        if rest:
            parser.error(f"{arguments.command} takes no options, but got {' '.join(rest)}")
    if not arguments.inside:
        python = environment_python()
        install(
            python, "requirements-dev.txt" if arguments.command == "test" else "requirements.txt"
        )
        here = Path.cwd() if arguments.command == "watch" else None  # where the files are it names
        call(python, __file__, arguments.command, "--inside", *rest, folder=here)
        return
    if arguments.command == "test":
        os.chdir(HERE)
        call(sys.executable, "-m", "ruff", "check", ".")
        call(sys.executable, "-m", "ruff", "format", "--check", ".")
        call(sys.executable, "-m", "pytest", *rest)
        return
    export_notebooks(HERE)
    if arguments.command == "watch":
        call(sys.executable, str(HERE / "sample_visual.py"), *rest, folder=Path.cwd())
        return
    os.chdir(HERE)
    if arguments.command == "all":
        for notebook in MAIN:
            execute(notebook)
        print("\nThe text is in runs/samples.txt, the notebooks with all outputs in runs/.")
    elif arguments.command == "twin":
        execute("twin.ipynb")


def export_notebooks(folder):
    """Write the cells marked `#| export NAME` to mdlm/NAME.py, and say so if that changed them."""
    from identity import NOTEBOOKS, check_exported

    with contextlib.suppress(ValueError):  # UserError: something has been edited
        return check_exported()
    from nbdev.export import nb_export
    from nbdev.maker import ModuleMaker

    def whole_module(**options):  # nbdev would add to a module that a cell names; write it anew
        return ModuleMaker(**{**options, "is_new": True})

    before = {path: path.read_bytes() for path in (folder / "mdlm").glob("*.py")}
    for notebook in NOTEBOOKS:
        nb_export(str(folder / notebook), lib_path=str(folder / "mdlm"), mod_maker=whole_module)
    changed = [
        p.name for p in sorted((folder / "mdlm").glob("*.py")) if before.get(p) != p.read_bytes()
    ]
    print(f"exported from the notebooks: mdlm/ ({', '.join(changed)})", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
