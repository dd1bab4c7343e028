"""The full system on 32x32 captioned shapes, in four to eight minutes on two CPU cores.

    python -m dalle_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

- `tiny`: every stage for a few steps, to check that everything works.
- `guided`: the prior also learns images without captions, and samples with classifier-free guidance. With
  earlier data and an earlier judge, this drew more single objects of combinations never seen, but fewer pairs.

Expect a prompt accuracy of 97 to 99% for new scenes of familiar combinations, and much less for combinations never
seen in training; docs/benchmarks.md has the runs.
"""

from dalle_jax.config import base_config, choose, shrink


def get_config(variant: str = ''):
  guided, tiny = choose(variant, ('', 'guided'), ('', 'tiny'))
  config = base_config()
  pictures(config)
  config.tokenizer.bpe_dropout = 0.0
  stage_1(config)

  config.prior.num_layers = 4
  config.prior.init = 'unit'
  config.prior.num_heads = 4
  config.prior.embed_dim = 128

  config.prior_training.num_steps = 1_500
  config.prior_training.batch_size = 16
  config.prior_training.optimizer = 'muon'
  config.prior_training.learning_rate = 4e-3
  config.prior_training.eval_every = 300
  config.prior_training.sheet_every = 600
  config.prior_training.checkpoint_every = 300

  # The most accurate temperature in docs/benchmarks.md; a higher one gives more varied images.
  config.sampling.temperature = 0.25
  if guided:
    config.prior.caption_drop = 0.1
    config.sampling.guidance_scale = 1.5
    config.sampling.guidance_ramp = 0.5
  config.evaluation.num_prompts = 200
  return shrink(config) if tiny else config


def pictures(config) -> None:
  """The data set of captioned shapes and the tokenizer of its captions."""
  config.data.source = 'captioned_shapes'
  config.data.image_size = 32
  config.data.crop = 'center'
  config.data.num_train = 30_000
  config.data.two_object_fraction = 0.4
  config.data.position_jitter = 0
  config.tokenizer.vocab_size = 512
  config.tokenizer.text_length = 20


def stage_1(config) -> None:
  """The dVAE and its training."""
  short_dvae(config, num_steps=3_500)
  config.dvae_training.batch_size = 8
  config.dvae_training.log_every = 100
  config.dvae_training.eval_every = 700
  config.dvae_training.sheet_every = 1_400
  config.dvae_training.checkpoint_every = 700


def short_dvae(config, num_steps: int) -> None:
  """A small dVAE of three groups with one block each, and a recipe that trains it in a few thousand steps.

  docs/decisions.md explains what the keys do in short runs. For more than 4,000 steps, halve the learning rates and
  double the batch size.
  """
  config.dvae.image_vocab_size = 256
  config.dvae.hidden_size = 32
  config.dvae.decoder_input_size = 128
  config.dvae.num_groups = 3
  config.dvae.blocks_per_group = 1
  config.dvae.temperature_start = 2.0
  config.dvae.temperature_steps = num_steps
  config.dvae.kl_weight = 5e-4
  config.dvae.kl_warmup_steps = 10
  config.dvae.logits_init_scale = 3.0
  config.dvae.residual_gain = 1.0
  config.dvae.codebook_init_scale = 12.0
  config.dvae.normal_steps = 2 * num_steps
  config.dvae.normal_scale = 0.06
  config.dvae.min_log_scale = -1.5
  config.dvae_training.num_steps = num_steps
  config.dvae_training.optimizer = 'muon'
  config.dvae_training.learning_rate = 1e-2
