"""Exact match and F1 exactly as the official scorers compute them, special cases included.

Written here because the official scorers are scripts, not packages; tests show that the numbers are equal.
`evaluate-v1.1.py` and `evaluate-v2.0.py` of SQuAD, and `cmrc2018_evaluate.py` for Chinese. Numbers are percentages.
"""

import collections
import logging
import pathlib
import re
import string

from albert_jax import strict_json
from albert_jax.data.finetuning import squad
from albert_jax.errors import UserError

log = logging.getLogger(__name__)

_PUNCTUATION = set(string.punctuation)
# The characters that CMRC ignores; its list also has "……", which as two characters never matches.
_CMRC_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile(r"([\u4e00-\u9fa5])")
# Approximates NLTK's words: brackets are separate, commas except in numbers, and a period at the end.
_CMRC_TOKEN = re.compile(r"""[][(){}<>;@#$%&?!"—]|,(?!\d)|\.\Z|(?:[^][(){}<>;@#$%&?!"—,.\s]|,(?=\d)|\.(?!\Z))+""")


def normalize(text: str) -> str:
  """Normalises a text: lower case, no ASCII punctuation, no a, an, the, no extra white space."""
  text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
  return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _overlap(gold: list, predicted: list) -> float:
  """Returns F1 of two bags of words."""
  same = sum((collections.Counter(gold) & collections.Counter(predicted)).values())
  if not same:
    return 0
  precision, recall = 1.0 * same / len(predicted), 1.0 * same / len(gold)
  return (2 * precision * recall) / (precision + recall)


def squad1(golds: list[str], predicted: str) -> tuple[float, float]:
  """Returns (exact, f1), each 0 to 1, by evaluate-v1.1.py: the best over the given answers."""
  pairs = [(normalize(gold), normalize(predicted)) for gold in golds]
  return max(int(a == b) for a, b in pairs), max(_overlap(a.split(), b.split()) for a, b in pairs)


def squad2(golds: list[str], predicted: str) -> tuple[float, float]:
  """Returns (exact, f1) by evaluate-v2.0.py.

  Answers that normalise to nothing do not count, and none at all means ''.
  """
  scores = []
  for gold in [gold for gold in map(normalize, golds) if gold] or [""]:
    ours = normalize(predicted)
    f1 = _overlap(gold.split(), ours.split()) if gold and ours else int(gold == ours)
    scores.append((int(gold == ours), f1))
  return max(exact for exact, _ in scores), max(f1 for _, f1 in scores)


def cmrc(golds: list[str], predicted: str) -> tuple[float, float]:
  """Returns (exact, f1) by cmrc2018_evaluate.py: F1 over the longest run that both have, in characters.

  Text that is not Chinese is counted in words. The scorer uses NLTK; docs/finetuning.md has the difference.
  Questions without an answer, which CMRC does not have, want ''.
  """
  if not any(golds):
    return int(not predicted), int(not predicted)
  ours, our_text = _cmrc_tokens(predicted), _cmrc_text(predicted)
  best = 0
  for gold in map(_cmrc_tokens, golds):
    same = _longest_run(gold, ours)
    if same:
      precision, recall = 1.0 * same / len(ours), 1.0 * same / len(gold)
      best = max(best, (2 * precision * recall) / (precision + recall))
  return int(any(_cmrc_text(gold) == our_text for gold in golds)), best


def _cmrc_text(text):
  return "".join(c for c in text.lower().strip() if c not in _CMRC_PUNCTUATION)


def _cmrc_tokens(text):
  # Single Chinese characters; between them, words.
  parts = _CHINESE.split(_cmrc_text(text))
  return [token for i, part in enumerate(parts) for token in ([part] if i % 2 else _CMRC_TOKEN.findall(part))]


def _longest_run(a, b):
  """Returns the length of the longest common run of tokens."""
  longest, previous = 0, [0] * (len(b) + 1)
  for x in a:
    runs = [0] * (len(b) + 1)
    for j, y in enumerate(b):
      if x == y:
        runs[j + 1] = previous[j] + 1
    longest, previous = max(longest, *runs), runs
  return longest


RULES = {"squad1": squad1, "squad2": squad2, "cmrc": cmrc}


def check_language(language: str) -> None:
  """Raises UserError for a language that `rules_of` does not know."""
  if language not in ("", "en", "zh"):
    raise UserError(
      f"task.language={language!r} is unknown; use en (words), zh (characters), or '' to see by the answers"
    )


def rules_of(questions: list[squad.Question], language: str = "") -> str:
  """Chooses the RULES for questions, by the language and by whether some questions have no answer.

  Args:
    questions: with their answers.
    language: en counts words, zh characters; "" is zh where most answers have Chinese characters in them.

  Returns:
    a name of RULES.

  Raises:
    UserError: the language is another.
  """
  check_language(language)
  answers = [text for question in questions for text, _ in question.answers[:1]]
  chinese = sum(bool(_CHINESE.search(text)) for text in answers) * 2 > len(answers)
  if language == "zh" or (chinese and not language):
    return "cmrc"
  return "squad2" if any(question.impossible for question in questions) else "squad1"


