import dataclasses
import re

import ml_collections
import pytest

from dalle_jax import config as module
from dalle_jax.config import Config, apply_variant, base_config, difference


def _with(path, value):
  """A nested dict that sets one dotted key."""
  for name in reversed(path.split('.')):
    value = {name: value}
  return value


def test_default_sizes_are_those_of_the_paper():
  config = Config.from_dict(_with('data.image_size', 256))
  assert (config.prior.num_layers, config.prior.num_heads, config.prior.embed_dim) == (64, 62, 3968)
  assert (config.tokenizer.vocab_size, config.tokenizer.text_length) == (16_384, 256)
  assert (config.dvae.image_vocab_size, config.dvae.hidden_size, config.dvae.downsampling) == (8192, 256, 8)
  assert (config.grid_size, config.image_length) == (32, 1024)
  assert config.dvae.kl_weight == pytest.approx(6.6 / 192)


def test_to_dict_inverts_from_dict():
  values = _with('prior_training.learning_rate', 0.5) | {'seed': 3}
  config = Config.from_dict(values)
  assert (config.seed, config.prior_training.learning_rate) == (3, 0.5)
  assert config.dvae_training.learning_rate == module.TrainingConfig().learning_rate
  assert Config.from_dict(config.to_dict()) == config
  assert Config.from_dict(ml_collections.ConfigDict(config.to_dict())) == config
  assert Config.from_dict({}) == Config()


@pytest.mark.parametrize(
  ('path', 'near'),
  [
    ('prior.num_layer', 'config.prior.num_layers'),
    ('pryor', 'config.prior'),
    ('dvae_training.batchsize', 'config.dvae_training.batch_size'),
  ],
)
def test_unknown_keys_are_rejected_with_the_nearest_known_key(path, near):
  with pytest.raises(ValueError, match=rf'Unknown key config\.{re.escape(path)}; did you mean {re.escape(near)}\?'):
    Config.from_dict(_with(path, 3))


def test_an_unknown_key_without_similar_keys_is_rejected_with_the_list_of_known_keys():
  with pytest.raises(ValueError, match=r'Unknown key config\.mesh\.zzz; known keys: dcn_data, data, fsdp, tensor'):
    Config.from_dict(_with('mesh.zzz', 3))


@pytest.mark.parametrize(
  ('path', 'value', 'kind'),
  [
    ('prior.num_layers', 3.0, 'int'),
    ('prior.num_layers', '3', 'int'),
    ('prior.qk_norm', 1, 'bool'),
    ('prior.attention_pattern', 3, 'tuple of str'),
    ('prior.num_heads', True, 'int'),
    ('dvae_training.learning_rate', '1e-3', 'float'),
    ('dvae_training.learning_rate', True, 'float'),
    ('data.path', None, 'str'),
  ],
)
def test_values_of_wrong_type_are_rejected_and_the_key_is_named(path, value, kind):
  with pytest.raises(ValueError, match=rf'config\.{re.escape(path)} must be of type {kind}'):
    Config.from_dict(_with(path, value))


def test_lists_and_comma_separated_words_become_tuples():
  for value in (('row', 'full'), ['row', 'full'], 'row,full', ('row,full',)):
    assert Config.from_dict(_with('prior.attention_pattern', value)).prior.attention_pattern == ('row', 'full')
  with pytest.raises(ValueError, match=r'config\.prior\.attention_pattern\[1\] must be of type str; given 3'):
    Config.from_dict(_with('prior.attention_pattern', ('row', 3)))


def test_integers_become_floats():
  assert Config.from_dict(_with('dvae_training.learning_rate', 1)).dvae_training.learning_rate == 1.0


def test_a_value_in_place_of_a_group_is_rejected():
  with pytest.raises(ValueError, match=r'config\.prior must be a group of keys \(num_layers'):
    Config.from_dict({'prior': 3})


