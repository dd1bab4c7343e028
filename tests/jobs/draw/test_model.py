import jax
import numpy as np
import pytest
from random_models import PICTURES, caption_tokenizer, random_params, save_random

import dalle_jax
from dalle_jax import bundle
from dalle_jax.config import Config
from dalle_jax.sampling.draw_settings import DrawSettings

CONFIG = Config.from_dict(
  {**PICTURES, 'prior': {**PICTURES['prior'], 'caption_drop': 0.1}, 'sampling': {'temperature': 0.9, 'batch_size': 2}}
)
PROMPTS = ['A red circle', 'a blue square']
PICTURE = np.random.default_rng(1).integers(256, size=(8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return save_random(tmp_path_factory.mktemp('run') / 'model', CONFIG, caption_tokenizer())


@pytest.fixture(scope='module')
def model(path):
  return dalle_jax.load(path)


@pytest.fixture(scope='module')
def images(model):
  return model.generate(PROMPTS, 3, seed=4)


def test_image_i_of_a_seed_does_not_depend_on_the_batch_or_the_other_images(model, images):
  assert (images.shape, images.dtype) == ((2, 3, 8, 8, 3), np.uint8)
  assert all(len({image.tobytes() for image in row}) == 3 for row in images)
  np.testing.assert_array_equal(model.generate(PROMPTS[1], 2, seed=4), images[1, :2])
  np.testing.assert_array_equal(model.generate(PROMPTS[1:], 1, seed=4, batch_size=1)[0], images[1, :1])
  drawn = model.draw(PROMPTS, DrawSettings(num_images=1, seed=4), index=[2])
  np.testing.assert_array_equal(drawn.best[:, 0], images[:, 2])
  assert np.any(model.generate(PROMPTS[0], 1, seed=5) != images[0, :1])


def test_guidance_changes_images_unless_its_scale_is_one(model, images):
  guided = [
    model.generate(PROMPTS, 3, seed=4, guidance_scale=scale, **settings)
    for scale, settings in (
      (1.0, {}),
      (6.0, {}),
      (6.0, {'guidance_ramp': 1.0}),
      (6.0, {'negative_prompt': 'a green square'}),
    )
  ]
  np.testing.assert_array_equal(guided[0], images)
  assert len({batch.tobytes() for batch in guided}) == 4


def test_the_likeliest_candidates_are_kept_best_first(model):
  drawn = model.draw(PROMPTS, DrawSettings(num_images=2, candidates=5, seed=4))
  assert drawn.images.shape[:2] == drawn.scores.shape == (2, 5)
  np.testing.assert_allclose(drawn.scores, -drawn.nats.sum(axis=(2, 3)), rtol=1e-5)
  np.testing.assert_array_equal(drawn.kept, np.argsort(-drawn.scores, axis=1)[:, :2])
  np.testing.assert_array_equal(drawn.best[1, 0], drawn.images[1, drawn.scores[1].argmax()])


def test_caption_likelihood_ranks_by_the_gain_of_likelihood_from_the_caption(model):
  drawn = model.draw(PROMPTS, DrawSettings(num_images=1, candidates=3, seed=4, rank='caption_likelihood'))
  params, prior = model.params['prior'], bundle.Bundle(model.config, model.tokenizer, model.params, {}).prior
  text = np.stack([model.tokenizer.encode_padded(prompt, 5) for prompt in PROMPTS]).repeat(3, axis=0)
  codes = drawn.codes.reshape(6, -1)

  def nats(text):
    logits = np.asarray(prior.split_logits(params, text, codes)[1], np.float64)
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    return -np.log(np.take_along_axis(probs, codes[..., None], axis=-1)).sum(axis=(1, 2))

  expected = nats(np.zeros_like(text)) - nats(text)
  np.testing.assert_allclose(drawn.scores.reshape(-1), expected, rtol=1e-3, atol=1e-3)


class _Greenest:
  info = {'params': 'greenest'}  # noqa: RUF012

  def scores(self, prompts, images):
    assert len(prompts) == len(images)
    return images[..., 1].mean(axis=(2, 3)).astype(np.float32)


def test_a_reranker_orders_the_kept_images(model):
  drawn = model.draw(PROMPTS, DrawSettings(num_images=2, candidates=4, seed=4), reranker=_Greenest())
  greens = drawn.best[..., 1].mean(axis=(2, 3))
  assert np.all(greens[:, 0] >= greens[:, 1])
  assert np.all(greens[:, 0] == drawn.images[..., 1].mean(axis=(2, 3)).max(axis=1))


def test_kept_codes_stay_and_holes_get_more_candidates(model):
  codes = model.encode(PICTURE[None])[0]
  known = model.known(PICTURE, np.arange(4)[:, None] < np.full(4, 2))
  drawn = model.draw(PROMPTS[:1], DrawSettings(num_images=3), known=known)
  assert drawn.images.shape[1] == 3 and drawn.scores is None
  np.testing.assert_array_equal(drawn.codes[0, :, :2], np.tile(codes[:2], (3, 1, 1)))
  assert np.all(drawn.nats[0, :, :2] == 0) and np.all(drawn.nats[0, :, 2:] > 0)
  pixels = np.ones((8, 8), bool)
  pixels[2:4, 2:6] = False
  drawn = model.draw([''], DrawSettings(num_images=1), known=model.known(PICTURE, pixels))
  keep = np.ones((4, 4), bool)
  keep[1, 1:3] = False
  assert drawn.images.shape[1] == 8 and drawn.scores is not None
  np.testing.assert_array_equal(drawn.codes[0][:, keep], np.tile(codes[keep], (8, 1)))
  assert model.complete(PICTURE, pixels, num_images=1).shape == (1, 8, 8, 3)


def test_variations_range_from_the_same_image_to_any_image(model):
  codes = model.encode(PICTURE[None])
  same, free = (model.vary(PICTURE, strength, PROMPTS[0], 2) for strength in (1e-9, 1.0))
  np.testing.assert_array_equal(same, model.decode(codes.repeat(2, axis=0)))
  np.testing.assert_array_equal(free, model.generate(PROMPTS[0], 2))


def test_images_of_any_size_are_encoded_and_codes_are_decoded_in_batches(model):
  codes = model.encode(np.stack([PICTURE, 255 - PICTURE, PICTURE]))
  assert (codes.shape, codes.dtype) == ((3, 4, 4), np.int32)
  np.testing.assert_array_equal(codes[0], codes[2])
  assert model.decode(codes).shape == (3, 8, 8, 3)
  assert model.encode(np.zeros((1, 20, 33, 3), np.uint8)).shape == (1, 4, 4)


def test_previews_show_unfinished_images_in_order(model, images):
  seen = []
  model.generate(PROMPTS, 3, seed=4, batch_size=4, preview=seen.append)
  assert [(list(p.numbers), p.rows) for p in seen] == [(n, r) for n in ([0, 1, 2, 3], [4, 5]) for r in (1, 2, 3, 4)]
  flat = images.reshape(-1, 8, 8, 3)
  np.testing.assert_array_equal(seen[-1].images, flat[4:])
  assert np.all(seen[1].images[:, 4:] == 128) and np.all(np.any(seen[1].images[:, :4] != 128, axis=(1, 2, 3)))


def test_the_batch_is_reduced_if_memory_is_short(model, images, monkeypatch, caplog):
  from dalle_jax.sampling import memory, sampler

  monkeypatch.setattr(memory, 'free_bytes', lambda mesh: 1)
  np.testing.assert_array_equal(model.generate(PROMPTS, 3, seed=4, batch_size=6), images)
  assert 'batch_size 6 is cut to 1' in caplog.text
  monkeypatch.undo()
  draw_batch, sizes = sampler.Sampler._draw_batch, []

  def short(self, params, prepared, rows, *args):
    sizes.append(len(rows['text']))
    if sizes[-1] > 2:
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 byte')
    return draw_batch(self, params, prepared, rows, *args)

  monkeypatch.setattr(sampler.Sampler, '_draw_batch', short)
  np.testing.assert_array_equal(model.generate(PROMPTS, 3, seed=4, batch_size=6), images)
  assert sizes == [6, 3, 2, 2, 2]


def test_the_first_nan_logits_are_reported(tmp_path):
  params = random_params(CONFIG, caption_tokenizer().vocab_size)
  params['prior']['embeddings']['image_kernel'] *= np.nan
  bundle.save(tmp_path / 'model', CONFIG, caption_tokenizer(), params, 'data')
  with pytest.raises(ValueError, match=r'NaN or infinite at image token 0 of image 0 \(2 of a batch of 2\)'):
    dalle_jax.load(tmp_path / 'model').generate(PROMPTS[0], 2)


def test_nan_from_the_negative_prompt_or_the_dvae_is_reported(tmp_path):
  tokenizer = caption_tokenizer()
  params = random_params(CONFIG, tokenizer.vocab_size)
  broken = jax.tree.map(lambda leaf: leaf, params)
  ids = np.array(tokenizer.encode('blue square'))
  table = broken['prior']['embeddings']['text_embedding']
  broken['prior']['embeddings']['text_embedding'] = table.at[ids].set(np.nan)
  bundle.save(tmp_path / 'prior', CONFIG, tokenizer, broken, 'data')
  with pytest.raises(ValueError, match='NaN or infinite at image token 0'):
    dalle_jax.load(tmp_path / 'prior').generate('a red circle', guidance_scale=3.0, negative_prompt='blue square')
  params['dvae'] = jax.tree.map(lambda leaf: leaf * np.nan, params['dvae'])
  bundle.save(tmp_path / 'dvae', CONFIG, tokenizer, params, 'data')
  model = dalle_jax.load(tmp_path / 'dvae')
  for call in (lambda: model.generate('a red circle'), lambda: model.encode(PICTURE[None])):
    with pytest.raises(ValueError, match="dVAE's parameters hold NaN"):
      call()


def test_the_callback_gets_every_finished_batch(model, images):
  seen = []
  settings = DrawSettings(num_images=3, seed=4, batch_size=4)
  model.draw(PROMPTS, settings, finished=lambda numbers, drawn, sampling: seen.append((list(numbers), drawn, sampling)))
  assert [numbers for numbers, _, _ in seen] == [[0, 1, 2, 3], [4, 5]] and seen[0][2].batch_size == 4
  np.testing.assert_array_equal(np.concatenate([drawn.images for _, drawn, _ in seen]), images.reshape(6, 8, 8, 3))


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda m: m.generate('a red circle', 1, tempeature=1.0), "Unknown setting 'tempeature'"),
    (lambda m: m.generate(''), 'empty'),
    (lambda m: m.generate('a red circle', 1, negative_prompt='a'), r'--negative_prompt needs guidance'),
    (lambda m: m.generate('a red circle', 2, candidates=1), r'--candidates is 1, fewer than the 2'),
    (lambda m: m.generate('a red circle', 1, rank='beauty'), r"--rank is 'beauty'; allowed are reranker"),
    (lambda m: m.generate('a red circle', 1, rank='reranker'), r'--rank=reranker needs --reranker'),
    (lambda m: m.complete(PICTURE, np.ones((8, 8), bool), 'a red circle'), r'Nothing of the picture is to be drawn'),
    (
      lambda m: m.complete(PICTURE, np.eye(8) > 0, 'a red circle'),
      r'No code of the image is kept\. A code covers 1/4 of a side',
    ),
    (lambda m: m.complete(PICTURE / 255, np.ones((8, 8), bool)), r'must be a uint8 array \[H, W, 3\]; given float64'),
    (lambda m: m.generate([]), r'no prompts'),
    (lambda m: m.generate('a red circle', 1, temperature=1e39), r'--temperature is 1e\+39; it must be 0 to 1,000,000'),
    (lambda m: m.generate('a red circle', 1, reranker='nowhere'), r'no model directory at .*nowhere \(--reranker\)'),
    (lambda m: m.draw(['a red circle'], DrawSettings(num_images=1), index=[-1]), r'must lie in \[0, 2\^31\); given -1'),
    (
      lambda m: m.vary(PICTURE, 0.5, num_images=2, candidates=3, rank='caption_likelihood'),
      r'--rank=caption_likelihood compares images with prompts, but no prompt was given',
    ),
    (lambda m: m.complete(PICTURE, np.ones((5, 8), bool)), r'mask \(--mask\) has 8 x 5 pixels, but .* has 8 x 8'),
    (lambda m: m.decode(np.full((1, 4, 4), 8)), r'Codes must lie in 0 to 7; given 8 to 8'),
    (lambda m: m.decode(np.zeros((4, 4), int)), r'shape \[N, 4, 4\]; given int64 \[4, 4\]'),
  ],
)
def test_bad_arguments_are_refused(model, call, message):
  with pytest.raises(ValueError, match=message):
    call(model)


