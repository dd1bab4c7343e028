import numpy as np
import pytest
from PIL import Image
from random_models import PICTURES, caption_tokenizer, save_random

from dalle_jax.config import Config
from dalle_jax.jobs.draw import code_files


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return save_random(tmp_path_factory.mktemp('run') / 'model', Config.from_dict(PICTURES), caption_tokenizer())


def test_encode_writes_codes_that_decode_to_the_same_reconstruction(model, tmp_path):
  file = tmp_path / 'a.png'
  Image.fromarray(np.random.default_rng(0).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(file)
  code_file, reconstruction = code_files.encode(model, str(file), str(tmp_path / 'out'))
  assert (code_file.name, reconstruction.name, np.load(code_file).shape) == ('a.npy', 'a_decoded.png', (4, 4))
  (decoded,) = code_files.decode(model, str(code_file), str(tmp_path / 'again'))
  np.testing.assert_array_equal(np.asarray(Image.open(decoded)), np.asarray(Image.open(reconstruction)))
  before = file.read_bytes()
  code_files.decode(model, str(code_file), str(tmp_path))
  assert (tmp_path / 'a_decoded.png').exists() and file.read_bytes() == before
  file.rename(tmp_path / 'a.v2.png')
  assert code_files.encode(model, str(tmp_path / 'a.v2.png'), str(tmp_path))[0].name == 'a.v2.npy'
  np.save(tmp_path / 'two.npy', np.zeros((2, 4, 4), np.uint8))
  assert [file.name for file in code_files.decode(model, str(tmp_path / 'two.npy'), str(tmp_path / 'out'))] == [
    'two_000_decoded.png', 'two_001_decoded.png'
  ]  # fmt: skip


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (np.full((4, 4), 8), r'--decode=.*Codes must lie in 0 to 7'),
    (np.zeros((4, 4)), r'must be integers'),
    (np.array([{'a': 1}]), r'cannot be read as a \.npy file of numbers'),
    (None, r'cannot be read'),
    (np.zeros((0, 4, 4), int), r'no codes'),
  ],
)
def test_files_without_valid_codes_are_refused(model, tmp_path, content, message):
  if content is not None:
    np.save(tmp_path / 'codes.npy', content)
  with pytest.raises(ValueError, match=message):
    code_files.decode(model, str(tmp_path / 'codes.npy'), str(tmp_path))


def test_an_archive_of_arrays_is_refused(model, tmp_path):
  np.savez(tmp_path / 'codes.npz', a=np.zeros((4, 4), int))
  with pytest.raises(ValueError, match='archive of several arrays'):
    code_files.decode(model, str(tmp_path / 'codes.npz'), str(tmp_path))


def test_encoding_needs_an_input_image(model, tmp_path):
  with pytest.raises(ValueError, match='--encode needs an input image; give it with --image'):
    code_files.encode(model, '', str(tmp_path))


def _header(shape, dtype='<i4', version=(1, 0)):
  text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
  size = len(text).to_bytes(2 if version == (1, 0) else 4, 'little')
  return b'\x93NUMPY' + bytes(version) + size + text


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (_header((2**20, 2**20)), 'claims an array of 4,398,046,511,104 bytes, but 64 bytes follow'),
    (_header((2**62, 2**62)), 'claims an array of'),
    (_header((-1, 4)), 'must hold numbers'),
    (_header((4,)), r'must be \[h, w\]'),
    (_header((4, 4), '|O'), 'must hold numbers'),
    (_header((4, 4), '|V2147483647'), 'claims an array of'),
    (_header((2, 2), '<i4'), 'claims an array of 16 bytes, but 64'),
    (_header((4, 4), version=(9, 0)), 'version'),
    (b'\x93NUMP', ''),
  ],
)
def test_headers_that_do_not_fit_the_file_are_refused_before_memory_is_taken(tmp_path, content, message):
  (tmp_path / 'codes.npy').write_bytes(content + bytes(64))
  with pytest.raises(ValueError, match=rf'--decode=.*codes\.npy cannot be read as a \.npy file.*{message}'):
    code_files.decode('nowhere', str(tmp_path / 'codes.npy'), str(tmp_path))
