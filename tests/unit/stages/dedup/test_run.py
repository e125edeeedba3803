"""The `dedup` stage: what is removed is a duplicate, what is found fits the theory of LSH, and the first is kept."""

from __future__ import annotations

import json
import math
import random
import re
import string
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.core.errors import InputError
from stages.core.testing import LocalContext
from stages.dedup import word_boundaries as uax29
from stages.dedup.bloom_filter import BloomFilter, contains, insert
from stages.dedup.jaccard import joined
from stages.dedup.jaccard_on_disk import large_pairs
from stages.dedup.lsh import ALL_PAIRS, bucket_pairs
from stages.dedup.minhash import Signer, band_keys, fold, lower_minima, permutations
from stages.dedup.normalization import WORD, character_count, normalize, table
from stages.dedup.shingles import CHUNK, SimilarityRule, jaccard, shingles
from stages.dedup.spec import RECIPES, DedupConfig
from stages.dedup.suffix_array import JOINT, repetitions
from stages.dedup.union_find import clusters, unite
from stages.dedup.verification import similar_pairs
from stages.lib.data.numba_jit import fmix64
from stages.lib.formats.documents import read_documents
from tests.support.deduplication import dedup, planted, words
from tests.support.examples import max_examples
from tests.support.paths import DATA

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def kept(ctx: LocalContext[DedupConfig]) -> list[str]:
    return [d["text"] for d in read_documents(ctx.output("documents"))]


def reasons(ctx: LocalContext[DedupConfig]) -> dict[str, int]:
    return {reason: row["documents"] for reason, row in ctx.stats["funnel"].items()}


# --- plain definitions to compare with ------------------------------------------------------------------------------


def naive_normalize(text: str) -> str:
    """SlimPajama's clean(): lower, without string.punctuation, whitespace runs to one space, stripped."""
    return re.sub(r"\s+", " ", "".join(c for c in text.lower() if c not in string.punctuation)).strip()


def naive_set(text: str, width: int = 13) -> set[str]:
    clean = naive_normalize(text)
    return {clean[i : i + width] for i in range(max(1, len(clean) - width + 1))} if clean else set()


