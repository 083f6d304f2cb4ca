"""Words to phonemes, by espeak-ng."""

import difflib
import functools
import re

from albert_jax.errors import UserError

_FLAG = re.compile(r"\([a-z][a-z0-9-]*\)")  # what espeak writes where it switches to another language and back


class Espeak:
  """espeak-ng, which comes with the package espeakng-loader; each word by itself, with stress.

  Attributes:
    name: str, the program, its version and the language; cached words are kept under it.
  """

  def __init__(self, language: str):
    """Opens the voice of a language.

    Args:
      language: espeak's code, such as `en-us`, `de` or `hi`.

    Raises:
      UserError: a package is missing, or espeak does not know the language.
    """
    backend = _backend(language)
    self.name = f"espeak-ng-{'.'.join(map(str, backend.version()))}-{language}"
    self._backend = backend

  def phonemes(self, words: list[str]) -> list[str]:
    """Returns a string a word, '' where it has none. Flags of language switches, as `(ko)…(en-us)`, are kept."""
    return ["".join(text.split()) for text in self._backend.phonemize(words, strip=True)]


@functools.lru_cache(maxsize=1)
def _backend(language):
  try:
    import espeakng_loader
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper
    from phonemizer.logger import get_logger
  except ImportError as error:
    raise UserError(
      f"--language={language} needs espeak-ng, and {error.name} is not installed: pip install 'albert-jax[speech]'; or "
      "give words with phonemes: --phonemised"
    ) from None
  try:
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    known = EspeakBackend.supported_languages()
  except (RuntimeError, OSError) as error:
    raise UserError(f"espeak-ng does not start: {error}; try: pip install --force-reinstall espeakng-loader") from None
  if language not in known:
    near = difflib.get_close_matches(language, known, 5, 0.3) or sorted(known)[:8]
    raise UserError(
      f"--language={language!r} is unknown to espeak-ng; near it are {', '.join(near)}; all {len(known)}: "
      "https://github.com/espeak-ng/espeak-ng/blob/master/docs/languages.md"
    )
  logger = get_logger(verbosity="quiet")
  return EspeakBackend(language, with_stress=True, preserve_punctuation=True, logger=logger)


def without_flags(phonemes: str) -> tuple[str, bool]:
  """Phonemes without the flags of language switches, and whether there were any."""
  if "(" not in phonemes or len(phonemes) == 1:
    return phonemes, False
  text = _FLAG.sub("", phonemes)
  return text, text != phonemes
