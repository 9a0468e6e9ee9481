"""What the files of cases share."""

import pytest


@pytest.fixture
def place(case, good, monkeypatch):
    """The folder of the module's good state, which the case may spoil, as the working folder."""
    monkeypatch.chdir(good.place)
    yield good.place
    good.renew_after(case)
