"""The exact words of the error messages that people meet first.

Each case calls a function that a command calls before it trains or generates anything. A message says what is wrong,
with the value given; what is allowed; and which key or flag to change.
"""

import json
import re
from pathlib import Path

import jax
import pytest

from dalle_jax import bundle, sharding
from dalle_jax.compression.settings import CompressionSettings
from dalle_jax.config import (
  Config,
  DataConfig,
  MeshConfig,
  TrainingConfig,
  apply_variant,
  base_config,
  choose,
  overrides,
)
from dalle_jax.data import registry
from dalle_jax.data.sources import corpus
from dalle_jax.files import check_file
from dalle_jax.jobs.draw.generation import read_prompts
from dalle_jax.jobs.evaluate.evaluation_settings import EvaluationSettings
from dalle_jax.jobs.train.workspace import Workspace
from dalle_jax.sampling.draw_settings import DrawSettings

# Configuration values, and the message of `Config.from_dict`.
VALUES = [
  (
    {'prior': {'num_layer': 3}},
    'Unknown key config.prior.num_layer; did you mean config.prior.num_layers?',
  ),
  (
    {'mesh': {'zzz': 3}},
    'Unknown key config.mesh.zzz; known keys: dcn_data, data, fsdp, tensor.',
  ),
  (
    {'prior': {'num_layers': '3'}},
    "config.prior.num_layers must be of type int; given '3' of type str.",
  ),
  (
    {'dvae_training': {'learning_rate': '1e-3'}},
    "config.dvae_training.learning_rate must be of type float; given '1e-3' of type str.",
  ),
  (
    {'mesh': 8},
    'config.mesh must be a group of keys (dcn_data, data, fsdp, tensor); given 8.',
  ),
  (
    {'task': 'vae'},
    "config.task is 'vae'; allowed are dvae, all, joint, sequence, reranker.",
  ),
  (
    {'data': {'source': 'imagenet'}},
    "config.data.source is 'imagenet'; allowed are auto, captioned_shapes, folder, tars, parquet, records, "
    'codes, tfds, mixture, text.',
  ),
  (
    {'prior_training': {'batch_size': 0}},
    'config.prior_training.batch_size is 0; it must be above 0.',
  ),
  (
    {'tokenizer': {'bpe_dropout': 1.5}},
    'config.tokenizer.bpe_dropout is 1.5; it must lie in [0, 1].',
  ),
  (
    {'data': {'source': 'folder'}},
    "config.data.source='folder' needs config.data.path, the directory to read.",
  ),
  (
    {'data': {'image_size': 36}},
    "config.data.image_size 36 is not divisible by the dVAE's downsampling 8 (config.dvae.patch_size * 2 ** "
    '(config.dvae.num_groups - 1)); change one of the two, for instance config.data.image_size=32.',
  ),
  (
    {'prior': {'embed_dim': 60, 'num_heads': 7}},
    'config.prior.embed_dim 60 is not divisible by config.prior.num_heads 7; the nearest numbers of heads that divide '
    'it are 5, 6.',
  ),
  (
    {'prior': {'attention_pattern': ('conv',)}},
    'config.prior.conv_kernel_size 11 does not fit the grid of 4 x 4 codes; set a smaller odd number, or leave conv '
    'out of config.prior.attention_pattern and config.prior.last_attention_pattern.',
  ),
  (
    {'sampling': {'top_k': 9}, 'dvae': {'image_vocab_size': 8}},
    'config.sampling.top_k is 9; it must be at most config.dvae.image_vocab_size, 8, or 0 to keep all tokens.',
  ),
  (
    {'task': 'dvae', 'dvae': {'pretrained': 'runs/a/model'}},
    'config.task is dvae, but config.dvae.pretrained=runs/a/model is already trained, so nothing is left to train; '
    'leave config.dvae.pretrained empty, or choose another config.task.',
  ),
  (
    {'data': {'source': 'text'}},
    "config.data.source is 'text', but config.task=all needs images. Choose another source, or set "
    'config.task=sequence and config.model.tokens=text to model text.',
  ),
  (
    {'task': 'sequence'},
    "config.data.source is 'captioned_shapes', but config.task=sequence with config.model.tokens=text needs "
    'config.data.source=text. To model image tokens, set config.model.tokens to image or text_image.',
  ),
  (
    {'tokenizer': {'kind': 'bytes'}},
    "config.tokenizer.kind is 'bytes', but config.task=all needs 'captions'.",
  ),
  (
    {'task': 'sequence', 'model': {'tokens': 'image', 'kind': 'ngram'}},
    'config.dvae.pretrained is empty, but config.model.kind=ngram needs a trained dVAE; set config.dvae.pretrained to '
    'its model directory. Models of other kinds train one first.',
  ),
  (
    {'mesh': {'fsdp': 0}},
    'config.mesh.fsdp is 0; it must be above 0, or -1 for the remaining devices.',
  ),
]


