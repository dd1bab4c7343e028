"""Only the discrete VAE (stage 1), trained on a folder of images.

    python -m dalle_jax.train --config=configs/dvae.py:small --config.data.path=PICTURES --workdir=runs/dvae

- `openai` (the default): the released model at 256x256 with the recipe of the paper (appendix A): 97.6 million
  parameters and 3,000,000 updates of 512 images. The authors used 64 GPUs; we have not run it in full.
- `small`: 128x128 images to 16x16 codes, for one GPU and about ten thousand images. We have not run it in full.
- `tiny` after a comma (`openai,tiny`): a few steps on captioned shapes, to check that everything works.

Other configurations can use the resulting model directory as --config.dvae.pretrained.
"""

from dalle_jax.config import base_config, choose, shrink


def get_config(variant: str = ''):
  size, tiny = choose(variant, ('openai', 'small'), ('', 'tiny'))
  config = base_config()
  config.task = 'dvae'
  config.data.source = 'auto'
  config.data.path = 'PICTURES'
  config.data.image_size = 256
  config.data.crop = 'paper'
  config.data.flip = True
  released(config)
  if size == 'small':
    config.data.image_size = 128
    config.dvae.image_vocab_size = 2048
    config.dvae.hidden_size = 64
    config.dvae.temperature_steps = 50_000
    config.dvae_training.batch_size = 64
    config.dvae_training.num_steps = 100_000
    config.dvae_training.learning_rate = 3e-4
    config.dvae_training.final_learning_rate = 3e-6
    config.dvae_training.schedule_steps = 0
    config.dvae_training.warmup_steps = 500
    config.dvae_training.clip_norm = 4.0
  return make_tiny(config) if tiny else config


def released(config) -> None:
  """The recipe of the released model (appendix A.2). Its shape and loss schedules are the defaults of `config.dvae`."""
  config.dvae.dtype = 'bfloat16'
  training = config.dvae_training
  training.num_steps = 3_000_000
  training.batch_size = 512
  training.learning_rate = 1e-4
  training.final_learning_rate = 1.25e-6
  training.schedule_steps = 1_200_000
  training.warmup_steps = 0
  training.b2 = 0.999
  training.weight_decay = 1e-4
  training.clip_norm = 0.0
  training.ema_decay = 0.999
  training.log_every = 100
  training.eval_every = 5_000
  training.sheet_every = 5_000
  training.checkpoint_every = 5_000


def make_tiny(config):
  """A few steps on 64x64 captioned shapes."""
  shrink(config)
  config.data.source, config.data.path = 'captioned_shapes', ''
  config.data.image_size = 64
  config.dvae.image_vocab_size, config.dvae.blocks_per_group = 64, 1
  config.dvae.num_groups, config.dvae.patch_size = 4, 1
  config.dvae.dtype = 'float32'
  return config