def test_messages_cut_long_prompts_and_name_unknown_characters(model, caplog):
  with pytest.raises(ValueError, match=r'takes at most 5') as error:
    model.generate('a red circle ' * 7_000)
  assert len(str(error.value)) < 300
  model.generate('ж', 1)
  assert "was trained on never contain 'ж', as in 'ж'" in caplog.text


def test_a_model_directory_of_a_newer_version_is_refused(path, tmp_path):
  import json
  import shutil

  shutil.copytree(path, tmp_path / 'new')
  info = json.loads((tmp_path / 'new/bundle.json').read_text()) | {'format_version': 99}
  (tmp_path / 'new/bundle.json').write_text(json.dumps(info))
  with pytest.raises(ValueError, match=r'has bundle format 99, .* reads format 1 to 2.*newer dalle_jax'):
    dalle_jax.load(tmp_path / 'new', verify=False)
  (tmp_path / 'new/bundle.json').write_text(json.dumps(info | {'format_version': 2, 'dalle_jax_version': '9.9'}))
  config = json.loads((tmp_path / 'new/config.json').read_text()) | {'invention': 1}
  (tmp_path / 'new/config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r'Unknown key config\.invention.* was written by dalle_jax 9\.9; this is'):
    dalle_jax.load(tmp_path / 'new', verify=False)


def test_a_model_directory_with_only_a_dvae_encodes_and_decodes(tmp_path):
  params = {'dvae': random_params(CONFIG, 300)['dvae']}
  bundle.save(tmp_path / 'model', CONFIG, None, params, 'data')
  model = dalle_jax.load(tmp_path / 'model')
  assert model.decode(model.encode(PICTURE[None])).shape == (1, 8, 8, 3)
  with pytest.raises(ValueError, match='holds the dVAE only'):
    model.generate()
