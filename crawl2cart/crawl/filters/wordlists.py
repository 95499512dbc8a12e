"""English words that tell what kind of text a page is. Their share decides, never a single word."""

import re

# Words that build sentences and name nothing, without contracted endings (don't is don).
FUNCTION_WORDS = frozenset(
    """
a about above after again against all also although am among an and another any anybody anyone
anything are aren around as at away back be became because been before behind being below between
both but by can cannot could couldn did didn do does doesn doing don done down during each either
else enough ever every everybody everyone everything few for from further had hadn has hasn have
haven having he her here hers herself him himself his how however i if in into is isn it its
itself just less like many may me might mine more most much must my myself near neither never next
no nobody none nor not nothing now of off often on once one only onto or other others our ours
ourselves out over own perhaps quite rather same shall she should shouldn since so some somebody
someone something still such than that the their theirs them themselves then there these they this
those though through till to too toward towards under unless until up upon us very was wasn we
were weren what whatever when whenever where whether which while who whom whose why will with
within without won would wouldn yet you your yours yourself
""".split()
)

# Words of sex advertisements. A list on which a single word decides removes innocent pages:
# Dodge et al. 2021, section 5, https://arxiv.org/abs/2104.08758
ADULT_WORDS = frozenset(
    """
adult adults babes blondes brunettes busty cam camgirl camgirls cams curvy erotic erotica escort
escorts explicit fetish flirt flirty hardcore hookup hookups horny hottest kinky lingerie lonely
milf naked naughty nsfw nude nudes orgasm porn porno pornographic sensual sex sexual sexy singles
softcore steamy stripper strippers uncensored webcam webcams xxx
""".split()
)

# Phrases, in lower case, of the terms, notices and policies that every second site has.
LEGAL_PHRASES = re.compile(
    r"""\b(?:
    terms\ of\ (?:use|service) | terms\ and\ conditions | conditions\ of\ (?:sale|use)
    | (?:privacy|cookie)\ (?:policy|notice|statement) | us(?:e|es|e\ of|ing)\ cookies
    | third\ part(?:y|ies) | personal\ data | data\ (?:subjects?|controllers?|protection)
    | processors? | processing\ of | (?:lawful|legal)\ bas[ie]s | legitimate\ interests?
    | (?:supervisory|competent)\ authorit(?:y|ies) | statutory | applicable\ (?:law|legislation)
    | to\ the\ (?:fullest|maximum)\ extent | permitted\ by\ law | required\ by\ law
    | governing\ law | governed\ by | jurisdiction | liabilit(?:y|ies) | liable | severability
    | void | unenforceable | warrant(?:y|ies)\ of | merchantability | consequential | negligence
    | hereby | herein | hereinafter | hereunder | hereof | thereof | thereto | aforesaid
    | foregoing | pursuant\ to | notwithstanding | without\ (?:limitation|prejudice|notice)
    | including\ but\ not\ limited\ to | reserves?\ (?:the|all)\ rights? | sole\ discretion
    | withdraw\ (?:your\ |their\ )?consent | withdrawal\ of\ consent | rectification | erasure
    | portability | intellectual\ property | infring(?:es?|ed|ing|ement)
    | indemnif(?:y|ies|ication) | copyrighted | non-transferable | sublicensable | irrevocable
    | authorised\ to | penalty\ of\ perjury
    | shall\ (?:not|be|have|remain|apply|become|include|continue|process)
    | the\ (?:controller|operator|licensor|licensee)
    )\b""",
    re.VERBOSE,
)
