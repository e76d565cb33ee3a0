"""The tokenizer of a model folder: text to tokens and back, without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Tokenizer", "read_json", "read_tokenizer"]

_MISSING = (
    "{path} has no tokenizer.json; write one with transformers: "
    "AutoTokenizer.from_pretrained({path!r}).save_pretrained({path!r})"
)


class Tokenizer:
    """Text to tokens and back.

    Parameters
    ----------
    folder
        Model folder with ``tokenizer.json``. The end token is the ``eos_token`` of ``tokenizer_config.json``, or
        ``eos_token_id`` of ``config.json``; the pad token likewise, or else the end token.

    Attributes
    ----------
    end_id, pad_id
        Tokens that end a completion and fill batches up.
    size
        Number of tokens.

    Raises
    ------
    ImportError
        If tokenizers is not installed.
    ValueError
        If the folder has no tokenizer, none that can be read, or it names no end token.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = folder = Path(folder)
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError(_MISSING.format(path=str(folder)))
        self._tokenizer = read_tokenizer(file)
        # Files of trained tokenizers may cut texts off silently, or fill them up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.size = int(self._tokenizer.get_vocab_size(with_added_tokens=True))
        named, config = read_json(folder / "tokenizer_config.json"), read_json(folder / "config.json")
        end = self._special("eos", named, config)
        if end is None:
            raise ValueError(
                f"{folder} names no end token, so that no completion could end; "
                "state eos_token in tokenizer_config.json"
            )
        pad = self._special("pad", named, config)
        self.end_id, self.pad_id = end, end if pad is None else pad

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, after the one that begins texts if the model has one; no end token is added.

        Raises
        ------
        ValueError
            If the text has characters that no token stands for.
        """
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except Exception as error:  # as above
            raise ValueError(
                f"the tokenizer in {self._folder} cannot read {text!r:.100} ({error}): its model is for other texts; "
                "give another pair of models or data set, or leave one out: models.NAME=null, datasets.NAME=null"
            ) from error
        return ids[:-1] if ids and ids[-1] == self.end_id else ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens as far as the first end token; special tokens have none."""
        ids = list(ids)
        kept = ids[: ids.index(self.end_id)] if self.end_id in ids else ids
        return str(self._tokenizer.decode(kept, skip_special_tokens=True))

    def vocabulary(self) -> dict[str, int]:
        """Numbers of all tokens."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def _special(self, kind: str, named: dict[str, Any], config: dict[str, Any]) -> int | None:
        """Number of a special token, or None."""
        token = named.get(f"{kind}_token")
        text = token.get("content") if isinstance(token, dict) else token
        found: Any = self._tokenizer.token_to_id(text) if isinstance(text, str) else None
        if found is None:
            stated = config.get(f"{kind}_token_id")
            found = stated[0] if isinstance(stated, list) and stated else stated
        return found if isinstance(found, int) and 0 <= found < self.size else None


def read_tokenizer(file: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file.

    Raises
    ------
    ImportError
        If tokenizers is not installed.
    ValueError
        If the file holds none.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError('tokenizers is not installed: pip install "mgpu-nb[alignment]"') from error
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises bare ones
        raise ValueError(
            f"{file} holds no tokenizer: {error}; save it again with the tokenizer's save_pretrained"
        ) from error


def read_json(file: Path) -> dict[str, Any]:
    """Object in a JSON file; empty if there is no such file.

    Raises
    ------
    ValueError
        If it holds something else.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{file} is not JSON: {error}; copy it anew, or save it again with save_pretrained"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(  # noqa: TRY004
            f"{file} must hold a JSON object, not {type(found).__name__}; copy it anew, or save it again with "
            "save_pretrained"
        )
    return found
