"""Odd image files: those that are used are the pixels they stand for, and the page on data says what becomes of each."""

import numpy as np
import pytest

from eqx_shortcut.data.errors import BadImage
from eqx_shortcut.data.preprocess import decode, square
from odd import ODD, PAGE, filled, outcome, tables


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_what_it_stands_for_or_is_refused_or_passed_over(name):
    odd, said = ODD[name], outcome(ODD[name])
    if odd.pixels is None:
        assert said.startswith(("refused or replaced: ", "passed over, counted as ")), said
        with pytest.raises(BadImage):
            decode(odd.content)
    else:
        assert said == f"used, {odd.pixels.shape[1]:,} x {odd.pixels.shape[0]:,}"
        assert np.abs(decode(odd.content).astype(int) - odd.pixels.astype(int)).max() <= odd.within
        assert square(odd.content, 8).shape == (8, 8, 3)


def test_the_page_on_data_tells_what_is_recognised_and_what_becomes_of_odd_files():
    page = PAGE.read_text()
    assert len(ODD) >= 40 and all(table in page for table in tables().values()), "run python tests/data/odd.py"
    assert filled(page) == page
