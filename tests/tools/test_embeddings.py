import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import linen as nn

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.data.text.text_tokenizer import train_pieces

SCRIPT = pathlib.Path(__file__).parents[2] / 'tools' / 'embeddings.py'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model with random parameters, in which ' cat' has the embedding of ' dog'."""
  text = b'the cat and the dog and the cat and the dog ' * 20
  tokenizer = train_pieces([text], 300)
  config = Config.from_dict(
    {
      'task': 'sequence',
      'data': {'source': 'text'},
      'tokenizer': {'kind': 'pieces'},
      'model': {'kind': 'neural_ngram', 'order': 2, 'embed_dim': 4, 'hidden_size': 4, 'num_heads': 1},
    }
  )
  boxed = jax.eval_shape(lambda: bundle.init_params(config, tokenizer.vocab_size))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), nn.unbox(boxed))
  table = params['model']['vocabulary']['embedding']
  (cat,), (dog,) = (tokenizer.encode(word) for word in (b' cat', b' dog'))
  table[cat] = table[dog]
  path = tmp_path_factory.mktemp('run') / 'model'
  bundle.save(path, config, tokenizer, jax.tree.map(jax.numpy.asarray, params), 'text')
  return path


def _run(*arguments):
  command = [sys.executable, str(SCRIPT), *map(str, arguments)]
  return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_neighbours_and_analogies_are_printed(model):
  finished = _run(f'--model={model}', '--near=cat', '--analogy=the,cat,and', '--count=3')
  assert finished.returncode == 0, finished.stderr
  lines = finished.stdout.splitlines()[1:]
  assert lines[0] == 'cat:' and lines[1].split() == ['1.000', "'", "dog'"]
  assert lines[4] == 'the is to cat as and is to:' and len(lines) == 8


def test_invalid_queries_are_refused(model):
  for arguments, message in [
    ([f'--model={model}'], 'given neither'),
    ([f'--model={model}', '--analogy=a,b'], 'given a,b'),
    ([f'--model={model}', '--near=unheard'], "no token for 'unheard'"),
  ]:
    finished = _run(*arguments)
    assert finished.returncode == 2 and message in finished.stderr
