# ruff: noqa: RUF001, RUF002 (quotation marks and full-width marks are the subject of this file)
"""Prose to sentences by rules, for languages that end sentences with `.`, `!`, `?`, `…` or `。`, `！`, `？`.

The rules look at one place at a time: a sentence mark, what closes after it, and the start of the next word. They are
made for English, German and Chinese, and for speed: the text is searched for sentence marks only.
"""

import re

_WIDE = "。！？｡"  # end a sentence without white space after them
_CLOSING = "\"'”’»«“‘)\\]}」』）】》〉"
_OPENING = "\"'“”‘’„‚«»([{¿¡—–-"
_END = re.compile(rf"([.!?…{_WIDE}]+)([{_CLOSING}]*)(\s*)")
_NOT_AFTER_WIDE = frozenset("，、；：,;:")
_LAST_WORD = re.compile(r"[^\s\"'“”‘’„‚«»(\[{]+\Z")
_LOOK_AROUND = 40  # characters; a longer "word" is no abbreviation
_NUMBER = re.compile(r"\d{1,2}\Z|[IVX]{1,5}\Z")
_NEXT_WORD = re.compile(r"\w+")

# After these a sentence practically never ends. (`etc.`, `usw.`, `Inc.`, `Jr.` are not here: there it often does.)
_NEVER_LAST = """
mr mrs ms mx dr prof rev hon gen col capt cpt cmdr lt sgt maj adm gov sen rep pres fr st ste messrs mt ft vs cf viz
e.g i.e eg ie al approx ca c no nos vol vols pp p fig figs eq eqs ch sec ed eds trans vgl bzw z.b d.h u.a s.o s.u o.ä
z b d h hr hrn fr frl nr str dipl ing bd abs art abb tab ebd evtl ggf sog bspw zb dh geb gest hl kgl jan feb mär apr
jun jul aug sep sept okt oct nov dec dez
"""
# What follows a German ordinal number ("am 3. Oktober", "im 19. Jahrhundert").
_COUNTED = """
januar februar märz april mai juni juli august september oktober november dezember jahrhundert jahrhunderts jahrtausend
kapitel auflage band teil klasse platz mal tag woche monat
"""
_ABBREVIATIONS = frozenset(_NEVER_LAST.split())
_AFTER_ORDINAL = frozenset(_COUNTED.split())


def _ends(text, match):
  """Whether a sentence really ends at this match of `_END`."""
  mark, close, space = match.groups()
  end = match.end()
  if not space:
    return mark[-1] in _WIDE and text[end] not in _NOT_AFTER_WIDE
  following = text[end]
  if following in _OPENING:
    following = text[end : end + _LOOK_AROUND].lstrip(_OPENING)[:1]
  if following.islower():
    return False
  if mark != "." or close:
    return True
  start = match.start()
  word = _LAST_WORD.search(text, max(0, start - _LOOK_AROUND), start)
  if not word:
    return True
  word = word.group()
  if word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I"):  # an initial: J. Smith
    return False
  if len(word) <= 5 and _NUMBER.match(word):
    after = _NEXT_WORD.search(text, end, end + _LOOK_AROUND)
    is_list_item = not text[: start - len(word)].strip() if start < _LOOK_AROUND else False
    return not (is_list_item or (after and after.group().lower() in _AFTER_ORDINAL))
  return True


def split_sentences(text):
  """Splits a paragraph into sentences.

  Args:
    text: str without line ends that matter.

  Returns:
    list[str] of non-empty sentences without outer white space. Joined, they hold every visible character of `text`.
  """
  size = len(text)
  cuts = [match.end() for match in _END.finditer(text) if match.end() < size and _ends(text, match)]
  sentences = [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
  return [sentence for sentence in sentences if sentence]