def naive_jaccard(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def signatures_of(sets: list[np.ndarray], count: int, seed: int = 1) -> np.ndarray:
    """Signatures of sets of raw hashes: [sets, count]."""
    multipliers, offsets = permutations(count, seed)
    rows = np.full((len(sets), count), 0xFFFFFFFF, np.uint32)
    for row, hashes in zip(rows, sets, strict=True):
        lower_minima(hashes, len(hashes), multipliers, offsets, row)
    return rows


def candidates(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Pairs that share a band: [pairs, 2], sorted."""
    keys = np.empty((len(signatures), bands), np.uint64)
    for row, out in zip(signatures, keys, strict=True):
        band_keys(row, bands, rows, out)
    flat, numbers = keys.ravel(), np.repeat(np.arange(len(keys), dtype=np.uint32), bands)
    order = np.argsort(flat, kind="stable")
    found = bucket_pairs(flat[order], numbers[order])
    return np.stack([found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def components(count: int, edges: np.ndarray) -> list[list[int]]:
    """Connected components of more than one member, as `unite` and `clusters` find them."""
    parent = np.arange(count, dtype=np.uint32)
    unite(parent, edges[:, 0].astype(np.uint32), edges[:, 1].astype(np.uint32))
    rows = clusters(parent).tolist()
    return [[member for first, member in rows if first == root] for root in sorted({first for first, _ in rows})]


# --- the short filter -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "paper", "code"),
    [
        ("", 0, 0),
        ("abc", 3, 3),
        ("A b\tC\n\nd", 4, 7),
        ("...!?;:", 0, 0),
        ("  a  -  b  ", 2, 3),
        ("“quoted”", 8, 8),  # ASCII punctuation only, as upstream's string.punctuation
        ("x\u00a0y", 2, 3),
    ],
)
def test_characters_that_count(text: str, paper: int, code: int) -> None:
    assert (character_count(text, "paper"), character_count(text, "code")) == (paper, code)


def test_rule_a_drops_fewer_than_200_characters(tmp_path: Path) -> None:
    rng = random.Random(0)

    def letters(count: int) -> str:
        return " - ".join(rng.choices(string.ascii_lowercase, k=count)) + " ...\n\t!"

    texts = [letters(199), letters(200), letters(201), "." * 500, " \n\t" * 400]
    ctx = dedup(tmp_path / "paper", texts)
    assert kept(ctx) == texts[1:3]
    assert reasons(ctx) == {"in": 5, "short": 3, "out": 2}
    assert kept(dedup(tmp_path / "code", texts, short_filter="code")) == texts[:3]  # 199 letters and 198 spaces
    assert kept(dedup(tmp_path / "own", texts, min_characters=201)) == texts[2:3]


@given(TEXT)
def test_normalization_is_slimpajamas(text: str) -> None:
    assert normalize(text) == naive_normalize(text)


def test_the_table_knows_every_code_point() -> None:
    """All but the two letters that are left to Python, against Python's own lower(), isspace() and `re`'s \\w."""
    points = [p for p in range(0x110000) if not 0xD800 <= p < 0xE000 and p not in (1, 0x130, 0x3A3)]
    pieces = naive_normalize("\x01".join(f"a{chr(point)}a" for point in points)).split("\x01")  # all in one go
    clean = [piece[1:-1] for piece in pieces] + [naive_normalize("a\x01a")[1:-1]]
    points.append(1)
    in_words = set(re.findall(r"\w", "".join(clean)))
    entries = table()[points]
    assert len(clean) == len(points)
    assert (entries & 0x1FFFFF).tolist() == [ord(char) if char else 0x1FFFFF for char in clean]
    assert ((entries & WORD) != 0).tolist() == [char in in_words for char in clean]


# --- shingles, exact similarity, estimates ----------------------------------------------------------------------------

NEAR = st.lists(st.sampled_from(["the cat sat on", "a mat of straw", "Ünïcode 🙂", "1, 2; 3!", "\n"]), max_size=6).map(
    " ".join
)


@given(NEAR | TEXT, NEAR | TEXT)
def test_exact_jaccard_is_that_of_the_sets_of_13_grams(one: str, other: str) -> None:
    found = jaccard(shingles("characters", one, 13), shingles("characters", other, 13))
    assert found == pytest.approx(naive_jaccard(naive_set(one), naive_set(other)), abs=1e-12)


@given(NEAR, NEAR)
def test_token_sets_are_those_of_the_stack(one: str, other: str) -> None:
    sets = [{t for t in re.split("[^A-Za-z_0-9]", text) if t} for text in (one, other)]
    assert jaccard(shingles("token set", one, 1), shingles("token set", other, 1)) == naive_jaccard(*sets)


@given(NEAR, NEAR)
def test_word_shingles_are_five_words(one: str, other: str) -> None:
    sets = []
    for text in (one, other):
        found = re.findall(r"\w+|[^\w\s]", naive_normalize(text))
        sets.append({tuple(found[i : i + 5]) for i in range(max(1, len(found) - 4))} if found else set())
    assert jaccard(shingles("words", one, 5), shingles("words", other, 5)) == pytest.approx(naive_jaccard(*sets))


def pairs_of(similarity: float, count: int, size: int = 400, seed: int = 0) -> tuple[list[np.ndarray], float]:
    """`count` pairs of random sets with one Jaccard similarity: [a0, b0, a1, b1, ..], and that similarity exactly."""
    rng = np.random.default_rng(seed)
    common = round(2 * size * similarity / (1 + similarity))
    sets = []
    for _ in range(count):
        values = rng.integers(0, 1 << 63, 2 * size - common, dtype=np.uint64)
        sets += [np.sort(values[:size]), np.sort(values[size - common :])]
    return sets, common / (2 * size - common)


@pytest.mark.parametrize("similarity", [0.0, 0.2, 0.5, 0.8, 0.95])
def test_the_estimate_is_the_jaccard_similarity(similarity: float) -> None:
    """Mean within 5 standard errors, and the spread that of 128 independent permutations, give or take a quarter."""
    count = 200
    sets, exact = pairs_of(similarity, count)
    signatures = signatures_of(sets, 128)
    estimates = (signatures[0::2] == signatures[1::2]).mean(axis=1)
    sigma = math.sqrt(exact * (1 - exact) / 128)
    assert abs(estimates.mean() - exact) <= 5 * sigma / math.sqrt(count) + 1e-6
    assert estimates.std() <= 1.25 * sigma + 1e-9
    assert np.abs(estimates - exact).max() <= 5 * sigma + 1e-9


@pytest.mark.parametrize(("bands", "rows"), [(18, 7), (9, 13)])
@pytest.mark.parametrize("similarity", [0.3, 0.6, 0.7, 0.8, 0.9])
def test_candidates_follow_the_s_curve(bands: int, rows: int, similarity: float) -> None:
    """P = 1 - (1 - J^rows)^bands: found pairs within 5 sigma of the binomial."""
    count = 400
    sets, exact = pairs_of(similarity, count, size=200, seed=3)
    found = candidates(signatures_of(sets, 128), bands, rows)
    assert all(b == a + 1 and a % 2 == 0 for a, b in found.tolist()), "sets with nothing in common became candidates"
    probability = 1 - (1 - exact**rows) ** bands
    assert abs(len(found) - count * probability) <= 5 * math.sqrt(count * probability * (1 - probability)) + 1


def test_candidates_are_those_of_datasketch() -> None:
    """The same signatures in datasketch's LSH give the same pairs."""
    from datasketch import MinHash, MinHashLSH

    sets, _ = pairs_of(0.7, 60, size=100, seed=5)
    signatures = signatures_of(sets, 128)
    index = MinHashLSH(num_perm=128, params=(18, 7))
    hashes = [MinHash(num_perm=128, hashvalues=row, scheme="affine32") for row in signatures]
    for number, value in enumerate(hashes):
        index.insert(str(number), value)
    theirs = {
        tuple(sorted((n, int(k))))
        for n, value in enumerate(hashes)
        for k in map(str, index.query(value))
        if int(k) != n
    }
    assert {tuple(pair) for pair in candidates(signatures, 18, 7).tolist()} == theirs
    assert len(theirs) > 20


@pytest.mark.parametrize("count", [128, 256])
def test_signatures_are_datasketchs(count: int) -> None:
    """Golden: on the same 32-bit hashes of the shingles, every one of the minima is the one that datasketch
    computes.
    """
    from datasketch import MinHash

    texts = [
        "The quick brown fox jumps over the lazy dog, again and again!",
        "Ünïcode ΟΔΥΣΣΕΥΣ İstanbul 🙂 text " * 9,
        "x",
    ]
    source = np.frombuffer("".join(texts).encode(), np.uint8)
    ends = np.cumsum([0, *(len(t.encode()) for t in texts)])
    _, _, minima = Signer("characters", 13, count, 1, 1, seed=7).sign(source, ends, keep=True)
    for text, row in zip(texts, minima, strict=True):
        clean = naive_normalize(text)
        grams = {clean[i : i + 13] for i in range(max(1, len(clean) - 12))}
        theirs = MinHash(num_perm=count, seed=7, scheme="affine32", hashfunc=polynomial)
        theirs.update_batch([gram.encode("utf-32-le") for gram in sorted(grams)])
        assert row.tolist() == theirs.hashvalues.tolist()


def polynomial(data: bytes) -> int:
    """The hash of a shingle, the slow way: a polynomial modulo 2^64, its halves folded."""
    value = 0
    for point in np.frombuffer(data, np.uint32).tolist():
        value = (value * 0x9E3779B97F4A7C15 + point + 1) % (1 << 64)
    assert int(fold(np.uint64(value))) == (value ^ value >> 32) & 0xFFFFFFFF
    return (value ^ value >> 32) & 0xFFFFFFFF


def test_upstreams_bands_are_datasketchs_optimum() -> None:
    """SlimPajama's 9 x 13 and the Stack's 13 x 19 are datasketch's choice; the defaults here find more, and verify."""
    from datasketch.lsh import _optimal_param

    for name, threshold in (("slimpajama", 0.8), ("the-stack", 0.85)):
        ours, theirs = RECIPES[name], RECIPES[f"{name}-as-published"]
        assert _optimal_param(threshold, theirs.permutations, 0.5, 0.5) == (theirs.bands, theirs.rows)
        assert ours.verify
        assert not theirs.verify
        at = [1 - (1 - threshold**r.rows) ** r.bands for r in (ours, theirs)]
        assert at[0] > 0.98 > 0.5 > at[1]
    with pytest.raises(ValidationError, match="bands x rows is 18 x 8, but the recipe has 128 permutations"):
        DedupConfig(rows=8)
    with pytest.raises(ValidationError, match="recipe dclm-bff has no MinHash"):
        DedupConfig(recipe="dclm-bff", rows=8)
    with pytest.raises(ValidationError, match="workers must be 1 or more, 'ray' or 'slurm'"):
        DedupConfig(workers=0)


def test_large_buckets_stay_connected() -> None:
    """Beyond ALL_PAIRS members a bucket gives a star and a chain, not all pairs; connected is all that `star` is."""
    size = ALL_PAIRS + 5
    for star, most in ((False, 2 * size), (True, size)):
        pairs = bucket_pairs(np.zeros(size, np.uint64), np.arange(0, 3 * size, 3, dtype=np.uint32), star)
        assert len(pairs) < most
        edges = np.stack([pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)], axis=1)
        assert components(3 * size, edges) == [list(range(0, 3 * size, 3))]
    assert (
        len(bucket_pairs(np.zeros(ALL_PAIRS, np.uint64), np.arange(ALL_PAIRS, dtype=np.uint32)))
        == ALL_PAIRS * (ALL_PAIRS - 1) // 2
    )


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda e: e[0] != e[1]), max_size=14))
def test_clusters_are_the_connected_components(edges: list[tuple[int, int]]) -> None:
    groups = [{n} for n in range(13)]
    for one, other in edges:
        first = next(g for g in groups if one in g)
        second = next(g for g in groups if other in g)
        if first is not second:
            groups.remove(second)
            first |= second
    wanted = sorted(sorted(g) for g in groups if len(g) > 1)
    assert components(13, np.array(edges, np.int64).reshape(-1, 2)) == wanted


