"""The one exception that means "the user can fix this": commands print it as one line and exit with 2."""


class UserError(ValueError):
  """A mistake in what the user gave. The message says what was given, what was expected and what to type next."""
