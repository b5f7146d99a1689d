"""Figures of notebooks hold the data of the answer."""

import pytest

from curvcli.analyses.shared.answer import Answer
from curvcli.api import analyse, load
from tests.oracles.program import ROOT

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture(scope="module")
def hessian() -> "Answer[object]":
    return analyse("hessian", load(str(ROOT / "sample_models" / "linear_regression.toml")), top=3)


def test_axes_that_are_given_are_drawn_on_and_returned(hessian: "Answer[object]") -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert hessian.plot(axes) is axes
    values = [pair["value"] for pair in hessian.to_dict()["result"]["top"]]
    assert [*axes.lines[0].get_ydata()] == values


def test_without_axes_all_pictures_come(hessian: "Answer[object]") -> None:
    (axes,) = hessian.plot()
    assert axes.get_title() == "Eigenvalues by rank"
    assert "<svg" in hessian._repr_html_()
