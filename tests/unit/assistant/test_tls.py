"""What a process tells of its certificates."""

import datetime
import time
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from assistant import tls
from assistant.cli.authority import Authority
from assistant.tls import Identity

DAY_S = 86_400


def days_left(process: str) -> float:
    """By the metric."""
    ends = REGISTRY.get_sample_value("assistant_certificate_expires_timestamp_seconds", {"process": process})
    assert ends is not None
    return (ends - time.time()) / DAY_S


def test_the_end_of_a_certificate_is_told_before_it_comes(tmp_path: Path) -> None:
    """The metric is that of the certificate in use, also after it was exchanged."""

    def issue(days: int) -> None:
        names, life = [tls.host("probe_svc")], datetime.timedelta(days=days)
        Authority.open(tmp_path / "ca").issue(tmp_path / "probe_svc", names, tls.uri("probe_svc"), life)

    issue(10)
    identity = Identity(tmp_path / "probe_svc")
    assert days_left("probe_svc") == pytest.approx(10, abs=0.1)
    issue(90)
    identity.current()
    assert days_left("probe_svc") == pytest.approx(90, abs=0.1)
