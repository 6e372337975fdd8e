"""The heads that Eddy has, each held to what every head must pass."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from pipeline.columns import Headers
from pipeline.contract import Output
from pipeline.heads.base import Head
from pipeline.heads.classify import ClassifyHead
from pipeline.heads.generate import GenerateHead
from pipeline.heads.tensor import TensorHead
from tests.contract.head_suite import HeadSuite
from tests.contracts import tensor_contract, text_contract


class TestTensor(HeadSuite):
    contract = tensor_contract()

    def make(self) -> Head:
        return TensorHead(self.contract)


class TestTensorOfSeveralOutputs(TestTensor):
    contract = tensor_contract(
        outputs=(Output("y", "float16", (3,)), Output("n", "int64", ()), Output("m", "float32", (2, 2)))
    )


class TestClassify(HeadSuite):
    contract = tensor_contract(head="classify", labels=("low", "high", "wörd", '"'))

    def make(self) -> Head:
        return ClassifyHead(self.contract)


class TestGenerate(HeadSuite):
    contract = text_contract(vocabulary="abé", head={"max_steps": 9, "end_token": 3}, logits=4)

    def make(self) -> Head:
        return GenerateHead(self.contract)

    def headers(self) -> st.SearchStrategy[Headers]:
        def one(name: str, *values: bytes) -> st.SearchStrategy[list[tuple[str, bytes]]]:
            return st.sampled_from(values).map(lambda v: [(name, v)])

        stops = st.lists(st.sampled_from([b"ab", b"aab", "éa".encode(), b"bb", "bé".encode() * 8]), max_size=4)
        some = st.tuples(
            one("eddy-max-steps", b"0", b"1", b"2", b"14") | st.just([]),
            one("eddy-temperature", b"0", b"0.3", b"2.5") | st.just([]),
            one("eddy-top-k", b"0", b"1", b"2", b"99") | st.just([]),
            one("eddy-top-p", b"1", b"0.5", b"0.001") | st.just([]),
            one("eddy-seed", b"1", b"18446744073709551615") | st.just([]),
            stops.map(lambda texts: [("eddy-stop", t) for t in texts]),
            st.just([("traceparent", b"00-1")]) | st.just([]),
        )
        return some.map(lambda parts: tuple(h for part in parts for h in part))


class TestGenerateBytes(TestGenerate):
    """Whole characters, halves of them and bytes that are in no character."""

    contract = text_contract(unit="bytes", head={"max_steps": 12, "end_token": 256}, logits=257)
    bias = np.where(np.isin(np.arange(257), [*b"ab\xc3\xa9\xe2\x82\xac\xff\xed\xa0", 256]), 0.0, -50.0)
