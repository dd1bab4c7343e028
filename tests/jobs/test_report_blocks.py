import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PICTURES, caption_tokenizer, random_params
from web_page import Page

from dalle_jax.config import Config, MeshConfig
from dalle_jax.evaluation import reconstruction
from dalle_jax.evaluation.token_likelihood import token_nats
from dalle_jax.factory import make_dvae, make_stream_model
from dalle_jax.jobs import report_blocks
from dalle_jax.jobs.sheet_samples import PromptSamples
from dalle_jax.models import prior as prior_model
from dalle_jax.models.sequence import token_nll
from dalle_jax.sampling.sampler import encode_prompts
from dalle_jax.sharding import make_mesh

TOKENIZER = caption_tokenizer()
PROMPTS = ['a red circle', 'a blue square']
CONFIG = Config.from_dict(PICTURES)
NO_CAPTIONS = Config.from_dict(
  {
    **PICTURES,
    'task': 'sequence',
    'dvae': {**PICTURES['dvae'], 'pretrained': 'unused'},
    'model': {'tokens': 'image', 'kind': 'lstm', 'num_layers': 1, 'embed_dim': 4, 'hidden_size': 4},
  }
)
MESH = make_mesh(MeshConfig())


@pytest.fixture(scope='module')
def params():
  return random_params(CONFIG, TOKENIZER.vocab_size)


def _codes(*shape):
  grid = CONFIG.grid_size
  return np.random.default_rng(1).integers(0, CONFIG.dvae.image_vocab_size, (*shape, grid, grid)).astype(np.int32)


def _images(codes):
  """Images of one value each, which identifies the image and its first code."""
  first_codes = codes.reshape(*codes.shape[:-2], -1)[..., :1]
  values = 31 * first_codes + np.arange(np.prod(codes.shape[:-2], dtype=int)).reshape(first_codes.shape)
  return np.broadcast_to(values[..., None, None].astype(np.uint8), (*codes.shape[:-2], 8, 8, 3)).copy()


def test_token_nats_equal_the_training_loss_of_each_token(params):
  model, part = make_stream_model(CONFIG, TOKENIZER.vocab_size)
  text, codes = encode_prompts(TOKENIZER, PROMPTS, 6), _codes(2)
  nats = token_nats(model, params[part], text, codes, MESH)
  flat = jnp.asarray(codes.reshape(2, -1))
  text_logits, image_logits = model.split_logits(params['prior'], text, flat)
  np.testing.assert_allclose(nats[:, 6:], token_nll(image_logits, flat), rtol=1e-5)
  np.testing.assert_allclose(nats[:, :6].sum(axis=1), prior_model.text_nats(text_logits, text), rtol=1e-5)


def test_samples_are_ordered_by_likelihood_and_tokens_are_shown_with_their_nats(params):
  model, part = make_stream_model(CONFIG, TOKENIZER.vocab_size)
  text, codes = encode_prompts(TOKENIZER, PROMPTS, 6), _codes(2, 3)
  samples = PromptSamples(text, codes, _images(codes))
  groups = [report_blocks.Group('Samples', 'Unordered.', PROMPTS, samples, None)]
  held_out = report_blocks.HeldOut('validation image', text, codes[:, 0], samples.images[:, 0])
  blocks = dict(report_blocks.blocks(model, params[part], TOKENIZER, groups, held_out, MESH))
  assert list(blocks) == ['Samples', 'Likelihood of tokens']
  all_text = text.repeat(3, axis=0)
  nats = token_nats(model, params[part], all_text, codes.reshape(6, *codes.shape[2:]), MESH)
  image_nats = nats[:, 6:].sum(axis=1).reshape(2, 3)
  page = Page(blocks['Samples'])
  order = [(p, i) for p in range(2) for i in np.argsort(image_nats[p])]
  for image, (p, i) in zip(page.of('img'), order, strict=True):
    np.testing.assert_array_equal(image.pixels(), samples.images[p, i])
  assert page.text('figcaption')[0].startswith(f'−{image_nats[order[0]]:.2f}'[:4])
  page = Page(blocks['Likelihood of tokens'])
  # Both held-out images, then all six samples.
  titles = page.text('h4')
  assert (
    titles[:4] == ['validation image 1', 'validation image 2', 'Samples, prompt 1', 'Samples, prompt 2']
    and len(titles) == 8
  )
  for figure, row in zip(page.of('figure', 'reading')[:2], nats[::3], strict=True):
    assert f'image {row[6:].sum():.2f} nats' in figure.text
  pieces = [*(TOKENIZER.decode([i]) for i in TOKENIZER.encode(PROMPTS[0])), '(end)']
  expected = [f'{piece}{nats[0, i]:.2f}' for i, piece in enumerate(pieces)]
  assert page.text('span', 'token')[: len(expected)] == expected


def test_a_model_without_captions_gets_blocks_without_captions():
  params = random_params(NO_CAPTIONS, 0)
  model, part = make_stream_model(NO_CAPTIONS, 0)
  codes = _codes(1, 4)
  samples = PromptSamples(np.zeros((1, 0), np.int32), codes, _images(codes))
  held_out = report_blocks.HeldOut('validation image', np.zeros((2, 0), np.int32), codes[0, :2], samples.images[0, :2])
  groups = [report_blocks.Group('Samples', '', [''], samples, None)]
  blocks = dict(report_blocks.blocks(model, params[part], None, groups, held_out, MESH))
  page = Page(blocks['Likelihood of tokens'])
  assert page.text('h4')[2:] == [f'Samples, image {i}' for i in (1, 2, 3, 4)] and not page.of('span')
  assert not Page(blocks['Samples']).of('h3')
  ((title, block),) = report_blocks.blocks(model, params[part], None, [], held_out, MESH)
  assert title == 'Likelihood of tokens' and Page(block).text('h4') == ['validation image 1', 'validation image 2']


def test_each_of_the_most_used_codes_is_shown_as_a_decoded_grid_of_that_code(params):
  dvae, codes = make_dvae(CONFIG.dvae), np.array([[[5]], [[2]], [[5]]]).repeat(4, axis=1)
  title, block = report_blocks.codebook(dvae, params['dvae'], codes, MESH)
  page = Page(block)
  assert title == 'Codebook' and '2 of 8 codes are used (25.0%) in 12 tokens' in page.text('p')[0]
  assert page.text('figcaption') == ['5: 66.7%', '2: 33.3%']
  grid = np.full((1, 4, 1), 5)
  expected = np.asarray(dvae.apply({'params': params['dvae']}, grid, method='decode')).round().astype(np.uint8)[0]
  np.testing.assert_allclose(page.of('img')[0].pixels().astype(int), expected, atol=1)


def test_reconstructions_are_ordered_by_psnr():
  originals = _images(_codes(3))
  decoded = originals + np.array([0, 9, 3], np.uint8)[:, None, None, None]
  title, block = report_blocks.reconstructions(originals, decoded)
  psnr = reconstruction.psnr(originals, decoded)
  assert title == 'Reconstructions'
  assert Page(block).text('figcaption') == [f'{value:.1f} dB' for value in np.sort(psnr)]
