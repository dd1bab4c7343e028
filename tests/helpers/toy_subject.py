"""A kind of input for tests of tools/soak.py, whose trials end in every way."""

import os
import time

from soaking.results import Outcome


class ToySubject:
  """Trial t ends in the way ENDS[t]."""

  def __init__(self, base):
    del base

  def trial(self, rng, directory):
    del directory
    ends = {0: self._right, 1: self._error, 2: self._bug, 3: self._hang, 4: self._death}
    return ends[int(rng.integers(2**31)) % 5]()

  def _right(self):
    return Outcome('right')

  def _error(self):
    raise ValueError('refused')

  def _bug(self):
    raise KeyError('bug')

  def _hang(self):
    time.sleep(60)

  def _death(self):
    os._exit(3)
