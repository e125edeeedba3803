"""The `collect` stage: listings as they were given, or this machine's material without its paths."""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import zstandard

from stages.collect import local_documents, synthetic_pages
from stages.collect.run import run
from stages.collect.spec import CollectConfig
from stages.core.artifacts import RawFiles
from stages.core.errors import ConfigError, InfraError, InputError
from stages.core.testing import LocalContext, local_artifact
from stages.ingest.run import run as ingest
from stages.ingest.spec import IngestConfig
from stages.lib.data import source_lists
from stages.lib.data.raw_source import RawSource
from stages.lib.data.source_lists import expanded
from stages.lib.formats import remote
from stages.lib.formats.documents import read_documents
from stages.lib.formats.sources import LISTING, RawFile, read_listing
from tests.support.paths import ROOT

SIZES = {"text_bytes": 300_000, "web_bytes": 250_000, "code_bytes": 150_000}
PORTS = ("text", "web", "code")


def collect(root: Path, **config: Any) -> LocalContext[CollectConfig]:
    ctx = LocalContext(root, CollectConfig(**config))
    run(ctx)
    return ctx


@pytest.fixture(scope="module")
def gathered(tmp_path_factory: pytest.TempPathFactory) -> LocalContext[CollectConfig]:
    return collect(tmp_path_factory.mktemp("gathered"), origin="machine", **SIZES)


def contents(ctx: LocalContext[CollectConfig]) -> Iterator[tuple[str, bytes]]:
    """Every file that was written, decompressed."""
    root = ctx.root / "out"
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            data = zstandard.ZstdDecompressor().stream_reader(data).read()
        elif path.suffix == ".parquet":
            data = "\n".join(
                f"{r['text']}\n{r['url']}\n{r['license']}" for r in pq.read_table(path).to_pylist()
            ).encode()
        yield path.relative_to(root).as_posix(), data


def documents(ctx: LocalContext[CollectConfig], port: str, root: Path) -> list[dict[str, str]]:
    """What `ingest` makes of an output."""
    reader = LocalContext(root / port, IngestConfig(), {"raw": [local_artifact(RawFiles, ctx.output(port))]})
    ingest(reader)
    assert reader.stats["skipped"] == {}
    return list(read_documents(reader.output("documents")))


@pytest.mark.slow  # reads this machine's documentation
def test_the_same_machine_gives_the_same_bytes(tmp_path: Path, gathered: LocalContext[CollectConfig]) -> None:
    again = collect(tmp_path, origin="machine", **SIZES)
    assert {name: hashlib.sha256(data).hexdigest() for name, data in contents(again)} == {
        name: hashlib.sha256(data).hexdigest() for name, data in contents(gathered)
    }
    for port in PORTS:  # compressed too
        for path in sorted(gathered.output(port).glob("*.*")):
            assert (again.output(port) / path.name).read_bytes() == path.read_bytes()
    assert again.stats == gathered.stats


@pytest.mark.slow  # reads this machine's documentation
def test_no_path_of_this_machine_is_in_any_byte(gathered: LocalContext[CollectConfig]) -> None:
    """Interpreter, environment, repository and home folder; also of the raw, compressed files and their names."""
    places = {
        sys.prefix,
        sys.base_prefix,
        sys.exec_prefix,
        str(Path.home()),
        str(ROOT),
        str(gathered.root),
    }
    found = []
    raw = ((p.name, p.read_bytes()) for p in gathered.root.rglob("*") if p.is_file())
    for name, data in [*contents(gathered), *raw]:
        for place in places - {
            "/",
            "/usr",
            "/usr/local",
            "/root",
            "/home",
            "/home/user",
        }:  # too short to tell from any text
            if re.search(re.escape(place.encode()) + rb"(?![\w-])", data):
                found.append((name, place))
    assert found == []


def test_the_builds_own_record_is_never_material() -> None:
    """_sysconfigdata holds the paths of the machine that Python was built on."""
    modules = local_documents.library_modules()
    assert len(modules) > 300
    assert not [m.url for m in modules if "_sysconfigdata" in m.url]
    assert not [m for m in modules if {"test", "tests", "site-packages"} & set(m.url.split("."))]
    assert [m.url for m in modules] == sorted(m.url for m in modules)
    assert {m.license for m in modules} == {"PSF-2.0"}


