"""Every format and compression gives the same pairs; every broken input gives one clear sentence."""

import bz2
import gzip
import json
import lzma
import os
import pickle
import re
from contextlib import closing

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.filters import BadRowError
from lit_transformer.data.memory import MemoryCorpus, TeachingCorpus
from lit_transformer.data.textfiles import LineReader, compressing
from lit_transformer.interfaces import SentencePair

PAIRS = [SentencePair(f"line {n} “quoted”, tab-free", f"Zeile {n} äöü 나는") for n in range(57)]
PAIRS[3] = SentencePair('a "quote', "unpaired")
PAIRS[5] = SentencePair("line\u2028separator \x0c \x85 inside", "ein\rWagenrücklauf")
TABLE = [{"en": pair.src, "de": pair.tgt} for pair in PAIRS]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}


def write_text(folder, name="train", ending="", pairs=PAIRS, newline="\n"):
    for side, lines in (("en", [pair.src for pair in pairs]), ("de", [pair.tgt for pair in pairs])):
        text = "".join(line + newline for line in lines)
        (folder / f"{name}.{side}{ending}").write_bytes(COMPRESS[ending](text.encode()))
    return folder / name


def write_table(folder, kind):
    path = folder / f"data.{kind}"
    if kind.startswith("parquet"):
        pq.write_table(pa.Table.from_pylist(TABLE), folder / "data.parquet", row_group_size=20)
        return folder / "data.parquet"
    if kind.startswith("json"):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TABLE)
        path.write_bytes(COMPRESS["." + kind.split(".")[1] if "." in kind else ""](lines.encode()))
    elif kind == "translation.jsonl":
        path.write_text("".join(json.dumps({"id": 1, "translation": row}) + "\n" for row in TABLE))
    elif kind == "tsv":
        path.write_text("en\tde\n" + "".join(f"{p.src}\t{p.tgt}\n" for p in PAIRS), newline="\n")
    else:
        quoted = (
            "".join(f'"{s.replace(chr(34), chr(34) * 2)}"' for s in (p.src,)) + ',"' + p.tgt + '"\n' for p in PAIRS
        )
        path.write_text("en,de\n" + "".join(quoted), newline="")
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("ending", COMPRESS)
def test_aligned_text_files(tmp_path, ending, newline):
    corpus = ParallelCorpus(str(write_text(tmp_path, ending=ending, newline=newline)))
    assert list(corpus) == PAIRS


def test_two_text_files_by_name_and_a_folder_with_splits(tmp_path):
    write_text(tmp_path, "dev")
    by_name = ParallelCorpus(src_path=str(tmp_path / "dev.en"), tgt_path=str(tmp_path / "dev.de"))
    in_folder = ParallelCorpus(str(tmp_path), split="dev")
    assert list(by_name) == list(in_folder) == PAIRS


def test_a_folder_is_known_by_the_files_of_its_split(tmp_path):
    def write(name, rows):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("train.jsonl", TABLE)
    write("validation.jsonl", TABLE[:9])
    before = ParallelCorpus(str(tmp_path)).fingerprint()
    write("validation.jsonl", TABLE[:5])
    write("test.jsonl", TABLE[:3])
    write("runs/metrics.csv", TABLE[:2])
    assert ParallelCorpus(str(tmp_path)).fingerprint() == before
    write("train.jsonl", TABLE[:50])
    assert ParallelCorpus(str(tmp_path)).fingerprint() != before


def test_an_empty_folder_is_one_sentence(tmp_path):
    with pytest.raises(CorpusError, match="cannot open the folder"):
        ParallelCorpus(str(tmp_path)).fingerprint()


def test_text_without_last_newline_and_with_byte_order_mark(tmp_path):
    (tmp_path / "a.en").write_bytes(b"\xef\xbb\xbfone\n\ntwo")
    (tmp_path / "a.de").write_bytes(b"eins\nleer\nzwei")
    assert list(ParallelCorpus(str(tmp_path / "a"))) == [("one", "eins"), ("", "leer"), ("two", "zwei")]