# --- whole runs against brute force -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_near_duplicates_are_those_of_brute_force(tmp_path: Path, seed: int) -> None:
    """Nothing goes without a true duplicate before it; what LSH misses is what its theory allows."""
    texts = planted(seed)
    half = len(texts) // 2
    ctx = dedup(tmp_path, texts[:half], texts[half:], min_characters=0)
    order = [f"0-{n}" for n in range(half)] + [f"1-{n}" for n in range(len(texts) - half)]
    left = [order.index(d["id"]) for d in read_documents(ctx.output("documents"))]
    assert left == sorted(left), "order changed"
    assert kept(ctx) == [texts[n] for n in left]
    sets = [naive_set(t) for t in texts]
    similar = {(a, b): naive_jaccard(sets[a], sets[b]) for a, b in combinations(range(len(texts)), 2)}
    edges = {pair: value for pair, value in similar.items() if value >= 0.8}
    assert len(edges) > 15
    never_first = {m for group in components(len(texts), np.array(sorted(edges), np.int64)) for m in group[1:]}
    removed = set(range(len(texts))) - set(left)
    assert removed <= never_first, "a document went that has no duplicate before it"
    # each missed document needs at least one missed pair: expected misses and 5 sigma
    misses = [(1 - value**7) ** 18 for value in edges.values()]
    allowed = sum(misses) + 5 * math.sqrt(sum(m * (1 - m) for m in misses))
    assert len(never_first - removed) <= allowed
    assert reasons(ctx)["out"] == len(left)