def test_the_repository_itself_is_no_material() -> None:
    names = list(local_documents.packages())
    assert "moxin" not in names
    assert names == sorted(names)
    assert {local_documents.split(name) for name in names} == {"text", "web"}
    assert local_documents.split("NumPy") == local_documents.split("numpy")


def test_what_one_process_adds_to_its_path_is_no_material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing setuptools adds its vendored packages to sys.path: one process would find more than the next."""
    before = list(local_documents.packages())
    record = tmp_path / "vendored_thing-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: vendored-thing\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(local_documents.packages()) == before


@pytest.mark.slow  # reads this machine's documentation
def test_ingest_reads_all_three(tmp_path: Path, gathered: LocalContext[CollectConfig]) -> None:
    text, web, code = (documents(gathered, port, tmp_path) for port in PORTS)
    assert (len(text), len(web), len(code)) == tuple(
        gathered.stats[k] for k in ("text_documents", "web_pages", "code_files")
    )
    assert gathered.stats["text_bytes"] == sum(len(d["text"].encode()) for d in text)
    assert {(d["source"], d["url"].partition(":")[0]) for d in text} <= {("prose", "python"), ("prose", "pypi")}
    assert {d["source"] for d in web} == {"toy-web"}
    assert all(d["url"].startswith(("https://docs.example.org/", "https://mirror.example.net/")) for d in web)
    assert not any("Sponsored: try" in d["text"] for d in web), "boilerplate is left out"
    assert {(d["source"], d["license"]) for d in code} == {("code", "PSF-2.0")}


@pytest.mark.slow  # reads this machine's documentation
def test_prose_says_its_licence_or_nothing(tmp_path: Path, gathered: LocalContext[CollectConfig]) -> None:
    """An SPDX expression that the package states; free text is none."""
    found = {d["url"]: d["license"] for d in documents(gathered, "text", tmp_path)}
    topics = {license for url, license in found.items() if url.startswith("python:")}
    assert topics == {"PSF-2.0"}
    assert all(re.fullmatch(r"[\w.+() -]*", license) for license in found.values())

    class Distribution:
        def __init__(self, **headers: str) -> None:
            self.metadata = Message()
            for name, value in headers.items():
                self.metadata[name.replace("_", "-")] = value

    license = local_documents._license
    assert license(Distribution(License_Expression="MIT OR Apache-2.0")) == "MIT OR Apache-2.0"  # type: ignore[arg-type]
    assert license(Distribution(License="see the file LICENSE")) == ""  # type: ignore[arg-type]


@pytest.mark.slow  # reads this machine's documentation
def test_the_sizes_are_kept_to(gathered: LocalContext[CollectConfig]) -> None:
    sizes: dict[str, int] = dict.fromkeys(PORTS, 0)
    for name, data in contents(gathered):
        if not name.endswith(LISTING):
            sizes[name.partition("/")[0]] += len(data)
    assert 0.9 * SIZES["web_bytes"] < sizes["web"] < 2 * SIZES["web_bytes"]
    assert SIZES["code_bytes"] <= sizes["code"] < SIZES["code_bytes"] + 200_000
    assert SIZES["text_bytes"] <= gathered.stats["text_bytes"]


@pytest.mark.slow  # reads this machine's documentation
def test_the_seed_chooses_and_the_mirror_copies() -> None:
    one, other = ([m.url for m in local_documents.sources(50_000, seed)] for seed in (1, 2))
    assert one != other
    assert one == [m.url for m in local_documents.sources(50_000, 1)]
    for share, expected in ((0.0, set()), (1.0, {"mirror.example.net"})):
        pages = list(synthetic_pages.pages(60_000, share, 1))
        assert {p.url.split("/")[2] for p in pages} - {"docs.example.org"} == expected
    twice = [p.url.split("/", 3)[3] for p in pages]
    assert twice[0::2] == twice[1::2]


@pytest.mark.slow  # reads this machine's documentation
def test_documentation_is_prose_or_web_never_both(gathered: LocalContext[CollectConfig]) -> None:
    """Else the quality filter's reference would hold the very pages that it scores."""
    for name, data in contents(gathered):
        for package in set(
            re.findall(rb"pypi:([\w.-]+)/" if name.startswith("text/") else rb"example\.\w+/pypi/([\w.-]+)/", data)
        ):
            assert local_documents.split(package.decode()) == ("text" if name.startswith("text/") else "web")


