"""A reranker of captioned shapes, which scores how well images fit a caption.

    python -m dalle_jax.train --config=configs/reranker.py --workdir=runs/reranker

`--config=configs/reranker.py:tiny` runs every stage for a few steps, to check that everything works.

It took 13 minutes on two CPU cores with other jobs running. A caption counts as correct if its own image scores above
all near misses of that image. Expect 97 to 98% of captions with one object to be correct, 74% with two objects, and 49%
with two objects in combinations that were never seen; docs/benchmarks.md has more.
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
