from dalle_jax.data.account import NUM_REASONS, Account


def test_an_account_adds_up_and_names_examples():
  account = Account('pictures')
  account.used = 1_000
  for number in range(4):
    account.leave_out(f'cut off ({number} bytes missing)', f'{number}.png')
  account.leave_out('no caption', 'x.png')
  account.note('further captions', 'y.png', 7)
  assert account.found == 1_005
  assert account.lines() == [
    '1,005 pictures found, 1,000 used, 5 left out',
    'left out 4: cut off (0 bytes missing) (0.png, 1.png, 2.png, ...)',
    'left out 1: no caption (x.png)',
    'note 7: further captions (y.png, ...)',
  ]
  assert str(account).splitlines() == [f'  {line}' for line in account.lines()]


def test_names_and_reasons_are_safe_to_print_and_short():
  account = Account('pictures')
  account.leave_out('bad \x1b]0;title\x07' + 'r' * 9_000, 'n\x1b[2J\u202e\n' + 'x' * 9_000)
  (line,) = account.lines()[1:]
  assert line.isprintable() and len(line) < 300


def test_many_reasons_are_summed_up():
  account = Account('pictures')
  for number in range(NUM_REASONS + 5):
    account.leave_out('reason ' + chr(ord('a') + number), 'x')
  lines = account.lines()
  assert len(lines) == NUM_REASONS + 2 and lines[-1] == 'left out 5: 5 further reasons'