def _message(function, *arguments, **settings):
  with pytest.raises(ValueError) as error:
    function(*arguments, **settings)
  return str(error.value)


@pytest.mark.parametrize(('values', 'message'), VALUES, ids=lambda value: str(value)[:40])
def test_messages_about_configuration_values(values, message):
  assert _message(Config.from_dict, values) == message


# A function, its arguments, and the message.
CALLS = [
  (
    overrides.check,
    (Config(), ['model.num_layers']),
    'config.model.num_layers is set, but config.task=all does not read config.model. Leave the key out, or set '
    'config.prior.num_layers instead.',
  ),
  (
    overrides.check,
    (Config.from_dict({'dvae': {'pretrained': 'runs/a/model'}}), ['dvae_training.num_steps']),
    'config.dvae_training.num_steps is set, but config.dvae.pretrained=runs/a/model is already trained, so '
    'config.dvae_training is not read. Leave the key out, or set config.prior_training.num_steps instead.',
  ),
  (
    overrides.check,
    (Config.from_dict({'task': 'dvae'}), ['prior.caption_drop']),
    'config.prior.caption_drop is set, but config.task=dvae does not read config.prior. Leave the key out; this task '
    'reads seed, task, profile, data, mesh, logging, sampling, evaluation, dvae, dvae_training.',
  ),
  (
    apply_variant,
    (base_config(), 'tyny'),
    "There is no variant 'tyny'; allowed: 'tiny' (--config=FILE:VARIANT, given 'tyny').",
  ),
  (
    choose,
    ('lstm,rnn', ('ngram', 'lstm', 'rnn'), ('', 'tiny')),
    "Variants lstm and rnn exclude each other; allowed, at most one of each group, separated by commas: 'ngram' or "
    "'lstm' or 'rnn'; 'tiny' (--config=FILE:VARIANT, given 'lstm,rnn').",
  ),
  (
    Workspace,
    ('', Config()),
    '--workdir is empty; set it to a directory.',
  ),
  (
    Workspace,
    ('gs://bucket/run', Config()),
    '--workdir gs://bucket/run is a URL; it must be a path in the file system. Mount the bucket, and set --workdir to '
    'a directory in the mounted file system.',
  ),
  (
    registry.prepare,
    (DataConfig(source='folder', path='/nowhere'), Path('unused')),
    'config.data.path: there is no folder /nowhere, or it cannot be accessed.',
  ),
  (
    corpus.read_corpus,
    ('/nowhere.txt', '', 0.1),
    'config.data.path: there is no /nowhere.txt; give a text file or a directory of .txt files.',
  ),
  (
    read_prompts,
    (['a red circle', ''], ''),
    'A prompt is empty; --prompt needs at least one word.',
  ),
  (
    check_file,
    (Path(__file__), False, '--out'),
    f'--out: {__file__} exists; give another name, or --overwrite.',
  ),
]


@pytest.mark.parametrize(('function', 'arguments', 'message'), CALLS, ids=lambda value: getattr(value, '__name__', ''))
def test_messages_about_variants_directories_and_prompts(function, arguments, message):
  assert _message(function, *arguments) == message


# A class of settings, its fields, and the message.
SETTINGS = [
  (DrawSettings, {'top_p': 0.0}, '--top_p is 0.0; it must be above 0 and at most 1 (all).'),
  (DrawSettings, {'num_images': 0}, '--num_images (--keep) is 0; it must be at least 1.'),
  (DrawSettings, {'rank': 'beauty'}, "--rank is 'beauty'; allowed are reranker, likelihood, caption_likelihood."),
  (
    DrawSettings,
    {'candidates': 2, 'num_images': 4},
    '--candidates is 2, fewer than the 4 images to keep; raise it, or lower --keep (--num_images).',
  ),
  (EvaluationSettings, {'model': 'm', 'num_images': -1}, '--num_images is -1; it must be 0 (all) or more.'),
  (
    EvaluationSettings,
    {'model': 'm', 'features': 'clip'},
    "--features is 'clip'; allowed are reranker, inception.",
  ),
  (
    EvaluationSettings,
    {'model': 'm', 'features': 'reranker'},
    '--features=reranker needs --reranker=DIR, the model directory of a reranker.',
  ),
  (CompressionSettings, {'coder': 'zip'}, "--coder is 'zip'; it must be one of range, huffman."),
  (CompressionSettings, {'batch_size': 0}, '--batch_size is 0; it must lie in 1 to 65536.'),
]


@pytest.mark.parametrize(('settings', 'fields', 'message'), SETTINGS, ids=lambda value: str(value)[:40])
def test_messages_about_flags(settings, fields, message):
  assert _message(settings, **fields) == message


