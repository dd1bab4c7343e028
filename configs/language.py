"""Models of text, from n-grams to a transformer, with the same tokenizer and the same metrics.

    python -m dalle_jax.train --config=configs/language.py:lstm --workdir=runs/lstm
    python -m dalle_jax.train --config=configs/language.py:transformer --config.data.path=a.txt,b.txt \
        --config.data.validation_path=c.txt --workdir=runs/transformer

- `ngram`: order 5 with interpolated Kneser-Ney smoothing; it is counted, not trained.
- `neural_ngram`: the model of Bengio et al., order 6.
- `lstm`, `rnn`: two layers.
- `transformer` (the default): four layers with rotary positions.
- `tiny` after a comma (`lstm,tiny`): a smaller model, which trains in a minute on two CPU cores.

`tools/plot_context.py --run=runs/lstm --run=runs/transformer` plots how much context each model uses.

Without --config.data.path, they train on the help texts of Python's standard library (0.46 MB). With
`--config.tokenizer.kind=bytes`, they predict bytes instead of pieces. Bits per token compare models with the same
tokenizer; bits per byte compare all models.
"""

from dalle_jax.config import base_config, choose


def get_config(variant: str = ''):
  kind, tiny = choose(variant, ('transformer', 'lstm', 'rnn', 'neural_ngram', 'ngram'), ('', 'tiny'))
  config = base_config()
  config.task = 'sequence'
  config.data.source = 'text'
  config.tokenizer.kind = 'pieces'
  config.tokenizer.vocab_size = 4_096

  config.model.kind = kind
  config.model.length = 256
  config.model.order = 6 if kind == 'neural_ngram' else 5
  config.model.position = 'rotary'
  config.model.num_layers = 4 if kind == 'transformer' else 2
  config.model.embed_dim = 128 if kind == 'neural_ngram' else 256
  config.model.hidden_size = 512

  training = config.sequence_training
  training.num_steps, training.batch_size = 2_000, 16
  training.optimizer = 'muon' if kind == 'transformer' else 'adamw'  # Muon trains the matrices of transformer blocks
  training.learning_rate = {'transformer': 3e-3, 'neural_ngram': 1e-3}.get(kind, 2e-3)
  training.clip_norm = 1.0
  training.weight_decay = 0.1
  training.eval_every, training.checkpoint_every = 200, 500
  config.sampling.temperature = 0.8
  return make_tiny(config) if tiny else config


def make_tiny(config):
  """A model that trains in a minute on two CPU cores."""
  config.tokenizer.vocab_size = 1_024
  config.model.length, config.model.num_layers = 64, 2
  config.model.embed_dim, config.model.hidden_size, config.model.num_heads = 64, 128, 4
  training = config.sequence_training
  training.num_steps, training.warmup_steps, training.learning_rate = 400, 20, 4e-3
  training.eval_every, training.checkpoint_every = 100, 200
  config.evaluation.num_tokens, config.evaluation.num_context_targets = 16_384, 400
  return config
