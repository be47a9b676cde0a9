# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Names that count as names however they are written, and calendar words."""

from __future__ import annotations

from .guard_units import CURRENCIES
from .guard_words import words

PLACES = words(
    "afghanistan albania algeria america argentina armenia australia austria bahrain "
    "bangladesh belarus belgium bolivia brazil britain bulgaria cambodia cameroon "
    "canada colombia croatia cuba cyprus czechia denmark ecuador egypt england "
    "estonia ethiopia finland france germany ghana greece hungary iceland india "
    "indonesia iran iraq ireland israel italy jamaica japan kazakhstan kenya kuwait "
    "latvia lebanon libya lithuania luxembourg malaysia malta mexico moldova monaco "
    "mongolia morocco myanmar nepal netherlands nicaragua nigeria norway pakistan "
    "panama paraguay peru philippines portugal qatar romania russia scotland serbia "
    "singapore slovakia slovenia somalia spain sudan sweden switzerland syria taiwan "
    "tanzania thailand tunisia uganda ukraine uruguay usa uk uae uzbekistan venezuela "
    "vietnam wales yemen zambia zimbabwe europe asia africa amsterdam athens atlanta "
    "baghdad bangkok barcelona beijing berlin boston brussels budapest cairo chicago "
    "copenhagen dallas delhi dubai dublin edinburgh florence frankfurt geneva glasgow "
    "hamburg helsinki houston istanbul jakarta jerusalem johannesburg kyiv lagos "
    "lisbon liverpool london madrid manchester melbourne miami milan montreal moscow "
    "mumbai munich nairobi naples oslo paris philadelphia prague rome seattle seoul "
    "shanghai stockholm sydney tokyo toronto vancouver vienna warsaw zurich alaska "
    "arizona california colorado florida hawaii illinois michigan nevada ohio oregon "
    "texas utah virginia"
)
PEOPLES = words(
    "american arabic australian austrian brazilian british bulgarian canadian "
    "cantonese chinese croatian czech danish dutch egyptian english finnish french "
    "german greek hebrew hindi hungarian indian indonesian irish italian japanese "
    "korean latin mandarin mexican norwegian persian portuguese punjabi romanian "
    "russian scottish serbian spanish swedish swiss tamil thai turkish ukrainian urdu "
    "vietnamese welsh"
)
# Spellings of one name.
ALIASES = {
    "us": "usa",
    "u.s": "usa",
    "u.s.a": "usa",
    "u.k": "uk",
    "e.u": "eu",
    "u.a.e": "uae",
    "holland": "netherlands",
    "rmb": "cny",
}
NAMES = PLACES | PEOPLES | frozenset(CURRENCIES)

WEEKDAYS = {
    **{name: name for name in words("monday tuesday wednesday thursday friday")},
    **{name: name for name in words("saturday sunday weekend weekday")},
    **{"mon": "monday", "tue": "tuesday", "tues": "tuesday", "thu": "thursday"},
    **{"thur": "thursday", "thurs": "thursday", "fri": "friday"},
}
MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)
MONTHS = {
    **{name: name for name in MONTH_NAMES},
    **{"jan": "january", "feb": "february", "mar": "march", "apr": "april"},
    **{"jun": "june", "jul": "july", "aug": "august", "sep": "september"},
    **{"sept": "september", "oct": "october", "nov": "november", "dec": "december"},
}
# Words that are months only where a month can stand.
AMBIGUOUS_MONTHS = words("may march mar")
MONTH_CUES = words("in of by since from until till to early late mid next last this")
RELATIVE_DAYS = words("today tonight tomorrow yesterday")
DAY_PARTS = words("morning afternoon evening night noon midnight lunchtime")
SEASONS = words("spring summer autumn winter")
HOLIDAYS = words("christmas easter thanksgiving ramadan halloween diwali hanukkah")
PERIODS = words(
    "day week month year quarter weekend night morning afternoon evening century decade"
)
PERIOD_CUES = words("this next last previous coming following same past")

# Function words that hardly occur in the other languages.
LANGUAGES = {
    "en": words("the how what is my do to of and with for when where why can i you"),
    "de": words("ich nicht und das ein eine wie mein ist mit auf zu der wann warum"),
    "fr": words("je les des est une pour mon dans vous puis avec quel comment sur"),
    "es": words("el los puedo mi cual cuando donde esta con para una por del"),
    "it": words("il che per come posso mio sono della gli quando dove perche di"),
    "pt": words("meu minha posso nao uma para como voce quando onde um os do"),
    "nl": words("ik het een van hoe mijn niet kan wat waar wanneer naar mij"),
}
