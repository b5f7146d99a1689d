"""The colours of text and curves: readable on white as on black, and told apart by the colour-blind."""

# Text: a contrast of at least 4.3 : 1 with white and with black.
GOOD, ATTENTION, BAD = "#2d877c", "#ae6a00", "#c54740"
NOTE = "#2f78c4"
# Curves: at least 3 : 1, which is enough for graphics and leaves room for lightness to differ.
CURVES = ("#2f97fe", "#bb8a05", "#721efe", "#256d3e", "#f558a2")
LEVELS = {"good": GOOD, "attention": ATTENTION, "bad": f"bold {BAD}"}
# Of the shades of a map, from low to high; the lowest shade is blank.
MAP = ("", "#5a6fb0", NOTE, GOOD, ATTENTION)
