"""The one exception that means "the user can fix this", and how any other is said in a line."""


class UserError(ValueError):
  """A mistake in what the user gave. The message says what was given, what was expected and what to type next.

  Commands print it as one line and exit with 2.
  """


def message_lines(error: BaseException) -> list[str]:
  """What an error says, by lines: one at least, which is its kind where it says nothing."""
  return str(error).strip().splitlines() or [type(error).__name__]
