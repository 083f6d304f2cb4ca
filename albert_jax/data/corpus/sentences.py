"""Splits prose into sentences by rules, for languages with sentence marks such as `.`, `!`, `?`, `…`, `。`, `।`, `؟`.

The rules consider a sentence mark, the closing quotes and brackets after it, and the start of the next word. They are
designed for English, German and Chinese, and for speed: the text is searched for sentence marks only.
"""

import re

_WIDE = "。！？｡।"  # end a sentence without white space after them
# Devanagari (double danda), Arabic, Urdu, Armenian, Ethiopic, Khmer, Burmese; pairs of `!` and `?` in one character.
_OTHER = "॥؟۔։።៕។။‼⁇⁈⁉"
_CLOSING = "\"'”’»«“‘)\\]}」』）】》〉"
_OPENING = "\"'“”‘’„‚«»([{¿¡—–-"
_MARK = f"[.!?…{_WIDE}{_OTHER}]"
# A mark, closing quotes and brackets, and white space not followed by a lower-case letter; a wide mark needs no space.
# `{_MARK}{_MARK}*` is `{_MARK}+`, but only a pattern that begins with a single character is searched for quickly.
_END = re.compile(
  rf"{_MARK}{_MARK}*[{_CLOSING}]*"
  rf"(?:\s+(?=[^\sa-z])|(?<=[{_WIDE}])|(?<=[{_WIDE}][{_CLOSING}])|(?<=[{_WIDE}][{_CLOSING}]{{2}}))"
)
_NOT_AFTER_WIDE = frozenset("，、；：,;:")
_LOOK_AHEAD = 40  # characters
_NUMBER = re.compile(r"\d{1,2}\Z|[IVX]{1,5}\Z")
_NEXT_WORD = re.compile(r"\w+")

# Abbreviations that practically never end a sentence. (`etc.`, `usw.`, `Inc.`, `Jr.` often do, so they are not listed.)
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
_LONGEST_WORD = max(map(len, _ABBREVIATIONS)) + 2  # an opening quotation mark or bracket included
_AFTER_ORDINAL = frozenset(_COUNTED.split())


def _ends_after_period(text, start, end):
  """Returns whether the period at `start`, with white space up to `end` behind it, ends a sentence."""
  # The last word, if it is short enough to be an abbreviation or a number.
  space = text.rfind(" ", max(0, start - _LONGEST_WORD - 1), start)
  if space < 0 and start > _LONGEST_WORD:
    return True
  word = text[space + 1 : start].lstrip(_OPENING)
  if word.lower() in _ABBREVIATIONS or (len(word) == 1 and word != "I" and word.isupper()):  # an initial: J. Smith
    return False
  if _NUMBER.match(word):
    after = _NEXT_WORD.search(text, end, end + _LOOK_AHEAD)
    is_list_item = not text[: space + 1].strip()
    return not (is_list_item or (after and after.group().lower() in _AFTER_ORDINAL))
  return True


def _cut(text, start, end):
  """Returns the index in `text` at which a sentence ends, for a match of `_END` from `start` to `end`; 0 for none."""
  following = text[end]
  if not text[end - 1].isspace():
    if following in _NOT_AFTER_WIDE:
      return 0
    opening = text.find("“", start, end)  # closes in German, opens in Chinese
    return end if opening < 0 else opening
  if following in _OPENING:
    following = text[end : end + _LOOK_AHEAD].lstrip(_OPENING)[:1]
  if following.islower():
    return 0
  return end if text[start] != "." or not text[start + 1].isspace() or _ends_after_period(text, start, end) else 0


def split_sentences(text: str) -> list[str]:
  """Splits a paragraph into sentences.

  Args:
    text: str without line ends that matter.

  Returns:
    Non-empty sentences without outer white space. Joined, they have every visible character of `text`.
  """
  text = text.strip()
  size, sentences, begin = len(text), [], 0
  for match in _END.finditer(text):
    start, end = match.span()
    if end < size and (end := _cut(text, start, end)):
      sentences.append(text[begin:end].strip())
      begin = end
  sentences.append(text[begin:])
  return [sentence for sentence in sentences if sentence]