def test_duplicates_are_found_across_sources_and_the_first_is_kept(tmp_path: Path) -> None:
    rng = random.Random(1)
    first, second = (" ".join(words(rng, 80)) for _ in range(2))
    near = first + " and a few more words"
    far = " ".join(first.split(" ")[:50] + words(rng, 30))  # similarity about a half
    ctx = dedup(tmp_path, [first, second], [second.upper(), near, far])
    assert kept(ctx) == [first, second, far]
    assert reasons(ctx) == {"in": 5, "near duplicate": 2, "out": 3}
    assert ctx.stats["per_source"] == {"s0": 2, "s1": 1}
    assert sum(ctx.meta["documents"]["per_license"].values()) == 3
    assert ctx.stats["cluster_sizes"] == {"2": 2}
    assert ctx.stats["example_clusters"] == [["0-0", "1-1"], ["0-1", "1-0"]]
    assert kept(dedup(tmp_path / "turned", [far, near], [first, second])) == [far, near, second]


@pytest.mark.parametrize("threshold", [0.6, 0.9])
def test_the_threshold_decides_and_not_the_candidates(tmp_path: Path, threshold: float) -> None:
    """Pairs on both sides of the threshold, all of them candidates (one row a band)."""
    rng = random.Random(2)
    texts, wanted = [], []
    for width in range(0, 40, 2):
        base = words(rng, 80)
        one, other = " ".join(base), " ".join(base[: 80 - width] + words(rng, width))
        texts += [one, other]
        wanted += [one] if naive_jaccard(naive_set(one), naive_set(other)) >= threshold else [one, other]
    wanted = list(dict.fromkeys(wanted))
    ctx = dedup(tmp_path, texts, threshold=threshold, bands=128, rows=1)
    assert kept(ctx) == wanted
    assert len(texts) // 2 < len(wanted) < len(texts)


