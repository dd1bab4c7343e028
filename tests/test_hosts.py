"""Tests of `hosts` in one process; `multi_device/test_hosts.py` starts several."""

import jax
import pytest

from dalle_jax import hosts
from dalle_jax.config import Config


def test_a_single_host_agrees_and_creates_its_directory(tmp_path):
  hosts.agree(hosts.facts(Config().to_dict(), workdir='run'))
  hosts.shared_directory(tmp_path / 'a' / 'run')
  assert list((tmp_path / 'a' / 'run').iterdir()) == []
  hosts.barrier('nothing')
  with pytest.raises(OSError, match='full'), hosts.together('making the data'):
    raise OSError('full')


def test_facts_contain_code_versions_configuration_and_flags():
  facts = hosts.facts(Config(seed=3).to_dict(), workdir='run', stop_after='data')
  assert facts['config']['seed'] == 3
  assert facts['flags'] == {'--workdir': 'run', '--stop_after': 'data'}
  assert {'hosts.py', 'training/loop.py'} <= set(facts['source files'])
  assert facts['versions']['jax'] == jax.__version__


@pytest.mark.parametrize(
  ('owners', 'words'),
  [([0, 0, 1], 'host 0: 2, host 1: 1'), ([0, 1, 1, 2], 'host 0: 1, host 1: 2, host 2: 1')],
)
def test_hosts_with_unequal_numbers_of_devices_are_refused(owners, words, monkeypatch):
  class Device:
    def __init__(self, process_index):
      self.process_index = process_index

  monkeypatch.setattr(jax, 'process_count', lambda: max(owners) + 1)
  monkeypatch.setattr(jax, 'devices', lambda: [Device(owner) for owner in owners])
  with pytest.raises(ValueError, match=words):
    hosts.agree({})


def test_hosts_that_see_different_data_are_refused_on_every_host(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(hosts, '_gather_texts', lambda text: ['30 train', text, '29 train'])
  with pytest.raises(ValueError, match=r'The data are not the same .*Host 0: 30 train\. Host 2: 29 train\. Copy it\.'):
    hosts.check_same('30 train', 'The data', 'Copy it.')


def test_reports_with_names_of_files_that_are_not_utf_8_are_sent():
  assert hosts._gather_texts('é \udcff') == ['é \\udcff']
