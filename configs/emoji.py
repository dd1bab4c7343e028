"""A folder of captioned images at 32x32, such as emoji with their names.

    python -m dalle_jax.train --config=configs/emoji.py --config.data.path=PICTURES --workdir=runs/emoji

PICTURES is any folder with a metadata.jsonl (file_name, text), a metadata.csv, or a .txt file next to each image. A
tenth of the names is held out. Captions that differ only after the first colon (mostly skin tones) have the same name.

On two CPU cores, with other jobs running, it took 8 minutes. Expect a PSNR of 22 dB for reconstructions of held-out
emoji. Generated images show recognisable people and faces for names seen in training, but little for names that were
not; docs/benchmarks.md shows them.
"""

from dalle_jax.configs.quickstart import short_dvae

from dalle_jax.config import apply_variant, base_config


def get_config(variant: str = ''):
  config = base_config()
  config.data.source = 'auto'
  config.data.path = 'PICTURES'
  config.data.group_separator = ':'
  config.data.image_size = 32
  config.data.resampling = 'box'
  config.data.flip = True

  config.tokenizer.vocab_size = 1_024
  config.tokenizer.bpe_dropout = 0.0
  config.tokenizer.text_length = 32

  short_dvae(config, num_steps=4_000)
  config.dvae.image_vocab_size = 512
  config.dvae.normal_scale = 0.07
  config.dvae_training.batch_size = 16
  config.dvae_training.learning_rate = 5e-3
  config.dvae_training.muon_learning_rate = 0.01
  config.dvae_training.log_every = 200
  config.dvae_training.eval_every = 1_000
  config.dvae_training.eval_batches = 16
  config.dvae_training.sheet_every = 2_000
  config.dvae_training.checkpoint_every = 1_000

  config.prior.num_layers = 4
  config.prior.init = 'unit'
  config.prior.num_heads = 4
  config.prior.embed_dim = 128

  config.prior_training.num_steps = 1_000
  config.prior_training.batch_size = 16
  config.prior_training.optimizer = 'muon'
  config.prior_training.learning_rate = 3e-3
  config.prior_training.eval_every = 250
  config.prior_training.eval_batches = 16
  config.prior_training.sheet_every = 500
  config.prior_training.checkpoint_every = 250

  config.sampling.temperature = 0.9
  return apply_variant(config, variant)
