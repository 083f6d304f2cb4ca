"""Prose to sentences by rules, for languages that end sentences with `.`, `!`, `?`, `…` or `。`, `！`, `？`.

The rules look at one place at a time: a sentence mark, what closes after it, and the start of the next word. They are
made for English, German and Chinese, and for speed: the text is searched for sentence marks only.
"""

import re

_WIDE = "。！？｡"  # end a sentence without white space after them
_CLOSING = "\"'”’»«“‘)\\]}」』）】》〉"
_OPENING = "\"'“”‘’„‚«»([{¿¡—–-"
# A mark, what closes after it, and white space that no lower-case letter follows; none is needed after a wide mark.
_END = re.compile(
  rf"[.!?…{_WIDE}]+[{_CLOSING}]*(?:\s+(?=[^\sa-z])|(?<=[{_WIDE}])|(?<=[{_WIDE}][{_CLOSING}])|(?<=[{_WIDE}][{_CLOSING}]{{2}}))"
)
_NOT_AFTER_WIDE = frozenset("，、；：,;:")
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
_LONGEST_ABBREVIATION = max(map(len, _ABBREVIATIONS))
_AFTER_ORDINAL = frozenset(_COUNTED.split())


def _cut(text, match):
  """Where a sentence ends at this match of `_END` (index into `text`), or 0 where none does."""
  found = match.group()
  end = match.end()
  following = text[end]
  if not found[-1].isspace():
    if following in _NOT_AFTER_WIDE:
      return 0
    opening = found.find("“")  # closes in German, opens in Chinese
    return end if opening < 0 else match.start() + opening
  if following in _OPENING:
    following = text[end : end + _LOOK_AROUND].lstrip(_OPENING)[:1]
  if following.islower():
    return 0
  if found[0] != "." or not found[1].isspace():
    return end
  start = match.start()
  word = text[text.rfind(" ", max(0, start - _LOOK_AROUND), start) + 1 : start].lstrip(_OPENING)
  if len(word) > _LONGEST_ABBREVIATION:
    return end
  if word.lower() in _ABBREVIATIONS or (len(word) == 1 and word != "I" and word.isupper()):  # an initial: J. Smith
    return 0
  if _NUMBER.match(word):
    after = _NEXT_WORD.search(text, end, end + _LOOK_AROUND)
    is_list_item = start < _LOOK_AROUND and not text[: start - len(word)].strip()
    if is_list_item or (after and after.group().lower() in _AFTER_ORDINAL):
      return 0
  return end


def split_sentences(text):
  """Splits a paragraph into sentences.

  Args:
    text: str without line ends that matter.

  Returns:
    list[str] of non-empty sentences without outer white space. Joined, they hold every visible character of `text`.
  """
  text = text.strip()
  size, sentences, start = len(text), [], 0
  for match in _END.finditer(text):
    if match.end() < size and (end := _cut(text, match)):
      sentences.append(text[start:end].strip())
      start = end
  sentences.append(text[start:])
  return [sentence for sentence in sentences if sentence]