def test_text_files_may_be_links_and_no_pipes(tmp_path):
    (tmp_path / "real.en").write_text("a\nb\n")
    (tmp_path / "link.en").symlink_to("real.en")
    assert list(ParallelCorpus(src_path=str(tmp_path / "link.en"), tgt=None)) == [("a", ""), ("b", "")]
    os.mkfifo(tmp_path / "pipe.en")
    (tmp_path / "other.en").symlink_to("pipe.en")
    for path, kind in (("pipe.en", "a pipe"), ("other.en", "a pipe"), ("/dev/zero", "a device")):
        corpus = ParallelCorpus(src_path=str(tmp_path / path), tgt=None)
        for look in (corpus.fingerprint, corpus.approximate_rows, lambda corpus=corpus: next(corpus.rows())):
            with pytest.raises(CorpusError, match=rf"{path} is {kind}, which can be read only once: write the text"):
                look()
    with pytest.raises(CorpusError, match=r"/dev/null, None, en\) is empty: expected at least one row"):
        list(ParallelCorpus(src_path="/dev/null", tgt=None))
    with pytest.raises(CorpusError, match=r"cannot open .*: Is a directory"):
        list(ParallelCorpus(src_path=str(tmp_path), tgt=None))


def test_source_only(tmp_path):
    write_text(tmp_path)
    corpus = ParallelCorpus(str(tmp_path / "train"), tgt=None)
    assert list(corpus) == [(pair.src, "") for pair in PAIRS]


@pytest.mark.parametrize(
    "kind", ["parquet", "jsonl", "jsonl.gz", "json.xz", "jsonl.zst", "translation.jsonl", "tsv", "csv"]
)
def test_tables(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: pytest.fail("reading a file called the network"))
    assert list(ParallelCorpus(str(write_table(tmp_path, kind)))) == PAIRS


@pytest.mark.parametrize(("ending", "comma"), [("csv", ","), ("tsv", "\t")])
def test_sentences_of_tables_that_look_like_no_value_or_like_numbers_are_text(tmp_path, ending, comma):
    rows = [
        ("None", "Keine"),
        ("N/A", "k. A."),
        ("nan", "Oma"),
        ("null", "NULL"),
        ("1", "007"),
        ("1e3", "-"),
        ("", "x"),
    ]
    path = tmp_path / f"ui.{ending}"
    path.write_text("".join(f"{comma.join(row)}\n" for row in [("en", "de"), *rows]))
    assert list(ParallelCorpus(str(path))) == rows
    path.write_text(f"en{comma}de\n1{comma}2\n")  # nothing but numbers
    assert list(ParallelCorpus(str(path))) == [("1", "2")]
    with pytest.raises(CorpusError, match="no column 'fr'"):
        list(ParallelCorpus(str(path), tgt="fr"))


def test_empty_lines_of_a_table_with_one_column_count(tmp_path):
    (tmp_path / "news.csv").write_text("en\nA\n\nB\n")
    assert list(ParallelCorpus(str(tmp_path / "news.csv"), tgt=None)) == [("A", ""), ("", ""), ("B", "")]
    (tmp_path / "pairs.csv").write_text("en,de\nA,B\n\n")
    assert list(ParallelCorpus(str(tmp_path / "pairs.csv"))) == [("A", "B")]