# One bad value for each checked key. The message must name the key with its full path.
BAD_VALUES = {
  'seed': -1,
  'task': 'vae',
  'data.source': 'imagenet',
  'data.crop': 'left',
  'data.caption_template': 'a picture',
  'data.resampling': 'nearest',
  'data.image_size': 0,
  'data.num_train': 0,
  'data.num_validation': -1,
  'data.num_held_out': 0,
  'data.max_image_pixels': 0,
  'data.num_threads': -1,
  'data.num_workers': -2,
  'data.shapes_seed': -1,
  'data.position_jitter': 2,
  'data.validation_fraction': 1.5,
  'data.max_bad_share': 1.5,
  'data.two_object_fraction': -0.1,
  'data.validation_path': 'held_out.txt',
  'tokenizer.kind': 'words',
  'tokenizer.vocab_size': 269,
  'tokenizer.text_length': 1,
  'tokenizer.bpe_dropout': 1.5,
  'dvae.image_vocab_size': 1,
  'dvae.hidden_size': 6,
  'dvae.decoder_input_size': 0,
  'dvae.num_groups': 0,
  'dvae.blocks_per_group': 0,
  'dvae.patch_size': 0,
  'dvae.dtype': 'float16',
  'dvae.bottleneck': 'lfq',
  'dvae.commitment_weight': -0.1,
  'dvae.codebook_decay': 1.1,
  'dvae.restart_threshold': -0.1,
  'dvae.fsq_levels': (4, 4),
  'dvae.temperature_start': 0.0,
  'dvae.temperature_end': 2.0,
  'dvae.temperature_steps': 0,
  'dvae.kl_weight': -1.0,
  'dvae.kl_warmup_steps': 0,
  'dvae.logits_init_scale': 0.0,
  'dvae.residual_gain': -0.5,
  'dvae.codebook_init_scale': -1.0,
  'dvae.normal_steps': -1,
  'dvae.normal_scale': 0.0,
  'prior.num_layers': 0,
  'prior.num_heads': -2,
  'prior.embed_dim': 0,
  'prior.mlp_ratio': 0,
  'prior.attention_pattern': ('row', 'diagonal'),
  'prior.last_attention_pattern': 'diagonal',
  'prior.conv_kernel_size': 4,
  'prior.attention_block': 0,
  'prior.init': 'zeros',
  'prior.remat': 'some',
  'prior.position': 'sinusoidal',
  'prior.norm': 'batchnorm',
  'prior.mlp': 'relu',
  'prior.z_loss_weight': -1e-5,
  'prior.caption_drop': 1.5,
  'prior.dtype': 'int8',
  'prior.text_loss_weight': -0.5,
  'model.kind': 'gru',
  'model.tokens': 'audio',
  'model.length': 1,
  'model.order': 9,
  'model.smoothing': 'good_turing',
  'model.discount': 1.0,
  'model.add_k': 0.0,
  'model.hidden_size': 0,
  'model.num_layers': 0,
  'model.num_heads': 0,
  'model.embed_dim': -1,
  'model.mlp_ratio': 0,
  'model.init': 'zeros',
  'model.remat': 'some',
  'model.position': 'sinusoidal',
  'model.norm': 'batchnorm',
  'model.mlp': 'relu',
  'model.dtype': 'int8',
  'reranker.embed_dim': 0,
  'reranker.patch_size': 0,
  'reranker.stem': 'pool',
  'reranker.image_num_layers': 0,
  'reranker.image_width': 0,
  'reranker.image_num_heads': 0,
  'reranker.text_num_layers': 0,
  'reranker.text_width': -1,
  'reranker.text_num_heads': 3,
  'reranker.activation': 'relu',
  'reranker.dtype': 'int8',
  'reranker.pixel_mean': (0.5,),
  'reranker.pixel_std': (0.5, 0.5, 0.0),
  'mesh.dcn_data': 0,
  'mesh.data': 0,
  'mesh.fsdp': -2,
  'mesh.tensor': 0,
  'logging.stall_seconds': -1.0,
  'sampling.temperature': -1.0,
  'sampling.top_k': -1,
  'sampling.top_p': 0.0,
  'sampling.guidance_scale': 1e39,
  'sampling.guidance_ramp': 1.5,
  'sampling.batch_size': 0,
  'evaluation.num_reconstructions': 0,
  'evaluation.num_prompts': 0,
  'choice.minutes': 0.0,
  'evaluation.num_captions': 0,
  'evaluation.sheet_prompts': 0,
  'evaluation.images_per_prompt': 0,
  'evaluation.batch_size': -4,
  'profile': (5, 4),
  'evaluation.num_tokens': 0,
  'evaluation.num_compared': 0,
  'evaluation.num_context_targets': 0,
  'evaluation.num_text_samples': 0,
} | {
  f'{stage}_training.{key}': value
  for stage in ('dvae', 'prior', 'joint', 'sequence', 'reranker')
  for key, value in {
    'num_steps': 0,
    'batch_size': 0,
    'accumulation_steps': 0,
    'fusion_mib': 0,
    'optimizer': 'sgd',
    'schedule_steps': -1,
    'halving_steps': (20, 10),
    'plateau_window': 0,
    'plateau_patience': 0,
    'plateau_min_improvement': 0.0,
    'max_halvings': 0,
    'second_moment_clip': -5.0,
    'ema_every': 0,
    'learning_rate': 0.0,
    'muon_learning_rate': -0.1,
    'final_learning_rate': -1.0,
    'schedule': 'linear',
    'warmup_steps': -1,
    'b1': 1.0,
    'b2': -0.1,
    'eps': 0.0,
    'weight_decay': -1.0,
    'clip_norm': -1.0,
    'ema_decay': 1.0,
    'log_every': 0,
    'nonfinite': 'ignore',
    'max_nonfinite': -1,
    'eval_every': -1,
    'eval_batches': 0,
    'sheet_every': -1,
    'checkpoint_every': -1,
    'keep_checkpoints': 0,
  }.items()
}


