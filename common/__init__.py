"""What the five papers share; no module here knows any of them."""

import sys

_traceback = sys.excepthook


def _hook(kind, error, trace):
    """Ctrl-C while the slow imports run is no error: no traceback."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        _traceback(kind, error, trace)


sys.excepthook = _hook
