# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vLLM Program Suite
"""``inspect``, ``export`` and ``import`` on real stores."""

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vectorq.store_cases import Records, StorePlace
from vllm_vectorq.cli import main
from vllm_vectorq.cli_summary import summary_of
from vllm_vectorq.embedding_model import EmbeddingModel
from vllm_vectorq.record import Change, new_id
from vllm_vectorq.store import open_store

HOUR_S = 3_600.0


@pytest.fixture
def postgres_cache(postgres_url: str) -> Iterator[str]:
    """URL of a database in which nobody else uses the default schema."""
    import psycopg

    yield postgres_url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS vectorq CASCADE")


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:  # noqa: ANN401
    capsys.readouterr()
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out)


def write(url: str, changes: Iterable[Change]) -> None:
    store = open_store(url)
    store.write(changes)
    store.close()


@pytest.fixture
def changes(records: Records) -> list[Change]:
    """Two partitions, three entries, of which two share an answer; four labels."""
    now_s = time.time()
    other = records.key("partition", 2)
    return [
        records.partition(1, namespace="default", tenant="0123456789abcdef"),
        records.partition(2, lora="adapter"),
        records.answer(1),
        records.answer(2),
        records.entry(1, created_s=now_s - 5 * HOUR_S),
        records.entry(2, created_s=now_s - HOUR_S, expires_s=now_s + 5 * HOUR_S),
        records.entry(3, partition=other, answer_id=2, vector=None, text=None),
        records.observation(1, label=True),
        records.observation(2, label=False),
        records.observation(3, label=False),
        records.observation(4, label=True, source="feedback"),
    ]


# -- inspect -----------------------------------------------------------------------


def test_a_summary_counts_by_partition_and_source(
    records: Records, changes: list[Change]
) -> None:
    summary = summary_of(changes, time.time())  # type: ignore[arg-type]
    first, second = summary.partitions
    assert first.facts["tenant"] == "0123456789abcdef"
    counts = [(p.entries, p.semantic, p.answers, p.expiring) for p in (first, second)]
    assert counts == [(2, 2, 2, 1), (1, 0, 1, 1)]
    assert {s: (x.right, x.wrong) for s, x in first.labels.items()} == {
        "judge": (1, 2),
        "feedback": (1, 0),
    }
    total = summary.total.as_dict(time.time())
    assert (total["entries"], total["answers"]) == (3, 2)
    assert total["labels"]["judge"] == {"right": 1, "wrong": 2}
    assert round(total["oldest_age_s"] / HOUR_S) == 5


def test_inspect_shows_what_is_stored(
    sqlite_place: StorePlace, changes: list[Change], capsys: pytest.CaptureFixture[str]
) -> None:
    write(sqlite_place.url, changes)
    [store] = output(capsys, "inspect", sqlite_place.url, "--json")["stores"]
    assert store["url"] == sqlite_place.url
    assert store["bytes"] > 1_000
    assert (store["partitions"], store["entries"], store["answers"]) == (2, 3, 2)
    assert [p["entries"] for p in store["largest_partitions"]] == [2, 1]
    assert main(["inspect", sqlite_place.url.removeprefix("sqlite://")]) == 0
    text = capsys.readouterr().out
    assert "3 entries, 2 found by meaning" in text
    assert "labels by judge: 1 right, 2 wrong" in text
    assert "namespace=default model=m tenant=01234567\n" in text


def test_only_the_largest_partitions_are_shown(
    sqlite_place: StorePlace, records: Records, capsys: pytest.CaptureFixture[str]
) -> None:
    write(sqlite_place.url, map(records.partition, range(12)))
    [store] = output(capsys, "inspect", sqlite_place.url, "--json")["stores"]
    assert (store["partitions"], len(store["largest_partitions"])) == (12, 10)
    [store] = output(capsys, "inspect", sqlite_place.url, "--all", "--json")["stores"]
    assert len(store["largest_partitions"]) == 12
    assert main(["inspect", sqlite_place.url]) == 0
    assert "and 2 smaller partitions" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["sqlite_place", "postgres_cache"])
