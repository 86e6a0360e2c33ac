"""The codings: what they make can be read back, by others and at once; what wrong settings get."""

from __future__ import annotations

import gzip
import importlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_perfkit import ConfigurationError
from asgi_perfkit.encoding.compression import Coding, find_codings
from tests.encoding.decoding import CODINGS, Reader, decompressed

ALL = find_codings("compression", CODINGS)
EACH = pytest.mark.parametrize("coding", ALL.values(), ids=CODINGS)

TEXT = b"".join(b'{"id": %d, "name": "kettle", "price": 24.50}\n' % number for number in range(99))
BODIES = st.binary(max_size=2_000) | st.builds(
    bytes.__mul__, st.binary(max_size=20), st.sampled_from([1, 5_000])
)


@EACH
@given(body=BODIES)
def test_a_whole_body_is_read_back(coding: Coding, body: bytes) -> None:
    assert decompressed(coding.name, coding.compress(body)) == body


@EACH
@given(chunks=st.lists(BODIES, max_size=6), last=st.binary(max_size=100))
def test_each_chunk_can_be_read_when_it_has_come(
    coding: Coding, chunks: list[bytes], last: bytes
) -> None:
    """Nothing of a chunk waits in the compressor for the next one, and the end is the end."""
    stream, reader = coding.stream(), Reader(coding.name.decode())
    for chunk in chunks:
        assert reader.read(stream.flush(chunk)) == chunk
        assert not reader.ended
    assert reader.read(stream.finish(last)) == last
    assert reader.ended


@EACH
def test_what_repeats_gets_smaller(coding: Coding) -> None:
    """To less than a fifth, as a whole or line by line: a stream remembers what came before."""
    assert len(coding.compress(TEXT)) < len(TEXT) / 5
    stream = coding.stream()
    assert sum(len(stream.flush(line)) for line in TEXT.splitlines()) < len(TEXT) / 3


@EACH
def test_threads_share_a_coding(coding: Coding) -> None:
    """Small bodies and large ones, at once."""
    bodies = [TEXT * times + b"%d" % times for times in range(1, 60)]
    with ThreadPoolExecutor(8) as threads:
        compressed = list(threads.map(coding.compress, bodies * 3))
    assert [decompressed(coding.name, body) for body in compressed] == bodies * 3
    assert max(map(len, bodies)) > coding.offload_bytes > min(map(len, bodies))


@EACH
def test_a_body_is_the_same_bytes_each_time(coding: Coding) -> None:
    """A cache sees no difference where there is none."""
    assert coding.compress(TEXT) == coding.compress(TEXT)


def test_gzip_has_no_time_in_it() -> None:
    compressed = ALL[b"gzip"].compress(TEXT)
    assert gzip.decompress(compressed) == TEXT
    assert compressed[4:8] == bytes(4)


@pytest.mark.parametrize("body", [TEXT * 500, TEXT], ids=["large", "small"])
def test_a_browser_has_room_for_zstd(body: bytes) -> None:
    """RFC 9659: a window of no more than eight megabytes, in whole bodies and in streams."""
    zstd = pytest.importorskip(
        "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    )
    coding = ALL[b"zstd"]
    stream = coding.stream()
    for compressed in (coding.compress(body), stream.flush(body) + stream.finish(b"")):
        options = {zstd.DecompressionParameter.window_log_max: 23}
        assert zstd.decompress(compressed, options=options) == body


# ---- settings


def test_true_is_all_that_is_installed_the_best_first() -> None:
    assert list(find_codings("compression", True)) == [b"zstd", b"br", b"gzip"]


def test_a_sequence_is_an_order_of_preference() -> None:
    """A name that comes twice counts where it comes first."""
    assert list(find_codings("compression", ("gzip", "zstd", "gzip"))) == [b"gzip", b"zstd"]
    assert list(find_codings("compression", ["br"])) == [b"br"]


@pytest.mark.parametrize("nothing", [None, False])
def test_off_is_none(nothing: Any) -> None:
    assert find_codings("compression", nothing) == {}


@pytest.mark.parametrize(
    ("wanted", "builtin", "value", "remedy"),
    [
        ("gzip", TypeError, "gzip", "a sequence of 'zstd', 'br', 'gzip'"),
        (b"gzip", TypeError, b"gzip", "a sequence"),
        (1, TypeError, 1, "True, None, or a sequence"),
        ({"gzip"}, TypeError, {"gzip"}, "in order of preference"),
        ((), ValueError, (), "name one or more"),
        (("gzip", "brotli"), ValueError, "brotli", "the codings are 'zstd', 'br', 'gzip'"),
        (("deflate",), ValueError, "deflate", "the codings are"),
        (("GZIP",), ValueError, "GZIP", "the codings are"),
        ((None,), ValueError, None, "the codings are"),
        (([],), ValueError, [], "the codings are"),
    ],
)
def test_a_wrong_setting_is_refused(
    wanted: Any, builtin: type[Exception], value: object, remedy: str
) -> None:
    """The message names the setting, what was wrong in it, and what there is."""
    with pytest.raises(builtin, match=remedy) as caught:
        find_codings("Middleware(compression=...)", wanted)
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.subject == "Middleware(compression=...)"
    assert caught.value.value == value


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing but the standard library of Python 3.13 was installed."""
    for name in ("compression", "compression.zstd", "backports", "backports.zstd", "brotli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        importlib.import_module("brotli")


@pytest.mark.usefixtures("without_packages")
def test_gzip_is_always_there() -> None:
    assert list(find_codings("compression", True)) == [b"gzip"]
    assert list(find_codings("compression", ("gzip",))) == [b"gzip"]


@pytest.mark.usefixtures("without_packages")
@pytest.mark.parametrize("name", ["zstd", "br"])
def test_a_missing_package_names_the_extra(name: str) -> None:
    with pytest.raises(ValueError, match=r"asgi_perfkit\[compression\]") as caught:
        find_codings("compression", ("gzip", name))
    assert isinstance(caught.value, ConfigurationError)
    assert caught.value.value == name


def test_what_is_not_asked_for_is_not_imported() -> None:
    """Neither with the package nor with a middleware that compresses with gzip."""
    code = """if True:
        import sys
        from asgi_perfkit import PerfKit

        async def app(scope, receive, send): ...

        PerfKit(app, encoder={"compression": ("gzip",)})
        assert not {"brotli", "backports", "compression"} & sys.modules.keys(), sys.modules.keys()
        PerfKit(app, encoder={"compression": ("gzip", "br")})
        assert "brotli" in sys.modules
        assert not {"backports", "compression"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-I", "-c", code], check=True)