def test_fields_without_a_name_shift_no_column(tmp_path):
    (tmp_path / "trailing.csv").write_text("en,de\na,b,\nc,d,\n")  # as some programs export tables
    assert list(ParallelCorpus(str(tmp_path / "trailing.csv"))) == [("a", "b"), ("c", "d")]
    for name, text in {"text.csv": "en,de\nHello, you,Hallo\n", "extra.tsv": "en\tde\na\tb\textra\n"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(CorpusError, match=f"{name}: rows have more fields than the first line has names"):
            list(ParallelCorpus(str(tmp_path / name)))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_tsv_end_where_those_of_text_do(tmp_path, end):
    rows = [("en", "de"), ("foo\rbar", "hallo"), ("None", "None"), ("x", "y")]
    (tmp_path / "a.tsv").write_bytes("".join(f"{src}\t{tgt}{end}" for src, tgt in rows).encode())
    assert list(ParallelCorpus(str(tmp_path / "a.tsv"))) == rows[1:]


def test_tables_of_several_kinds_are_not_read_as_one(tmp_path):
    (tmp_path / "a.csv").write_text("en,de\na,b\n")
    (tmp_path / "b.tsv").write_text("en\tde\nc\td\n")
    with pytest.raises(CorpusError, match=r"several kinds, such as .*a\.csv and .*b\.tsv"):
        list(ParallelCorpus(str(tmp_path / "*")))
    (tmp_path / "b.tsv").rename(tmp_path / "b.text")
    with pytest.raises(CorpusError, match=r"cannot tell what .*b\.text is"):
        list(ParallelCorpus(str(tmp_path / "*")))
    (tmp_path / "b.text").rename(tmp_path / "b.csv")
    (tmp_path / "b.csv").write_text("en,de\nc,d\n")
    assert list(ParallelCorpus(str(tmp_path / "*"))) == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize("ending", [ending for ending in COMPRESS if ending])
def test_compressed_files_joined_end_to_end(tmp_path, ending):
    compress = COMPRESS[ending]
    for side in ("en", "de"):
        parts = [compress(f"{side} {number}\n".encode() * 100) for number in range(20)]
        padding = b"" if ending == ".zst" else b"\0" * (3 << 19)  # more than what is read at a time
        (tmp_path / f"a.{side}{ending}").write_bytes(b"".join(parts))
        (tmp_path / f"padded.{side}{ending}").write_bytes(parts[0] + padding + parts[1])
    corpus = ParallelCorpus(str(tmp_path / "a"))
    assert len(list(corpus)) == corpus.approximate_rows() == 2000
    assert len(list(ParallelCorpus(str(tmp_path / "padded")))) == 200


def test_pattern_reads_all_files_in_order(tmp_path):
    for number in range(3):
        pq.write_table(pa.Table.from_pylist(TABLE[number::3]), tmp_path / f"part{number}.parquet")
    corpus = ParallelCorpus(str(tmp_path / "part*.parquet"))
    assert list(corpus) == [PAIRS[row] for number in range(3) for row in range(number, 57, 3)]
    assert corpus.approximate_rows() == 57


def test_folder_with_splits_by_file_name(tmp_path):
    pq.write_table(pa.Table.from_pylist(TABLE[:40]), tmp_path / "train.parquet")
    pq.write_table(pa.Table.from_pylist(TABLE[40:]), tmp_path / "test.parquet")
    assert list(ParallelCorpus(str(tmp_path), split="test")) == PAIRS[40:]
    with pytest.raises(CorpusError, match=r"validation.*train.*test"):
        list(ParallelCorpus(str(tmp_path), split="validation"))


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables_of_a_folder_are_read_as_if_they_were_named(tmp_path, kind):
    comma = "," if kind == "csv" else "\t"
    rows = [("NA", "null"), ("1", "007"), ("foo\rbar", "nan"), *[(f"a {n}", f"b {n}") for n in range(97)]]
    if kind == "csv":
        rows[2] = ("None", "nan")
    else:  # quotation marks are ordinary characters there
        rows = [(f'"{src}' if n % 10 == 3 else src, tgt) for n, (src, tgt) in enumerate(rows)]
    for split, part in (("train", rows), ("test", rows[:5])):
        lines = [("en", "de"), *part]
        (tmp_path / f"{split}.{kind}").write_text("".join(f"{comma.join(row)}\n" for row in lines), newline="")
    assert list(ParallelCorpus(str(tmp_path / f"train.{kind}"))) == rows
    folder = ParallelCorpus(str(tmp_path))
    assert list(folder) == rows
    assert folder.approximate_rows() == 101
    assert list(ParallelCorpus(str(tmp_path), split="test")) == rows[:5]
    with pytest.raises(CorpusError, match=r"validation.*train.*test"):
        list(ParallelCorpus(str(tmp_path), split="validation"))
    chunks = list(folder.rows(size=10))
    state = chunks[0][1]
    rest = [pair for chunk, _ in folder.rows(json.loads(json.dumps(state)), 10) for pair in map(folder.read_row, chunk)]
    assert rest == rows[10:]


def test_a_folder_whose_readme_says_how_its_tables_are_read_is_read_that_way(tmp_path):
    (tmp_path / "part.csv").write_text("a;b\n")
    settings = 'data_files: part.csv\n  sep: ";"\n  column_names: ["en", "de"]'
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {settings}\n---\n")
    assert list(ParallelCorpus(str(tmp_path))) == [("a", "b")]


def test_paths_may_use_home_and_variables(tmp_path, monkeypatch):
    write_text(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MY_TEXT", str(tmp_path))
    assert list(ParallelCorpus("~/train")) == list(ParallelCorpus("$MY_TEXT/train")) == PAIRS
    with pytest.raises(CorpusError, match=r"uses \$NO_SUCH_PLACE, which is not set"):
        list(ParallelCorpus("$NO_SUCH_PLACE/train"))


@pytest.mark.parametrize("kind", ["", ".gz", ".zst", "parquet", "jsonl", "jsonl.gz", "csv"])
def test_resume_at_any_chunk_and_twice(tmp_path, kind):
    place = write_text(tmp_path, ending=kind) if kind in COMPRESS else write_table(tmp_path, kind)

    def read(state=None):
        return list(ParallelCorpus(str(place)).rows(state, size=10))

    whole = read()
    for done in range(1, len(whole)):
        state = json.loads(json.dumps(whole[done - 1][1]))  # plain data only
        rest = read(state)
        assert [rows for rows, _ in rest] == [rows for rows, _ in whole[done:]]
        assert [state["row"] for _, state in rest] == [state["row"] for _, state in whole[done:]]
        if len(rest) > 1:
            assert [rows for rows, _ in read(rest[0][1])] == [rows for rows, _ in whole[done + 1 :]]


@pytest.mark.parametrize("limit", [1, 10, 25, 57, 100])
def test_max_rows(tmp_path, limit):
    corpus = ParallelCorpus(str(write_text(tmp_path)), max_rows=limit)
    chunks = list(corpus.rows(size=10))
    assert list(corpus) == PAIRS[:limit]
    assert list(corpus.rows(chunks[-1][1])) == []
    assert corpus.approximate_rows() == min(limit, 57)


def test_subclass_reads_rows_its_own_way(tmp_path):
    class Swapped(ParallelCorpus):
        def read_row(self, row):
            return SentencePair(row["de"], row["en"]) if "1" in row["en"] else None

    corpus = Swapped(str(write_table(tmp_path, "jsonl")))
    assert list(corpus) == [(pair.tgt, pair.src) for pair in PAIRS if "1" in pair.src]


def test_missing_values_are_empty_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x", "de": "y"}\n{"en": null, "de": "z"}\n')
    assert list(ParallelCorpus(str(tmp_path / "a.jsonl"))) == [("x", "y"), ("", "z")]


def test_fingerprint_follows_the_text_and_not_the_place(tmp_path):
    (tmp_path / "copy").mkdir()
    first = ParallelCorpus(str(write_text(tmp_path))).fingerprint()
    assert ParallelCorpus(str(write_text(tmp_path / "copy"))).fingerprint() == first
    assert ParallelCorpus(str(tmp_path / "train"), max_rows=5).fingerprint() != first
    edited = [SentencePair(pair.src.replace("7", "8"), pair.tgt) for pair in PAIRS]
    assert ParallelCorpus(str(write_text(tmp_path, pairs=edited))).fingerprint() != first


@pytest.mark.parametrize("ending", COMPRESS)
def test_estimates_rows(tmp_path, ending):
    many = [SentencePair(f"a line of text number {n % 997}", "b") for n in range(60_000)]
    estimate = ParallelCorpus(str(write_text(tmp_path, ending=ending, pairs=many))).approximate_rows()
    assert 45_000 < estimate < 80_000


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz", "csv"])
def test_rows_of_a_folder_are_counted(tmp_path, kind):
    for split, rows in (("train", TABLE * 40), ("test", TABLE)):
        write_table(tmp_path, kind).rename(tmp_path / f"{split}.{kind}")
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{split}.{kind}")
    exact = 40 * 57 if kind == "parquet" else 57
    assert exact <= ParallelCorpus(str(tmp_path)).approximate_rows() <= 1.1 * exact + 1
    assert ParallelCorpus(str(tmp_path), max_rows=5).approximate_rows() == 5


def test_a_size_that_nothing_tells_is_not_invented(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps(TABLE, indent=1))
    (tmp_path / "lines.json").write_text("".join(json.dumps(row) + "\n" for row in TABLE))
    assert len(list(ParallelCorpus(str(tmp_path / "list.json")))) == 57
    assert ParallelCorpus(str(tmp_path / "lines.json")).approximate_rows() == 57
    for unknown in (
        ParallelCorpus(str(tmp_path / "list.json")),
        ParallelCorpus("https://example.org/train.parquet"),
        ParallelCorpus("hf://datasets/me/pairs/train.jsonl", max_rows=9),
        ParallelCorpus(src_path="https://example.org/train.en", tgt_path="https://example.org/train.de"),
    ):
        assert unknown.approximate_rows() is None


def test_corpus_is_picklable_for_worker_processes(tmp_path):
    corpus = ParallelCorpus(str(write_text(tmp_path)))
    corpus.fingerprint()
    assert list(pickle.loads(pickle.dumps(corpus))) == PAIRS


def test_teaching_text():
    corpus = TeachingCorpus("test", max_rows=300)
    pairs = list(corpus)
    assert len(pairs) == 300
    assert list(corpus.rows(size=100))[1][0][0] == {"en": pairs[100].src, "ko": pairs[100].tgt}
    assert TeachingCorpus("test").fingerprint() != TeachingCorpus("test", style="polite").fingerprint()


def unequal(folder):
    write_text(folder)
    with (folder / "train.de").open("a") as file:
        file.write("one more\n")
    return ParallelCorpus(str(folder / "train")), r"train\.en has 57 lines and .*train\.de has 58 lines"


def one_side(folder):
    write_text(folder)
    return ParallelCorpus(str(folder / "train"), tgt="fr"), r"found .*train\.en but not .*train\.fr"


def missing_text(folder):
    corpus = ParallelCorpus(src_path=str(folder / "no.en"), tgt_path=str(folder / "no.de"))
    return corpus, r"cannot open .*no\.en: No such file or directory"


def missing_table(folder):
    return ParallelCorpus(str(folder / "no.parquet")), r"there is no file .*no\.parquet$"


def no_match(folder):
    return ParallelCorpus(str(folder / "*.parquet")), r"no file matches .*\*\.parquet"


def unknown_ending(folder):
    (folder / "a.docx").write_text("x")
    return ParallelCorpus(str(folder / "a.docx")), r"cannot tell what .*a\.docx is"


def wrong_column(folder):
    corpus = ParallelCorpus(str(write_table(folder, "jsonl")), src="enn")
    return corpus, r"has no column 'enn', there are en, de; did you mean 'en'"


def not_text(folder):
    (folder / "a.jsonl").write_text('{"en": 3, "de": "y"}\n')
    return ParallelCorpus(str(folder / "a.jsonl")), r"column 'en' of .* holds int, expected text: 3"


def truncated(ending):
    def make(folder):
        path = write_text(folder, ending=ending, pairs=[SentencePair(f"{n * 7919} {n}", "x") for n in range(50_000)])
        file = folder / f"train.en{ending}"
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return ParallelCorpus(str(path)), rf"train\.en{ending} is broken after line \d+: .*cut off"

    return make


def without_bytes(ending):
    def make(folder):
        path = write_text(folder, ending=ending)
        for side in ("en", "de"):
            (folder / f"train.{side}{ending}").write_bytes(b"")
        return ParallelCorpus(str(path)), rf"train\.en{ending} is broken after line 0: it has 0 bytes"

    return make


def empty_compressed(ending):
    def make(folder):
        path = write_text(folder, ending=ending, pairs=[])
        assert (folder / f"train.en{ending}").stat().st_size
        return ParallelCorpus(str(path)), r"train, en-de\) is empty: expected at least one row"

    return make


def damaged(ending):
    def make(folder):
        path = write_text(folder, ending=ending)
        (folder / f"train.de{ending}").write_bytes(b"this is not compressed at all")
        return ParallelCorpus(str(path)), rf"train\.de{ending} is broken after line 0"

    return make


def broken_table(kind):
    def make(folder):
        path = write_table(folder, kind)
        path.write_bytes(path.read_bytes()[:-50] + b"{")
        return ParallelCorpus(str(path)), rf"cannot (open|read) .*data\.{kind}: \S+"

    return make


def cut_off_table(kind, where=""):
    def make(folder):
        text = "en\tde\n" if kind == "tsv" else "en,de\n" if kind == "csv" else ""
        rows = [(f"{n * 7919} {n}", "x") for n in range(50_000)]
        comma = {"tsv": "\t", "csv": ","}.get(kind)
        text += "".join((comma.join(row) if comma else json.dumps({"en": row[0], "de": row[1]})) + "\n" for row in rows)
        with compressing(folder / f"train.{kind}.zst", f"train.{kind}.zst") as file:
            for start in range(0, len(text), 100_000):  # as a download may break off between two lines
                file.write(text[start : start + 100_000])
        path = folder / f"train.{kind}.zst"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        name = rf"train\.{kind}\.zst"
        return ParallelCorpus(str(folder if where == "folder" else path)), rf"cannot read .*{name}: .*is cut off$"

    return make


def late_key(folder):
    rows = [{"en": f"{n} " + "x" * 1000, "de": "y"} for n in range(21_000)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"en": "x", "de": "y", "note": "z"}])
    (folder / "a.jsonl").write_text(text)  # `datasets` takes the keys of the first 10 MB for all
    return ParallelCorpus(str(folder / "a.jsonl")), r"cannot read .*a\.jsonl: note first occurs far into the text; give"


