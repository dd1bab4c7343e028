"""Shows the nearest tokens of a word, and analogies, in the embeddings of a model of text.

    python tools/embeddings.py --model=runs/lstm/model --near=king --near=three
    python tools/embeddings.py --model=runs/lstm/model --analogy=man,king,woman

A word must be a single token. The tool looks for the token with a leading space, as inside a sentence, then for the
token without it. `--analogy=a,b,c` answers: b is to a as what is to c?
"""

from pathlib import Path

from absl import flags

from dalle_jax import flags as doors

_VERIFY_MODEL = doors.define_verify_model()
_MODEL = flags.DEFINE_string('model', None, 'Model directory of a model of text (config.task=sequence).')
_NEAR = flags.DEFINE_multi_string('near', [], 'Word whose nearest tokens are shown; repeat the flag for more words.')
_ANALOGY = flags.DEFINE_multi_string(
  'analogy', [], 'Three words A,B,C; shows what is to C as B is to A. Repeat the flag for more analogies.'
)
_COUNT = flags.DEFINE_integer('count', 10, 'Number of tokens to show for each word or analogy.', lower_bound=1)
flags.mark_flag_as_required('model')


def find(tokenizer, word: str) -> int:
  """The token id of a word.

  Raises:
    ValueError: the word is not a single token.
  """
  for text in (f' {word}', word):
    ids = tokenizer.encode(text.encode())
    if len(ids) == 1:
      return int(ids[0])
  pieces = [tokenizer.decode([i]).decode('utf-8', 'replace') for i in tokenizer.encode(f' {word}'.encode())]
  raise ValueError(
    f'The tokenizer has no token for {word!r}; it splits the word into {pieces}. Try a more frequent word.'
  )


def main(argv: list[str]) -> int:
  del argv
  queries = [(word,) for word in _NEAR.value] + [tuple(words.split(',')) for words in _ANALOGY.value]
  wrong = [','.join(words) for words in queries[len(_NEAR.value) :] if len(words) != 3]
  if wrong or not queries:
    raise ValueError(f'Give --near=WORD, or --analogy=A,B,C with three words; given {", ".join(wrong) or "neither"}.')
  doors.start_jax(distributed=False)
  from dalle_jax import bundle, sharding
  from dalle_jax.evaluation import embeddings

  bundle.verify_by_default(_VERIFY_MODEL.value)
  loaded = bundle.load(Path(_MODEL.value), sharding.make_mesh(), needs=('model',))
  table = embeddings.table(loaded.params['model'])
  for words in queries:
    ids = [find(loaded.tokenizer, word) for word in words]
    if len(ids) == 1:
      print(f'{words[0]}:')
      neighbours = embeddings.nearest(table, table[ids[0]], _COUNT.value, without=(ids[0],))
    else:
      print(f'{words[0]} is to {words[1]} as {words[2]} is to:')
      neighbours = embeddings.analogy(table, *ids, _COUNT.value)
    for token_id, cosine in neighbours:
      print(f'  {cosine:6.3f}  {loaded.tokenizer.decode([token_id]).decode("utf-8", "replace")!r}')
  return 0


if __name__ == '__main__':
  doors.run(main)
