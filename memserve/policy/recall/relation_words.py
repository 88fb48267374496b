"""The words that decide how two sentences stand to each other, and the units that sentences are compared by.

The lists are short and closed: words of grammar, of negation, and the verbs that most facts are told with, in
English, German, French, Spanish, Italian, Chinese, Japanese and Arabic. The commonest ones of Korean, Hindi
and Russian, and the negations of a few more languages, are known. In another language every word counts as a
word of content: fewer duplicates are seen.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\U00020000-\U0003ffff"
)
# Marks of accents, and of Hebrew, Arabic and Indic scripts.
_SIGNS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0dff"
_UNIT = re.compile(
    rf"(?P<number>(?<![\w])[-+]?\d+(?:[.,:/-]\d+)*(?!\w)|\d+(?:[.,:/-]\d+)*(?=[{_UNSPACED}\uac00-\ud7a3]))"
    rf"|(?P<unspaced>[{_UNSPACED}])"
    rf"|(?P<word>(?:(?![{_UNSPACED}_])[\w{_SIGNS}])+"
    r"(?:'\w+)?(?:[+#]+(?!\w))?)"
)
_ARABIC_MARKS = re.compile("[\u064b-\u065f\u0640]")
_ARABIC_ARTICLE = re.compile("^(?:ال|وال|بال)(?=..)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NEGATIONS = _words(
    "않습니다 않는다 않다 아닙니다 아니다 못 안 не нет ни никогда без नहीं niet geen nooit não nie değil "
    "not no never none cannot without neither nor nicht kein keine keinen keinem keiner nie niemals "
    "ohne pas jamais aucun aucune sans nunca jamás ningún ninguna sin non mai nessun nessuna "
    "senza لا ليس ليست لم لن غير 不 没 沒 無 非"
)
"""In Japanese negation is an ending: see `_JAPANESE_NEGATION`."""
_JAPANESE_NEGATION = re.compile("ない|ません|なかった|ではなく")

COPULAS = _words(
    "는 है हैं था "
    "is are was were be been am has had will lies lie take place located ist sind war waren wird wurde "
    "wurden lautet liegt hat est sont était es está son era è sono هو هي كان كانت 是 为 為 在 は"
)
"""What stands between a subject and what is said of it."""

POSSESSIVE = "'s"
KOREAN_TOPIC = "는"

PREPOSITIONS = _words(
    "to on in at by for from with before after auf für in an von zu mit bei nach vor aus über à dans "
    "pour avec en con por para per da في من إلى على عن مع"
)
"""They say what part their word has in a sentence: "to Rome" is not "from Rome"."""
_CONTRACTED = {
    "fürs": "für", "im": "in", "am": "an", "vom": "von", "zum": "zu", "zur": "zu", "beim": "bei", "ins": "in",
}  # fmt: skip

OF_WHAT = _words("of about von über de di del della des du für")
"""What follows says which subject is meant."""

ARTICLES = _words(
    "the a an der die das den dem des ein eine einen einem einer le la les un une el los las il lo gli"
)

PAST = _words("was were had war waren hatte était avait estaba era كان كانت")

FUNCTION_WORDS = (
    COPULAS
    | PREPOSITIONS
    | {POSSESSIVE}
    | _words(
        "ne always immer siempre toujours का के की में पर से को "
        "в на с из к от для и 입니다 이다 예요 이에요 합니다 "
        "a an the of and or as it its this that "
        "there so then do does did can would now really very also "
        "just currently still already his her their my your our "
        "s der die das den dem des ein eine einen "
        "einem einer eines und oder es sehr auch jetzt noch schon "
        "kann le la les un une du de et au aux "
        "l d el los las una y al del il lo gli e di إن أن الآن قد و 的 了 着 也 现 現 就 已 将 將 于 於"
    )
)

_MANY_VALUED = _words(
    "paid pay gave give sent send "
    "like love know speak visit visited buy bought own eat met read play sell sold enjoy mag liebt "
    "kennt spricht besuchte kaufte isst las spielt verkauft aime parle connaît habla conoce parla "
    "conosce يحب تحب يعرف تعرف يتكلم تتكلم زار اشترى"
)
_HAVING = _words("use has have had hat habe haben hatte tiene tengo")
_MANY_VALUED_UNSPACED = re.compile(
    "喜欢|喜歡|爱|愛|会说|會說|认识|認識|知道|去过|去過|买了|買了|好き|話せ|話し|知って|買い|行った"
)

NUMBER_WORDS = {
    word: str(number)
    for words in (
        "zero one two three four five six seven eight nine ten eleven twelve",
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf",
        "zéro un deux trois quatre cinq six sept huit neuf dix onze douze",
        "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce",
    )
    for number, word in enumerate(words.split())
    if word not in FUNCTION_WORDS
}
_DATE_WORDS = _words(
    "monday tuesday wednesday thursday friday saturday sunday january february march april may "
    "june july august september october november december montag dienstag mittwoch donnerstag "
    "freitag samstag sonntag januar februar märz mai juni juli oktober dezember lundi mardi "
    "mercredi jeudi vendredi samedi dimanche lunes martes miércoles jueves viernes sábado "
    "domingo"
)
_BEFORE_NOT = {"can't": "can", "won't": "will"}
_NOW = re.compile("现在|現在|目前|已经|已經")
_MONTHS = _words("january february march april may june july august september october november december")
_ELIDED = re.compile("(?:[cdjlmnst]|qu)'(?=.)")
_KOREAN_TOPIC = re.compile("([\uac00-\ud7a3]+)[은는]")
_NUMERALS = frozenset("〇零一二三四五六七八九十百千万亿")
_HIRAGANA = re.compile("[\u3041-\u309f]")


@dataclass(frozen=True, slots=True)
class Unit:
    """A word, a number, or a letter of a script without spaces."""

    text: str
    is_number: bool = False
    """Or a code with digits in it, a weekday or a month."""

    @property
    def is_content(self) -> bool:
        """Whether it says something by itself: it is "
        "no word of grammar, no negation and no hiragana."""
        return self.is_number or not (
            self.text in FUNCTION_WORDS
            or self.text in NEGATIONS
            or _HIRAGANA.fullmatch(self.text) is not None
        )


