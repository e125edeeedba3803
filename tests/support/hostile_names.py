"""Names of files that somebody chose who means harm: each leads out of a folder, on Linux or elsewhere, or is none."""

from __future__ import annotations

PARENT = ("..", "../x", "a/../../x", "a/..", "./../x", "a/../b", "../../../../etc/cron.d/x")
ABSOLUTE = ("/", "/etc/passwd", "//host/share/x", "/tmp/x")
WINDOWS = ("..\\x", "a\\..\\..\\x", "C:\\x", "C:x", "c:/x", "\\\\host\\share\\x", "\\x")
NOT_NAMES = ("", ".", "./", "a/", "a//b", "a/./b", "a\0b", "\0", "a\nb", "\x7f", "\x1b[2J", "\ud800")
LONG = ("n" * 256, "a/" + "n" * 256, "é" * 128, "/".join(["n" * 200] * 6))
ALIKE = ("‥/x", "．．/x", "a／．．／x", "．", "／etc/passwd", "＼x", "a＼‥＼x", "Ｃ:/x")
"""Two-dot leader, full-width dots, slashes and letters: NFKC makes plain ones of them."""

HOSTILE = (*PARENT, *ABSOLUTE, *WINDOWS, *NOT_NAMES, *LONG, *ALIKE)
