"""The light client against a real store, beside botocore's: the same answers, and botocore where anything is odd."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from flows import reading_client
from flows.reading_client import ReadingClient
from flows.settings import Settings
from stages.core import connection
from stages.core.errors import ConfigError, InfraError
from stages.core.messages import StoreAddress
from stages.core.store import Store
from stages.core.store_errors import Damaged, Unavailable
from tests.support.paths import ROOT
from tests.support.s3_proxy import proxied

NAMES = ("a", "a b", "a+b", "a%20b", "ä/ß", "x&y<z>'\"", "deep/er/key=1,2;(3)~*!")


class Botocore:
    """How often botocore's client was made."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, address: StoreAddress) -> Any:
        self.made += 1
        return connection.client(address)


@pytest.fixture
def botocore() -> Botocore:
    return Botocore()


def light(server: Settings, address: StoreAddress, botocore: Botocore, secret: str = "") -> Store:
    keys = server.credentials
    client = ReadingClient(address, keys["AWS_ACCESS_KEY_ID"], secret or keys["AWS_SECRET_ACCESS_KEY"], full=botocore)
    return Store(address, client, patience=0)


def test_it_reads_as_botocores_client_does(store_server: Settings, store: Store, botocore: Botocore) -> None:
    for name in NAMES:
        store.put(name, name.encode())
    store.put("empty", b"")
    read = light(store_server, store.address, botocore)
    for name in (*NAMES, "empty"):
        assert read.get(name) == store.get(name)
        assert read.stored(name) == store.stored(name)
        age = read.get_with_age(name)
        assert age is not None
        assert -2 <= age[2] < 60
    assert read.get("absent") is None
    assert read.stored("absent") is None
    assert list(read.list("")) == list(store.list(""))
    assert [row.key for row in read.list("a")] == [name for name in sorted(NAMES) if name.startswith("a")]
    assert list(read.list("nothing/")) == []
    assert botocore.made == 0


def test_a_long_listing_goes_on_from_page_to_page(store_server: Settings, store: Store, botocore: Botocore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"many/{number:04d} +", b""), range(1005)))
    read = light(store_server, store.address, botocore)
    assert [row.key for row in read.list("many/")] == [f"many/{number:04d} +" for number in range(1005)]
    assert botocore.made == 0


def test_many_threads_read_at_once(store_server: Settings, store: Store, botocore: Botocore) -> None:
    for number in range(20):
        store.put(str(number), b"%d" % number)
    read = light(store_server, store.address, botocore)
    with ThreadPoolExecutor(16) as pool:
        bodies = list(pool.map(lambda number: read.get(str(number % 20)), range(400)))
    assert [body and body[0] for body in bodies] == [b"%d" % (number % 20) for number in range(400)]
    assert botocore.made == 0


def test_a_range_is_read_and_one_that_is_not_there_is_told(
    store_server: Settings, store: Store, botocore: Botocore
) -> None:
    store.put("x", b"0123456789")
    read = light(store_server, store.address, botocore)
    assert [read.get_range("x", 2, 5), read.get_range("x", 0, 10), read.get_range("x", 9, 10)] == [
        b"234", b"0123456789", b"9",
    ]  # fmt: skip
    with pytest.raises(Damaged, match="absent is not in the store"):
        read.get_range("absent", 0, 1)
    assert botocore.made == 0
    for start, end in ((8, 12), (12, 14)):
        with pytest.raises(Damaged, match="ends"):
            read.get_range("x", start, end)


def test_what_is_too_large_to_lie_in_memory_is_botocores(
    store_server: Settings, store: Store, botocore: Botocore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading_client, "LARGEST", 4)
    store.put("x", b"0123456789")
    read = light(store_server, store.address, botocore)
    assert (read.get_range("x", 0, 4), botocore.made) == (b"0123", 0)
    assert (read.get_range("x", 0, 5), botocore.made) == (b"01234", 1)


