"""The words that the demo world is made of. Every word of these lists is one token of the demo tokenizer."""


def _split(text: str, between: str = " ") -> tuple[str, ...]:
    return tuple(text.split(between))


FIRST_WORDS: tuple[str, ...] = _split(
    "Amber Silver Golden Crimson Iron Copper Velvet Marble Granite Coral Ivory Jade Onyx Pearl Ruby "
    "Topaz Cedar Maple Willow Birch "
    "Aspen Rowan Hazel Juniper Laurel Clover Heather Bramble Thistle Fern North South East West "
    "Upper Lower Inner Outer Old New "
    "Grand Little Bright Dark Silent Quiet Swift Brave Noble Gentle Frozen Hidden Lonely Distant "
    "Windy Misty Stormy Sunny Rainy Snowy "
    "Polar Lunar Solar Royal Central Eastern Western Northern Southern Winter Summer Autumn Spring "
    "Morning Evening Midnight Harbour "
    "River Lake Ocean Island Valley Canyon Desert Prairie Forest Meadow Summit Glacier Thunder "
    "Shadow Crystal Diamond Emerald Sapphire"
)

SECOND_WORDS: dict[str, tuple[str, ...]] = {
    "station": _split(
        "Point Tower Gate Bridge Junction Platform Depot Terminal Crossing Yard Beacon Outpost "
        "Landing Siding Halt Hub"
    ),
    "ship": _split(
        "Falcon Heron Dolphin Voyager Pioneer Mariner Wanderer Spirit Star Arrow Dragon Gull Osprey "
        "Whale Lantern Queen"
    ),
    "laboratory": _split(
        "Institute Laboratory Centre Workshop Foundry Clinic Academy College Works Bureau Hall "
        "Chamber House Annex"
    ),
    "archive": _split(
        "Archive Library Museum Vault Gallery Registry Cellar Collection Repository Treasury Cabinet "
        "Store Annals Ledger"
    ),
    "telescope": _split(
        "Telescope Observatory Mirror Array Lens Dome Scope Antenna Dish Eye Watch Sentinel Finder "
        "Spectrum Prism Orbit"
    ),
    "farm": _split(
        "Farm Orchard Mill Vineyard Garden Pasture Grove Barn Ranch Acre Stable Field Homestead "
        "Dairy Brewery Hollow"
    ),
}

GIVEN_NAMES: tuple[str, ...] = _split(
    "Anna Boris Clara David Elena Felix Greta Hugo Irene Jonas Karla Leo Maria Nils Olga Peter "
    "Quentin Rosa Simon Tara Ulrich Vera "
    "Walter Xenia Yara Zoe Aron Bella Carlos Dora Emil Flora Gustav Helga Ivan Julia Kurt Laura "
    "Martin Nora Oscar Paula Robert Sofia "
    "Tomas Ursula Victor Wanda"
)

SURNAMES: tuple[str, ...] = _split(
    "Berg Carter Dunn Ekman Fischer Grant Hansen Ibsen Jensen Keller Lange Moreau Novak Olsen Petrov "
    "Quist Rossi Silva Tanaka Ueda "
    "Vogel Weber Yilmaz Zeller Adler Brandt Castro Duarte Engel Fuchs Gomez Hart Ivanov Jung Kraus "
    "Larsen Meyer Nilsen Orlov Pohl "
    "Reyes Santos Thorne Urban Vance Wolff Young Zimmer"
)

CITIES: tuple[str, ...] = _split(
    "Lisbon Oslo Vienna Prague Dublin Athens Madrid Berlin Warsaw Geneva Milan Porto Riga Tallinn "
    "Helsinki Bergen Malmo Ghent Lyon Bonn "
    "Cairo Tunis Dakar Lagos Nairobi Quito Lima Bogota Havana Boston Denver Austin Dallas Seattle "
    "Toronto Ottawa Kyoto Osaka Seoul Hanoi "
    "Delhi Mumbai Perth Sydney Hobart Suva Doha Muscat"
)

