"""Keys on the command line that the task does not read are refused, with the key that was meant."""

import pytest

from dalle_jax.config import Config, overrides

IMAGE_TOKENS = {'task': 'sequence', 'model': {'tokens': 'image'}, 'dvae': {'pretrained': 'DIR'}}
TEXT = {'task': 'sequence', 'data': {'source': 'text'}, 'tokenizer': {'kind': 'bytes'}}


@pytest.mark.parametrize(
  ('values', 'key', 'message'),
  [
    ({}, 'model.num_layers', 'config.model.num_layers is set, but config.task=all does not read config.model; set '
     'config.prior.num_layers, or leave the key out.'),
    ({}, 'sequence_training.learning_rate', 'config.sequence_training.learning_rate is set, but config.task=all does '
     'not read config.sequence_training; set config.dvae_training.learning_rate or config.prior_training.learning_rate, '
     'or leave the key out.'),
    (TEXT, 'prior.num_heads', 'config.prior.num_heads is set, but config.task=sequence does not read config.prior; set '
     'config.model.num_heads, or leave the key out.'),
    ({'task': 'dvae'}, 'prior.position', 'config.prior.position is set, but config.task=dvae does not read '
     'config.prior; the groups that it reads are seed, task, profile, data, mesh, logging, sampling, evaluation, dvae, '
     'dvae_training, or leave the key out.'),
    ({'dvae': {'pretrained': 'DIR'}}, 'dvae_training.num_steps', 'config.dvae_training.num_steps is set, but '
     'config.dvae.pretrained=DIR is trained already: config.dvae_training is not read; set '
     'config.prior_training.num_steps, or leave the key out.'),
    (IMAGE_TOKENS, 'tokenizer.text_length', 'config.tokenizer.text_length is set, but config.task=sequence does not '
     'read config.tokenizer; the groups that it reads are seed, task, profile, data, mesh, logging, sampling, '
     'evaluation, dvae, model, sequence_training, or leave the key out.'),
    ({'task': 'reranker'}, 'dvae.hidden_size', 'config.dvae.hidden_size is set, but config.task=reranker does not read '
     'config.dvae; the groups that it reads are seed, task, profile, data, mesh, logging, sampling, evaluation, '
     'tokenizer, reranker, reranker_training, or leave the key out.'),
  ],
)  # fmt: skip
def test_a_key_that_the_task_ignores_is_refused_with_the_key_that_was_meant(values, key, message):
  with pytest.raises(ValueError) as error:
    overrides.check(Config.from_dict(values), ['seed', key])
  assert str(error.value) == message


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
