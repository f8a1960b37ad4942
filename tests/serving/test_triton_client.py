"""Laws of the Triton client, against a real Triton with the echo model."""

from __future__ import annotations

import time
import uuid
from typing import Any

import numpy as np
import pytest

from deploy.services.triton import Triton
from models.client import ModelUnavailable
from models.echo import echo_matches, probe_tensors
from models.release.triton_repository import ModelRepository
from models.signature import BadInput
from serving.clients.triton import TritonClient


@pytest.fixture(scope="module")
def client(triton_server: Triton) -> Any:
    ModelRepository(triton_server.repository).add_echo()
    client = TritonClient(triton_server.grpc_address)
    client.load("echo")
    yield client
    client.close()


def test_tensors_of_every_dtype_are_returned_unchanged(client: TritonClient) -> None:
    for seed in range(3):
        sent = probe_tensors(seed)
        assert echo_matches(sent, client.infer("echo", sent, timeout_s=10.0))


def test_a_pinned_version_answers_and_a_missing_one_is_unavailable(client: TritonClient) -> None:
    versions = client.versions("echo")
    assert versions
    sent = probe_tensors()
    assert echo_matches(sent, client.infer("echo", sent, version=versions[-1], timeout_s=10.0))
    with pytest.raises(ModelUnavailable, match="version 99"):
        client.infer("echo", sent, version=99)


def test_an_unknown_model_is_unavailable_and_has_no_versions(client: TritonClient) -> None:
    name = f"none-{uuid.uuid4().hex[:8]}"
    assert client.versions(name) == ()
    with pytest.raises(ModelUnavailable):
        client.infer(name, probe_tensors())
    with pytest.raises(ModelUnavailable, match="could not load"):
        client.load(name)


def test_tensors_outside_the_signature_are_bad_input_and_do_not_affect_the_next_request(
    client: TritonClient,
) -> None:
    sent = probe_tensors()
    with pytest.raises(BadInput):
        client.infer("echo", {"floats": sent["floats"]}, timeout_s=10.0)
    with pytest.raises(BadInput):
        client.infer("echo", sent | {"floats": sent["floats"].astype(np.complex64)})
    assert echo_matches(sent, client.infer("echo", sent, timeout_s=10.0))


def test_trace_headers_are_accepted(client: TritonClient) -> None:
    headers = {"traceparent": f"00-{uuid.uuid4().hex}-00f067aa0ba902b7-01"}
    sent = probe_tensors()
    assert echo_matches(sent, client.infer("echo", sent, timeout_s=10.0, headers=headers))


def test_a_missing_server_is_detected_within_the_deadline(free_port: int) -> None:
    absent = TritonClient(f"127.0.0.1:{free_port}")
    started = time.monotonic()
    with pytest.raises(ModelUnavailable):
        absent.infer("echo", probe_tensors(), timeout_s=0.5)
    assert not absent.healthy()
    assert time.monotonic() - started < 4.0
    absent.close()
