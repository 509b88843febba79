"""The parts of sample_visual.py, in the order in which they build on each other: record, colors,
items, typesetting, sudoku, field, controls, page, drawing, sampler, worker, window, files,
terminal. What each of them does stands at its top. (Only `sampler` imports PyTorch there.)
"""

import os

# before any of them imports pygame, which would print a line about itself
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
