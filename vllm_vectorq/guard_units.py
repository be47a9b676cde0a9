# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Units of measure and number words."""

from __future__ import annotations

from .guard_words import words

_DAY_S = 86_400.0
_YEAR_S = 365.2425 * _DAY_S

# Base unit -> factor to it -> names.
_MEASURES: dict[str, dict[float, str]] = {
    "g": {
        1e-6: "mcg microgram microgramme µg μg ug",
        1e-3: "mg milligram milligramme",
        1.0: "g gram gramme gr",
        1e3: "kg kilo kilogram kilogramme kgs",
        1e6: "tonne",
        453.59237: "lb lbs",
        28.349523125: "oz ounce",
        6350.29318: "stone",
    },
    "m": {
        1e-9: "nm nanometre nanometer",
        1e-6: "µm μm micron",
        1e-3: "mm millimetre millimeter",
        1e-2: "cm centimetre centimeter",
        1.0: "m metre meter",
        1e3: "km kilometre kilometer kms",
        0.0254: "inch inche in",
        0.3048: "ft foot feet",
        0.9144: "yd yard",
        1609.344: "mi mile",
    },
    "m2": {1.0: "m2 sqm", 1e4: "hectare ha", 0.09290304: "sqft ft2", 1e6: "km2"},
    "l": {
        1e-3: "ml millilitre milliliter cc",
        1e-2: "cl centilitre",
        0.1: "dl decilitre",
        1.0: "l litre liter ltr",
        3.785411784: "gal gallon",
        0.56826125: "pint",
        1e3: "m3",
    },
    "s": {
        1e-6: "µs μs microsecond",
        1e-3: "ms millisecond msec",
        1.0: "s sec second secs",
        60.0: "min minute mins",
        3600.0: "h hr hour hrs",
        _DAY_S: "d day",
        7 * _DAY_S: "w wk week wks",
        14 * _DAY_S: "fortnight",
        _YEAR_S / 12: "mo month mth mths",
        _YEAR_S / 4: "quarter",
        _YEAR_S: "y yr year yrs yo",
        10 * _YEAR_S: "decade",
        100 * _YEAR_S: "century",
    },
    "byte": {
        1.0: "b byte",
        1e3: "kb kilobyte",
        1e6: "mb megabyte meg",
        1e9: "gb gigabyte gig gigs",
        1e12: "tb terabyte",
        1e15: "pb petabyte",
        2.0**10: "kib",
        2.0**20: "mib",
        2.0**30: "gib",
        2.0**40: "tib",
    },
    "bit/s": {
        1e3: "kbps kbit/s kb/s",
        1e6: "mbps mbit/s mbit mb/s",
        1e9: "gbps gbit/s gbit gb/s",
    },
    "m/s": {1 / 3.6: "km/h kmh kph", 0.44704: "mph", 1.0: "m/s", 0.514444: "kn knot"},
    "wh": {1.0: "wh", 1e3: "kwh", 1e6: "mwh"},
    "w": {1.0: "w watt", 1e3: "kw kilowatt", 1e6: "mw megawatt", 745.7: "hp bhp"},
    "v": {1e-3: "mv", 1.0: "v volt"},
    "a": {1.0: "amp ampere", 1e-3: "ma milliamp"},
    "ah": {1e-3: "mah"},
    "hz": {1.0: "hz hertz", 1e3: "khz", 1e6: "mhz", 1e9: "ghz"},
    "j": {1.0: "j joule", 1e3: "kj kilojoule"},
    "cal": {1.0: "kcal"},
    "pa": {1.0: "pa pascal", 1e5: "bar", 6894.757: "psi", 100.0: "hpa mbar"},
    "c": {1.0: "c °c degc celsius centigrade"},
    "f": {1.0: "f °f degf fahrenheit"},
    "deg": {1.0: "° degree deg"},
    "%": {1.0: "% percent pc pct percentage"},
    "bp": {1.0: "bps bp"},
    "x": {1.0: "x times"},
    "px": {1.0: "px pixel"},
    "token": {1.0: "token"},
    "clock": {60.0: "oclock o'clock"},
    "clock12": {60.0: "a.m am"},
    "clock24": {60.0: "p.m pm"},
    "penny": {1.0: "p pence penny"},
    "cent": {1.0: "cent"},
    "pound": {1.0: "pound"},
}
# Currency -> its other names.
_CURRENCY_NAMES = {
    **{"usd": "dollar", "eur": "euro", "gbp": "sterling quid", "jpy": "yen"},
    **{"cny": "yuan rmb", "inr": "rupee", "pln": "zloty", "rub": "ruble"},
    **{"btc": "bitcoin", "eth": "ethereum"},
    **dict.fromkeys(words("chf aud cad nzd sek nok dkk czk huf brl mxn zar"), ""),
    **dict.fromkeys(words("aed sgd hkd krw uah thb"), ""),
}
CURRENCIES = {
    name: currency
    for currency, others in _CURRENCY_NAMES.items()
    for name in (currency, *others.split())
}
SYMBOLS = {
    **{"£": "gbp", "$": "usd", "€": "eur", "¥": "jpy", "₹": "inr", "₽": "rub"},
    **{"₩": "krw", "₺": "try", "₴": "uah", "฿": "thb", "us$": "usd", "a$": "aud"},
    **{"au$": "aud", "c$": "cad", "ca$": "cad", "nz$": "nzd", "hk$": "hkd"},
    **{"s$": "sgd", "%": "%"},
}
UNITS: dict[str, tuple[str, float]] = {
    name: (base, factor)
    for base, scales in _MEASURES.items()
    for factor, names in scales.items()
    for name in names.split()
} | {
    name: (currency, 1.0)
    for table in (CURRENCIES, SYMBOLS)
    for name, currency in table.items()
}
# Letters and short words that are units only when glued to digits.
GLUED_ONLY = words("a b c d f h j p s v w x y in pa pc mo yo gr bp")

MULTIPLIERS = {
    "k": 1e3,
    "m": 1e6,
    "mn": 1e6,
    "mio": 1e6,
    "b": 1e9,
    "bn": 1e9,
    "tn": 1e12,
}
ORDINAL_ENDINGS = frozenset(("st", "nd", "rd", "th"))

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)
NUMBER_WORDS: dict[str, float] = (
    {word: float(value) for value, word in enumerate(_SMALL.split())}
    | {word: 20.0 + 10 * index for index, word in enumerate(_TENS.split())}
    | {word: 1.0 + index for index, word in enumerate(_ORDINALS.split())}
    | {"half": 0.5, "dozen": 12.0, "couple": 2.0, "twice": 2.0, "single": 1.0}
)
SCALES = {
    "hundred": 1e2,
    "thousand": 1e3,
    "million": 1e6,
    "billion": 1e9,
    "trillion": 1e12,
}
# Number words that often count nothing.
VAGUE = frozenset(("one", "first", "second", "half", "single", "couple", "twice"))
