"""What the outside world does to programs: errors, and the exit status and the words of the message they must end in.

Run as a program, it runs another program, whose flags are parsed as usual and whose work is replaced by each error:

python tests/helpers/situations.py NAME ARGUMENTS...

NAME is a module (dalle_jax.train) or a file (tools/fit.py). It prints a JSON object from the name of a situation to the
exit status and the text on stderr.
"""

import contextlib
import errno
import io
import json
import os
import runpy
import sys
from concurrent.futures.process import BrokenProcessPool


def os_error(name, *files):
  code = getattr(errno, name)
  return OSError(code, os.strerror(code), *files)


def caused(error, cause):
  error.__cause__ = cause
  return error


def in_context(error, context):
  error.__context__ = context
  return error


class JaxRuntimeError(RuntimeError):
  """Stands for JAX's class of the same name."""

  __module__ = 'jax.errors'


TENSORSTORE = (
  'RESOURCE_EXHAUSTED: Error writing local file "/runs/a/params/d/0": Failed to write: No space left on device '
  "[os_error_code='28'] [tensorstore_spec='" + 'x' * 5000 + "']"
)
ARRAY_RECORD = (
  'Failed to finalize writing of split "train": write() failed: File too large; writing /runs/a/data/x-00000; at byte '
  '16384; Failed to close chunk_writer'
)

# Name: the error, and words of the message.
OUTSIDE = {
  'disk full': (os_error('ENOSPC', 'out/a.png'), ['out/a.png', 'No space left', 'MB free', 'another disk']),
  'disk full, no name': (os_error('ENOSPC'), ['No space left', 'another disk']),
  'quota': (os_error('EDQUOT', 'out'), ['out', 'quota', 'Free some space']),
  'no permission': (os_error('EACCES', 'model/a'), ['model/a', 'Permission denied', 'permissions']),
  'deleted': (os_error('ENOENT', 'data/a.png'), ['data/a.png', 'No such file', 'deleted or moved']),
  'is a directory': (os_error('EISDIR', 'a'), ['a: Is a directory', 'Name a file']),
  'not a directory': (os_error('ENOTDIR', 'a/b'), ['a/b', 'Not a directory', 'name a directory']),
  'read-only': (os_error('EROFS', 'a'), ['Read-only file system', 'another one']),
  'open files': (os_error('EMFILE', 'a'), ['Too many open files', 'ulimit -n']),
  'circle of links': (os_error('ELOOP', 'a'), ['a: Too many levels of symbolic links', 'circle']),
  'circle, resolved': (RuntimeError("Symlink loop from '/a'"), ['Symlink loop', 'circle']),
  'long name': (os_error('ENAMETOOLONG', 'a' * 10_000), ['File name too long', 'aaa…aaa', 'shorter']),
  'renamed': (os_error('EXDEV', 'a', None, 'b'), ['a and b', 'Invalid cross-device link']),
  'control characters': (os_error('ENOENT', 'a\x1b[31m\nerror: b\u202e'), [r'a\x1b[31m\nerror: b\u202e']),
  'failing disk': (os_error('EIO', 'a'), ['a: Input/output error', 'use another']),
  'connection': (ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'), ['Connection refused', 'network']),
  'memory': (MemoryError('Unable to allocate 728. TiB'), ['too little memory', '728. TiB', 'smaller batch']),
  'device memory': (JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory ...'), ['too little memory', 'smaller batch']),
  'other host': (JaxRuntimeError('UNAVAILABLE: connection reset'), ['Another host', 'connection reset']),
  'accelerator': (RuntimeError("Unable to initialize backend 'cuda': no"), ['JAX cannot use', 'JAX_PLATFORMS=cpu']),
  'package': (ModuleNotFoundError("No module named 'wandb'", name='wandb'), ['wandb', 'dalle_jax[wandb]']),
  'broken package': (ImportError('libx.so: cannot open', name='x'), ['x cannot be used', 'libx.so']),
  'killed helper': (BrokenProcessPool('terminated abruptly'), ['helper process', 'memory']),
  'killed worker': (RuntimeError('Worker process was terminated unexpectedly with exit code -9'), ['config.data.num_']),
  'wrapped cause': (caused(RuntimeError('save failed'), os_error('ENOSPC', 'ckpt')), ['ckpt', 'No space left']),
  'wrapped context': (in_context(RuntimeError('save failed'), os_error('ENOSPC', 'ckpt')), ['ckpt', 'No space left']),
  'caused twice': (caused(RuntimeError('a'), caused(KeyError('b'), os_error('EROFS', 'ckpt'))), ['ckpt', 'Read-only']),
  'group': (ExceptionGroup('threads', [os_error('EACCES', 'ckpt')]), ['ckpt', 'Permission denied']),
  'tensorstore': (ValueError(TENSORSTORE), ['/runs/a/params/d/0', 'MB free): No space left', 'another disk']),
  'array_record': (RuntimeError(ARRAY_RECORD), ['/runs/a/data/x-00000: ', 'File too large', 'ulimit -f']),
  'user': (ValueError('--top_p is 2.'), ['error: --top_p is 2.\n']),
  'long message': (ValueError('x' * 100_000 + ' Do this.'), ['characters left out', 'Do this.']),
}
# Mistakes of ours: a traceback, status 1.
BUGS = {
  'KeyError': KeyError('a'),
  'AssertionError': AssertionError('never'),
  'TypeError': TypeError('f() takes 1 argument'),
  'RuntimeError': RuntimeError('unknown'),
  'a mistake in a handler': in_context(AttributeError('x'), os_error('ENOSPC', 'a')),
  'our own module': ModuleNotFoundError("No module named 'dalle_jax.x'", name='dalle_jax.x'),
}


def outcome(run, main):
  """Runs a command's boundary with a main function: the exit status, or the error's name, and the text on stderr."""
  with contextlib.redirect_stderr(io.StringIO()) as stderr:
    try:
      run(main)
    except SystemExit as end:
      return end.code, stderr.getvalue()
    except Exception as error:  # a traceback, in a process of its own
      return type(error).__name__, stderr.getvalue()
  raise AssertionError('the boundary always exits')


def raising(error):
  def main(argv):
    raise error

  return main


def main(name, *arguments):
  from dalle_jax import flags

  outcomes = {}
  run = flags.run

  def run_each(program, positional=False):
    for situation, (error, _) in OUTSIDE.items():
      outcomes[situation] = outcome(lambda main: run(main, positional), raising(error))
    for situation, error in BUGS.items():
      outcomes[situation] = outcome(lambda main: run(main, positional), raising(error))
    sys.argv.append('--no_such_flag')
    outcomes['unknown flag'] = outcome(lambda main: run(main, positional), raising(None))

  flags.run = run_each
  sys.argv = [name, *arguments]
  sys.path.insert(0, os.getcwd())
  if name.endswith('.py'):
    runpy.run_path(name, run_name='__main__')
  else:
    runpy.run_module(name, run_name='__main__', alter_sys=True)
  print(json.dumps(outcomes))


if __name__ == '__main__':
  main(*sys.argv[1:])
