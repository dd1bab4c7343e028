"""Which tokens a model of text holds to be alike, and analogies among them.

    python tools/embeddings.py --model=runs/lstm/model --near=king --near=three
    python tools/embeddings.py --model=runs/lstm/model --analogy=man,king,woman

A word is one token, with the space before it that it has within a sentence; where there is no such token, it is looked
for without the space. `--analogy=a,b,c` asks what is to c as b is to a.
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors

_MODEL = flags.DEFINE_string('model', None, 'Model directory of config.task=sequence.')
_NEAR = flags.DEFINE_multi_string('near', [], 'A word whose neighbours are shown; may be repeated.')
_ANALOGY = flags.DEFINE_multi_string('analogy', [], 'Three words a,b,c; may be repeated.')
_COUNT = flags.DEFINE_integer('count', 10, 'How many are shown.', lower_bound=1)
flags.mark_flag_as_required('model')


def find(tokenizer, word: str) -> int:
  """The id of a word.

  Raises:
    ValueError: the tokenizer has no one token for it.
  """
  for text in (f' {word}', word):
    ids = tokenizer.encode(text.encode())
    if len(ids) == 1:
      return int(ids[0])
  parts = [tokenizer.decode([i]).decode('utf-8', 'replace') for i in tokenizer.encode(f' {word}'.encode())]
  raise ValueError(f'The tokenizer has no token for {word!r}; it writes {parts}. Try a more frequent word.')


def main(argv: list[str]) -> int:
  del argv
  words = [(word,) for word in _NEAR.value] + [tuple(words.split(',')) for words in _ANALOGY.value]
  wrong = [','.join(w) for w in words[len(_NEAR.value) :] if len(w) != 3]
  if wrong or not words:
    raise ValueError(f'Give --near=WORD, or --analogy=A,B,C with three words; given {", ".join(wrong) or "neither"}.')
  doors.start_jax(distributed=False)
  from dalle_jax import bundle, sharding
  from dalle_jax.evaluation import embeddings

  loaded = bundle.load(Path(_MODEL.value), sharding.make_mesh(), needs=('model',))
  table = embeddings.table(loaded.params['model'])
  for asked in words:
    ids = [find(loaded.tokenizer, word) for word in asked]
    if len(ids) == 1:
      print(f'{asked[0]}:')
      found = embeddings.nearest(table, table[ids[0]], _COUNT.value, without=(ids[0],))
    else:
      print(f'{asked[0]} is to {asked[1]} as {asked[2]} is to:')
      found = embeddings.analogy(table, *ids, _COUNT.value)
    for i, cosine in found:
      print(f'  {cosine:6.3f}  {loaded.tokenizer.decode([i]).decode("utf-8", "replace")!r}')
  return 0


if __name__ == '__main__':
  doors.run(main)
