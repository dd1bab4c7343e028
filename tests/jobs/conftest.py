"""Settings of the tests that train, evaluate and draw."""

import html
import types

import pytest

from dalle_jax.reporting import curves, run_curves

DRAWN = []  # the first curve that this process drew, and its title


@pytest.fixture(scope='module', autouse=True)
def one_drawing():
  """Draws the first curve of the first run only; all others repeat it under their own title.

  A report has about twenty curves, and drawing them takes as long as training a tiny model. tests/reporting tests them.
  """

  def curve_svg(series, title, y_label, log):
    DRAWN[:] = DRAWN or [curves.curve_svg(series, title, y_label, log), title]
    return DRAWN[0].replace(html.escape(DRAWN[1]), html.escape(title))

  quick = types.SimpleNamespace(read_metrics=curves.read_metrics, has_data=curves.has_data, curve_svg=curve_svg)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_curves, 'curves', quick)
    yield
