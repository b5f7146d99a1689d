"""The colours of text on a terminal: as easy to read on white as on black, and told apart by the colour-blind."""

# Of one lightness in between (contrast of at least 4.3 : 1 with both), in hues that red-green blindness keeps apart.
GOOD, ATTENTION, BAD = "#00875f", "#a26c00", "#d13b2e"
NOTE = "#2f78c4"
CURVES = (NOTE, ATTENTION, "#8a63d2", GOOD, "#c0509a")
LEVELS = {"good": GOOD, "attention": ATTENTION, "bad": f"bold {BAD}"}
# Of the shades of a map, from low to high; the lowest shade is blank.
MAP = ("", "#5a6fb0", NOTE, GOOD, ATTENTION)
