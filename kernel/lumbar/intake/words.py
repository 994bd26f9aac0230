"""Words of SeriesDescription, ProtocolName and BodyPartExamined, in the languages in which hospitals write them.

English, German, French, Spanish, Portuguese, Italian, Dutch, Polish, Turkish, Russian, Japanese, Chinese and Korean.
Texts are compared without accents and in lower case; whatever is no letter, digit, ``+`` or ``*`` counts as a blank.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_CYRILLIC = str.maketrans({"т": "t", "с": "c"})  # look-alikes in "Т1", "Т2" and "С+"

# What may stand directly before T1 and T2: "SagT1", "wT2"; not the letters of other words ("post1").
_BEFORE = (
    r"(?:^|(?<=[^a-z0-9])|(?<=sag)|(?<=sagittal)|(?<=ax)|(?<=axial)|(?<=tra)|(?<=cor)|(?<=tse)|(?<=fse)|"
    r"(?<=\bw)|(?<=\bs))"
)
_NO_VERTEBRA = r"(?!\d)(?!\s*(?:to|bis)?\s*\b(?:t|th)(?:[3-9]|1[0-2])\b)"  # "T1 T12" names vertebrae

_WEIGHTINGS: dict[str, str] = {
    "T1": _BEFORE + "t1" + _NO_VERTEBRA,
    "T2": _BEFORE + "t2" + _NO_VERTEBRA + r"(?!\s*(?:\*|star|stern))",
    "STIR": r"stir|tirm|\btir(?:[23]d|\b)|\bstr\b|\birfse\b|\bir tse\b|\bir fse\b|\bfir\b",
    "PD": r"\bpdw?\b|\bpd(?=[a-z])|proton|\bdp\b|\bdensid|\bdensit|\brho\b|протон|質子|质子",
    "FLAIR": r"flair|dark fluid",
    "T2*": r"t2\s*(?:\*|star|stern|w? ?ffe)|\bmedic\b|\bmerge\b|\bmffe\b|\bswi\b|hemo",
    "gradient echo": r"\bgre\b|\bffe\b|\bflash\b|\bfl[23]d|\bvibe\b|\bspgr\b|\bfspgr\b|\bfiesta\b|"
    r"\bciss\b|\btrufi|\btfi[23]d|\bdess\b|\bb ?ffe\b|\bbtfe\b|\bmprage\b|gradient|\bthrive\b|\blava\b",
    "diffusion": r"\bdwi\b|\bdti\b|diffus|difus|\badc\b|\beadc\b|tracew|\bb ?\d{3,4}\b|\bepi\b|диффуз|拡散|弥散|확산",
    "myelography": r"m[yi]elo|миело|ミエロ|水成像|\bmrm\b|urogra|\bmrcp\b",
    "angiography": r"angio|\btof\b|\bmra\b|\bdsa\b",
    "perfusion": r"perfus|\bdce\b|\bdsc\b|twist|\bdyn",
    "map": r"t[12] ?map|\bmapping\b|\br2\*?\b|quant",
}
_PLANES = {
    "sagittal": r"\bsag|\bsg\b|sagit|\bs?sagg|сагит|strzalk|矢状|시상",
    "axial": r"\bax|\btra(?!c)|transv|axial|\baks|аксиал|трансв|поперечн|poprzeczn|横断|軸位|轴位|횡단|축상",
    "coronal": r"\bcor(?!d)|coron|koron|frontal|корон|фронт|czolow|冠状|관상",
}
_LOCALISER = (
    r"locali[sz]|lokali[sz]|\bloc\b|\blok\b|localiz|scout|survey|topogra|\bpilot|scano|\b3 ?plan|three ?plan|"
    r"\btri ?plan|reperage|\bplan ?scan|\bplanning|ubersicht|uebersicht|calib|\bcal\b|\bshim|smartbrain|prescan|"
    r"posdisp|"
    r"локал|обзор|定位|位置決|위치"
)
_DERIVED = (
    r"\bmpr\b|\bmip\b|\bminip\b|reformat|rekonst|recons|compos|\bstitch|subtract|\bsub\b|screen ?s|capture|"
    r"report|\bvrt\b"
)
_WITHOUT_CONTRAST = (
    r"\b(?:without|no|non|w o|sans|sin|ohne|senza|sem|zonder|bez|без|pre|vor|avant|antes|prima|przed|до)\W*"
    r"(?:i ?v ?)?(?:c\b|gd|gad|contrast|kontrast|contraste|contrasto|km\b|k m\b|mdc|ce\b|контраст)|nati[vf]|"
    r"平扫|造影前|\bpre ?gd|\bpre ?km"
)
_WITH_CONTRAST = (
    r"\+ ?(?:c|gd|gad\w*|km|k m|mdc|ce|contrast\w*|kontrast\w*|контраст\w*)\b|\bc ?\+|\bc ?plus\b|"
    r"\b(?:gd|gado\w*|gad|gadovist|dotarem|magnevist|multihance|prohance|omniscan|clariscan|km|mdc|ivk|pdc|ce|"
    r"kontrast\w*|contrast\w*|enhanced|inj)\b|\bpost\b|\bpost ?(?:gd|gad|km|contrast|inj|iv|c)|nach ?km|\bapres\b|"
    r"контраст|造影|増強|增强|조영"
)
_DIXON = r"dixon|\bideal\b|\bflex\b|\bxd\b"
_DIXON_PARTS = {
    "opposed phase": r"\bopp?\b|oppos|out ?of ?ph|out ?ph|gegenphas|fuera|\bop ?ph",
    "in phase": r"\bin\b|\bip\b|in ?ph|inphas|en fase|en phase",
    "water": r"\bw\b|water|wasser|\beau\b|agua|acqua|вода|水",
    "fat": r"\bf\b|\bfat\b(?! ?s)|\bfett\b|graisse|\bgrasa\b|\bgrasso\b|gordura|жир|脂肪|지방",
}
_LUMBAR = (
    r"lumb|lomb|lend|\bl ?spine|\blws\b|\blsws\b|\blwk\b|\blss\b|\bls ?spine|\bls\b|поясн|пояс|ledzw|\bbel\b|腰|요추|"
    r"\bl1 ?l5|\bl1 ?s1|\bl[1-5] ?s1\b"
)
_SPINE = r"spine|wirbels|rachis|rachid|columna|coluna|colonna|kregosl|позвон|omurga|脊椎|脊柱|척추|wervel"
_OTHER_PARTS = {
    "knee": r"knee|\bknie|genou|rodilla|ginocch|joelho|колен|kolan|\bdiz\b|膝|무릎|menisc",
    "hip": r"\bhips?\b|\bhuft|\bhueft|hanche|cadera|\banca\b|quadril|тазобедр|biodr|kalca|股関節|髋|고관절",
    "shoulder": r"shoulder|schulter|epaule|hombro|spalla|\bombro|плеч|barku|omuz|肩|어깨",
    "ankle or foot": r"ankle|sprunggelenk|cheville|tobillo|cavigli|tornozelo|\bfoot\b|\bfuss\b|\bpied\b|"
    r"\bpiede|голеност|足|발목",
    "wrist or hand": r"wrist|handgelenk|poignet|muneca|\bpolso|\bpunho|\bhand\b|\bfinger|запяст|手",
    "elbow": r"elbow|ellenbog|\bcoude\b|\bcodo\b|gomito|cotovelo|локт|dirsek|肘",
    "head": r"\bbrain|\bhead\b|schadel|schaedel|\bkopf|neurocran|cerebr|cerveau|encef|enceph|\bcranio|\bcrane|"
    r"cabeza|testa\b|голов|мозг|\bglow|\bbeyin|脳|頭|颅|头|脑|뇌|orbit|pituit|\bears?\b|\biac\b",
    "cervical spine": r"cervic|servik|zervik|\bc ?spine|\bcs ?spine|\bhws\b|halswirb|\bneck\b|шейн|szyj|頸|颈|경추",
    "thoracic spine": r"thoracic|thorak|torakal|toracic|thoracique|\bt ?spine|\bd ?spine|\bts ?spine|\bbws\b|brustwirb|"
    r"грудн|piersi|胸椎|흉추",
    "pelvis": r"pelvi|\bbecken|bassin\b|bacino|\bтаз\b|малого таза|miednic|骨盤|骨盆|골반|prostat|uter",
    "abdomen or chest": r"abdom|\bbauch|ventre|живот|брюш|腹|\bliver|\bleber|\bfoie|higado|fegato|kidney|renal|"
    r"\bheart|cardiac|\bherz|breast|mamm|\bchest|\bthorax\b|pancrea",
    "thigh or leg": r"femur|\bthigh|oberschenkel|\btibia|\bleg\b|\bcalf\b|\bwade\b",
}


def _bare(text: str) -> str:
    """Letters without accents; of Korean syllables their letters."""
    return "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))


def _compiled(patterns: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {name: re.compile(_bare(pattern)) for name, pattern in patterns.items()}


_SINGLE = _compiled(
    {
        "localiser": _LOCALISER,
        "derived": _DERIVED,
        "without contrast": _WITHOUT_CONTRAST,
        "with contrast": _WITH_CONTRAST,
        "dixon": _DIXON,
        "lumbar": _LUMBAR,
        "spine": _SPINE,
    }
)
_COMPILED = {
    name: _compiled(patterns)
    for name, patterns in (
        ("weightings", _WEIGHTINGS),
        ("planes", _PLANES),
        ("dixon", _DIXON_PARTS),
        ("parts", _OTHER_PARTS),
    )
}


@lru_cache(maxsize=4096)
def normalised(text: str) -> str:
    """Lower case, without accents, with blanks between words."""
    plain = _bare(unicodedata.normalize("NFKC", text).casefold())
    plain = plain.replace("ł", "l").replace("ı", "i").replace("ß", "ss")
    plain = re.sub(r"[тс](?=\d|\+)", lambda match: match[0].translate(_CYRILLIC), plain)
    return " ".join(re.sub(r"[^\w+*]|_", " ", plain).split())


def _names(group: str, text: str) -> list[str]:
    plain = normalised(text)
    return [name for name, pattern in _COMPILED[group].items() if pattern.search(plain)]


def _says(name: str, text: str) -> bool:
    return _SINGLE[name].search(normalised(text)) is not None


def weightings(text: str) -> list[str]:
    """The contrasts that a text names: T1, T2, STIR, PD, FLAIR, T2*, gradient echo, diffusion and others."""
    return _names("weightings", text)


def planes(text: str) -> list[str]:
    """The planes that a text names: sagittal, axial, coronal."""
    return _names("planes", text)


def names_localiser(text: str) -> bool:
    """Whether a text names a localiser, a survey or a calibration."""
    return _says("localiser", text)


def names_derived(text: str) -> bool:
    """Whether a text names images computed from others: reformats, projections, subtractions."""
    return _says("derived", text)


def names_contrast(text: str) -> bool:
    """Whether a text says that a contrast agent was given."""
    rest = _SINGLE["without contrast"].sub(" ", normalised(text))
    return _SINGLE["with contrast"].search(rest) is not None


def names_dixon(text: str) -> bool:
    """Whether a text names a separation of water and fat."""
    return _says("dixon", text)


def dixon_part(text: str) -> str:
    """Which part of a Dixon acquisition a text names: in phase, opposed phase, water or fat; empty for none or several.

    Single letters count only at the end, as scanners put them: ``t2_tse_dixon_sag_W``.
    """
    plain = normalised(text)
    last = plain.rsplit(" ", 1)[-1]
    named = [
        name
        for name, pattern in _COMPILED["dixon"].items()
        if any(len(match[0]) > 2 or match[0] == last for match in pattern.finditer(plain))
    ]
    return named[0] if len(named) == 1 else ""


def names_lumbar(text: str) -> bool:
    """Whether a text names the lumbar spine."""
    return _says("lumbar", text)


def names_spine(text: str) -> bool:
    """Whether a text names a spine, whichever part of it."""
    return _says("spine", text)


def other_parts(text: str) -> list[str]:
    """The parts of the body other than the lumbar spine that a text names."""
    return _names("parts", text)
