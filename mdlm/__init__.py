"""The code of the notebooks, exported by `python run.py export`. Change it there, not here."""

from identity import check_exported

check_exported()
