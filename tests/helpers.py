"""What the tests of several papers' scripts share."""

from collections.abc import Callable, Sequence
from typing import Any


def refused(capsys: Any, call: Callable, argv: Sequence, *words: Any) -> None:
    """The call ends with status 2 and one line on stderr that holds all `words`."""
    capsys.readouterr()
    assert call([str(part) for part in argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1, error
    for word in words:
        assert str(word) in error, error
