"""Moved to common/report.py."""

from common.report import *  # noqa: F403
