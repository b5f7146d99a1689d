"""The colours of text on a terminal: as easy to read on white as on black, and told apart by the colour-blind."""

# Of one lightness in between (contrast of at least 4.3 : 1 with both), in hues that red-green blindness keeps apart.
GOOD, ATTENTION, BAD = "#00875f", "#a26c00", "#d13b2e"
NOTE = "#2f78c4"
CURVES = (NOTE, ATTENTION, "#8a63d2", GOOD, "#c0509a")
LEVELS = {"good": GOOD, "attention": ATTENTION, "bad": f"bold {BAD}"}
