"""The undamaged files of a campaign: trained tiny models, their checkpoints, and compressed files."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TIMEOUT_S = 1800.0  # seconds for each command
PICTURE_RUN, TEXT_RUN = 'pictures', 'text'
# Each stage has several checkpoints, so that a run that is killed has something to go on from.
STEPS = {'checkpoint_every': 4, 'log_every': 3, 'eval_every': 6}
STAGES = ('dvae', 'prior')


def training_arguments(workdir: Path) -> list[str]:
  """The arguments of `python -m dalle_jax.train` for the tiny main job in a work directory."""
  keys = [f'--config.{stage}_training.{key}={value}' for stage in STAGES for key, value in STEPS.items()]
  return ['--config=configs/quickstart.py:tiny', f'--workdir={workdir}', *keys]


def environment(cache: Path) -> dict[str, str]:
  """The environment of all commands: this machine's CPU, and a common cache of compiled programs."""
  root = Path(__file__).parents[2]
  path = os.pathsep.join(filter(None, [str(root), str(root / 'tools'), os.environ.get('PYTHONPATH', '')]))
  return os.environ | {
    'JAX_PLATFORMS': 'cpu', 'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONPATH': path,
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.1',
  }  # fmt: skip


def prepare(base: Path) -> None:
  """Trains the models and writes the files that are not there yet.

  Raises:
    ValueError: A command failed; its output is in the message.
  """
  base.mkdir(parents=True, exist_ok=True)
  pictures, text = base / PICTURE_RUN, base / TEXT_RUN
  if not (pictures / 'report.html').exists():
    _run(base, 'train', *training_arguments(pictures))
  corpus = base / 'corpus.txt'
  if not (text / 'report.html').exists():
    corpus.write_text('a red circle above a blue square, and a green triangle.\n' * 200, encoding='utf-8')
    _run(
      base, 'train', '--config=configs/language.py:ngram,tiny', f'--workdir={text}', '--config.data.source=text',
      f'--config.data.path={corpus}',
    )  # fmt: skip
  source = base / 'source.png'
  if not source.exists():
    rng = np.random.default_rng(0)
    Image.fromarray(np.kron(rng.integers(0, 256, (4, 5, 3)), np.ones((8, 8, 1))).astype(np.uint8)).save(source)
  for run, file, original in ((pictures, 'picture.djxc', source), (text, 'text.djxc', corpus)):
    if not (base / file).exists():
      _run(base, 'compress', 'encode', str(original), str(base / file), f'--model={run / "model"}', '--batch_size=2')


def _run(base: Path, door: str, *arguments: str) -> None:
  print(f'preparing: python -m dalle_jax.{door} {" ".join(arguments)}', flush=True)
  done = subprocess.run(
    [sys.executable, '-m', f'dalle_jax.{door}', *arguments], env=environment(base / 'programs'), capture_output=True,
    text=True, timeout=TIMEOUT_S, check=False, cwd=Path(__file__).parents[2],
  )  # fmt: skip
  if done.returncode:
    raise ValueError(
      f'dalle_jax.{door} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}'
    )


def learnt(workdir: Path) -> dict[str, Any]:
  """What a finished run has learnt, without times: the parameters' fingerprint, all metrics and all scores."""
  metrics = {stage: [_timeless(line) for line in _lines(workdir / stage / 'metrics.jsonl')] for stage in STAGES}
  info = json.loads((workdir / 'model' / 'bundle.json').read_text(encoding='utf-8'))
  scores = json.loads((workdir / 'scores.json').read_text(encoding='utf-8'))
  return {'params': info['params'], 'metrics': metrics, 'scores': _timeless(scores)}


def _lines(file: Path) -> Iterator[dict[str, Any]]:
  return (json.loads(line) for line in file.read_text(encoding='utf-8').splitlines())


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
  words = ('time', 'second')
  return {name: value for name, value in values.items() if not any(word in name for word in words)}
