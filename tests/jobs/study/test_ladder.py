import pytest

from dalle_jax.config import base_config
from dalle_jax.jobs.study import ladder
from dalle_jax.training.stage_tasks import tokens_per_example


def text():
  config = base_config()
  config.task, config.data.source, config.tokenizer.kind = 'sequence', 'text', 'bytes'
  config.model.length, config.model.num_layers = 32, 1
  config.sequence_training.batch_size = 4
  return config


def parser(start=text, **fixed):
  def parse(overrides):
    config = start()
    for key, value in {**fixed, **overrides}.items():
      *groups, name = key.removeprefix('config.').split('.')
      holder = config
      for group in groups:
        holder = holder[group]
      holder[name] = type(holder[name])(value)
    return config

  return parse


SIZES = [{'config.model.embed_dim': '16'}, {'config.model.embed_dim': '32'}]


def test_axes_combine_their_values_by_position():
  assert ladder.parse_axes(['config.model.embed_dim=16,32', 'config.model.num_layers=1,2']) == [
    {'config.model.embed_dim': '16', 'config.model.num_layers': '1'},
    {'config.model.embed_dim': '32', 'config.model.num_layers': '2'},
  ]
  for words, message in [
    (['embed_dim=1,2'], 'must read config.GROUP.KEY'),
    (['config.model.embed_dim=1,,2'], 'must read config.GROUP.KEY'),
    (['config.model.embed_dim'], 'must read config.GROUP.KEY'),
    (['config.seed=1', 'config.seed=2'], 'twice'),
    (['config.seed=1,2', 'config.model.length=4'], 'as many values'),
  ]:
    with pytest.raises(ValueError, match=message):
      ladder.parse_axes(words)


def test_every_size_has_every_budget_and_a_schedule_that_ends_with_it():
  rungs = ladder.build(parser(), SIZES, tokens=(12_800, 64_000), seeds=(0, 1))
  assert len(rungs) == len({rung.name for rung in rungs}) == 8
  for rung in rungs:
    training = rung.training
    assert rung.tokens in (12_800, 64_000) and rung.tokens == training.num_steps * 4 * 32
    assert (training.schedule, training.schedule_steps, training.final_learning_rate) == ('cosine', 0, 0.0)
    assert training.warmup_steps == {100: 5, 500: 25}[training.num_steps]
    assert training.eval_every == training.num_steps
    assert rung.stage == 'sequence'
  assert rungs[0].name == 'embed_dim16-steps100-seed0'


def test_budgets_in_steps_may_be_a_single_step():
  (rung, *_) = ladder.build(parser(), SIZES, steps=[1])
  assert (rung.training.num_steps, rung.training.warmup_steps) == (1, 0)


def test_costs_are_counted_before_training():
  small, large = ladder.build(parser(), SIZES, tokens=[12_800])
  assert small.cost()[1] < large.cost()[1] and small.cost()[0] > small.cost()[1]
  params, outside, flops = large.cost()
  assert params > outside
  assert 6 * outside * large.tokens < flops < 60 * outside * large.tokens
  twice = ladder.build(parser(), SIZES, tokens=[25_600])[1]
  assert twice.cost()[2] == 2 * flops


def test_the_hash_depends_only_on_keys_that_affect_training():
  (first, *_) = ladder.build(parser(), SIZES, steps=[10])
  (same, *_) = ladder.build(parser(**{'config.evaluation.num_prompts': '7'}), SIZES, steps=[10])
  (other, *_) = ladder.build(parser(**{'config.sequence_training.learning_rate': '0.01'}), SIZES, steps=[10])
  assert first.config_hash == same.config_hash != other.config_hash


def images(task, pretrained=''):
  def start():
    config = base_config()
    config.task, config.dvae.pretrained = task, pretrained
    config.tokenizer.text_length = 8
    config.dvae.num_groups, config.dvae.hidden_size, config.dvae.image_vocab_size = 3, 8, 16
    config.prior.num_layers, config.prior.embed_dim, config.prior.num_heads = 1, 16, 2
    return config

  return start


def test_priors_and_dvaes_have_ladders():
  (prior,) = ladder.build(parser(images('all', 'models/dvae')), [{'config.prior.num_layers': '1'}], steps=[3])
  assert prior.stage == 'prior'
  assert tokens_per_example(prior.config, prior.stage) == 8 + prior.config.image_length
  (dvae,) = ladder.build(parser(images('dvae')), [{'config.dvae.hidden_size': '8'}], steps=[3])
  assert dvae.stage == 'dvae' and tokens_per_example(dvae.config, dvae.stage) == dvae.config.image_length
  assert all(cost > 0 for cost in (*prior.cost(270), *dvae.cost()))


@pytest.mark.parametrize(('tokens', 'before'), [('image', 0), ('text_image', 8)])
def test_models_of_image_tokens_have_ladders(tokens, before):
  def start():
    config = images('sequence', 'models/dvae')()
    config.model.tokens = tokens
    return config

  (rung,) = ladder.build(parser(start), [{'config.model.num_layers': '1'}], steps=[3])
  assert rung.stage == 'sequence'
  assert tokens_per_example(rung.config, rung.stage) == before + rung.config.image_length
  total, outside, flops = rung.cost(270 if before else None)
  assert 0 < outside < total and flops > 6 * outside * rung.tokens


@pytest.mark.parametrize(
  ('start', 'fixed', 'options', 'message'),
  [
    (text, {}, {}, 'either --tokens or --steps'),
    (text, {}, {'tokens': [1e4], 'steps': [3]}, 'either --tokens or --steps'),
    (text, {}, {'tokens': [1e4, 1.001e4]}, 'are the same'),
    (text, {'config.sequence_training.schedule': 'constant'}, {'steps': [3]}, "need 'cosine' and 0"),
    (text, {'config.sequence_training.schedule_steps': '900'}, {'steps': [3]}, 'schedule_steps 900'),
    (text, {'config.model.kind': 'ngram'}, {'steps': [3]}, 'counted, not trained'),
    (images('all'), {}, {'steps': [3]}, 'a ladder trains one stage'),
    (images('joint'), {}, {'steps': [3]}, 'measures the stages'),
  ],
)
def test_configurations_and_budgets_without_a_ladder_are_refused(start, fixed, options, message):
  with pytest.raises(ValueError, match=message):
    ladder.build(parser(start, **fixed), SIZES, **options)


def test_a_ladder_needs_sizes():
  with pytest.raises(ValueError, match='--axis'):
    ladder.build(parser(), [], steps=[3])
