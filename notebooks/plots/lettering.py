"""Text in drawings: what no font here can draw is shown as its escaped form, such as \\u56fe."""

import matplotlib.pyplot as plt
from matplotlib.artist import Artist
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text


def drawable(text: str) -> str:
    """The text with every character that the font lacks in its escaped form."""
    font = get_font(findfont(FontProperties(family=plt.rcParams["font.family"])))
    shown = ""
    for character in text:
        has_glyph = font.get_char_index(ord(character)) != 0
        # A line end is no character to draw, it is laid out.
        shown += character if has_glyph or character == "\n" else escaped(character)
    return shown


def escaped(character: str) -> str:
    """A character as Python writes it: \\x07, \\u56fe, \\U0001f31f."""
    return character.encode("unicode_escape").decode("ascii")


def show() -> None:
    """Show the current figure, with letters that can be drawn."""
    figure = plt.gcf()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Labels of ticks are made anew whenever a figure is drawn, so they are stated anew.
            labels = [label.get_text() for label in axis.get_ticklabels()]
            shown = [drawable(label) for label in labels]
            if shown != labels:
                axis.set_ticks(axis.get_ticklocs(), shown)
    for text in figure.findobj(is_text):
        written = text.get_text()
        if drawable(written) != written:
            text.set_text(drawable(written))
    plt.show()


def is_text(artist: Artist) -> bool:
    return isinstance(artist, Text)
