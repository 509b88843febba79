"""A line of text that is being edited: caret, selection, words, paste. Pure."""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Field:
    """A text with a caret; what lies between it and the anchor is selected."""

    text: str = ""
    caret: int = 0
    anchor: int = 0
    composing: str = ""  # characters that an input method has not finished yet

    @property
    def span(self):
        """Where the selection begins and ends."""
        return min(self.caret, self.anchor), max(self.caret, self.anchor)

    @property
    def selected(self):
        start, end = self.span
        return self.text[start:end]

    def type(self, text):
        """Put a text in the place of the selection."""
        start, end = self.span
        text = " ".join(text.split("\n")) if text != "\n" else text
        at = start + len(text)
        return Field(self.text[:start] + text + self.text[end:], at, at)

    def move(self, to, selecting):
        """Put the caret there; the anchor stays if somebody is selecting."""
        to = min(max(0, to), len(self.text))
        return replace(self, caret=to, anchor=self.anchor if selecting else to, composing="")

    def word(self, sign):
        """Where the word to the left (-1) of the caret begins, or that to the right (1) ends."""
        if sign < 0:
            return re.search(r"\w*\W*$", self.text[: self.caret]).start()
        return self.caret + re.match(r"\W*\w*", self.text[self.caret :]).end()

    def press(self, key, shift=False, by_word=False):
        """The field after a key that moves or deletes: `by_word` with Ctrl, or Alt on a Mac."""
        (start, end), back = self.span, key in ("Left", "Backspace")
        there = self.word(-1 if back else 1) if by_word else self.caret + (-1 if back else 1)
        if key in ("Backspace", "Delete"):
            return (self if start < end else self.move(there, True)).type("")
        if key in ("Left", "Right"):
            leaves = start < end and not (shift or by_word)  # what was selected
            return self.move((start if back else end) if leaves else there, shift)
        ends = {"Home": 0, "Up": 0, "End": len(self.text), "Down": len(self.text)}
        return self.move(ends[key], shift) if key in ends else self