def test_without_verification_every_candidate_goes(tmp_path: Path) -> None:
    rng = random.Random(3)
    base = words(rng, 80)
    texts = [" ".join(base), " ".join(base[:60] + words(rng, 20))]
    assert naive_jaccard(naive_set(texts[0]), naive_set(texts[1])) < 0.7
    assert kept(dedup(tmp_path / "no", texts, verify=False, bands=128, rows=1)) == texts[:1]
    assert kept(dedup(tmp_path / "yes", texts, bands=128, rows=1)) == texts


def test_exact_duplicates_go_in_every_recipe(tmp_path: Path) -> None:
    texts = [f"{n} " + " ".join(words(random.Random(n), 80)) for n in range(3)]
    for name, recipe in RECIPES.items():
        ctx = dedup(tmp_path / name, [*texts, *texts], texts[:1], recipe=name)
        assert kept(ctx) == texts
        assert reasons(ctx)["exact duplicate" if recipe.exact else "seen before (Bloom filter)"] == 4


@max_examples(40)
@given(
    st.lists(st.tuples(NEAR | TEXT, NEAR | TEXT), min_size=1, max_size=5),
    st.sampled_from([0.3, 0.5, 0.8, 1.0]),
    st.sampled_from(["characters", "words", "token set"]),
)
def test_verified_pairs_are_those_of_exact_jaccard(pairs: list[tuple[str, str]], threshold: float, kind: Any) -> None:
    """The hash tables against sorted sets; both texts normalized, as they come to it."""
    texts = [normalize(text) for pair in pairs for text in pair]
    firsts, seconds = np.arange(0, len(texts), 2), np.arange(1, len(texts), 2)
    found, plain = (
        f(*joined([t.encode() for t in texts]), firsts, seconds, SimilarityRule(kind, 5, threshold))
        for f in (similar_pairs, large_pairs)
    )
    sets = [shingles(kind, text, 5) for text in texts]
    assert (
        found.tolist()
        == plain.tolist()
        == [jaccard(a, b) >= threshold for a, b in zip(sets[0::2], sets[1::2], strict=True)]
    )


@pytest.mark.parametrize("kind", ["characters", "words", "token set"])
def test_chunks_do_not_show(kind: Any) -> None:
    """Texts whose length is about a multiple of the chunk: the same sets as from one piece, in Python."""
    rng = random.Random(6)
    for extra in (-3, 0, 1, 5):
        text = " ".join(words(rng, 3000))[: 2 * CHUNK + extra] + " " * (extra == 1) + " end"
        if kind == "characters":
            wanted = len(naive_set(text))
        elif kind == "words":
            found = re.findall(r"\w+|[^\w\s]", naive_normalize(text))
            wanted = len({tuple(found[i : i + 13]) for i in range(len(found) - 12)})
        else:
            wanted = len(set(text.split()))
        assert len(shingles(kind, text, 13)) == wanted


# --- the Stack --------------------------------------------------------------------------------------------------------


def code(tokens: range) -> str:
    return "; ".join(f"name_{t} = {t}" for t in tokens)


def similarity(one: str, other: str) -> float:
    return naive_jaccard(*({t for t in re.split("[^A-Za-z_0-9]", text) if t} for text in (one, other)))