def test_docstrings_are_found_by_their_quotes(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    path.write_text(
        '"""Short."""\n\ndef f():\n    r"""First line.\n\n    Plain.\n        Indented \\d.\n    """\n'
        + f'x = """{"y" * 50}"""\n'
    )
    found = list(local_documents.docstrings(local_documents.Module("python:m", path, "MIT"), shortest=15))
    assert found == [local_documents.Text("python:m#1", "First line.\n\nPlain.\n    Indented \\d.", "MIT")]
    path.write_bytes(b'"""\xff\xfe' + b"x" * 500 + b'"""')
    assert list(local_documents.docstrings(local_documents.Module("python:m", path, "MIT"))) == []
    assert list(local_documents.docstrings(local_documents.Module("python:m", tmp_path / "gone.py", "MIT"))) == []


# --- listings ---------------------------------------------------------------------------------------------------------


def rows(*uris: str) -> tuple[RawSource, ...]:
    return tuple(RawSource(uri=uri, format="jsonl", source="s", license="MIT") for uri in uris)


def test_listings_are_passed_on(tmp_path: Path) -> None:
    given = {
        "text": rows("s3://b/k.jsonl.zst", "hf://o/n@r"),
        "web": rows("https://h/a.warc.gz"),
        "code": rows("file:///a"),
    }
    ctx = collect(tmp_path, **given)
    for port, files in given.items():
        assert read_listing(ctx.output(port)) == [
            RawFile(uri=f.uri, format=f.format, source=f.source, license=f.license) for f in files
        ]
        assert [p.name for p in ctx.output(port).iterdir()] == [LISTING]
        assert ctx.meta[port] == {"files": len(files)}


def test_listings_that_cannot_work_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"test\.text is empty: list at least one file, or set test\.origin = 'machine'"
    ):
        collect(tmp_path)
    with pytest.raises(ConfigError, match=r"test\.text: '/data/a\.jsonl' is no address: write file:///"):
        collect(tmp_path, text=rows("/data/a.jsonl"), web=rows("s3://b/k"), code=rows("s3://b/k"))


