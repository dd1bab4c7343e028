"""Your own pictures, in sizes that are chosen from them and from the speed of your machine.

    python -m dalle_jax.train --config=configs/mine.py --config.data.path=PICTURES --workdir=runs/mine

PICTURES is whatever `config.data.path` may be: a folder, tar files, Parquet files, prepared shards, or a mixture. At
the first start, the program looks at the pictures and captions and measures a few training steps. It then chooses the
sizes of images, codes, vocabulary and models, the batches and the steps, for about 30 minutes of training. It prints
each value with its reason. docs/own_pictures.md has the guide.

- `--config.choice.minutes=120`: more time, for larger models and more steps.
- `--config.KEY=VALUE`: any key, for example `--config.data.image_size=32`. The others are chosen to fit.
- `tiny`: a few steps of small models, to check that everything works.

Pictures without captions are used if most pictures have none: a model of image tokens without text follows the dVAE. At
least 20 pictures are needed. Later starts use the stored values; those in this file are only placeholders.
"""

from dalle_jax.configs.quickstart import short_dvae

from dalle_jax.config import apply_variant, base_config

# What `tiny` sets and the choice leaves as it is.
KEPT_BY_TINY = (
  'data.image_size', 'dvae.patch_size', 'dvae.num_groups', 'dvae.hidden_size', 'dvae_training',
  'prior', 'prior_training', 'model', 'sequence_training',
)  # fmt: skip


def get_config(variant: str = ''):
  config = base_config()
  config.choice.enabled = True
  config.data.source = 'auto'
  config.data.path = 'PICTURES'
  config.data.flip = True
  config.model.tokens = 'image'  # for pictures without captions

  short_dvae(config, num_steps=4_000)
  config.dvae.normal_scale = 0.07
  config.dvae.num_groups = config.prior.num_heads = config.model.num_heads = 1  # fits all sizes that may be given
  config.prior.num_layers, config.prior.embed_dim = 4, 128
  config.prior.init = 'unit'
  for training in (config.dvae_training, config.prior_training, config.sequence_training):
    training.optimizer = 'muon'
    training.batch_size = 16
    training.eval_batches = 16

  config.sampling.temperature = 0.9
  config = apply_variant(config, variant)
  if variant:
    config.dvae.num_groups = 3
    config.choice.keep = KEPT_BY_TINY
    config.choice.minutes = 0.5
  return config