def test_the_stack_checks_the_real_similarity_inside_a_cluster(tmp_path: Path) -> None:
    """A ~ B and B ~ C, but A and C differ: B goes, C stays. SlimPajama's rule keeps A alone."""
    first, middle, last = code(range(100)), code(range(7, 107)), code(range(14, 114))
    assert similarity(first, middle) >= 0.85 and similarity(middle, last) >= 0.85 > similarity(first, last)  # noqa: PT018
    ctx = dedup(tmp_path / "stack", [first, middle, last], recipe="the-stack", bands=256, rows=1)
    assert kept(ctx) == [first, last]
    assert ctx.stats["cluster_sizes"] == {"3": 1}


@pytest.mark.parametrize(("shift", "stays"), [(9, True), (8, False), (1, False)])
def test_the_stacks_threshold_is_085(tmp_path: Path, shift: int, stays: bool) -> None:
    one, other = code(range(100)), code(range(shift, 100 + shift))
    assert (similarity(one, other) < 0.85) is stays
    ctx = dedup(tmp_path, [one, other], recipe="the-stack", bands=256, rows=1)
    assert kept(ctx) == ([one, other] if stays else [one])


@pytest.mark.parametrize("seed", range(2))
def test_what_the_stack_keeps_is_dissimilar(tmp_path: Path, seed: int) -> None:
    """Brute force: of two kept files of one cluster none is at 0.85 or over; what went has a kept one at 0.85 or
    over.
    """
    rng = random.Random(seed)
    files = []
    for _ in range(30):
        start = rng.randint(0, 4) * 1000 + rng.randint(0, 25)
        files.append(code(range(start, start + rng.randint(90, 110))))
    files = list(dict.fromkeys(files))
    left = kept(dedup(tmp_path, files, recipe="the-stack", bands=256, rows=1))
    assert 5 <= len(left) < len(files)
    assert all(similarity(a, b) < 0.85 for a, b in combinations(left, 2))
    assert all(any(similarity(f, k) >= 0.85 for k in left) for f in files if f not in left)


def test_files_of_few_tokens_are_left_alone(tmp_path: Path) -> None:
    texts = ["a b c d e f g h i", "i h g f e d c b a", "a = b", "b = a", "a = b"]
    ctx = dedup(tmp_path, texts, recipe="the-stack")
    assert kept(ctx) == texts[:4]
    assert reasons(ctx)["exact duplicate"] == 1


# --- DCLM's Bloom filter
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [1000, 6838, 54_705])
def test_the_bloom_filter_has_no_false_negatives_and_the_rate_it_says(expected: int) -> None:
    """Filled as expected, no more than 0.01 of new hashes seem known, within 5 sigma."""
    machine = BloomFilter(expected)
    rng = np.random.default_rng(expected)
    known, new = (rng.integers(0, 1 << 63, n, dtype=np.uint64) * np.uint64(2) for n in (expected, 50_000))
    for value in known:
        insert(machine.bits, value, machine.probes)
    assert all(contains(machine.bits, value, machine.probes) for value in known)
    positives = sum(contains(machine.bits, value, machine.probes) for value in new) / len(new)
    assert positives <= 0.01 + 5 * math.sqrt(0.01 / len(new))
    assert positives >= 0.004 or expected < 5000  # no larger than it need be


def filtered(machine: BloomFilter, text: str) -> str:
    data = text.encode()
    return machine.filter(np.frombuffer(data, np.uint8), np.array([0, len(data)]))[0].tobytes().decode()


def test_bff_removes_paragraphs_and_documents_seen_before() -> None:
    rng = random.Random(0)
    one, two, three, four = (" ".join(words(rng, 40)) for _ in range(4))
    machine = BloomFilter(10_000)
    assert filtered(machine, f"{one}\n{two}") == f"{one}\n{two}"
    assert filtered(machine, f"{one}\n{three}") == f"\n{three}"  # half of its 13-grams are known: the paragraph goes
    assert machine.counts[:2].tolist() == [1, len(one)]
    assert filtered(machine, f"{two}\n{one}") == ""  # all are: the document goes
    assert filtered(machine, "few words\n" * 5) == "few words\n" * 5  # under 13 words a paragraph is left alone
    assert filtered(machine, "few words\n" * 5) == "few words\n" * 5
    partly = " ".join(one.split(" ")[:25] + four.split(" "))  # 13 of 53 13-grams known
    assert filtered(machine, partly) == partly
    assert filtered(machine, "") == ""


