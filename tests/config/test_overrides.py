"""Keys on the command line that the task does not read are refused, with the key that was meant."""

import pytest

from dalle_jax.config import Config, overrides

IMAGE_TOKENS = {'task': 'sequence', 'model': {'tokens': 'image'}, 'dvae': {'pretrained': 'DIR'}}
COMMON = 'seed, task, profile, data, mesh, logging, sampling, evaluation'
TEXT = {'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'}}


@pytest.mark.parametrize(
  ('values', 'key', 'message'),
  [
    ({}, 'model.num_layers', 'config.task=all does not read config.model. Leave the key out, or set '
     'config.prior.num_layers instead.'),
    ({}, 'sequence_training.learning_rate', 'config.task=all does not read config.sequence_training. Leave the key '
     'out, or set config.dvae_training.learning_rate or config.prior_training.learning_rate instead.'),
    (TEXT, 'prior.num_heads', 'config.task=sequence does not read config.prior. Leave the key out, or set '
     'config.model.num_heads instead.'),
    ({'task': 'dvae'}, 'prior.position', 'config.task=dvae does not read config.prior. Leave the key out; this task '
     f'reads {COMMON}, dvae, dvae_training.'),
    ({'dvae': {'pretrained': 'DIR'}}, 'dvae_training.num_steps', 'config.dvae.pretrained=DIR is already '
     'trained, so config.dvae_training is not read. Leave the key out, or set config.prior_training.num_steps '
     'instead.'),
    (IMAGE_TOKENS, 'tokenizer.text_length', 'config.task=sequence does not read config.tokenizer. Leave the key out; '
     f'this task reads {COMMON}, dvae, model, sequence_training.'),
    ({'task': 'reranker'}, 'dvae.hidden_size', 'config.task=reranker does not read config.dvae. Leave the key out; '
     f'this task reads {COMMON}, tokenizer, reranker, reranker_training.'),
  ],
)  # fmt: skip
def test_a_key_that_the_task_ignores_is_refused_with_the_key_that_was_meant(values, key, message):
  with pytest.raises(ValueError) as error:
    overrides.check(Config.from_dict(values), ['seed', key])
  assert str(error.value) == f'config.{key} is set, but {message}'


@pytest.mark.parametrize(
  ('values', 'keys'),
  [
    ({}, ['prior.num_layers', 'dvae_training.num_steps', 'tokenizer.vocab_size', 'task', 'mesh.data', 'profile']),
    ({'task': 'joint'}, ['joint_training.num_steps', 'dvae.hidden_size', 'prior.num_heads']),
    (TEXT, ['model.kind', 'tokenizer.kind', 'sampling.top_k', 'evaluation.num_tokens']),
    (IMAGE_TOKENS, ['dvae.pretrained', 'model.order', 'sequence_training.batch_size']),
    ({'task': 'dvae'}, ['dvae.bottleneck', 'sampling.batch_size']),
  ],
)
def test_keys_that_the_task_reads_are_accepted(values, keys):
  overrides.check(Config.from_dict(values), keys)


def test_an_element_of_a_tuple_belongs_to_its_key():
  overrides.check(Config.from_dict({'profile': (1, 2)}), ['profile[0]', 'prior_training.halving_steps[0]'])


@pytest.mark.parametrize(
  'values',
  [
    {'task': 'dvae', 'data': {'image_size': 64}, 'prior': {'attention_pattern': ('conv',)}},
    {**TEXT, 'sampling': {'top_k': 10_000}},
  ],
)
def test_checks_leave_out_groups_that_the_task_does_not_read(values):
  Config.from_dict(values)