def test_whatever_else_is_asked_is_botocores(store_server: Settings, store: Store, botocore: Botocore) -> None:
    read = light(store_server, store.address, botocore)
    read.put("x", b"0123456789")
    assert store.get("x") == read.get("x")
    where = {"Bucket": store.address.bucket, "Key": f"{store.address.prefix}x"}
    assert read._client.get_object(**where, Range="bytes=-3")["Body"].read() == b"789"
    read.delete(["x"])
    assert store.get("x") is None
    assert botocore.made == 1


def test_what_is_wrong_is_told_in_botocores_words(
    store_server: Settings, store: Store, botocore: Botocore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        for act in (lambda one: one.get("x"), lambda one: list(one.list("")), lambda one: one.stored("x")):
            with pytest.raises(ConfigError, match=r"refuses access to .* check the credentials"):
                act(light(store_server, store.address, botocore, secret="wrong"))
    other = store.address.model_copy(update={"bucket": "no-such-bucket"})
    with pytest.raises(InfraError, match="no bucket 'no-such-bucket'"):
        light(store_server, other, botocore).get("x")
    nowhere = store.address.model_copy(update={"endpoint": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable, match="cannot be reached"):
        light(store_server, nowhere, botocore).get("x")


@pytest.mark.parametrize("way", ["503", "drop", "cut", "flip", "expired"])
def test_an_answer_that_is_not_right_is_asked_for_again_by_botocore(
    store_server: Settings, store: Store, botocore: Botocore, way: str
) -> None:
    """A byte that turned, too: objects are stored with a CRC32."""
    store.put("x", b"a record of the ledger")
    with proxied(str(store.address.endpoint)) as proxy:
        ways = iter([way])
        proxy.rule = lambda method, path: next(ways, None)
        read = light(store_server, store.address.model_copy(update={"endpoint": proxy.url}), botocore)
        assert read.get("x") == store.get("x")
        assert [what for _, _, what in proxy.log] == [way, "pass"]
    assert botocore.made == 1


def test_a_listing_that_cannot_be_read_is_asked_for_again(
    store_server: Settings, store: Store, botocore: Botocore
) -> None:
    store.put("x", b"")
    with proxied(str(store.address.endpoint)) as proxy:
        ways = iter(["cut", "503"])
        proxy.rule = lambda method, path: next(ways, None)
        read = light(store_server, store.address.model_copy(update={"endpoint": proxy.url}), botocore)
        assert [row.key for row in read.list("")] == ["x"]
    assert botocore.made == 1


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("endpoint", "environment", "there"),
    [
        ("http://127.0.0.1:8333", KEYS, True),
        ("http://localhost:8333", KEYS, True),
        ("http://127.0.0.1:8333", {}, False),
        ("http://127.0.0.1:8333", KEYS | {"AWS_SESSION_TOKEN": "c"}, False),
        ("https://127.0.0.1:8333", KEYS, False),
        ("http://store.example.org:8333", KEYS, False),
        (None, KEYS, False),
    ],
)
def test_it_is_for_a_store_on_this_machine_alone(
    endpoint: str | None, environment: dict[str, str], there: bool
) -> None:
    client = reading_client.client(StoreAddress(bucket="b", endpoint=endpoint), environment)
    assert (client is not None) is there


@pytest.mark.parametrize(
    "words", [["ls"], ["plan"], ["why", "pretrain_1"], ["experiments"], ["show", "collect"], ["lineage", "collect"]]
)
def test_a_command_that_reads_loads_neither_botocores_client_nor_prefect(
    store_server: Settings, settings: Settings, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would take as long as all the rest."""
    code = (
        "import sys\nfrom flows.cli import app\ntry:\n    app(sys.argv[1:], standalone_mode=False)\n"
        "except Exception as error:\n    print(error)\n"
        "print(*sorted({'boto3', 'botocore.client', 'matplotlib', 'numpy', 'pandas', 'prefect'} & sys.modules.keys()),"
        " sep=',', file=sys.stderr)"
    )
    for name in ("MOXIN_EMBEDDED", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MOXIN_HOME", str(settings.home))
    for name, value in settings.shared_environment().items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout
    assert done.stderr.splitlines()[-1] == ""