@pytest.mark.parametrize('path', BAD_VALUES)
def test_values_out_of_range_are_rejected_and_the_key_is_named(path):
  with pytest.raises(ValueError) as error:
    Config.from_dict(_with(path, BAD_VALUES[path]))
  message = str(error.value)
  assert f'config.{path}' in message
  assert str(BAD_VALUES[path]) in message


def test_every_number_and_choice_has_a_bad_value_above():
  """The keys in `unchecked` accept any value of their type, or are checked together with other keys below."""
  unchecked = {
    'data.path', 'dvae.pretrained', 'data.data_dir', 'data.flip', 'data.caption_key', 'data.skip_list',
    'data.group_separator', 'dvae.min_log_scale', 'dvae.straight_through', 'prior.qk_norm',
    'prior.sandwich_norm', 'prior.image_loss_weight', 'model.qk_norm', 'model.sandwich_norm',
    'reranker.wrong_captions', 'logging.tensorboard', 'logging.wandb_project', 'choice.enabled',
    'choice.keep',
  }  # fmt: skip
  keys = set()
  for name, value in Config().to_dict().items():
    keys |= {f'{name}.{key}' for key in value} if isinstance(value, dict) else {name}
  assert keys == set(BAD_VALUES) | unchecked


@pytest.mark.parametrize(
  ('values', 'words'),
  [
    (_with('data.source', 'folder'), ['config.data.path', 'folder']),
    (_with('data.image_size', 36), ['config.data.image_size 36', 'downsampling 8', 'image_size=32']),
    (
      {'data': {'image_size': 64}, 'dvae': {'patch_size': 3, 'num_groups': 2}},
      ['config.data.image_size 64', '6', 'image_size=66'],
    ),
    (
      {'task': 'reranker', 'data': {'image_size': 34}},
      ['config.data.image_size 34', 'config.reranker.patch_size 4'],
    ),
    (
      {'task': 'reranker', 'reranker': {'stem': 'conv', 'patch_size': 6}, 'data': {'image_size': 36}},
      ['config.reranker.patch_size is 6', 'config.reranker.stem=conv', '2, 4, 8 or 16'],
    ),
    (_with('dvae_training', {'batch_size': 10, 'accumulation_steps': 4}), ['config.dvae_training.batch_size 10', '4']),
    (_with('prior_training', {'schedule': 'steps'}), ['config.prior_training.schedule', 'halving_steps']),
    (
      _with('prior_training', {'halving_steps': (50, 200), 'schedule': 'steps', 'warmup_steps': 100}),
      ['config.prior_training.halving_steps', '(50, 200)', 'warmup_steps 100'],
    ),
    (
      _with('dvae_training', {'schedule_steps': 500, 'schedule': 'constant'}),
      ['config.dvae_training.schedule_steps is 500', "'constant'"],
    ),
    (_with('dvae_training.schedule_steps', 100), ['config.dvae_training.schedule_steps is 100', 'warmup_steps 100']),
    (_with('prior_training', {'halving_steps': (5,)}), ['config.prior_training.schedule', 'cosine', '(5,)']),
    (_with('prior', {'embed_dim': 60, 'num_heads': 7}), ['embed_dim 60', 'num_heads 7', '5, 6']),
    (_with('prior', {'embed_dim': 60, 'num_heads': 10, 'position': 'rotary'}), ['rotary', 'multiple of 4', '6']),
    ({'task': 'dvae', 'dvae': {'pretrained': 'm'}}, ['config.task', 'config.dvae.pretrained=m']),
    ({'task': 'joint', 'dvae': {'bottleneck': 'vq'}}, ['config.task=joint', 'gumbel', 'vq']),
    (_with('dvae', {'bottleneck': 'fsq'}), ['config.dvae.fsq_levels', '8,5,5,5']),
    (_with('dvae', {'bottleneck': 'fsq', 'fsq_levels': (4, 5)}), ['image_vocab_size is 8192', '(4, 5)', '20']),
    (_with('prior', {'attention_pattern': ('conv',)}), ['conv_kernel_size 11', '4 x 4']),
    (_with('mesh', {'data': -1, 'tensor': -1}), ['config.mesh', '-1']),
    (_with('prior.image_loss_weight', -0.5), ['image_loss_weight', '-0.5']),
    (_with('prior', {'text_loss_weight': 0.0, 'image_loss_weight': 0.0}), ['config.prior.text_loss_weight', 'both']),
    ({'sampling': {'top_k': 9}, 'dvae': {'image_vocab_size': 8}}, ['config.sampling.top_k is 9', '8']),
    (_with('data.image_size', 16), ['config.data.image_size is 16', '32']),
  ],
)
def test_values_that_contradict_each_other_are_rejected(values, words):
  with pytest.raises(ValueError) as error:
    Config.from_dict(values)
  for word in words:
    assert word in str(error.value)