def test_message_for_mesh_sizes_that_do_not_fit_the_devices():
  message = _message(sharding.make_mesh, MeshConfig(fsdp=3), devices=jax.devices()[:1])
  assert message == (
    "config.mesh {'dcn_data': 1, 'data': -1, 'fsdp': 3, 'tensor': 1} does not fit 1 device(s): the product of the "
    'sizes must be 1. Sizes that fit (dcn_data x data x fsdp x tensor): 1x1x1x1. Change config.mesh, or set one axis '
    'to -1 to fill it.'
  )


def test_message_for_a_batch_size_that_the_mesh_does_not_divide():
  mesh = jax.sharding.AbstractMesh((1, 4, 2, 1), ('dcn_data', 'data', 'fsdp', 'tensor'))
  assert _message(sharding.check_batch, TrainingConfig(batch_size=12), mesh, 'prior_training') == (
    "config.prior_training.batch_size 12 is not divisible by 8: 8 batch shards of the mesh {'dcn_data': 1, 'data': 4, "
    "'fsdp': 2, 'tensor': 1} times 1 accumulation step(s). Set it to a multiple of 8, such as 8 or 16, or change "
    'config.prior_training.accumulation_steps or config.mesh.'
  )


def test_message_for_a_work_directory_with_another_configuration(tmp_path):
  Workspace(str(tmp_path), Config())
  (tmp_path / 'data').mkdir()
  assert _message(Workspace, str(tmp_path), Config.from_dict({'seed': 1, 'prior': {'num_layers': 2}})) == (
    f'--workdir {tmp_path} holds a run with another configuration. Set another --workdir, or go back to the old values '
    '(old -> new):\n'
    '  config.prior.num_layers: 64 -> 2\n'
    '  config.seed: 0 -> 1'
  )


def test_messages_for_a_missing_or_half_written_model_directory(tmp_path):
  path = tmp_path / 'model'
  missing = f'There is no model directory at {path} (--model). Training writes it to WORKDIR/model when it ends.'
  assert _message(bundle.check, path) == missing
  assert _message(bundle.check, path, needs=('reranker',), flag='--reranker') == (
    f'There is no model directory at {path} (--reranker); this needs a reranker: python -m dalle_jax.train '
    '--config=configs/reranker.py --workdir=... trains one. Training writes it to WORKDIR/model when it ends.'
  )
  (tmp_path / 'model.partial').mkdir()
  assert _message(bundle.check, path) == (
    f'{missing} {path}.partial is incomplete, because training stopped while it was written: run the training command '
    'again.'
  )


def _model_directory(path, **info):
  """A model directory with these entries in bundle.json and no parameters."""
  (path / 'params').mkdir(parents=True)
  (path / 'config.json').write_text('{}')
  (path / 'bundle.json').write_text(json.dumps({'format_version': 1, 'parts': ['dvae', 'prior'], **info}))
  return path


def test_message_for_an_incomplete_model_directory(tmp_path):
  (tmp_path / 'params').mkdir()
  assert _message(bundle.check, tmp_path) == (
    f'{tmp_path} (--model) is not a complete model directory: it lacks bundle.json, config.json. Set --model to '
    'WORKDIR/model, the directory that training printed at its end, or run the training command again.'
  )


# The entries of bundle.json, the parts that a command needs, and the message; PATH is the model directory.
INFOS = [
  (
    {'format_version': 3},
    ('dvae', 'prior'),
    'PATH (--model) has bundle format 3, and this version of dalle_jax reads format 1 to 2. Install a newer dalle_jax.',
  ),
  (
    {'parts': ['dvae']},
    ('dvae', 'prior'),
    'PATH (--model) holds the dvae only, but this needs the dvae and prior. Train a prior on it: python -m '
    'dalle_jax.train --config=... --config.dvae.pretrained=PATH --workdir=..., with the values of config.dvae in '
    'PATH/config.json.',
  ),
  (
    {'parts': ['model']},
    ('dvae', 'prior'),
    'PATH (--model) holds a model of text, but this needs a model of images.',
  ),
  (
    {'parts': ['dvae']},
    ('reranker',),
    'PATH (--model) holds a model of images, but this needs a reranker: python -m dalle_jax.train '
    '--config=configs/reranker.py --workdir=... trains one.',
  ),
  (
    {'tokenizer': 'hash'},
    ('dvae', 'prior'),
    'PATH (--model) is not a complete model directory: it lacks tokenizer.model. Copy the directory again or run the '
    'training command again.',
  ),
  (
    {'parts': ['dvae'], 'files': {'array': 8}},
    ('dvae',),
    'The model directory PATH is damaged: params/array (missing). Copy the directory again or run the training command '
    'again.',
  ),
]


@pytest.mark.parametrize(('info', 'needs', 'message'), INFOS, ids=lambda value: str(value)[:40])
def test_messages_for_an_unsuitable_model_directory(info, needs, message, tmp_path):
  path = _model_directory(tmp_path / 'model', **info)
  assert _message(bundle.check, path, needs) == re.sub('PATH', str(path), message)
