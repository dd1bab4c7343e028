"""Models of image tokens, from n-grams to the transformer, on the captioned shapes of the quick start.

    python -m dalle_jax.train --config=configs/quickstart.py --config.task=dvae --workdir=runs/dvae
    python -m dalle_jax.train --config=configs/image_tokens.py:lstm --config.dvae.pretrained=runs/dvae/model \
        --workdir=runs/image_lstm
    python -m dalle_jax.generate --model=runs/image_lstm/model
    python -m dalle_jax.train --config=configs/image_tokens.py:lstm,text --config.dvae.pretrained=runs/dvae/model \
        --workdir=runs/captioned_lstm
    python -m dalle_jax.generate --model=runs/captioned_lstm/model --prompt="a large red circle"

The dVAE may also be that of a whole quick start, runs/quickstart/model, which is taken if none is named.

- `ngram`: order 5, interpolated Kneser-Ney smoothing; counted in one pass, not trained.
- `neural_ngram`: Bengio's, order 6.
- `lstm`, `rnn`: two layers.
- `transformer` (the default): four layers, learned positions.
- `text` after a comma: a caption's tokens before its image's, as in the prior.
- `tiny` after a comma: a few steps only, on the dVAE of `configs/quickstart.py:tiny`, to see that it works.

On two CPU cores, beside other jobs, an n-gram took two to three minutes, nearly all of them to encode the pictures,
the neural one as much, and 400 steps of the LSTM and the transformer four and five. Expect 0.88 bits per image token
of the 5-gram model, and 0.29 of the transformer after 400 steps; docs/benchmarks.md has the runs.
"""

from dalle_jax.configs import quickstart

from dalle_jax.config import base_config, choose, shrink


def get_config(variant: str = ''):
  kinds = ('transformer', 'lstm', 'rnn', 'neural_ngram', 'ngram')
  kind, text, tiny = choose(variant, kinds, ('', 'text'), ('', 'tiny'))
  config = base_config()
  config.task = 'sequence'
  quickstart.pictures(config)
  config.tokenizer.bpe_dropout = 0.0
  quickstart.stage_1(config)  # the shape that the trained dVAE has
  config.dvae.pretrained = 'runs/quickstart/model'

  config.model.kind = kind
  config.model.tokens = 'text_image' if text else 'image'
  config.model.order = 6 if kind == 'neural_ngram' else 5
  config.model.num_layers = 4 if kind == 'transformer' else 2
  config.model.embed_dim = 128 if kind == 'transformer' else 64
  config.model.hidden_size = 256

  training = config.sequence_training
  training.num_steps, training.batch_size = 1_500, 16
  training.optimizer = 'muon' if kind == 'transformer' else 'adamw'
  training.learning_rate = 4e-3
  training.clip_norm = 1.0
  training.eval_every, training.checkpoint_every = 300, 300
  training.sheet_every = 600
  config.evaluation.num_prompts = 100
  return shrink(config) if tiny else config
