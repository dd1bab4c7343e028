"""A reranker of captioned shapes: which of several pictures fits a caption best.

    python -m dalle_jax.train --config=configs/reranker.py --workdir=runs/reranker

`--config=configs/reranker.py:tiny` runs every stage for a few steps only, to see that it works.
It took 13 minutes on two CPU cores beside other jobs. Expect near misses of one object to be told apart 97 to 98 times
in 100, in all that a caption names at once, and those of two 74 times, or 49 in combinations never seen;
docs/benchmarks.md has more.
"""

from dalle_jax.configs import quickstart

from dalle_jax.config import apply_variant, base_config


def get_config(variant: str = ''):
  config = base_config()
  config.task = 'reranker'
  quickstart.pictures(config)
  config.data.two_object_fraction = 0.7
  config.tokenizer.bpe_dropout = 0.0

  config.reranker.stem = 'conv'
  config.reranker.patch_size = 8
  config.reranker.image_num_layers = 3
  config.reranker.text_num_layers = 4
  config.reranker.text_width = 96
  config.reranker.embed_dim = 256

  training = config.reranker_training
  training.num_steps = 1_300
  training.batch_size = 64
  training.optimizer = 'muon'
  training.learning_rate = 2e-3
  training.eval_every = 300
  training.eval_batches = 8
  training.checkpoint_every = 500
  config.evaluation.num_prompts = 200
  return apply_variant(config, variant)