def old_both(texts: list[str]) -> list[str]:
    """`process_line_oldboth` of bff.rs in plain Python, with an exact set for the filter: the reference."""
    seen: set[tuple[str, ...]] = set()
    left = []
    for text in texts:
        cuts = [0, *(m.start() for m in re.finditer("\n", text)), len(text)]
        out, total, contained = "", 0, 0
        for start, end in pairwise(cuts):
            found = [w for w in re.findall(r"\w+|\W", text[start:end]) if w.strip()]
            grams = [tuple(found[i : i + 13]) for i in range(len(found) - 12)]
            known = sum(gram in seen for gram in grams)
            total, contained = total + len(grams), contained + known
            if grams and known / len(grams) > 0.8:
                continue
            seen.update(grams)
            out += text[start:end]
        left.append("" if total and contained / total > 0.8 else out)
    return left


@pytest.mark.parametrize("seed", range(3))
def test_bff_is_old_both(seed: int) -> None:
    """Golden: against the plain reference, on texts put together from few paragraphs (a filter too large to err)."""
    rng = random.Random(seed)
    paragraphs = [
        " ".join(words(rng, rng.choice([3, 13, 14, 30, 60]))) + rng.choice(["", ".", "!?", " - x"]) for _ in range(25)
    ]
    paragraphs += [" ".join(p.split(" ")[: rng.randint(5, 60)] + words(rng, 5)) for p in paragraphs] + ["", " ", "a b"]
    texts = ["\n".join(rng.choices(paragraphs, k=rng.randint(0, 5))) for _ in range(150)]
    machine = BloomFilter(3_000_000)
    data = "".join(texts).encode()
    left, ends = machine.filter(np.frombuffer(data, np.uint8), np.cumsum([0, *(len(t.encode()) for t in texts)]))
    found = [left[a:b].tobytes().decode() for a, b in pairwise(ends)]
    assert found == old_both(texts)
    assert 10 < sum(not f and bool(t) for f, t in zip(found, texts, strict=True)) < 140


def boundaries(text: str) -> list[int]:
    data = np.frombuffer(text.encode(), np.uint8)
    out = np.empty(len(data) + 1, np.uint64)
    return out[: uax29.word_hashes(data, 0, len(data), uax29.properties(), out)].tolist()


def words_by_paragraph(text: str) -> list[int]:
    data = np.frombuffer(text.encode(), np.uint8)
    marks, out, found, start = np.empty(len(data), np.uint8), np.empty(len(data) + 1, np.uint64), [], 0
    while start < len(data):
        made, start = uax29.paragraph_words(data, start, len(data), uax29.properties(), marks, out)
        found += out[:made].tolist()
    return found


def fnv(word: str) -> int:
    value = 0xCBF29CE484222325
    for byte in word.encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return int(fmix64(np.uint64(value)))


TELLING = (
    "ab1_ .,:;'\"\n\r\t\u00a0\u00a9\u00b7\u2019\u0301\u200d\u00ad\u05d0\u30ab\u4e2d\u0416\u0661"
    "\U0001f1e6\U0001f600\u2028\u0e01"
)
"""Characters that rules are about, and plain ones of one to four bytes."""


def test_words_are_those_of_unicode() -> None:
    """Golden: words of UAX #29 by uniseg 0.10 (its own implementation), for strings of the characters that rules are
    about.
    """
    golden = json.loads((DATA / "golden_words.json").read_text(encoding="utf-8"))
    assert len(golden) >= 300
    for text, wanted in golden:
        assert boundaries(text) == [fnv(word) for word in wanted], ascii(text)
        if "\n" not in text[1:]:
            assert words_by_paragraph(text) == [fnv(word) for word in wanted], ascii(text)


@given(st.text(st.sampled_from(TELLING) | st.characters(exclude_categories=["Cs"])))
def test_words_of_paragraphs_are_those_of_the_rules(text: str) -> None:
    cuts = [0, *(m.start() for m in re.finditer("\n", text) if m.start()), len(text)]
    assert words_by_paragraph(text) == [word for a, b in pairwise(cuts) for word in boundaries(text[a:b])]