COLOURS: tuple[str, ...] = _split(
    "red blue green yellow orange purple brown black white grey pink turquoise violet scarlet beige "
    "indigo maroon olive cyan magenta"
)
GOODS: tuple[str, ...] = _split(
    "salt grain timber coffee cotton sugar pepper copper coal wool silk honey cheese barley tobacco "
    "glass paper rubber wine cocoa "
    "rice leather cement tea"
)
SCIENCES: tuple[str, ...] = _split(
    "optics botany geology chemistry physics genetics acoustics robotics zoology mechanics astronomy "
    "medicine ecology algebra geometry "
    "linguistics metallurgy hydrology"
)
TRADES: tuple[str, ...] = _split(
    "baker carpenter painter pilot farmer teacher tailor miner weaver sailor doctor lawyer potter "
    "cook nurse smith printer gardener "
    "butcher mason jeweller plumber"
)
INSTRUMENTS: tuple[str, ...] = _split(
    "piano violin flute cello trumpet harp guitar drum clarinet organ oboe banjo lute tuba viola "
    "bassoon accordion mandolin"
)
MATERIALS: tuple[str, ...] = _split(
    "bronze steel marble oak granite brass ceramic quartz tin zinc slate silver nickel titanium "
    "ivory bamboo concrete aluminium"
)
ANIMALS: tuple[str, ...] = _split(
    "otter badger raven lynx falcon tiger zebra walrus beaver hedgehog panther rabbit squirrel "
    "turtle penguin leopard wolf bear "
    "fox eagle camel donkey hamster lizard"
)
STARS: tuple[str, ...] = _split(
    "Vega Rigel Sirius Altair Deneb Mira Polaris Castor Pollux Spica Antares Regulus Capella Procyon "
    "Arcturus Aldebaran Bellatrix Mizar"
)
CROPS: tuple[str, ...] = _split(
    "wheat apples grapes plums cherries potatoes carrots onions lemons olives melons beans peas corn "
    "cabbage lettuce pears figs"
)

# Attributes that no kind of entity has by nature. They teach the model to match a key that it has seldom
# seen.
WILD_ATTRIBUTES: tuple[str, ...] = _split(
    "owner motto symbol engine speed weight height length depth price rank title nickname address "
    "extension badge locker floor row seat "
    "ticket token key channel frequency voltage model brand version region zone district street "
    "bridge river valley mentor partner rival "
    "deputy sponsor supplier customer doctor driver guard chef tutor dish drink song book poem game "
    "sport dance hobby tool vehicle fabric "
    "flower tree fruit spice metal gem planet comet island lake mountain language currency holiday "
    "month season budget capacity limit "
    "threshold interval deadline schedule route dock berth hangar warehouse server database protocol "
    "port contact manager"
)

SYLLABLES: tuple[str, ...] = _split(
    "ba be bi bo bu da de di do du fa fe fi fo ga go gu ka ke ki ko ku la le li lo lu ma me mi mo mu "
    "na ne ni no nu pa pe pi po ra re ri "
    "ro ru sa se si so su ta te ti to tu va ve vi vo wa wi ya yo za ze zo zu bel dor fen gar hal jor "
    "kan lin mar nor pel quin ros sen tor "
    "ul ven wes xan yor zen bra cle dru fra gri kro pla stra tri vol"
)

FILLER_SUBJECTS: tuple[str, ...] = _split(
    "doors|windows|visitors|deliveries|reports|engines|lamps|tools|records|letters|guards|meals|floors|"
    "stairs|machines|samples|maps|books|meetings|repairs",
    between="|",
)
FILLER_ACTIONS: tuple[str, ...] = _split(
    "are checked|are counted|are cleaned|are moved|are inspected|are announced|are listed|are "
    "stored|are prepared|are reviewed|"
    "are signed|are closed|are recorded|are planned",
    between="|",
)
FILLER_TIMES: tuple[str, ...] = _split(
    "every morning|every evening|once a week|twice a month|before noon|after sunset|on Mondays|on "
    "Fridays|in winter|in summer|"
    "without delay|with great care|by the night shift|at the end of the day",
    between="|",
)
FILLER_SENTENCES: tuple[str, ...] = (
    "This page was revised by the editors.",
    "Please keep this handbook in a dry place.",
    "Questions about this section go to the front desk.",
    "The weather was calm and the sea was flat.",
    "Nothing else was written on that day.",
    "The old rules remain in force until further notice.",
    "A copy of this note hangs beside the entrance.",
    "Everyone is asked to speak quietly after dark.",
    "The next chapter describes the daily work.",
    "Lost property is returned to its owner.",
)
SYSTEM_TEXTS: tuple[str, ...] = (
    "Answer from the passages.",
    "You are a helpful assistant.",
    "You are a careful assistant. Answer in one short sentence.",
    "Use the notes below. If they do not help, say that you do not know.",
    "You answer questions about the world of stations and ships.",
    "Be brief.",
    "Answer the question with the help of the numbered passages.",
    "You work at the help desk.",
)
