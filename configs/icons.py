"""Icons in several drawing styles at 64x64, from tar files, with captions "SUBJECT, STYLE".

    python -m dalle_jax.train --config=configs/icons.py --config.data.path=ICONS --workdir=runs/icons

ICONS is a folder of tar files with `N.png` and `N.txt`, for instance 24,000 pictures of 8,000 subjects in ten styles. A
twentieth of the captions is held out: the pair of subject and style, not the subject. The grid has 8x8 codes, as in
`configs/shapes.py`, with more of them, because icons have more colours and outlines.

The sizes suit a GPU, or a few hours on a CPU. We have not searched for the best recipe; `configs/mine.py` chooses
sizes for the time and the machine that you have.

- `tiny`: a few steps of small models, to check that everything works.
"""

from dalle_jax.configs.quickstart import short_dvae

from dalle_jax.config import apply_variant, base_config


def get_config(variant: str = ''):
  config = base_config()
  config.data.source = 'auto'
  config.data.path = 'ICONS'
  config.data.image_size = 64
  config.data.flip = True
  config.data.validation_fraction = 0.05

  config.tokenizer.vocab_size = 4_096
  config.tokenizer.bpe_dropout = 0.1
  config.tokenizer.text_length = 24

  short_dvae(config, num_steps=16_000)
  config.dvae.image_vocab_size = 1_024
  config.dvae.hidden_size = 48
  config.dvae.patch_size = 2
  config.dvae.normal_scale = 0.07
  config.dvae_training.batch_size = 16
  config.dvae_training.learning_rate = 5e-3
  config.dvae_training.muon_learning_rate = 0.01
  config.dvae_training.log_every = 200
  config.dvae_training.eval_every = 2_000
  config.dvae_training.eval_batches = 16
  config.dvae_training.sheet_every = 4_000
  config.dvae_training.checkpoint_every = 1_000

  config.prior.num_layers = 6
  config.prior.init = 'unit'
  config.prior.num_heads = 8
  config.prior.embed_dim = 256

  config.prior_training.num_steps = 20_000
  config.prior_training.batch_size = 16
  config.prior_training.optimizer = 'muon'
  config.prior_training.learning_rate = 3e-3
  config.prior_training.eval_every = 2_000
  config.prior_training.eval_batches = 16
  config.prior_training.sheet_every = 4_000
  config.prior_training.checkpoint_every = 1_000

  config.sampling.temperature = 0.9
  return apply_variant(config, variant)
