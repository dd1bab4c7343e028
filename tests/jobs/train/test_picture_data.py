"""What a run says of its data before it reads them."""

import dataclasses

import pytest
from numbered_pictures import save_numbered

from dalle_jax.config import Config
from dalle_jax.jobs.train import picture_data


def config_of(**values):
  return dataclasses.replace(Config(), data=dataclasses.replace(Config().data, **values))


def test_the_kind_of_the_data_is_found_and_said_in_one_line(tmp_path, capsys):
  root = save_numbered(tmp_path / 'a', 2)
  config = picture_data.with_source(config_of(source='auto', path=str(root)))
  assert config.data.source == 'folder'
  assert capsys.readouterr().out == f'data: {root} is read as folder (config.data.source)\n'
  assert picture_data.with_source(config) == config and not capsys.readouterr().out


def test_a_path_that_would_not_be_read_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"config\.data\.path is 'pictures', but .* Set config\.data\.source=auto"):
    picture_data.with_source(config_of(source='captioned_shapes', path='pictures'))
  assert picture_data.with_source(Config()) == Config()
