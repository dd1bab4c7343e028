"""Captioned shapes at 64x64 with two objects, for a GPU or an hour or two of CPU.

    python -m dalle_jax.train --config=configs/shapes.py --workdir=runs/shapes

Aims at a prompt accuracy of 95% on validation and 90% on held_out. What it reached, where, and how long it took, is in
docs/benchmarks.md.
"""

from dalle_jax.config import apply_variant, base_config


def get_config(variant: str = ''):
  config = base_config()
  config.data.source = 'captioned_shapes'
  config.data.image_size = 64
  config.data.num_train = 200_000
  config.data.num_validation = 4_000
  config.data.num_held_out = 4_000
  config.data.two_object_fraction = 0.7

  config.tokenizer.vocab_size = 400
  config.tokenizer.text_length = 24

  config.dvae.image_vocab_size = 512
  config.dvae.hidden_size = 32
  config.dvae.decoder_input_size = 128
  config.dvae.num_groups = 4
  config.dvae.blocks_per_group = 1
  config.dvae.temperature_steps = 15_000
  config.dvae.kl_weight = 0.005
  config.dvae.kl_warmup_steps = 10
  config.dvae.logits_init_scale = 3.0
  config.dvae.codebook_init_scale = 4.0
  config.dvae.normal_steps = 40_000
  config.dvae.normal_scale = 0.07
  config.dvae.min_log_scale = -1.5

  config.dvae_training.num_steps = 20_000
  config.dvae_training.batch_size = 32
  config.dvae_training.learning_rate = 3e-3
  config.dvae_training.eval_every = 1_000
  config.dvae_training.sheet_every = 5_000
  config.dvae_training.checkpoint_every = 1_000

  config.prior.num_layers = 6
  config.prior.num_heads = 6
  config.prior.head_dim = 32

  config.prior_training.num_steps = 30_000
  config.prior_training.batch_size = 64
  config.prior_training.learning_rate = 1e-3
  config.prior_training.warmup_steps = 500
  config.prior_training.eval_every = 1_000
  config.prior_training.sheet_every = 5_000
  config.prior_training.checkpoint_every = 1_000

  config.sampling.temperature = 0.8
  config.evaluation.num_prompts = 500
  return apply_variant(config, variant)
