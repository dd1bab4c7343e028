"""DALL-E in several sizes, by the paper's recipe or with what later work found better.

    python -m dalle_jax.train --config=configs/dalle.py:300m --config.data.path=PICTURES \
        --config.dvae.pretrained=models/openai_dvae --workdir=runs/dalle

A size, and after a comma a recipe: `dalle.py:1b,modern`.

- `12b` (the default), `5b`, `2b`: the paper's models (table 1): 64 layers of width 3968, 2688, 1920.
- `12b_padded`: the paper's largest with 64 heads and width 4096 instead of 62 and 3968, which are 2 x 31 and 2^7 x 31:
  powers of two split it over more devices. 13,092,012,032 parameters instead of 12,292,816,384.
- `1b`, `300m`: shapes of our own, 24 layers of width 2048 and 1024, for less hardware.
- `small`: the quick start's 32x32 pictures and dVAE, and nine layers of width 128, for a quarter of an hour of two CPU
  cores; docs/benchmarks.md compares the two recipes on it.
- `tiny`: a few steps on captioned shapes, to see that it works; `12b,tiny` and so on shrink the others in the same way.
- `paper` (the default recipe): attention in rows and columns with a last layer of convolutions, AdamW with b2 0.96, the
  rate halved at plateaus (appendix B). `modern`: full attention, rotary positions, RMSNorm, SwiGLU, normalised queries
  and keys, z-loss, captions dropped for guidance, and a cosine.

The sizes from 300m up are for accelerators, and were not trained here. Without --config.dvae.pretrained the released
dVAE is trained first.
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
  return small_enough(config) if tiny else config


def paper(config) -> None:
  """Attention of appendix B.1 and optimisation of appendix B.2."""
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
  """256x256 pictures, the released dVAE, half precision, and parameters over as many devices as divide them."""
  config.data.source = 'folder'
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
  """What later work found better; the sources are in models/transformer.py, models/layers.py and models/prior.py."""
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
  """The quick start's pictures and dVAE, and a prior at a rate at which a short run tells something."""
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


def small_enough(config):
  """A few steps on captioned shapes of 64x64, in a grid of 8x8 codes, with every kind of layer."""
  dvae.small_enough(config)
  config.tokenizer.vocab_size, config.tokenizer.text_length = 512, 32
  config.prior.dtype = 'float32'
  config.prior.num_layers, config.prior.conv_kernel_size = 5, 5
  return config
