"""Pairs of answer and truth with their verdicts, from DeepScaleR's rule."""

from __future__ import annotations

# (answer, reference, verdict) under DeepScaleR's grader: MATH's and PRM800K's normal forms, then equality with its
# restrictions.
GOLDEN = [
    ("5", "5", True),
    ("5", "6", False),
    ("5.0", "5", True),
    ("05", "5", True),
    ("5.01", "5", False),
    ("1,000", "1000", True),
    ("12,345,678", "12345678", True),
    (r"1{,}000", "1000", True),
    (r"\frac12", r"\frac{1}{2}", True),
    (r"\dfrac{1}{2}", r"\tfrac12", True),
    ("1/2", r"\frac{1}{2}", True),
    ("0.5", r"\frac{1}{2}", True),
    ("0.25", "1/4", True),
    ("2/4", "1/2", False),  # unreduced fractions are wrong
    (r"\frac{6}{4}", r"\frac{3}{2}", False),
    ("4/2", "2", False),  # a whole number must be given as one
    (r"\sqrt{16}", "4", False),
    ("2+3", "5", False),
    ("x+1", "1+x", True),
    ("(x+1)^2", "x^2+2x+1", True),
    ("x^2-1", "(x-1)(x+1)", True),
    ("x+y+z", "z+y+x", False),  # three letters: not compared as expressions
    (r"\sqrt{8}", r"2\sqrt{2}", True),
    (r"\sqrt8", r"2\sqrt2", True),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"2\pi", r"\pi\cdot 2", True),
    (r"\pi", "3.14159", False),
    ("(1,2)", "(1, 2)", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2]", "[1,2]", False),  # Qwen's grader takes any bracket
    ("[1,2)", "[1,2)", True),
    (r"\left(\frac12, 3\right)", r"(\frac{1}{2},3)", True),
    ("(x+1, 2)", "(1+x, 2)", True),
    (r"50\%", "50", True),
    ("0.5", r"50\%", False),  # Qwen's grader takes x, x/100 and 100 x
    ("0.5", "50", False),
    (r"5\text{ cm}", "5", True),
    ("5 inches", "5", True),
    (r"90^\circ", "90", True),
    (r"\$20", "20", True),
    ("x=5", "5", True),
    (r"7\frac{3}{4}", "31/4", True),
    (r"\text{Even}", "even", True),
    ("yes", "no", False),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", True),
    (r"\frac{1}{x+1}", r"\frac{1}{x}+1", False),
    ("10^{10}", "10000000000", False),  # large powers are not evaluated
    ("3 and 4", "3 or 4", True),
    ("2 million", "2000000", False),
    ("5!", "120", False),
    ("0.333", "1/3", False),
    ("", "5", False),
    ("5", "", False),
]