def score(
  questions: list[squad.Question],
  predictions: dict[str, str],
  rules: str,
  null_odds: dict[str, float] | None = None,
  null_threshold: float = 1.0,
) -> dict[str, float]:
  """Computes the metrics that the official scorer prints.

  Args:
    questions: with their answers.
    predictions: {id: text}; '' says that there is no answer. Questions without one score 0; "missing" counts them.
    rules: one of RULES. Only squad2 has separate numbers for HasAns and NoAns.
    null_odds: {id: how sure it is that there is no answer}; with it come best_exact and best_f1, and the thresholds
      above which '' gives them.
    null_threshold: above it a prediction counts as '', as the scorer's --na-prob-thresh.

  Returns:
    {name: number}.
  """
  exact: dict[str, float] = {}
  f1: dict[str, float] = {}
  for question in questions:
    if question.id in predictions:
      golds = [text for text, _ in question.answers] or [""]
      exact[question.id], f1[question.id] = RULES[rules](golds, predictions[question.id])
  missing = len(questions) - len(exact)
  has_answer = {x.id: bool(x.answers) for x in questions}
  if null_odds is None or rules != "squad2":
    numbers = _mean(exact, f1, has_answer)
  else:
    silent = {id for id in exact if null_odds[id] > null_threshold}
    kept = [
      {id: float(not has_answer[id]) if id in silent else v for id, v in scores.items()} for scores in (exact, f1)
    ]
    numbers = _mean(kept[0], kept[1], has_answer)
    for name, each in (("exact", exact), ("f1", f1)):
      best, at = best_threshold(predictions, each, null_odds, has_answer)
      numbers |= {f"best_{name}": best, f"best_{name}_thresh": at}
    exact, f1 = kept
  if rules == "squad2":
    for name, is_answerable in (("HasAns", True), ("NoAns", False)):
      part = {id: answerable for id, answerable in has_answer.items() if answerable == is_answerable}
      if part:
        numbers |= {f"{name}_{key}": value for key, value in _mean(exact, f1, part).items()}
  return numbers | ({"missing": missing} if missing else {})


def _mean(exact, f1, ids):
  total = len(ids)
  means = [100.0 * sum(scores[id] for id in ids if id in scores) / total for scores in (exact, f1)]
  return {"exact": means[0], "f1": means[1], "total": total}


def best_threshold(
  predictions: dict[str, str], scores: dict[str, float], null_odds: dict[str, float], has_answer: dict[str, bool]
) -> tuple[float, float]:
  """Finds the threshold above which '' gives the best mean score: find_best_thresh of evaluate-v2.0.py.

  Args:
    predictions: {id: text}.
    scores: {id: its score}.
    null_odds: {id: how sure it is that there is no answer}.
    has_answer: {id: whether there is one}.

  Returns:
    (the best mean score in percent, the threshold).
  """
  total: float = sum(not answerable for answerable in has_answer.values())
  best = total
  threshold = 0.0
  for id in sorted(null_odds, key=null_odds.__getitem__):
    if id not in scores:
      continue
    # One more question is answered: it may gain its score, and loses the point for silence where that was right.
    total += scores[id] if has_answer[id] else -1 if predictions[id] else 0
    if total > best:
      best, threshold = total, null_odds[id]
  return 100.0 * best / len(scores), threshold


def score_files(predictions: str, gold: str, null_odds: str = "", language: str = "") -> dict[str, float]:
  """Scores predictions of another program.

  Args:
    predictions: a JSON file {id: text}, as predictions.json.
    gold: a file of SQuAD's JSON.
    null_odds: a JSON file {id: number}; "" for none.
    language: see `rules_of`.

  Returns:
    see `score`.

  Raises:
    UserError: a file is not what it should be, or the two are about different questions.
  """
  questions = squad.read_file(gold)
  texts = _read_by_id(predictions, str, "the text of its answer ('' for none)")
  odds = _read_by_id(null_odds, (int, float), "a number") if null_odds else None
  ids = {x.id for x in questions}
  if not ids & texts.keys():
    raise UserError(
      f"{predictions} answers none of the questions of {gold}: its ids are such as {next(iter(texts), None)!r}, "
      f"there they are such as {questions[0].id!r}"
    )
  if odds is not None and (without := sorted((ids & texts.keys()) - odds.keys())):
    raise UserError(f"{null_odds} lacks {len(without)} questions that {predictions} answers, such as {without[0]!r}")
  for note, ids_of in (("have no prediction, and score 0", ids - texts.keys()),
                       ("are answered that the gold file does not have", texts.keys() - ids)):  # fmt: skip
    if ids_of:
      log.warning("Note: %d questions %s, such as %r.", len(ids_of), note, min(ids_of))
  if odds is not None:  # The scorer refuses unknown questions.
    odds = {id: value for id, value in odds.items() if id in ids}
  return score(questions, texts, rules_of(questions, language), odds)


def _read_by_id(path, kind, what):
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise UserError(f"no file {str(path)!r}; expected JSON with, for each question's id, {what}")
  by_id = strict_json.read_object(path, f"an object with, for each question's id, {what}", max_bytes=1 << 28)
  for id, value in by_id.items():
    if not isinstance(value, kind) or isinstance(value, bool):
      raise UserError(f"{path}: {id!r} has {str(value)[:60]!r}; expected {what}")
  return by_id
