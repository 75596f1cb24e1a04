"""Sizes, rates and durations read and write as people do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sterna.errors import BadSize
from sterna.units import format_duration, format_rate, format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("512mib", 512 << 20),
        (" 10 GiB ", 10 << 30),
        ("1GB", 10**9),
        ("1.5GiB", 3 << 29),
        ("2TiB", 2 << 40),
        ("100MB", 100_000_000),
    ],
)
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "value", ["", "ten", "10 parsecs", "-1", "0", "-1GiB", 0, -5, "1e9", "GiB", "1..5G", "0.0001B"]
)
def test_what_is_no_size_is_refused_by_its_own_words(value):
    with pytest.raises(BadSize) as caught:
        parse_size(value)
    assert repr(value) in caught.value.message


@pytest.mark.parametrize("value", [None, True, 1.5, [], {}])
def test_other_types_are_no_sizes(value):
    with pytest.raises(BadSize, match="neither a number nor a text"):
        parse_size(value)


@given(st.integers(min_value=1, max_value=1 << 60))
def test_a_whole_number_of_bytes_is_kept_exactly(size):
    assert parse_size(size) == parse_size(str(size)) == size


@given(st.integers(min_value=1, max_value=1 << 50))
def test_a_formatted_size_reads_back_within_a_percent(size):
    again = parse_size(format_size(size))
    assert abs(again - size) <= size / 100


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1 << 20, "1 MiB"),
        (3 << 29, "1.5 GiB"),
        (300 << 20, "300 MiB"),
        (1023 << 20, "1023 MiB"),
    ],
)
def test_a_size_is_written(size, text):
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0 B/s"), (1500, "1.5 kB/s"), (118e6, "118 MB/s"), (1.25e9, "1.25 GB/s")],
)
def test_a_rate_is_decimal_as_links_are(rate, text):
    assert format_rate(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0401, "40 ms"),
        (3.21, "3.2 s"),
        (59.94, "59.9 s"),
        (245, "4 min 05 s"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_duration_is_written(seconds, text):
    assert format_duration(seconds) == text


def test_a_duration_never_shows_sixty_of_anything():
    shown = [format_duration(tenths / 10) for tenths in range(37_000)]
    assert not [text for text in shown if text.startswith("60.0 s") or " 60 " in text]
    assert not [text for text in shown if text.startswith("60 min")]
    assert format_duration(0.9999) == "1.0 s"


@given(st.floats(min_value=0, max_value=1e15))
def test_nobody_reads_exponents(number):
    for text in (format_size(number), format_rate(number), format_duration(number)):
        assert "e+" not in text
