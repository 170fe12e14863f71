"""Every scheme honours the contract."""

from typing import Any

import pytest

from tests.contracts import SchemeContract
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Scheme
from wmarena.schemes.mtlsign.scheme import MTLSign, MTLSignFixed
from wmarena.schemes.uchida import Uchida

QUICK: dict[str, Any] = {
    "n": 100,
    "steps": 96,
    "lr": 2e-3,
    "lambda2": 0.0,
    "batch_size": 50,
    "mark_batch": 50,
    "check_every": 32,
    "hidden": 64,
}
"""Settings that embed MTLSign within seconds."""


class TestAdiPretrained(SchemeContract):
    @pytest.fixture
    def scheme(self) -> Scheme:
        return Adi(n_triggers=40)


class TestAdiFromScratch(SchemeContract):
    n_strangers = 100

    @pytest.fixture
    def scheme(self) -> Scheme:
        return Adi(n_triggers=40, mode="scratch")


class TestUchida(SchemeContract):
    @pytest.fixture
    def scheme(self) -> Scheme:
        return Uchida()


class TestMTLSign(SchemeContract):
    n_strangers = 200

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MTLSign(**QUICK)


class TestMTLSignFixed(SchemeContract):
    n_strangers = 200

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MTLSignFixed(**QUICK)
