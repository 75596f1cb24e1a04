"""Coverage-guided search for input that the codec does not survive: atheris (libFuzzer).

    python tests/fuzz/fuzz_codec.py stream|block [libFuzzer's options]

`stream`: any bytes from QEMU come out as they went in. `block`: any bytes from the peer are refused
or give a bounded answer; the plan is given uncompressed, so that the search sees all of it.
"""

import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

with atheris.instrument_imports(include=["sterna.carrier"]):
    from sterna.carrier import blocks
    from sterna.carrier.batch import BATCH_BYTES
    from sterna.carrier.codec import Decoder, Encoder, pack, unpack
    from sterna.errors.carrier import BadBlock

import made_stream as made  # noqa: E402 - after the path to it

CACHE = 64 << 10


def stream(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    step = provider.ConsumeIntInRange(1, 9000)
    flush_each = provider.ConsumeIntInRange(1, 8)
    body = provider.ConsumeBytes(len(data))
    fed = made.setup({"pc.ram": 1 << 20}) + body if provider.ConsumeBool() else body
    encoder, decoder = Encoder(cache_bytes=CACHE), Decoder(cache_bytes=CACHE)
    out = bytearray()
    for number, at in enumerate(range(0, len(fed), step)):
        batches = encoder.feed(fed[at : at + step])
        if number % flush_each == 0:
            batches += encoder.flush()
        for batch in batches:
            for piece in decoder.apply(unpack(pack(batch, 1))):
                out += piece
    for batch in encoder.flush():
        for piece in decoder.apply(unpack(pack(batch, 1))):
            out += piece
    assert out == fed
    assert (encoder.pages.rows == decoder.rows).all()


def block(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    if provider.ConsumeBool():
        tried = provider.ConsumeBytes(len(data))
    else:
        pages = [provider.ConsumeIntInRange(0, 3) * 4096 for _ in range(3)]
        literals = provider.ConsumeIntInRange(0, 64)
        plan = provider.ConsumeBytes(len(data))
        parts = [plan, bytes(literals), *(bytes(size) for size in pages)]
        sizes = [size for part in parts for size in (len(part), len(part))]
        tried = blocks.HEAD.pack(blocks.VERSION, *sizes) + b"".join(parts)
    decoder = Decoder(cache_bytes=CACHE)
    try:
        pieces = decoder.apply(unpack(tried))
    except BadBlock:
        return
    assert sum(len(piece) for piece in pieces) <= BATCH_BYTES


if __name__ == "__main__":
    target = {"stream": stream, "block": block}[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