def test_the_image_size_suggested_by_the_message_is_valid():
  with pytest.raises(ValueError) as error:
    Config.from_dict(_with('data.image_size', 100))
  proposal = int(re.search(r'image_size=(\d+)', str(error.value))[1])
  assert Config.from_dict(_with('data.image_size', proposal)).grid_size == proposal // 8


def test_the_base_configuration_has_every_key_and_is_locked():
  config = base_config()
  assert config.to_dict() == Config().to_dict()
  with pytest.raises(AttributeError, match='num_layers'):
    config.prior.num_layer = 3
  with pytest.raises(TypeError):
    config.prior.num_layers = 'three'


def test_the_configuration_is_frozen_and_hashable():
  config = Config()
  with pytest.raises(dataclasses.FrozenInstanceError):
    config.seed = 1
  assert hash(config) == hash(Config())


def test_difference_lists_only_changed_leaves():
  old = Config().to_dict()
  new = Config.from_dict({'seed': 1, 'prior': {'num_layers': 2}, 'data': {'crop': 'random'}}).to_dict()
  assert difference(old, old) == []
  assert difference(old, new) == [
    "config.data.crop: 'center' -> 'random'",
    'config.prior.num_layers: 64 -> 2',
    'config.seed: 0 -> 1',
  ]
  assert difference({'a': 1}, {'b': {'c': 2}}) == [
    "config.a: 1 -> '(absent)'",
    "config.b: '(absent)' -> {'c': 2}",
  ]