def test_a_store_is_inspected_while_a_server_uses_it(
    kind: str,
    request: pytest.FixtureRequest,
    changes: list[Change],
    capsys: pytest.CaptureFixture[str],
) -> None:
    place = request.getfixturevalue(kind)
    url = place if isinstance(place, str) else place.url
    store = open_store(url)
    store.write(changes[:6])
    [found] = output(capsys, "inspect", url, "--json")["stores"]
    assert found["entries"] == 2
    store.write(changes[6:])
    [found] = output(capsys, "inspect", url, "--json")["stores"]
    assert found["entries"] == 3
    store.close()


def test_without_a_store_those_of_the_default_directory_are_shown(
    tmp_path: Path,
    records: Records,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "vllm-vectorq"
    assert main(["inspect"]) == 0
    assert capsys.readouterr().out == f"There are no stores in {folder}.\n"
    folder.mkdir()
    for name in "ab":
        write(f"sqlite://{folder}/{name}.db", [records.partition()])
    (folder / "broken.db").write_text("not a database at all" * 100)
    assert main(["inspect", "--json"]) == 1
    out, err = capsys.readouterr()
    urls = [store["url"] for store in json.loads(out)["stores"]]
    assert urls == [f"sqlite://{folder}/{name}.db" for name in "ab"]
    assert "broken.db" in err


def test_other_and_damaged_files_are_left_as_they_are(
    tmp_path: Path,
    sqlite_place: StorePlace,
    changes: list[Change],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = Path(sqlite_place.url.removeprefix("sqlite://"))
    write(sqlite_place.url, changes)
    content = path.read_bytes()
    damaged = content[:100] + bytes(len(content) - 100)
    other = b"SQLite format 3\0" + content[16:68] + bytes(4) + content[72:]
    for changed, reason in ((damaged, "damaged"), (other, "not made by this plugin")):
        path.write_bytes(changed)
        assert main(["inspect", str(path)]) == 1
        err = capsys.readouterr().err
        assert reason in err or "malformed" in err
        assert str(path) in err
        assert path.read_bytes() == changed
        assert not list(tmp_path.glob("*.damaged-*"))


def test_inspecting_makes_no_tables(
    postgres_cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import psycopg

    with psycopg.connect(postgres_cache, autocommit=True) as connection:
        assert main(["inspect", postgres_cache]) == 1
        assert "there is no store in PostgreSQL" in capsys.readouterr().err
        row = connection.execute("SELECT to_regnamespace('vectorq')").fetchone()
        assert row == (None,)


# -- export and import -------------------------------------------------------------


@pytest.fixture(scope="module")
def model(embedding_model_path: str) -> EmbeddingModel:
    return EmbeddingModel(embedding_model_path)


@pytest.fixture
def embedded(
    records: Records, changes: list[Change], model: EmbeddingModel
) -> list[Change]:
    """The same with vectors of a real model."""
    texts = ["How tall is Mont Blanc?", "Who painted this?"]
    one, two = model.embed(texts)
    changes[4] = records.entry(1, text=texts[0], vector=one)
    changes[5] = records.entry(2, text=texts[1], vector=two)
    return changes


def test_a_store_comes_back_from_its_file(
    tmp_path: Path,
    sqlite_place: StorePlace,
    records: Records,
    embedded: list[Change],
    embedding_model_path: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(sqlite_place.url, embedded)
    file, copy = str(tmp_path / "cache.jsonl"), str(tmp_path / "a copy.db")
    model = ("--embedding-model", embedding_model_path)
    done = output(capsys, "export", sqlite_place.url, file, "--json", *model)
    assert done == {"records": 11, "dimensions": 384, "file": file}
    assert Path(file).stat().st_mode & 0o777 == 0o600
    # Twice: the second time into a store with vectors of its own.
    for _ in range(2):
        assert main(["import", copy, file, *model]) == 0
        said = capsys.readouterr().out
        assert "Imported 11 records" in said
        assert "A server sees them when it starts." in said
    [before] = output(capsys, "inspect", sqlite_place.url, "--json")["stores"]
    [after] = output(capsys, "inspect", copy, "--json")["stores"]
    assert after["entries"] == before["entries"] == 3
    store = open_store(f"sqlite://{tmp_path}/a%20copy.db")
    assert records.plain(store.load()) == records.plain(embedded)
    store.close()


def test_a_store_moves_to_postgres_through_standard_output(
    tmp_path: Path,
    sqlite_place: StorePlace,
    postgres_cache: str,
    embedded: list[Change],
    embedding_model_path: str,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    write(sqlite_place.url, embedded)
    model = ("--embedding-model", embedding_model_path)
    assert main(["export", sqlite_place.url, "-", *model]) == 0
    out, err = capfdbinary.readouterr()
    assert b"Exported 11 records to standard output." in err
    file = tmp_path / "cache.jsonl"
    file.write_bytes(out)
    assert main(["import", postgres_cache, str(file), *model]) == 0
    assert b"A server sees them within a second." in capfdbinary.readouterr().out
    assert main(["inspect", postgres_cache, "--json"]) == 0
    [store] = json.loads(capfdbinary.readouterr().out)["stores"]
    assert store["entries"] == 3


def test_vectors_of_another_model_are_noticed(
    tmp_path: Path,
    sqlite_place: StorePlace,
    records: Records,
    embedded: list[Change],
    embedding_model_path: str,
    model: EmbeddingModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--embedding-model", embedding_model_path)
    file = tmp_path / "cache.jsonl"
    stranger = records.entry(9, text="What?", vector=model.embed(["Something else"])[0])
    short = records.entry(8, text=None)
    for entry in (stranger, short):
        path = tmp_path / f"{new_id()}.db"
        write(
            f"sqlite://{path}",
            [*embedded[:4], records.answer(8), records.answer(9), entry],
        )
        assert main(["export", str(path), str(file), *options]) == 1
        assert "were not made by" in capsys.readouterr().err
        assert not file.exists()
        write(sqlite_place.url, embedded)
        good = tmp_path / "good.jsonl"
        assert main(["export", sqlite_place.url, str(good), *options]) == 0
        assert main(["import", str(path), str(good), *options]) == 1
        assert "were not made by" in capsys.readouterr().err


def test_a_store_without_vectors_needs_no_model(
    tmp_path: Path,
    sqlite_place: StorePlace,
    records: Records,
    capsys: pytest.CaptureFixture[str],
) -> None:
    entry = records.entry(1, vector=None)
    write(sqlite_place.url, [records.partition(), records.answer(), entry])
    file, copy = str(tmp_path / "cache.jsonl"), str(tmp_path / "copy.db")
    none = ("--embedding-model", str(tmp_path / "none"))
    done = output(capsys, "export", sqlite_place.url, file, "--json", *none)
    assert done["dimensions"] == 0
    assert output(capsys, "import", copy, file, "--json", *none)["records"] == 3


def test_a_model_that_is_not_there_is_named(
    tmp_path: Path,
    sqlite_place: StorePlace,
    changes: list[Change],
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(sqlite_place.url, changes)
    file = tmp_path / "cache.jsonl"
    arguments = ["export", sqlite_place.url, str(file), "--embedding-model"]
    assert main([*arguments, str(tmp_path)]) == 1
    assert f"--embedding-model {tmp_path} cannot be read" in capsys.readouterr().err


def test_a_failed_export_leaves_the_earlier_file(
    tmp_path: Path,
    sqlite_place: StorePlace,
    records: Records,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(sqlite_place.url, [records.partition()])
    file = tmp_path / "cache.jsonl"
    file.write_text("earlier")

    def full(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vllm_vectorq.cli_transfer.export_jsonl", full)
    assert main(["export", sqlite_place.url, str(file)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert file.read_text() == "earlier"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("content", ["", "nonsense\n", "[" * 100_000 + "\n"])
def test_a_damaged_file_is_refused(
    tmp_path: Path,
    content: str,
    embedding_model_path: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "cache.jsonl"
    file.write_text(content)
    options = ("--embedding-model", embedding_model_path)
    assert main(["import", str(tmp_path / "new.db"), str(file), *options]) == 1
    assert "line 1 of the file to import" in capsys.readouterr().err


def test_a_file_that_a_server_uses_is_not_imported_into(
    tmp_path: Path,
    sqlite_place: StorePlace,
    records: Records,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = sqlite_place.open()
    store.write([records.partition()])
    file = str(tmp_path / "cache.jsonl")
    assert main(["export", sqlite_place.url, file]) == 0
    assert main(["import", sqlite_place.url, file]) == 1
    assert "another server" in capsys.readouterr().err
