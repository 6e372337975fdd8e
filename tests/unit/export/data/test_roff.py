"""The prose of manual pages."""

from __future__ import annotations

import pytest

from export.data.roff import paragraphs, unescape

PAGE = r""".\" A comment
'\" t
.de Xx
.PP
this stands in a macro
..
.TH LS 1 "May 2024" "GNU"
.SH NAME
ls \- list things
.SH SYNOPSIS
.SY ls
.RI [ options ]
.YS
.SH DESCRIPTION
.if n .ad l
The command \fBls\fR(1) lists the files \(en all of them \(en
.\" nobody reads this
in a directory;
see
.BR stat (2)
and
.UR http://example.org
its page
.UE .
.PP
Another paragraph, with \f[I]a long\f[] font name, \[u00E9]t\[u00E9], \*(lqquotes\*(rq, and a b\
roken line.
.TP
.B \-a
Says what the option does.
.IP "\(bu" 4
An item of a list.
.nf
int main(void);
.fi
.EX
some code
.EE
.TS
l l.
a	table
.TE
.ie \n(.g \{\
.ds Aq \(aq
.\}
.el .ds Aq '
.SS Sub\-section
The end isn\*(Aqt near.
"""


def test_only_filled_prose_is_kept() -> None:
    assert paragraphs(PAGE) == [
        "The command ls(1) lists the files – all of them – in a directory; see stat(2) and its page.",
        "Another paragraph, with a long font name, été, “quotes”, and a broken line.",
        "Says what the option does.",
        "An item of a list.",
        "The end isn't near.",
    ]


def test_page_that_points_elsewhere_has_none() -> None:
    assert paragraphs(".so man1/ls.1\n") == []


def test_no_blank_between_characters_that_have_none() -> None:
    page = ".SH 名前\nls\n.SH 説明\nこれは\n文章です。\nLinux の文章\n"
    assert paragraphs(page) == ["これは文章です。 Linux の文章"]


@pytest.mark.parametrize(
    ("roff", "plain"),
    [
        (r"a\-b", "a-b"),
        (r"\fIx\fP\|y\&", "xy"),
        (r"\s-1small\s0", "small"),
        (r"\(co 2024", "© 2024"),
        (r"C:\e", "C:\\"),
        (r"a\~b", "a b"),
        (r"\h'1m'x", "x"),
        (r"x \" said", "x "),
        (r"\N'65'", "A"),
        ("ends with \\", "ends with \\"),
    ],
)
def test_escapes(roff: str, plain: str) -> None:
    assert unescape(roff) == plain
