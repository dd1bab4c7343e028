import re

import numpy as np
import pytest
from PIL import Image
from random_models import caption_tokenizer, save_random

from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.data.text.text_tokenizer import ByteTokenizer
from dalle_jax.jobs.draw.generation import draw
from dalle_jax.jobs.study import attention_study
from dalle_jax.reporting import attention_page as page
from dalle_jax.sampling.draw_settings import DrawSettings

CONFIG = Config.from_dict({
  'data': {'source': 'folder', 'path': 'unused', 'image_size': 12},
  'tokenizer': {'vocab_size': 300, 'text_length': 8},
  'dvae': {'image_vocab_size': 8, 'hidden_size': 4, 'decoder_input_size': 4, 'num_groups': 3, 'blocks_per_group': 1},
  'prior': {
    'num_layers': 3, 'num_heads': 2, 'embed_dim': 8, 'mlp_ratio': 1, 'attention_pattern': ['row', 'column'],
    'last_attention_pattern': 'conv', 'conv_kernel_size': 3,
  },
  'sampling': {'temperature': 0.9, 'batch_size': 2},
})  # fmt: skip
PROMPT = 'A red circle'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A model with random parameters and one layer of each attention pattern."""
  return save_random(tmp_path_factory.mktemp('run') / 'model', CONFIG, caption_tokenizer())


def _text_model(path, kind):
  config = Config.from_dict({
    'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'},
    'model': {
      'kind': kind, 'length': 16, 'num_layers': 2, 'num_heads': 2, 'embed_dim': 8, 'hidden_size': 8, 'mlp_ratio': 1,
    },
  })  # fmt: skip
  return save_random(path / 'model', config, ByteTokenizer())


@pytest.fixture(scope='module')
def written():
  """The title, notes and articles of the page that was written last."""
  last_page = {}

  def write(path, title, notes, articles):
    last_page.update(title=title, notes=notes, articles=articles)
    real(path, title, notes, articles)

  real = page.write
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(page, 'write', write)
    yield last_page


@pytest.fixture(scope='module')
def articles(model, tmp_path_factory, written):
  """The first two images of a prompt."""
  attention_study.show(model, PROMPT, out=str(tmp_path_factory.mktemp('page') / 'a.html'), num_images=2, seed=4)
  return written['articles']


def test_images_equal_those_of_generate(model, tmp_path, articles):
  *files, _ = draw(model, [PROMPT], DrawSettings(num_images=3, seed=4), out=str(tmp_path))
  for article, file in zip(articles, files, strict=False):
    np.testing.assert_array_equal(article.image, np.asarray(Image.open(file)))


def test_frames_grow_by_rows_to_the_full_picture(articles):
  first = articles[0]
  np.testing.assert_array_equal(first.frames[-1][1], first.image)
  assert [frame[0] for frame in first.frames] == ['0 of 9 tokens', '3 of 9 tokens', '6 of 9 tokens', '9 of 9 tokens']
  assert np.unique(first.frames[1][1][4:]) == [128] and np.any(first.frames[1][1][:4] != 128)


def test_every_layer_and_head_of_a_small_model_is_shown(articles):
  first = articles[0]
  assert [layer.name for layer in first.layers] == [
    'Layer 1 of 3: row', 'Layer 2 of 3: column', 'Layer 3 of 3: conv'
  ]  # fmt: skip
  assert [view.name for view in first.views][:3] == [
    'all layers and heads, mean', 'layer 1 of 3 (row), mean of all heads', 'layer 1 of 3 (row), head 1'
  ]  # fmt: skip
  assert len(first.views) == 1 + 3 * 3


def test_each_word_has_the_slots_whose_input_it_is(articles):
  article = articles[0]
  labels = [label for label, _ in article.keys]
  assert labels[:4] == ['start of text', 'a', 'red', 'circle'] and labels[-1] == 'start of image'
  slots = [slot for _, group in article.keys for slot in group]
  assert sorted(slots) == list(range(8 + 1))  # all text slots and the first image slot, each once
  assert article.keys[1][1] == [1] and article.keys[2][1] == [2]  # the slot after the one that predicts a token
  weights = article.views[0].weights
  np.testing.assert_allclose(article.word_maps[1, 0, 2], weights[8 + 2, 2], rtol=1e-6)
  shares = weights[8 + article.chosen]
  np.testing.assert_allclose(article.chosen_map.sum() + shares[: 8 + 1].sum(), 1, atol=1e-5)
  assert ''.join(label for label, _ in article.caption) == 'aredcircle(end)'


def test_a_picture_file_is_resized_and_encoded_and_shown_in_the_requested_layers(model, tmp_path, written):
  pixels = np.random.default_rng(1).integers(0, 256, (24, 30, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'given.png')
  options = {'image': str(tmp_path / 'given.png'), 'layers': [3], 'heads': [2]}
  attention_study.show(model, PROMPT, out=str(tmp_path / 'a.html'), **options)
  (article,) = written['articles']
  middle = pixels[:, 3:27].astype(float).reshape(12, 2, 12, 2, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(article.original, middle, atol=0.51)
  assert article.image.shape == (12, 12, 3) and 'given.png' in written['notes'][0]
  assert [view.name for view in article.views[1:]] == [
    'layer 3 of 3 (conv), mean of all heads', 'layer 3 of 3 (conv), head 2'
  ]  # fmt: skip
  assert 'The page shows layers 3 of 3 and heads 2 of 2.' in written['notes'][-1]


def test_text_models_continue_the_prompt_or_read_it_alone(tmp_path, written):
  model = _text_model(tmp_path, 'transformer')
  attention_study.show(model, 'to be', out=str(tmp_path / 'a.html'), num_images=2)
  first, second = written['articles']
  assert len(first.pieces) == 16 and first.pieces[:5] == second.pieces[:5] == list('to be') and first.given == 5
  assert first.pieces != second.pieces and first.views[0].weights.shape == (16, 16)
  attention_study.show(model, 'to be', out=str(tmp_path / 'a.html'), continuation=False, overwrite=True)
  (article,) = written['articles']
  assert article.pieces == list('to be') and article.layers[1].mask.sum() == 15


def test_models_without_attention_get_a_page_of_certainty(tmp_path, written):
  model = _text_model(tmp_path, 'lstm')
  attention_study.show(model, 'to be', out=str(tmp_path / 'a.html'))
  (article,) = written['articles']
  assert article.views == [] and len(article.tokens.probability) == 16
  assert 'no attention' in (tmp_path / 'a.html').read_text()
  with pytest.raises(ValueError, match='kind lstm has no attention'):
    attention_study.show(model, 'to be', out=str(tmp_path / 'a.html'), layers=[1], overwrite=True)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'prompt': ' '}, '--prompt is empty'),
    ({'prompt': 'a red circle ' * 9}, 'takes at most 7'),
    ({'layers': [4]}, '--layers=4: the numbers must be from 1 to 3'),
    ({'heads': [0]}, '--heads=0: the numbers must be from 1 to 2'),
    ({'image': 'nowhere.png'}, '--image nowhere.png cannot be read'),
    ({'image': 'nowhere.png', 'num_images': 2}, 'with --num_images=1'),
    ({'num_images': 0}, '--num_images (--keep) is 0'),
    ({'continuation': False}, '--nocontinuation analyses one text'),
    ({'model': 'nowhere'}, 'no model directory at nowhere'),
  ],
)
def test_arguments_that_cannot_be_used_are_refused(model, tmp_path, changes, message):
  values = {'model': model, 'prompt': PROMPT, 'out': str(tmp_path / 'a.html')}
  with pytest.raises(ValueError, match=re.escape(message)):
    attention_study.show(**{**values, **changes})


def test_an_unwritable_page_is_refused_before_the_model_is_loaded(model, tmp_path, monkeypatch):
  monkeypatch.setattr(bundle, 'load', lambda *_: pytest.fail('the model was read'))
  (tmp_path / 'file').touch()
  for out in (tmp_path, tmp_path / 'file' / 'a.html'):
    with pytest.raises(ValueError, match='cannot be written'):
      attention_study.show(model, PROMPT, out=str(out))


def test_a_dvae_alone_is_refused(model, tmp_path):
  loaded = bundle.load(model, attention_study.sharding.make_mesh())
  bundle.save(tmp_path / 'dvae', CONFIG, None, {'dvae': loaded.params['dvae']}, 'data')
  with pytest.raises(ValueError, match='holds the dvae only'):
    attention_study.show(str(tmp_path / 'dvae'), PROMPT, out=str(tmp_path / 'a.html'))


def test_a_sequence_model_of_images_is_refused(model, tmp_path, monkeypatch):
  monkeypatch.setattr(attention_study, 'drawing_parts', lambda _: ('dvae', 'model'))
  with pytest.raises(ValueError, match='give a prior, or a model of text'):
    attention_study.show(model, PROMPT, out=str(tmp_path / 'a.html'))


def test_prompts_that_leave_no_room_for_a_continuation_are_refused(tmp_path):
  model = _text_model(tmp_path, 'transformer')
  with pytest.raises(ValueError, match='--prompt has 16 tokens; the model takes at most 15, to have room'):
    attention_study.show(model, 'x' * 16, out=str(tmp_path / 'a.html'))


def test_small_models_are_shown_completely_and_large_ones_in_part():
  kinds = ['row', 'column', 'row', 'row'] * 16
  kinds[-1] = 'conv'
  assert attention_study.choose(kinds[:4], 4, 84, 1, None, None) == attention_study.Choice((0, 1, 2, 3), (0, 1, 2, 3))
  paper = attention_study.choose(kinds, 62, 1280, 1, None, None)
  assert paper == attention_study.Choice((0, 1, 21, 63), (), reduced=True)  # includes the first layer of each pattern
  assert attention_study.choose(kinds, 62, 1280, 1, [5, 9], [1, 2, 3]) == attention_study.Choice((4, 8), (0, 1, 2))
  assert attention_study.choose(kinds, 62, 1280, 1, [5], None) == attention_study.Choice((4,), (), reduced=True)
  with pytest.raises(ValueError, match=r'page of about 71 MB; at most 40 MB .*--heads=mean'):
    attention_study.choose(kinds, 62, 1280, 1, [1], range(1, 64))
