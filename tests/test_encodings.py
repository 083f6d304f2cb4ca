"""Which encoding a text that is not UTF-8 seems to have."""

import pytest

from albert_jax.data import encodings
from albert_jax.errors import UserError

TEXTS = [
  ("cp1252", "Die Schüler übten schön. „Ärger“ – sagte er."),
  ("cp1252", "id;text\n1;Möbel\n2;schön\n3;plain\n"),
  ("cp1252", "L'été, ça va être génial à Noël."),
  ("cp1250", "żółć gęślą jaźń. Zażółć."),
  ("cp1254", "Bugün hava çok güzel, değil mi? İyi günler."),
  ("cp1257", "Šodien ir ļoti jauks laiks, vai ne? Ēdīsim."),
  ("cp1251", "Это обычный русский текст."),
  ("koi8-r", "Это обычный русский текст."),
  ("cp1253", "Ο καιρός είναι καλός σήμερα."),
  ("cp1255", "שלום עולם זה טקסט רגיל"),
  ("cp1256", "مرحبا بالعالم هذا نص عربي"),
  ("cp874", "สวัสดีชาวโลก นี่คือข้อความภาษาไทย"),
  ("cp932", "吾輩は猫である。名前はまだ無い。"),
  ("euc-jp", "吾輩は猫である。名前はまだ無い。"),
  ("gb18030", "我是学生，他的书在这里。"),
  ("cp949", "이것은 한국어 텍스트입니다."),
]


@pytest.mark.parametrize(("encoding", "text"), TEXTS)
def test_short_texts(encoding, text):
  name, word = encodings.guess(text.encode(encoding))
  assert name == encoding
  assert word and word in text


def test_noise_has_no_encoding():
  assert encodings.guess(bytes(range(128, 256)) * 4) == ("", "")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
  "text", ["a,b\n", "Это обычный русский текст.\n", "吾輩は猫である。\n\u3000名前はまだ無い。\n" * 2]
)
def test_wide_text_without_a_byte_order_mark(encoding, text):
  assert encodings.by_nuls(text.encode(encoding)) == encoding
  assert encodings.by_nuls(text.encode(encoding)[:-1]) == encoding  # A head may end within a character.
  with pytest.raises(UserError, match=f"x seems to be {encoding.upper()} text.*: iconv -f {encoding} -t utf-8"):
    encodings.refuse_marked("x", text.encode(encoding))


@pytest.mark.parametrize(
  "data", [b"", b"ab\0cd\n", b"a \xff b\n\0c\n", "schön\0".encode(), bytes(range(256)) * 4, b"a" + b"\0" * 40]
)
def test_nuls_of_other_files(data):
  assert encodings.by_nuls(data) == ""