def no_zstandard(folder):
    (folder / "a.csv.zst").write_text("en,de\na,b\n")
    return ParallelCorpus(str(folder / "a.csv.zst")), r"cannot read .*a\.csv\.zst: it is not Zstandard data"


def not_utf8(folder):
    write_text(folder)
    lines = (folder / "train.de").read_bytes().split(b"\n")
    lines[6] = b"Gr\xfc\xdfe"
    (folder / "train.de").write_bytes(b"\n".join(lines))
    return ParallelCorpus(str(folder / "train")), r"train\.de line 7 is not UTF-8 at byte 3 of the line"


def empty_text(folder):
    write_text(folder, pairs=[])
    return ParallelCorpus(str(folder / "train")), r"train, en-de\) is empty: expected at least one row"


def empty_table(folder):
    pq.write_table(pa.table({"en": pa.array([], pa.string()), "de": pa.array([], pa.string())}), folder / "a.parquet")
    return ParallelCorpus(str(folder / "a.parquet")), "is empty: expected at least one row"


def table_without_bytes(ending):
    def make(folder):
        file = folder / f"a.{ending}"
        file.touch()
        return ParallelCorpus(str(file)), rf"a\.{ending} is empty: expected a table of at least one row"

    return make


def test_one_of_several_files_of_json_lines_may_be_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"en": "x", "de": "y"}\n')
    (tmp_path / "b.jsonl").touch()
    assert [pair for pair in ParallelCorpus(str(tmp_path / "*.jsonl"), src="en", tgt="de")] == [SentencePair("x", "y")]
    (tmp_path / "c.csv").write_text("en,de\nx,y\n")
    (tmp_path / "d.csv").touch()
    with pytest.raises(CorpusError, match=r"d\.csv is empty: expected a table"):
        list(ParallelCorpus(str(tmp_path / "*.csv"), src="en", tgt="de"))


