"""The parts of sample_visual.py, in the order in which they build on each other:

record       a run of a sampler, all that is shown of it
colors       of a page, and what they mean
items        what a page is made of: boxes and texts, with their places
typesetting  the text in lines, and the looks of its tokens
sudoku       a grid instead of a text
field        a line of text that is being edited
controls     what a person does becomes a command, a command makes a new state
page         a record and a state, laid out as items
drawing      items on a surface
sampler      running the model; imports PyTorch
worker       the same in a thread
window       events, time, drawing, over and over
files        pictures, animations, notebooks
terminal     the same without pixels
"""

import os

# before any of them imports pygame, which would print a line about itself
os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"
