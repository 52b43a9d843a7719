import pytest

from salun_diffusers.reports.figures import bare_chart, inline_svg


@pytest.mark.parametrize("name", ["a $x_{ b", "$\\frac{1}{2}$", "5 $ or 6 $"])
def test_dollars_in_names_are_dollars(name: str) -> None:
    """In labels, annotations, and ticks that are made as late as at the drawing."""
    figure, axes = bare_chart(3, 2)
    axes.set_xlabel(name)
    axes.text(0, 0, name)
    axes.set_yticks([0, 1], [name, name])
    assert inline_svg(figure, "test").count(f">{name}</text>") == 4