# --- exact substrings
# ---------------------------------------------------------------------------------------------------


@max_examples(80)
@given(st.lists(st.text("abé", max_size=30), min_size=1, max_size=4), st.integers(2, 6))
def test_repeated_substrings_are_those_of_brute_force(texts: list[str], length: int) -> None:
    data = b"".join(t.encode() + bytes([JOINT]) for t in texts)
    first: dict[bytes, int] = {}
    gone = [False] * len(data)
    for place in range(len(data) - length + 1):
        piece = data[place : place + length]
        if JOINT in piece:
            continue
        if place >= first.setdefault(piece, place) + length:
            gone[place : place + length] = [True] * length
    found = repetitions(np.frombuffer(data, np.uint8).copy(), length).tolist()
    for start in range(len(data)):  # whole characters only
        size = 2 if data[start] == 0xC3 else 1
        if data[start] & 0xC0 != 0x80:
            assert found[start : start + size] == [all(gone[start : start + size])] * size


def test_substrings_go_but_for_the_first(tmp_path: Path) -> None:
    rng = random.Random(5)
    shared, *rest = (" ".join(words(rng, 30)) for _ in range(4))
    texts = [f"{rest[0]} {shared}", f"{shared} {rest[1]}", rest[2]]
    ctx = dedup(tmp_path, texts, recipe="dclm-suffix-array", threshold=1.0)
    left = kept(ctx)
    assert left[0] == texts[0]
    assert left[1].strip() == rest[1]
    assert left[2] == rest[2]
    row = ctx.stats["funnel"]["repeated substrings"]
    assert row["documents"] == 1
    assert len(shared) <= row["bytes"] <= len(shared) + 1


def test_dclm_counts_what_the_filter_took(tmp_path: Path) -> None:
    rng = random.Random(4)
    one, two, three = (" ".join(words(rng, 60)) for _ in range(3))
    ctx = dedup(tmp_path, [one, f"{one}\n{two}", f"{one}\n{two}\nshort", three], recipe="dclm", threshold=1.0)
    assert kept(ctx) == [one, f"\n{two}", three]
    assert reasons(ctx) == {
        "in": 4,
        "out": 3,
        "paragraphs seen before": 1,
        "seen before (Bloom filter)": 1,
    }
    funnel = ctx.stats["funnel"]
    gone = funnel["paragraphs seen before"]["bytes"] + funnel["seen before (Bloom filter)"]["bytes"]
    assert funnel["out"]["bytes"] + gone == funnel["in"]["bytes"]
    assert ctx.stats["keep_fraction_bytes"] == round(funnel["out"]["bytes"] / funnel["in"]["bytes"], 4)


# --- determinism and bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, recipe: str) -> None:
    texts = planted(7)
    runs = [dedup(tmp_path / str(n), texts, recipe=recipe) for n in range(2)]
    one, other = ((ctx.output("documents") / "part-00000.parquet").read_bytes() for ctx in runs)
    assert one == other
    assert runs[0].stats == runs[1].stats


@max_examples(30)
@given(st.lists(TEXT | NEAR, min_size=1, max_size=6), st.sampled_from(sorted(RECIPES)))
def test_any_text_is_taken(tmp_path_factory: pytest.TempPathFactory, texts: list[str], recipe: str) -> None:
    """Empty, one-character and unusual texts pass through every recipe; the funnel adds up."""
    texts = [" ".join(f"word{n} stays" for n in range(60)), *texts]
    ctx = dedup(tmp_path_factory.mktemp("any"), texts, recipe=recipe)
    counts = reasons(ctx)
    for changed in ("paragraphs seen before", "repeated substrings"):
        counts.pop(changed, None)
    assert counts.pop("in") == sum(counts.values()) == len(texts)
    assert kept(ctx)[0] == texts[0]
    assert len(set(kept(ctx))) == len(kept(ctx))


def test_nothing_to_keep_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^test: the corpus is empty: its sources hold no document$"):
        dedup(tmp_path / "empty", [], [])
    with pytest.raises(
        InputError, match=r"^test: nothing is left of 2 documents: all are shorter than 200 characters$"
    ):
        dedup(tmp_path / "short", ["a"], ["b"])
