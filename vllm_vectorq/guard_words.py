# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Function words of English and what they do in a sentence."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """The words of a list written as one string."""
    return frozenset(text.split())


FIRST_PERSON = words("i me my mine myself we us our ours ourselves")
PRONOUNS = words("i you he she it we they one there u")
PERSONAL = words("i you he she it we they u")
OTHER_PRONOUNS = words(
    "me him her us them mine yours hers ours theirs myself yourself himself herself "
    "itself ourselves themselves this that these those someone anyone somebody "
    "anybody something anything everything everyone everybody thing things stuff"
)
DETERMINERS = words(
    "the a an my your his its our their this that these those any some each every "
    "all both such another other"
)
BE = words("am is are was were be been being 's isn ain")
HAVE = words("have has had having")
DO = words("do does did doing done")
MODALS = words("can could will would shall should may might must ought cannot")
AUXILIARIES = BE | HAVE | DO | MODALS
PREPOSITIONS = words(
    "of in on at to from for with by about into onto over under above below through "
    "during until till since between among against within without towards toward via "
    "per across near beside behind beyond around after before than as off out up down "
    "inside outside upon despite except like"
)
CONJUNCTIONS = words(
    "and or but if because so while although though when whether unless that then "
    "also too as"
)
QUESTION = words("what which who whom whose when where why how")
ADVERBS = words(
    "ever again now here there right away soon much many more most less least lot lots "
    "exactly bit little few several enough own same else instead rather well only not "
    "no nor never way back together today tonight tomorrow yesterday possibly "
    "generally usually normally always hence therefore however anyway once twice due"
)
# A clause of nothing but these is polite and asks nothing; the empty word is a mark.
COURTESIES = words(
    "hi hiya hello hey dear greetings good morning afternoon evening there team "
    "everyone all folks guys sir madam mate thanks thank thx cheers you so very much "
    "many a lot in advance for your the help time any would be is appreciated sorry "
    "excuse me to bother please quick question just kind best regards wishes i was am "
    "wondering when have get chance moment minute one but silly stupid dumb basic "
    "simple maybe probably this might sound"
) | {""}
FILLERS = words(
    "um uh er erm hmm hm ah oh ok okay hi hiya hello hey dear greetings thanks thank "
    "thx cheers sorry please pls plz kindly bother excuse pardon wondering regards yes "
    "yeah yep lol just really very actually basically currently maybe perhaps simply "
    "quite still yet already even also"
)
# Verbs and nouns that say next to nothing about the subject; as stems' sources.
LIGHT = words(
    "be have do get got make take go come put give let want need like wish would "
    "know tell say ask explain help assist try use see look think seem happen keep "
    "able possible available way process step steps method procedure best thing kind "
    "type sort anything something someone people person possible mean stay work out "
    "common usual typical hope advise inform provide offer wonder question answer info "
    "information detail place going gonna wanna guess sure able involve allow arrange"
)
# After these a "to" opens a purpose or wish, so a verb follows.
INFINITIVE_CUES = words(
    "how want wants need needs like able have has had way ways going where what "
    "trying try tried hope hoping wish wishing possible ready used ought allowed "
    "easiest steps when order best forgot process required entitled used due supposed "
    "long cost costs takes take me you us"
)

NEGATORS = words("not cannot never without neither nor none nobody nothing nowhere no")
LEXICAL_NEGATORS = words(
    "non avoid avoids avoiding avoided miss misses unable hardly rarely "
    "seldom lack lacks lacking prevent prevents preventing"
)
FOREIGN_NEGATORS = words(
    "nicht kein keine keinen keiner ohne niemals pas jamais sans nunca sin nao sem "
    "niet geen zonder senza не нет без никогда ne inte ikke nie"
)
CONTRACTED_NEGATORS = words(
    "dont cant wont isnt arent wasnt werent didnt doesnt havent hasnt hadnt couldnt "
    "wouldnt shouldnt mustnt neednt aint"
)
# "I don't know how to" asks the same as "how to".
HEDGES = words("know sure idea understand mind worry forget hesitate certain clue")
# "un" and "non" before anything but these negate what follows.
NOT_NEGATED = (
    "unless until under uncle union unit unite united unity unique universe universal "
    "university uni uniform unison unanimous none nonsense unto unicode unix undo"
)
NEGATED_FORMS = {
    "in": "active adequate appropriate capable complete compatible consistent correct "
    "dependent direct effective eligible excusable expensive formal secure sufficient "
    "valid visible voluntary accessible accurate",
    "im": "possible mature patient perfect polite proper",
    "il": "legal logical legible",
    "ir": "regular relevant responsible reversible rational",
    "dis": "agree allow allowed appear approve approved connect connected continue "
    "continued honest like obey similar trust able engage",
}

ONLY = words("only solely exclusively")
ALL = words("all every each everything everyone everybody entire whole")
EXCEPT = words("except excluding excepting")
# Adjectives that change which rule applies when they are added or dropped.
RESTRICTIVE = words(
    "joint extended temporary permanent international domestic self partial virtual "
    "disposable premium express secondary interim provisional additional "
    "conditional emergency commercial someone somebody"
)
FREQUENCIES = {
    "hour": "hourly",
    "day": "daily",
    "night": "nightly",
    "week": "weekly",
    "month": "monthly",
    "quarter": "quarterly",
    "year": "yearly",
    "annual": "yearly",
    "annually": "yearly",
    "annum": "yearly",
}
FREQUENCY_WORDS = words("hourly daily nightly weekly monthly quarterly yearly")
PEOPLE = words(
    "child kid son daughter baby toddler teenager wife husband spouse partner friend "
    "girlfriend boyfriend mother father mum mom dad parent brother sister grandparent "
    "grandmother grandfather colleague coworker boss manager employee employer worker "
    "contractor student pupil teacher tenant landlord customer client guest visitor "
    "member neighbour neighbor patient owner homeowner pensioner veteran foreigner "
    "dog cat pet"
)
