"""Sentences with a subject and a value, in five languages, and what can be said beside each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """`{s}` stands for a subject, `{v}` for a value."""

    language: str
    value_kind: str
    """`name`, `number` or `date`."""
    base: str
    reordered: str
    """The same, in another order. "": the language has none."""
    paraphrase: str
    """The same, in other words."""
    negated: str
    detail: str
    """The same, and more."""
    facet: str
    """Something else of the same subject."""
    subjects: tuple[str, ...]
    values: tuple[str, ...]
    single: bool = True
    """Whether a subject has one value at a time. False: two values are no contradiction."""


SWAPS: dict[str, str] = {
    "English": "{a} owes {b} money.",
    "German": "{a} schuldet {b} Geld.",
    "Chinese": "{a}欠{b}很多钱。",
    "Japanese": "{a}さんは{b}さんにお金を借りています。",
    "Arabic": "{a} مدين لصديقه {b}.",
}
"""Of two names. Exchanged, they say something else."""

_GATES = ("north gate", "south gate", "boat house", "old mill")
_CODES = ("4071", "4072", "9930", "1288")
_PEOPLE = ("Anna", "Ben", "Carla", "Tom")
_PORTS = ("Rome", "Lisbon", "Oslo", "Vienna")

TUNING: tuple[Frame, ...] = (
    Frame(
        "English", "number", "The code of the {s} is {v}.", "{v} is the code of the {s}.",
        "The {s}'s code is {v}.", "The code of the {s} is not {v}.",
        "The code of the {s} is {v} and works only at night.", "The colour of the {s} is green.",
        _GATES, _CODES,
    ),
    Frame(
        "English", "name", "{s} lives in {v}.", "", "{s} resides in {v}.", "{s} does not live in {v}.",
        "{s} lives in {v} with two cats and a parrot.", "{s} works in a bakery.", _PEOPLE, _PORTS,
    ),
    Frame(
        "English", "date", "The meeting about the {s} is on {v}.",
        "On {v} is the meeting about the {s}.",
        "The meeting about the {s} takes place on {v}.", "The meeting about the {s} is not on {v}.",
        "The meeting about the {s} is on {v} and lasts two hours.",
        "The meeting about the {s} is in the library.",
        ("budget", "new roof", "summer fair", "harbour"), ("3 May", "4 May", "Tuesday", "Friday"),
    ),
    Frame(
        "English", "name", "{s} likes {v}.", "", "{s} really likes {v}.", "{s} does not like {v}.",
        "{s} likes {v} with a slice of lemon.", "{s} sells old maps.", _PEOPLE,
        ("tea", "coffee", "juice", "milk"), single=False,
    ),
    Frame(
        "German", "number", "Der Code für das {s} ist {v}.", "{v} ist der Code für das {s}.",
        "Der Code fürs {s} lautet {v}.", "Der Code für das {s} ist nicht {v}.",
        "Der Code für das {s} ist {v} und gilt nur nachts.", "Die Farbe für das {s} ist Grün.",
        ("Nordtor", "Südtor", "Bootshaus", "Lager"), _CODES,
    ),
    Frame(
        "German", "name", "{s} wohnt in {v}.", "In {v} wohnt {s}.", "{s} lebt in {v}.",
        "{s} wohnt nicht in {v}.", "{s} wohnt in {v} mit zwei Katzen.",
        "{s} arbeitet in einer Bäckerei.",
        _PEOPLE, ("Rom", "Lissabon", "Oslo", "Wien"),
    ),
    Frame(
        "German", "name", "{s} mag {v}.", "", "{s} mag {v} sehr.", "{s} mag {v} nicht.",
        "{s} mag {v} mit einem Stück Kuchen.", "{s} verkauft alte Karten.", _PEOPLE,
        ("Tee", "Kaffee", "Saft", "Milch"), single=False,
    ),
    Frame(
        "Chinese", "number", "{s}的密码是{v}。", "{v}是{s}的密码。", "{s}的密码为{v}。",
        "{s}的密码不是{v}。",
        "{s}的密码是{v}，只在晚上有效。", "{s}的颜色是绿色。", ("北门", "南门", "船库", "老磨坊"),
        _CODES,
    ),
    Frame(
        "Chinese", "name", "{s}住在{v}。", "", "{s}现在住在{v}。", "{s}不住在{v}。",
        "{s}住在{v}，养了两只猫。",
        "{s}在面包店工作。", ("小明", "王芳", "李雷", "陈静"), ("北京", "上海", "广州", "成都"),
    ),
    Frame(
        "Japanese", "number", "{s}の暗証番号は{v}です。", "{v}は{s}の暗証番号です。",
        "{s}の暗証番号は{v}である。",
        "{s}の暗証番号は{v}ではありません。", "{s}の暗証番号は{v}で、夜だけ使えます。",
        "{s}の色は緑です。",
        ("北門", "南門", "船小屋", "水車小屋"), _CODES,
    ),
    Frame(
        "Japanese", "name", "{s}さんは{v}に住んでいます。", "{v}に{s}さんは住んでいます。",
        "{s}さんは{v}に住んでいる。",
        "{s}さんは{v}に住んでいません。", "{s}さんは猫二匹と{v}に住んでいます。",
        "{s}さんはパン屋で働いています。",
        ("田中", "佐藤", "鈴木", "高橋"), ("東京", "大阪", "京都", "札幌"),
    ),
    Frame(
        "Arabic", "number", "رمز {s} هو {v}.", "{v} هو رمز {s}.", "إن رمز {s} هو {v}.",
        "رمز {s} ليس {v}.",
        "رمز {s} هو {v} ويعمل ليلا فقط.", "لون {s} أخضر.",
        ("البوابة الشمالية", "البوابة الجنوبية", "المخزن", "الطاحونة"), _CODES,
    ),
    Frame(
        "Arabic", "name", "تسكن {s} في {v}.", "{s} تسكن في {v}.", "تسكن {s} الآن في {v}.",
        "لا تسكن {s} في {v}.", "تسكن {s} في {v} مع قطتين.", "تعمل {s} في مخبز.",
        ("ليلى", "سلمى", "مريم", "هند"), ("القاهرة", "بيروت", "تونس", "عمان"),
    ),
)  # fmt: skip

HELD_OUT: tuple[Frame, ...] = (
    Frame(
        "English", "number", "The {s} costs {v} euros.", "", "The price of the {s} is {v} euros.",
        "The {s} does not cost {v} euros.",
        "The {s} costs {v} euros including delivery and a warranty.",
        "The {s} weighs a lot.", ("blue lamp", "red lamp", "desk", "bicycle"),
        ("45", "54", "120", "99.50"),
    ),
    Frame(
        "English", "name", "The head of the {s} department is {v}.",
        "{v} is the head of the {s} department.",
        "{v} leads the {s} department.", "The head of the {s} department is not {v}.",
        "The head of the {s} department is {v}, who came from Norway.",
        "The office of the {s} department is upstairs.",
        ("sales", "design", "legal", "shipping"),
        ("Mara Lind", "Jonas Weber", "Priya Shah", "Omar Haddad"),
    ),
    Frame(
        "English", "date", "The lease of the {s} ends on {v}.", "On {v} the lease of the {s} ends.",
        "The {s}'s lease ends on {v}.", "The lease of the {s} does not end on {v}.",
        "The lease of the {s} ends on {v} unless the owner renews it.",
        "The lease of the {s} was signed in Bonn.",
        ("warehouse", "flat", "workshop", "garage"),
        ("12 June 2027", "13 June 2027", "1 March 2028", "30 June 2027"),
    ),
    Frame(
        "English", "name", "{s} speaks {v}.", "", "{s} can speak {v}.", "{s} doesn't speak {v}.",
        "{s} speaks {v} with a strong accent.", "{s} plays the violin.",
        ("Ingrid", "Paulo", "Yuki", "Samir"), ("Danish", "Turkish", "Korean", "Polish"), single=False,
    ),
    Frame(
        "German", "date", "Der Vertrag für die {s} endet am {v}.",
        "Am {v} endet der Vertrag für die {s}.",
        "Der Vertrag der {s} endet am {v}.", "Der Vertrag für die {s} endet nicht am {v}.",
        "Der Vertrag für die {s} endet am {v} und wird nicht erneuert.",
        "Der Vertrag für die {s} liegt im Schrank.",
        ("Werkstatt", "Wohnung", "Garage", "Halle"), ("12. Juni", "13. Juni", "1. März", "30. August"),
    ),
    Frame(
        "German", "name", "Das Treffen zum {s} wurde auf {v} verschoben.",
        "Auf {v} wurde das Treffen zum {s} verschoben.",
        "Das Treffen zum {s} ist auf {v} verschoben.",
        "Das Treffen zum {s} wurde nicht auf {v} verschoben.",
        "Das Treffen zum {s} wurde auf {v} verschoben, weil der Saal belegt ist.",
        "Das Treffen zum {s} leitet Ingrid.", ("Haushalt", "Sommerfest", "Hafen", "Neubau"),
        ("Dienstag", "Freitag", "Montag", "Samstag"),
    ),
    Frame(
        "German", "name", "{s} spricht {v}.", "", "{s} kann {v} sprechen.", "{s} spricht kein {v}.",
        "{s} spricht {v} mit starkem Akzent.", "{s} spielt Geige.",
        ("Ingrid", "Paul", "Jens", "Uwe"), ("Dänisch", "Türkisch", "Polnisch", "Finnisch"),
        single=False,
    ),
    Frame(
        "Chinese", "number", "{s}的价格是{v}元。", "", "{s}的价格为{v}元。", "{s}的价格不是{v}元。",
        "{s}的价格是{v}元，包括运费。", "{s}的重量很大。", ("蓝色台灯", "红色台灯", "书桌", "自行车"),
        ("45", "54", "120", "99"),
    ),
    Frame(
        "Chinese", "date", "{s}的合同在{v}到期。", "在{v}，{s}的合同到期。", "{s}的合同将于{v}到期。",
        "{s}的合同不在{v}到期。", "{s}的合同在{v}到期，之后不再续签。", "{s}的合同放在柜子里。",
        ("仓库", "公寓", "车间", "车库"), ("六月十二日", "六月十三日", "三月一日", "八月三十日"),
    ),
    Frame(
        "Chinese", "name", "{s}会说{v}。", "", "{s}也会说{v}。", "{s}不会说{v}。",
        "{s}会说{v}，口音很重。",
        "{s}拉小提琴。", ("刘洋", "赵敏", "孙浩", "周婷"), ("丹麦语", "土耳其语", "韩语", "波兰语"),
        single=False,
    ),
    Frame(
        "Japanese", "number", "{s}の値段は{v}円です。", "", "{s}の値段は{v}円だ。",
        "{s}の値段は{v}円ではない。",
        "{s}の値段は送料込みで{v}円です。", "{s}はとても重いです。",
        ("青いランプ", "赤いランプ", "机", "自転車"),
        ("4500", "5400", "12000", "9900"),
    ),
    Frame(
        "Japanese", "date", "{s}の契約は{v}に終わります。", "{v}に{s}の契約は終わります。",
        "{s}の契約は{v}に終わる。",
        "{s}の契約は{v}に終わりません。", "{s}の契約は{v}に終わり、更新されません。",
        "{s}の契約書は棚にあります。",
        ("倉庫", "部屋", "工房", "車庫"), ("6月12日", "6月13日", "3月1日", "8月30日"),
    ),
    Frame(
        "Arabic", "number", "سعر {s} هو {v} يورو.", "", "إن سعر {s} هو {v} يورو.",
        "سعر {s} ليس {v} يورو.",
        "سعر {s} هو {v} يورو مع التوصيل.", "{s} ثقيل جدا.",
        ("المصباح الأزرق", "المصباح الأحمر", "المكتب", "الكرسي"), ("45", "54", "120", "99"),
    ),
    Frame(
        "Arabic", "name", "مدير قسم {s} هو {v}.", "{v} هو مدير قسم {s}.", "المدير في قسم {s} هو {v}.",
        "مدير قسم {s} ليس {v}.", "مدير قسم {s} هو {v} وقد جاء من تونس.",
        "مكتب قسم {s} في الطابق الثاني.",
        ("المبيعات", "التصميم", "الشحن", "القانون"), ("عمر حداد", "سامي نصر", "كريم عباس", "يوسف خليل"),
    ),
)  # fmt: skip