@pytest.mark.slow  # reads this machine's documentation
def test_mounted_material_gives_what_the_machine_itself_gives(
    gathered: LocalContext[CollectConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container the launching machine's library and packages are mounted: equal bytes, whatever the image has."""
    paths = sysconfig.get_paths()
    (tmp_path / "material").mkdir()
    (tmp_path / "material" / "stdlib").symlink_to(paths["stdlib"])
    (tmp_path / "material" / "packages").symlink_to(paths["purelib"])
    monkeypatch.setenv("MOXIN_MATERIAL", str(tmp_path / "material"))
    ctx = collect(tmp_path / "mounted", origin="machine", **SIZES)
    for port in PORTS:
        files = {
            p.relative_to(gathered.output(port)): p.read_bytes()
            for p in gathered.output(port).rglob("*")
            if p.is_file()
        }
        assert {
            p.relative_to(ctx.output(port)): p.read_bytes() for p in ctx.output(port).rglob("*") if p.is_file()
        } == files


# --- published lists of files -----------------------------------------------------------------------------------------


def listed(folder: Path, lines: list[str], **fields: Any) -> RawSource:
    path = folder / "files.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return RawSource(uri=path.as_uri(), listed=True, format="jsonl", source="dclm", **fields)


POOL = [f"s3://commoncrawl/contrib/datacomp/DCLM-pool/crawl=CC-MAIN-2013-20/{n}/a.jsonl.gz" for n in range(200)]


def test_a_list_becomes_its_files_where_they_are_read_with_the_listed_address_as_a_mirror(tmp_path: Path) -> None:
    files = expanded(
        listed(tmp_path, POOL, rewrite={"s3://commoncrawl/": "https://data.commoncrawl.org/"}, license="x"),
        "collect.web.0",
    )
    assert len(files) == 200
    assert files[3] == RawFile(
        uri=POOL[3].replace("s3://commoncrawl/", "https://data.commoncrawl.org/"),
        mirrors=(POOL[3],),
        format="jsonl",
        source="dclm",
        license="x",
    )


def test_files_are_drawn_by_their_address_and_a_larger_draw_holds_the_smaller(tmp_path: Path) -> None:
    draws = [
        {f.uri for f in expanded(listed(tmp_path, lines, take=take), "w")}
        for take, lines in ((20, POOL), (60, POOL), (20, POOL[::-1]))
    ]
    assert [len(draw) for draw in draws] == [20, 60, 20]
    assert draws[0] < draws[1]
    assert draws[0] == draws[2], "the order of the list decides nothing"
    assert len({POOL.index(uri) // 50 for uri in draws[1]}) == 4, "from the whole list"


@pytest.mark.parametrize(
    ("lines", "fields", "says"),
    [
        (POOL, {"sha256": "a" * 64}, "has SHA-256 .*, not a{64}: it has changed; look at it, and set the digest anew"),
        (["<html>gone</html>"], {}, "lists '<html>gone</html>', which is no address"),
        (["# nothing"], {}, "lists nothing"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path: Path, lines: list[str], fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        expanded(listed(tmp_path, lines, **fields), "collect.web.0")


def test_a_list_that_is_not_there_is_the_users_to_mend_and_no_signature_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAUSES", ())
    with pytest.raises(InputError, match=r"gone\.txt is not there"):
        expanded(RawSource(uri=(tmp_path / "gone.txt").as_uri(), listed=True, format="jsonl", source="s"), "w")
    (tmp_path / "cut.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\0" + b"\xff" * 40)
    with pytest.raises(InputError, match="is no list of addresses"):
        expanded(RawSource(uri=(tmp_path / "cut.gz").as_uri(), listed=True, format="jsonl", source="s"), "w")
    with pytest.raises(InfraError, match="cannot be read") as told:
        expanded(
            RawSource(
                uri="https://127.0.0.1:1/list?X-Amz-Signature=the-secret", listed=True, format="jsonl", source="s"
            ),
            "w",
        )
    assert "the-secret" not in str(told.value)


def test_a_list_that_unpacks_to_more_than_any_list_has_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes were bounded, what they unpack to was not: a gigabyte of zeros becomes a terabyte of memory."""
    monkeypatch.setattr(source_lists, "LARGEST", 10_000)
    for size, fits in ((300, True), (3000, False)):
        (tmp_path / "list.gz").write_bytes(gzip.compress(b"s3://bucket/name\n" * size))
        source = RawSource(uri=(tmp_path / "list.gz").as_uri(), listed=True, format="jsonl", source="s")
        if fits:
            assert len(expanded(source, "w")) == size
        else:
            with pytest.raises(InputError, match=r"list\.gz unpacks to more than 10000 bytes, which is no list"):
                expanded(source, "w")


def test_what_goes_with_a_list_alone_is_refused_of_a_file() -> None:
    with pytest.raises(ValueError, match="sha256, take and rewrite go with listed = true"):
        RawSource(uri="https://example.org/a.jsonl", format="jsonl", source="s", take=3)


def test_a_list_is_written_out_by_the_stage(tmp_path: Path) -> None:
    files = tuple(RawSource(uri=f"https://example.org/{n}", format="jsonl", source="s") for n in range(2))
    ctx = LocalContext(tmp_path, CollectConfig(text=files, web=(listed(tmp_path, POOL, take=5),), code=files))
    run(ctx)
    assert [len(read_listing(ctx.output(port))) for port in ("text", "web", "code")] == [2, 5, 2]
    assert ctx.stats == {"text_files": 2, "web_files": 5, "code_files": 2}
