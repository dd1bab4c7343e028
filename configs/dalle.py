"""DALL-E in several sizes, with the recipe of the paper or a modern one.

    python -m dalle_jax.train --config=configs/dalle.py:300m --config.data.path=PICTURES \
        --config.dvae.pretrained=models/openai_dvae --workdir=runs/dalle

A variant is a size, optionally followed by a recipe: `dalle.py:1b,modern`.

- `12b` (the default), `5b`, `2b`: the models of the paper (table 1), with 64 layers of width 3968, 2688 and 1920.
- `12b_padded`: the largest model with 64 heads and width 4096 instead of 62 and 3968. Powers of two split over more
  devices than 62 = 2 x 31 and 3968 = 2^7 x 31. It has 13.1 billion parameters instead of 12.3 billion.
- `1b`, `300m`: not in the paper; 24 layers of width 2048 and 1024, for less hardware.
- `small`: the 32x32 images and the dVAE of the quick start, and a prior of nine layers of width 128. It trains in 15
  minutes on two CPU cores; docs/benchmarks.md compares the two recipes on it.
- `tiny`: a few steps on captioned shapes, to check that everything works. `12b,tiny` etc. shrink the other sizes.
- `paper` (the default recipe): row and column attention, convolutional attention in the last layer, AdamW with b2 of
  0.96, and a learning rate that is halved at plateaus (appendix B).
- `modern`: full attention, rotary positions, RMSNorm, SwiGLU, normalised queries and keys, z-loss, dropped captions for
  guidance, and a cosine schedule.

The sizes from 300m up need accelerators; we have not trained them. Without --config.dvae.pretrained, the released dVAE
architecture is trained first.
"""

from dalle_jax.configs import dvae, quickstart

from dalle_jax.config import base_config, choose

SIZES = {  # layers, width, heads
  '12b': (64, 3968, 62),
  '12b_padded': (64, 4096, 64),
  '5b': (64, 2688, 42),
  '2b': (64, 1920, 30),
  '1b': (24, 2048, 32),
  '300m': (24, 1024, 16),
  'small': (9, 128, 4),
}


def get_config(variant: str = ''):
  size, recipe, tiny = choose(variant, tuple(SIZES), ('paper', 'modern'), ('', 'tiny'))
  config = base_config()
  config.prior.num_layers, config.prior.embed_dim, config.prior.num_heads = SIZES[size]
  paper(config)
  if size == 'small':
    small(config)
  else:
    large(config)
  if recipe == 'modern':
    modern(config)
  return make_tiny(config) if tiny else config


def paper(config) -> None:
  """The attention patterns of appendix B.1 and the optimizer settings of appendix B.2."""
  config.data.crop = 'paper'
  config.prior.attention_pattern = ('row', 'column', 'row', 'row')
  config.prior.last_attention_pattern = 'conv'
  training = config.prior_training
  training.num_steps = 430_000
  training.batch_size = 1024
  training.learning_rate = 4.5e-4
  training.warmup_steps = 5_000
  training.schedule = 'plateau'
  training.plateau_window, training.plateau_patience = 1_000, 10
  training.b2 = 0.96
  training.weight_decay = 4.5e-2
  training.second_moment_clip = 5.0
  training.clip_norm = 4.0
  training.ema_decay = 0.99
  training.ema_every = 25


def large(config) -> None:
  """256x256 images, the released dVAE, bfloat16, and parameters split over as many devices as divide the model."""
  config.data.source = 'auto'
  config.data.path = 'PICTURES'
  config.data.image_size = 256
  config.data.flip = True
  dvae.released(config)
  config.prior.dtype = 'bfloat16'
  config.prior.remat = 'full'
  config.prior.attention_block = 128
  config.mesh.data = config.mesh.fsdp = -1
  training = config.prior_training
  training.eval_every, training.sheet_every, training.checkpoint_every = 2_000, 10_000, 1_000


def modern(config) -> None:
  """Improvements after the paper; models/transformer.py, models/layers.py and models/prior.py name the sources."""
  config.prior.attention_pattern = ('full',)
  config.prior.last_attention_pattern = ''
  config.prior.position = 'rotary'
  config.prior.norm = 'rmsnorm'
  config.prior.mlp = 'swiglu'
  config.prior.qk_norm = True
  config.prior.z_loss_weight = 1e-5
  config.prior.caption_drop = 0.1
  training = config.prior_training
  training.schedule = 'cosine'
  training.final_learning_rate = training.learning_rate / 10
  training.b2 = 0.95
  training.weight_decay = 0.1
  training.second_moment_clip = 0.0
  training.clip_norm = 1.0
  training.ema_decay, training.ema_every = 0.999, 1


def small(config) -> None:
  """The images and the dVAE of the quick start, and a learning rate that suits a short run."""
  quickstart.pictures(config)
  quickstart.stage_1(config)
  config.prior.conv_kernel_size = 5
  training = config.prior_training
  training.num_steps, training.batch_size = 3_000, 16
  training.learning_rate, training.warmup_steps = 2e-3, 100
  training.plateau_window, training.plateau_patience = 100, 2
  training.log_every, training.eval_every, training.checkpoint_every = 50, 500, 500
  config.evaluation.num_prompts = 200
  config.sampling.temperature = 0.5


def make_tiny(config):
  """A few steps on 64x64 captioned shapes with an 8x8 grid of codes; the prior has every kind of layer."""
  dvae.make_tiny(config)
  config.tokenizer.vocab_size, config.tokenizer.text_length = 512, 32
  config.prior.dtype = 'float32'
  config.prior.num_layers, config.prior.conv_kernel_size = 5, 5
  return config