BAD = {
    "unequal": unequal, "one side": one_side, "missing text": missing_text, "missing table": missing_table,
    "no match": no_match, "unknown ending": unknown_ending, "wrong column": wrong_column, "not text": not_text,
    "not UTF-8": not_utf8, "empty text": empty_text, "empty table": empty_table,
    **{f"truncated {ending}": truncated(ending) for ending in (".gz", ".xz", ".bz2", ".zst")},
    **{f"without bytes {ending}": without_bytes(ending) for ending in (".gz", ".xz", ".bz2", ".zst")},
    **{f"empty {ending}": empty_compressed(ending) for ending in (".gz", ".xz", ".bz2", ".zst")},
    **{f"damaged {ending}": damaged(ending) for ending in (".gz", ".xz", ".bz2", ".zst")},
    **{f"broken {kind}": broken_table(kind) for kind in ("parquet", "jsonl", "jsonl.gz")},
    **{f"cut off {kind}": cut_off_table(kind) for kind in ("csv", "tsv", "jsonl")},
    **{f"cut off {kind} in a folder": cut_off_table(kind, "folder") for kind in ("csv", "jsonl")},
    "not Zstandard": no_zstandard,
    "late key": late_key,
    **{f"0 bytes {ending}": table_without_bytes(ending) for ending in ("parquet", "jsonl.gz", "csv", "tsv.xz")},
}  # fmt: skip


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2", ".zst"])
def test_a_compressed_file_is_broken_wherever_it_is_cut(tmp_path, ending):
    with compressing(tmp_path / f"a{ending}", f"a{ending}") as file:
        file.writelines(f"{number * 7919}\n" for number in range(20))
    whole = (tmp_path / f"a{ending}").read_bytes()
    for size in range(len(whole)):
        (tmp_path / f"a{ending}").write_bytes(whole[:size])
        told = pytest.raises(CorpusError, match="cut off" if size else "0 bytes")
        with closing(LineReader(str(tmp_path / f"a{ending}"))) as reader, told:
            reader.take(100)


