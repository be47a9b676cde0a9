# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""Caches as files: exact copies, or a refusal that names the line."""

import io
import json
import random
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.vectorq.store_cases import DIMENSIONS, Records, StorePlace
from vllm_vectorq.record import Change, Record
from vllm_vectorq.store import MemoryStore, Store
from vllm_vectorq.transfer import TransferError, export_jsonl, import_jsonl

MODEL = {"embedding": "minilm@1", "dimensions": DIMENSIONS}


class Target(MemoryStore):
    """Keeps what is written to it, all or nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.content: list[Change] = []

    def write(self, changes: Iterable[Change]) -> None:
        self.content += list(changes)

    def load(self) -> Iterator[Record]:
        return iter(self.content)


@pytest.fixture
def changes(records: Records) -> list[Change]:
    return [
        records.partition(1, odd="\ud83d\ude00 \0 \u2028"),
        records.answer(1, text="\ud800\n\0 東京", stop_reason="\udfff", token_ids=()),
        records.answer(2, stop_reason=-1),
        records.entry(1, principal=b"\0\xff", text=None),
        records.entry(2, vector=None, class_id=-(2**63), text="\ud83d\ude00"),
        records.observation(1, principal=b""),
        records.observation(2, source="feedback", label=True),
    ]


@pytest.fixture
def exported(changes: list[Change]) -> bytes:
    store = Target()
    store.write(changes)
    file = io.BytesIO()
    assert export_jsonl(store, file, **MODEL) == len(changes)
    return file.getvalue()


def imported(content: bytes, store: Store | None = None) -> Store:
    store = Target() if store is None else store
    import_jsonl(store, io.BytesIO(content), **MODEL)
    return store


def test_a_cache_moves_between_kinds_of_stores(
    sqlite_place: StorePlace,
    postgres_place: StorePlace,
    records: Records,
    changes: list[Change],
) -> None:
    first, second = sqlite_place.open(), postgres_place.open()
    onlooker = postgres_place.open()
    _, cursor = onlooker.changes_since(None)
    first.write(changes)
    file = io.BytesIO()
    export_jsonl(first, file, **MODEL)
    imported(file.getvalue(), second)
    assert records.plain(second.load()) == records.plain(changes)
    assert records.plain(onlooker.changes_since(cursor)[0]) == records.plain(changes)
    back = io.BytesIO()
    export_jsonl(second, back, **MODEL)
    lines = [file.getvalue().split(b"\n")[1:-2], back.getvalue().split(b"\n")[1:-2]]
    assert lines[0] == lines[1]


def test_an_export_is_one_object_a_line_with_header_and_end(exported: bytes) -> None:
    lines = exported.decode("utf-8", "surrogatepass").split("\n")
    assert lines.pop() == ""
    header, *body, end = map(json.loads, lines)
    assert (header["format"], header["version"]) == ("vllm-vectorq", 1)
    assert (header["embedding"], header["dimensions"]) == ("minilm@1", DIMENSIONS)
    kinds = [line["type"] for line in body]
    assert kinds == [
        "partition",
        *["answer"] * 2,
        *["entry"] * 2,
        *["observation"] * 2,
    ]
    assert (end["type"], end["count"], len(end["sha256"])) == ("end", 7, 64)


def test_importing_twice_is_importing_once(
    place: StorePlace, records: Records, exported: bytes, changes: list[Change]
) -> None:
    store = place.open()
    imported(exported, store)
    imported(exported, store)
    assert records.plain(store.load()) == records.plain(changes)


def test_an_empty_cache_is_a_file_too(records: Records) -> None:
    file = io.BytesIO()
    assert export_jsonl(MemoryStore(), file, **MODEL) == 0
    assert list(imported(file.getvalue()).load()) == []


def test_an_import_starts_where_the_file_stands(exported: bytes) -> None:
    file = io.BytesIO(b"something before" + exported)
    file.seek(len(b"something before"))
    target = Target()
    assert import_jsonl(target, file, **MODEL) == 7
    assert len(target.content) == 7


def test_progress_is_told(place: StorePlace, records: Records) -> None:
    store = place.open()
    store.write([records.partition(), *map(records.observation, range(2_500))])
    told: list[int] = []
    file = io.BytesIO()
    export_jsonl(store, file, **MODEL, progress=told.append)
    assert told == [1_000, 2_000, 2_501]
    told.clear()
    file.seek(0)
    import_jsonl(Target(), file, **MODEL, progress=told.append)
    assert told == [1_000, 2_000, 2_501]


@pytest.mark.parametrize(
    "model",
    [
        {"embedding": "minilm@2", "dimensions": DIMENSIONS},
        {"embedding": "minilm@1", "dimensions": DIMENSIONS + 1},
    ],
)
def test_vectors_of_another_model_are_refused(
    exported: bytes, model: dict[str, object]
) -> None:
    target = Target()
    with pytest.raises(TransferError, match=r"line 1 .* 'minilm@1' with 8 dimensions"):
        import_jsonl(target, io.BytesIO(exported), **model)
    assert target.content == []


def changed(line: int, old: str, new: str) -> Callable[[bytes], bytes]:
    """Replaces text in one line, counted from 1."""

    def change(content: bytes) -> bytes:
        lines = content.split(b"\n")
        assert old.encode() in lines[line - 1]
        lines[line - 1] = lines[line - 1].replace(old.encode(), new.encode())
        return b"\n".join(lines)

    return change


def without(line: int) -> Callable[[bytes], bytes]:
    """Leaves one line out, counted from 1."""

    def change(content: bytes) -> bytes:
        lines = content.split(b"\n")
        del lines[line - 1]
        return b"\n".join(lines)

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "line 1 .*missing"),
        (lambda content: b"prompt,answer\n", "line 1 .*cannot be read"),
        (lambda content: b"[]\n", "line 1 .*header"),
        (changed(1, '"version":1', '"version":2'), "line 1 .*format version 2"),
        (changed(2, '"model"', '"Model"'), "line 9 .*checksum"),
        (changed(2, '"type":"partition"', '"type":"removal"'), "line 2 .*missing or"),
        (changed(2, '"type":"partition"', '"type":"wish"'), "line 2 .*unknown type"),
        (changed(3, '"answer_id":1', '"answer_id":"1"'), "line 3 .*answer_id"),
        (changed(3, '"answer_id":1', '"answer_id":NaN'), "line 3 .*answer_id"),
        (
            changed(3, '"token_ids":[]', '"token_ids":[4294967296]'),
            "line 3 .*token_ids",
        ),
        (changed(4, '"generation_s":', '"other":1,"generation_s":'), "line 4 .*other"),
        (changed(5, '"created_s":', '"created_s":-1e999,"x":'), "line 5"),
        (changed(5, '"vector":"', '"vector":"AAAA'), "line 5 .*vector"),
        (changed(5, '"vector":"', '"vector":"AAAAAAAAAAAAAAAA'), "line 5 .*11 numbers"),
        (changed(5, '"exact_key":"', '"exact_key":"00'), "line 5 .*32 bytes"),
        (changed(5, '"answer_id":1', '"answer_id":3'), "line 5 .*without its answer"),
        (changed(7, '"label":false', '"label":"no"'), "line 7 .*label"),
        (changed(7, "{", "[" * 100_000 + "{"), "line 7 .*cannot be read"),
        (without(2), "line 4 .*without its partition"),
        (without(3), "line 4 .*without its answer"),
        (without(8), "line 8 .*does not fit the 6 records"),
        (without(9), "line 9 .*missing"),
        (lambda content: content[:-1], "line 9 .*cut off"),
        (lambda content: content + b"\n", "line 10 .*after the end"),
        (lambda content: content + content, "line 10 .*after the end"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line_and_nothing_is_imported(
    exported: bytes, damage: Callable[[bytes], bytes], message: str
) -> None:
    target = Target()
    with pytest.raises(TransferError, match=message):
        imported(damage(exported), target)
    assert target.content == []


@pytest.mark.parametrize("seed", range(100))
def test_no_flipped_bit_is_imported(exported: bytes, seed: int) -> None:
    chance = random.Random(seed)
    data = bytearray(exported)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    target = Target()
    with pytest.raises(TransferError, match="line"):
        imported(bytes(data), target)
    assert target.content == []


def test_every_truncation_is_refused(exported: bytes) -> None:
    for length in range(0, len(exported), 7):
        with pytest.raises(TransferError, match="line"):
            imported(exported[:length])


def test_a_line_without_end_is_refused_before_memory_is_full(
    exported: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_vectorq.transfer.MAX_LINE_BYTES", 1_000)
    with pytest.raises(TransferError, match=r"line 2 .* too long"):
        imported(exported.split(b"\n")[0] + b"\n" + b"x" * 5_000)


def test_a_file_that_changes_while_it_is_imported_changes_nothing(
    place: StorePlace, exported: bytes
) -> None:
    class Changing(io.BytesIO):
        seeks = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            self.seeks += 1
            if self.seeks == 1:
                content = self.getvalue().replace(b"feedback", b"Feedback")
                super().seek(0)
                self.write(content)
            return super().seek(offset, whence)

    store = place.open()
    with pytest.raises(TransferError, match="checksum"):
        import_jsonl(store, Changing(exported), **MODEL)
    assert list(store.load()) == []


def test_a_pipe_is_refused() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(TransferError, match="pipe"):
        import_jsonl(MemoryStore(), Pipe(), **MODEL)