def test_the_tiny_variant_shrinks_the_configuration_and_others_are_rejected():
  assert apply_variant(base_config(), '').to_dict() == base_config().to_dict()
  tiny = Config.from_dict(apply_variant(base_config(), 'tiny'))
  assert tiny.prior_training.num_steps < 50
  with pytest.raises(ValueError, match=r"There is no variant 'huge'; allowed: 'tiny' .*given 'huge'"):
    apply_variant(base_config(), 'huge')


TEXT = {'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'}}


def test_models_of_text_need_a_text_source_and_a_text_tokenizer():
  assert Config.from_dict(TEXT).training_groups == ('sequence_training',)
  for changes, message in [
    ({'task': 'all'}, r"config\.data\.source is 'text', but config\.task=all needs images"),
    (
      {'data': {'source': 'captioned_shapes'}},
      r"config\.data\.source is 'captioned_shapes', but .* needs config\.data\.source=text",
    ),
    ({'tokenizer': {'kind': 'captions'}}, r"config\.tokenizer\.kind is 'captions'.*needs 'bytes' or 'pieces'"),
    ({'model': {'kind': 'neural_ngram', 'order': 1}}, r'config\.model\.order is 1; it must lie in 2 to 8'),
    ({'model': {'embed_dim': 10, 'num_heads': 4}}, r'config\.model\.embed_dim 10 is not divisible by'),
  ]:
    with pytest.raises(ValueError, match=message):
      Config.from_dict(TEXT | changes)
  with pytest.raises(ValueError, match=r"config\.tokenizer\.kind is 'bytes', but config\.task=all needs 'captions'"):
    Config.from_dict({'tokenizer': {'kind': 'bytes'}})


IMAGES = {'task': 'sequence', 'dvae': {'pretrained': 'runs/dvae/model'}, 'model': {'tokens': 'image'}}


def test_models_of_image_tokens_get_their_length_from_the_dvae():
  image = Config.from_dict(IMAGES)
  assert (image.sequence_length, image.reads_captions, image.models_text) == (image.image_length, False, False)
  captioned = Config.from_dict(IMAGES | {'model': {'tokens': 'text_image', 'length': 256 + 16}})
  assert (captioned.sequence_length, captioned.reads_captions) == (256 + 16, True)
  assert captioned.training_groups == ('sequence_training',)
  assert Config.from_dict(TEXT | {'model': {'length': 7}}).sequence_length == 7
  for changes, message in [
    (
      {'dvae': {}, 'model': {'tokens': 'image', 'kind': 'ngram'}},
      r'kind=ngram needs a trained dVAE; set config\.dvae\.pretrained to its model directory',
    ),
    (
      {'data': {'source': 'text'}},
      r"config\.data\.source is 'text', but config\.task=sequence with config\.model\.tokens=image needs images",
    ),
    ({'tokenizer': {'kind': 'bytes'}}, r"config\.tokenizer\.kind is 'bytes'.*tokens=image needs 'captions'"),
    ({'model': {'tokens': 'image', 'length': 17}}, r'config\.model\.length is 17, but .*tokens=image .* has 16 tokens'),
  ]:
    with pytest.raises(ValueError, match=message):
      Config.from_dict(IMAGES | changes)
