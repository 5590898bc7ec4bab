import io
import warnings

import numpy as np
import pytest

from roberta_jax.finetuning import figures

pytest.importorskip("matplotlib", reason="Matplotlib draws the pictures")
Image = pytest.importorskip("PIL.Image")


def pixels(data):
    image = Image.open(io.BytesIO(data))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


def texts(figure):
    return [each.get_text() for each in figure.axes[0].texts]


def test_a_confusion_matrix_shows_counts_and_shares_of_rows():
    counts = np.array([[3, 1], [0, 2000]])
    figure = figures.confusion_matrix(["no", "yes"], counts, "RTE")
    assert texts(figure) == ["3\n75%", "1\n25%", "0\n0%", "2,000\n100%"]
    axes = figure.axes[0]
    assert [each.get_text() for each in axes.get_xticklabels()] == ["no", "yes"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")
    picture = pixels(figures.png(figure))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_more_correct_predictions_are_a_darker_diagonal():
    bright, dark = (
        pixels(figures.png(figures.confusion_matrix(["a", "b"], counts, "RTE"))).mean()
        for counts in (np.zeros((2, 2), int), np.diag([9, 9]))
    )
    assert dark < bright - 20


@pytest.mark.parametrize("number", [1, 50])
def test_one_label_and_many(number):
    counts = np.diag(np.arange(number) + 12_345)
    figure = figures.confusion_matrix([f"l{n}" for n in range(number)], counts, "MINE")
    picture = pixels(figures.png(figure))
    assert picture.std() > 10
    assert max(picture.shape) < 4000
    assert texts(figure)[0] == ("12,345\n100%" if number == 1 else "12k")


def test_names_of_all_kinds_are_drawn_without_a_warning():
    names = ["$x_2$ $", "a\tb\nc", "x" * 300 + "y", "中文", "العربية", "\ud800", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = figures.confusion_matrix(names, np.eye(7, dtype=int), "a $ b_{ \n" * 40)
        assert pixels(figures.png(figure)).std() > 10
    shown = [each.get_text() for each in figure.axes[0].get_yticklabels()]
    assert shown[:2] == ["$x_2$ $", "a\\tb\\nc"]
    assert shown[2].startswith("xxxx")
    assert shown[2].endswith("xxxy")
    assert len(shown[2]) == 24


def test_a_scatter_plot_leaves_out_what_is_not_finite():
    figure = figures.scatter([1.0, 2.0, 3.0], [1.0, float("nan"), 3.0], "STS-B")
    assert figure.axes[0].collections[0].get_offsets().shape == (2, 2)
    assert pixels(figures.png(figure)).std() > 10
    nothing = figures.scatter([1.0], [float("inf")], "STS-B")
    assert pixels(figures.png(nothing)).std() > 0