@pytest.mark.parametrize("path", ["digits.jsonl", "./digits.csv.gz", "owner/digits.parquet"])
def test_a_table_that_is_not_there_is_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("the Hub was asked"))
    with pytest.raises(CorpusError, match=rf"^there is no file {re.escape(path)} in {re.escape(str(tmp_path))}$"):
        list(ParallelCorpus(path))


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_one_clear_sentence(tmp_path, case):
    corpus, message = BAD[case](tmp_path)
    with pytest.raises(CorpusError, match=message) as caught:
        list(corpus)
    assert "\n" not in str(caught.value)


NOWHERE = (
    r"there is no {} \(plain or compressed\), no file or folder {}, and the Hub has no dataset .* or cannot be .*: \S"
)


@pytest.mark.parametrize(
    ("path", "tgt", "message"),
    [
        ("some/where", "de", NOWHERE.format(r"some/where\.en and some/where\.de", "some/where")),
        ("nothere", None, NOWHERE.format(r"nothere\.en", "nothere")),
        ("./trian", "de", r"there is no \./trian\.en .*, and this cannot be the name of a Hub dataset$"),
        ("a--b/c", "de", r"there is no a--b/c\.en .*, and this cannot be the name of a Hub dataset$"),
        ("some/where@main", "de", r"cannot open the Hub dataset some/where@main, split 'train': \S"),
    ],
)
def test_a_name_found_nowhere_says_what_was_looked_for(monkeypatch, tmp_path, path, tgt, message):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorpusError, match=message) as caught:
        list(ParallelCorpus(path, tgt=tgt))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either path or src_path"),
        ({"path": "a", "src_path": "b", "tgt_path": "c"}, "give either path or src_path"),
        ({"src_path": "b"}, "src_path needs tgt_path"),
        ({"path": "a", "tgt_path": "c"}, "needs src_path beside it"),
        ({"path": "a", "max_rows": 0}, "max_rows must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ParallelCorpus(**arguments)


def test_zstd_names_the_extra(tmp_path, monkeypatch):
    write_text(tmp_path, ending=".zst")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(CorpusError, match=r"needs the extra 'zstd': pip install 'lit-transformer\[zstd\]'"):
        list(ParallelCorpus(str(tmp_path / "train")))


def test_a_place_deep_in_a_parquet_file_is_found_without_reading_what_stands_before(tmp_path):
    path = tmp_path / "rows.parquet"
    pairs = [SentencePair(f"en {n}", f"de {n}") for n in range(1000)]
    pq.write_table(pa.table({"en": [p.src for p in pairs], "de": [p.tgt for p in pairs]}), path, row_group_size=50)
    corpus = ParallelCorpus(str(path))
    place = next(place for _, place in corpus.rows(None, 30) if place["row"] == 930)
    file = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    for group in range(16):  # rows 0 to 799
        for column in (file.row_group(group).column(number) for number in range(2)):
            start = column.dictionary_page_offset
            content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    fresh = ParallelCorpus(str(path))
    assert [fresh.read_row(row) for rows, _ in fresh.rows(place, 30) for row in rows] == pairs[930:]
    with pytest.raises(CorpusError, match="cannot read"):
        next(iter(ParallelCorpus(str(path)).rows(None, 30)))


def test_two_files_of_one_name_are_refused(tmp_path):
    path = write_text(tmp_path)
    with pytest.raises(ValueError, match="src and tgt are both 'en', and so would both sides be the same text"):
        ParallelCorpus(src_path=f"{path}.en", tgt_path=f"{path}.de", src="en", tgt="en")
    with pytest.raises(ValueError, match="src and tgt are both 'en'"):
        MemoryCorpus([("a bad sentence", "a good sentence")], src="en", tgt="en")
    assert next(iter(ParallelCorpus(str(path), src="en", tgt="en"))) == SentencePair(PAIRS[0].src, PAIRS[0].src)


class Reversing(ParallelCorpus):
    def __init__(self, path, reverse, words=()):
        super().__init__(path)
        self.reverse, self.words, self.live = reverse, words, object()


def test_fingerprint_follows_the_arguments_of_a_subclass(tmp_path):
    path = str(write_text(tmp_path))
    assert Reversing(path, False).fingerprint() == Reversing(path, False).fingerprint()
    variants = [ParallelCorpus(path), Reversing(path, False), Reversing(path, True), Reversing(path, False, ["a"])]
    assert len({corpus.fingerprint() for corpus in variants}) == 4


def test_half_a_surrogate_pair_is_no_text():
    corpus = MemoryCorpus([("bad \ud83d x", "y"), ("x", "\ud83d"), ("gut äö 나", "y")])
    rows, _ = next(corpus.rows())
    for row in rows[:2]:
        with pytest.raises(BadRowError, match="has half a surrogate pair, which is no text") as caught:
            corpus.examine(row)
        assert caught.value.reason == "not text"
    assert corpus.examine(rows[2]) == SentencePair("gut äö 나", "y")


@pytest.mark.parametrize("settings", [{"split": "validation"}, {"name": "de-en"}])
@pytest.mark.parametrize("kind", ["text", "jsonl", "pattern"])
def test_a_file_has_no_parts_to_choose_from(tmp_path, kind, settings):
    path = write_text(tmp_path) if kind == "text" else write_table(tmp_path, "jsonl")
    path = tmp_path / "*.jsonl" if kind == "pattern" else path
    with pytest.raises(CorpusError, match=r"chooses a part of a folder or of a Hub dataset, but .* is read whole"):
        next(iter(ParallelCorpus(str(path), **settings)))
