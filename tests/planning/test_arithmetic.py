import dataclasses

import jax
import pytest
from dalle_jax.configs import dalle, language

from dalle_jax import sharding
from dalle_jax.config import Config, MeshConfig
from dalle_jax.planning import arithmetic, fit, programs, search, topologies


def of_text(**model) -> Config:
  """A transformer of text: no pictures, so quickly traced."""
  config = language.get_config('transformer,tiny')
  config.sequence_training.optimizer = 'adamw'
  for name, value in model.items():
    config.model[name] = value
  return Config.from_dict(config)


def test_memory_halves_where_the_mesh_splits_and_averages_are_as_large_as_parameters():
  whole, split = (
    arithmetic.memory(of_text(), 'sequence', arithmetic.abstract_mesh({'fsdp': fsdp}), row_bytes=1000)
    for fsdp in (1, 2)
  )
  assert whole['averages'] == whole['parameters'] == whole['gradients']
  assert whole['parameters'] == 4 * programs.training_work(of_text(), 'sequence').num_params
  assert split['parameters'] == pytest.approx(whole['parameters'] / 2, rel=0.02)
  assert whole['activations and temporaries'] == 16 * 1000 == 2 * split['activations and temporaries']
  assert whole['batch'] == 16 * 64 * 4


def test_policies_of_rematerialisation_trade_memory_for_work():
  policies = ('none', 'attention', 'dots', 'full')
  found = {policy: arithmetic.costs(of_text(remat=policy), 'sequence') for policy in policies}
  kept = [found[policy].row_bytes for policy in policies]
  work = [found[policy].step_flops for policy in policies]
  assert kept == sorted(kept, reverse=True)
  assert len(set(kept)) == 4
  assert work == sorted(work)
  # Only 'none' computes nothing again; what the model needs is the same for all.
  assert work[0] == found['full'].work.model_flops < work[2]
  assert {one.work.model_flops for one in found.values()} == {work[0]}


def test_exchange_follows_the_mesh():
  config = of_text(dtype='bfloat16')
  params = programs.training_work(config, 'sequence').num_params

  def exchanged(**sizes: int) -> dict[str, int]:
    found = arithmetic.exchanged(config, 'sequence', arithmetic.abstract_mesh(sizes))
    return {f'{one.kind} {one.group}': one.bytes for one in found}

  assert exchanged() == {}
  assert exchanged(fsdp=2) == {'all-gather 2': 2 * params, 'reduce-scatter 2': params}
  assert exchanged(data=2) == {'all-reduce 2': 2 * params * 4 // 2}
  assert set(exchanged(tensor=2)) == {'all-reduce 2'}


def test_a_compiled_step_holds_what_the_shapes_say():
  config = dataclasses.replace(of_text(), mesh=MeshConfig(data=1))
  mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
  program = programs.training_program(config, 'sequence', mesh)
  usage = program.jitted.lower(*program.arguments).compile().memory_analysis()
  found = arithmetic.memory(config, 'sequence', mesh, row_bytes=0)
  counted = sum(found[name] for name in ('parameters', 'optimizer', 'averages', 'batch'))
  assert usage.argument_size_in_bytes == pytest.approx(counted, rel=0.001)


def test_gpus_that_are_not_there_are_computed_and_it_is_said():
  topology = topologies.parse('h100:4')
  report = fit.fit_training(of_text(), 'sequence', topology, 0.5, tell=lambda line: None)
  assert report.fits
  assert 'arithmetic' in report.memory_source
  assert 'nothing was compiled' in report.estimate.source
  found = report.to_dict()
  assert found['mesh']['data'] == 4
  assert found['days'] == pytest.approx(found['step_seconds'] * 400 / 86_400)
  assert found['chip_hours'] == pytest.approx(found['days'] * 24 * 4)
  assert 0 < found['model_flops_utilisation'] <= 0.5


def test_search_prefers_what_computes_least_again_and_fits():
  lines = []
  best = search.search(of_text(), 'sequence', topologies.parse('h100:2'), [], 3, 0.5, lines.append)
  assert lines[0].endswith('fit by arithmetic')
  assert best[0].settings['model.remat'] == 'none'
  rates = [one.estimate.examples_per_second for one in best]
  assert rates == sorted(rates, reverse=True)
  assert 'examples/s' in search.table(best)


def test_search_says_when_nothing_fits(monkeypatch):
  topology = topologies.parse('t4:1')
  chip = dataclasses.replace(topology.chip, memory=1000)
  monkeypatch.setattr(topologies.Topology, 'chip', property(lambda self: chip))
  found = search.search(of_text(), 'sequence', topology, [], 3, 0.5, lambda line: None)
  assert search.table(found) == 'None of the plans that were tried fits.'


def test_stages_are_those_that_the_configuration_trains():
  config = Config.from_dict(dalle.get_config('12b,tiny'))
  assert programs.stage_of(config, None) == 'prior'
  assert programs.stage_of(config, 'dvae') == 'dvae'
  with pytest.raises(ValueError, match=r'--stage=joint: config.task=all trains dvae, prior'):
    programs.stage_of(config, 'joint')
  with pytest.raises(ValueError, match='counted, not trained'):
    programs.stage_of(Config.from_dict(language.get_config('ngram')), None)