def plain(text: str) -> str:
    """In one spelling: NFKC, small letters, one apostrophe, "
    "digits 0 to 9, without the Chinese for now."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    folded = _ARABIC_MARKS.sub("", folded)
    spelt = "".join(str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in folded)
    return spelt if _NOW.fullmatch(spelt) else _NOW.sub("", spelt)


def units_of(text: str) -> list[Unit]:
    """The units of a text in order. text: as `plain` gives it."""
    units: list[Unit] = []
    for match in _UNIT.finditer(text):
        word = match[0]
        before = units[-1] if units else Unit("")
        if match["number"]:
            units.append(Unit(word, True))
            if before.text in _MONTHS and (len(units) < 3 or not units[-3].is_number):
                units[-2:] = [units[-1], before]  # "May 3" is "3 May".
        elif match["unspaced"]:
            units.append(Unit(word, word in _NUMERALS))
        elif before.is_number and word in ("am", "pm"):
            units.append(Unit(word, True))
        elif before.text == "i" and word == "am":
            units.append(Unit("is"))
        else:
            units += _units_of_word(word)
    return units


def _units_of_word(word: str) -> list[Unit]:
    """A word, and what is written together with it."""
    if word.endswith("n't"):
        return [Unit(_BEFORE_NOT.get(word, word[:-3])), Unit("not")]
    if word.endswith("'s"):
        return [Unit(word[:-2]), Unit(POSSESSIVE)]
    if word == "i'm":
        return [Unit("i"), Unit("is")]
    if elided := _ELIDED.match(word):
        return [Unit("ne" if elided[0] == "n'" else elided[0][:-1]), *_units_of_word(word[elided.end() :])]
    if topic := _KOREAN_TOPIC.fullmatch(word):
        return [Unit(topic[1]), Unit(KOREAN_TOPIC)]
    if word in NUMBER_WORDS:
        return [Unit(NUMBER_WORDS[word], True)]
    bare = _CONTRACTED.get(word, word)
    bare = bare if bare in FUNCTION_WORDS else _stem(_ARABIC_ARTICLE.sub("", bare))
    return [Unit(bare, bare in _DATE_WORDS or any(sign.isdecimal() for sign in bare))]


def has_many_values(text: str, units: list[Unit]) -> bool:
    """Whether a text tells with a verb that a subject can have with many values at once."""
    words = {unit.text for unit in units}
    return not words.isdisjoint(_MANY_VALUED) or bool(_MANY_VALUED_UNSPACED.search(text))


def is_having(before: list[Unit]) -> bool:
    """Whether a frame ends by saying that a subject has something: it may have more."""
    return any(unit.text in _HAVING for unit in before) and not any(unit.text in OF_WHAT for unit in before)


def is_hiragana(unit: Unit) -> bool:
    return _HIRAGANA.fullmatch(unit.text) is not None


def is_unspaced(unit: Unit) -> bool:
    return re.fullmatch(f"[{_UNSPACED}]", unit.text) is not None


def _stem(word: str) -> str:
    """Without the English ending of a plural or of a third person."""
    cut = len(word) > 4 and word.isascii() and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if cut else word


def negations_in(text: str, units: list[Unit]) -> int:
    """How often a text says no."""
    return sum(unit.text in NEGATIONS for unit in units) + len(_JAPANESE_NEGATION.findall(text))
