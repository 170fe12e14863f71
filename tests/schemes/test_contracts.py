"""Every scheme honours the contract."""

import pytest

from schemes.adi import Adi
from schemes.base import Scheme
from schemes.mtlsign import MTLSign, MTLSignFixed
from schemes.uchida import Uchida
from tests.contracts import SchemeContract


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
        return MTLSign(n=60, steps=120, lr=1e-3, head_lr=3e-3, lambda2=0.0, check_every=40)


class TestMTLSignFixed(SchemeContract):
    n_strangers = 200

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MTLSignFixed(n=60, steps=120, lr=1e-3, lambda2=0.0, check_every=40)
