"""Models of image tokens, from n-grams to a transformer, on the captioned shapes of the quick start.

    python -m dalle_jax.train --config=configs/quickstart.py --config.task=dvae --workdir=runs/dvae
    python -m dalle_jax.train --config=configs/image_tokens.py:lstm --config.dvae.pretrained=runs/dvae/model \
        --workdir=runs/image_lstm
    python -m dalle_jax.generate --model=runs/image_lstm/model
    python -m dalle_jax.train --config=configs/image_tokens.py:lstm,text --config.dvae.pretrained=runs/dvae/model \
        --workdir=runs/captioned_lstm
    python -m dalle_jax.generate --model=runs/captioned_lstm/model --prompt="a large red circle"

The dVAE of a full quick start, runs/quickstart/model, works too; it is the default.

- `ngram`: order 5 with interpolated Kneser-Ney smoothing; it is counted in one pass, not trained.
- `neural_ngram`: the model of Bengio et al., order 6.
- `lstm`, `rnn`: two layers.
- `transformer` (the default): four layers with learned positions.
- `text` after a comma: caption tokens before the image tokens, as in the prior.
- `tiny` after a comma: a few steps on the dVAE of `configs/quickstart.py:tiny`, to check that everything works.

On two CPU cores, with other jobs running, the n-gram model took two to three minutes, mostly to encode the images. The
neural n-gram took as long, 400 steps of the LSTM four minutes, and 400 steps of the transformer five. Expect 0.88 bits
per image token from the n-gram model and 0.29 from the transformer after 400 steps; docs/benchmarks.md has the runs.
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
  quickstart.stage_1(config)  # the shape of the trained dVAE
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
