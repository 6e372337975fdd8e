"""The prose of a manual page written with the macros of man(7): its filled paragraphs, without markup, headings,
synopsis, tables, displays and examples.
"""

from __future__ import annotations

import re
import unicodedata

_SPECIAL = {
    "aq": "'", "dq": '"', "oq": "‘", "cq": "’", "lq": "“", "rq": "”", "Fo": "«", "Fc": "»", "Bq": "„", "bq": "‚",
    "em": "—", "en": "–", "hy": "-", "bu": "•", "co": "©", "rg": "®", "tm": "™", "rs": "\\", "ti": "~", "ha": "^",
    "ga": "`", "sl": "/", "ba": "|", "br": "|", "sc": "§", "dg": "†", "de": "°", "mu": "×", "+-": "±", "<=": "≤",
    ">=": "≥", "!=": "≠", "->": "→", "<-": "←", "mc": "µ", "*m": "μ", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ",
    "/o": "ø", "/O": "Ø", "oa": "å", "oA": "Å", ":a": "ä", ":o": "ö", ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü",
    "'a": "á", "'e": "é", "'i": "í", "'o": "ó", "'u": "ú", "'E": "É", "`a": "à", "`e": "è", "`u": "ù", "^a": "â",
    "^e": "ê", "^i": "î", "^o": "ô", "^u": "û", ",c": "ç", ":e": "ë", ":i": "ï", "~n": "ñ",
}  # fmt: skip
_ESCAPE = re.compile(
    r"""\\(?:
      f(?:\[[^\]]*\]|\(..|.)            # font
    | [mMFYgnkVx](?:\[[^\]]*\]|\(..|.)  # colour, family, register
    | s(?:[+-]?\d{1,2}|\([+-]?\d\d|\[[^\]]*\])  # size
    | [hvwlLbdDoRZ]'[^']*'              # motion and drawing
    | \*(?:\[(?P<string>[^\]]*)\]|\((?P<two>..)|(?P<one>.))
    | \[u(?P<code>[0-9A-Fa-f]{4,6})\]
    | \[(?P<long>[^\]]*)\]
    | \((?P<short>..)
    | N'(?P<number>\d+)'
    | ".*                               # comment to the end of the line
    | (?P<char>.)
    )""",
    re.VERBOSE | re.DOTALL,
)
_STRINGS = {"Aq": "'", "lq": "“", "rq": "”", "R": "®", "Tm": "™", "L'": "'", "C'": "'", "q": '"', 'L"': '"', 'R"': '"'}
_PLAIN = {"-": "-", "e": "\\", "~": " ", " ": " ", "0": " ", "t": " ", "`": "`", "'": "'", ".": ".", "_": "_"}
_FONTS = {"B", "I", "SM", "SB", "R", "BR", "RB", "BI", "IB", "IR", "RI"}
_BREAKS = {
    "PP",
    "P",
    "LP",
    "TP",
    "TQ",
    "IP",
    "HP",
    "RS",
    "RE",
    "br",
    "sp",
    "Sp",
    "Ip",
    "SS",
    "Sh",
    "in",
    "ti",
    "ce",
    "PD",
}
_DISPLAYS = {"nf": "fi", "EX": "EE", "TS": "TE", "Vb": "Ve", "SY": "YS", "EQ": "EN", "PS": "PE"}
_WIDE = re.compile(r"(?<=[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]) (?=[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef])")


def paragraphs(source: str) -> list[str]:
    """Text of each filled paragraph in order, with single spaces, NFC; none for a page that only points elsewhere.

    The first section (the page's name) is left out, and so is everything that is not filled prose.
    """
    found: list[str] = []
    gathered: list[str] = []
    sections, until, tagged = 0, "", False

    def close() -> None:
        text = " ".join(" ".join(gathered).split())
        gathered.clear()
        if text and sections > 1:
            found.append(unicodedata.normalize("NFC", _WIDE.sub("", text)))

    for line in _without_definitions(source):
        macro, rest = _macro(line)
        if until:
            if macro == until:
                until = ""
            continue
        if macro is None:
            if not line.strip() or line[0] in " \t":
                close()
            if tagged:  # the tag of a list's item is a heading, no prose
                tagged = False
                continue
            gathered.append(unescape(line))
        elif macro in _FONTS:
            if tagged:
                tagged = False
                continue
            words = _arguments(rest)
            gathered.append(unescape(("" if len(macro) == 2 and macro not in ("SM", "SB") else " ").join(words)))
        elif macro in ("UR", "MT", "UE", "ME"):
            if macro in ("UE", "ME") and gathered:
                gathered[-1] += unescape(rest.strip())
        elif macro == "SH":
            close()
            sections, tagged = sections + 1, not rest.strip()
        elif macro in _DISPLAYS:
            close()
            until = _DISPLAYS[macro]
        elif macro in _BREAKS:
            close()
            tagged = macro in ("TP", "TQ") or (macro == "SS" and not rest.strip())
    close()
    return found


def unescape(text: str) -> str:
    """Characters for the escapes of roff; those that only change how text looks are dropped."""

    def one(match: re.Match[str]) -> str:
        if code := match["code"]:
            return chr(int(code, 16))
        if number := match["number"]:
            return chr(int(number))
        if name := match["long"] or match["short"]:
            return _SPECIAL.get(name, "")
        if string := match["string"] or match["two"] or match["one"]:
            return _STRINGS.get(string, "")
        return _PLAIN.get(match["char"] or "", "")

    return _ESCAPE.sub(one, text)


def _macro(line: str) -> tuple[str | None, str]:
    """A control line's macro and the rest; None for a line of text."""
    if not line or line[0] not in ".'":
        return None, line
    words = line[1:].strip().split(None, 1)
    if not words:
        return "", ""
    return words[0], words[1] if len(words) > 1 else ""


def _arguments(text: str) -> list[str]:
    """Of a macro: separated by blanks, or within double quotes."""
    return [quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"?|(\S+)', text)]


def _without_definitions(source: str) -> list[str]:
    """The lines of a page without comments, macro definitions and conditional blocks."""
    kept: list[str] = []
    defining, depth = False, 0
    for line in source.replace("\\\n", "").splitlines():
        if defining:
            defining = line.rstrip() != ".."
            continue
        if depth:
            depth += line.count("\\{") - line.count("\\}")
            continue
        control = line[:1] in (".", "'")
        word = line[1:].lstrip() if control else ""
        if word.startswith(('\\"', "\\#")):
            continue
        if re.match(r"(de1?|am|ig)\b", word):
            defining = True
        elif re.match(r"(if|ie|el|while)\b", word):
            depth = max(0, line.count("\\{") - line.count("\\}"))
        else:
            kept.append(line)
    return kept
