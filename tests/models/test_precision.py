"""Layers that autocast leaves in float32."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from drfuse.models import FusionOutput
from drfuse.models.precision import Head, Lstm, has_lstm, in_float32

CPU = torch.device("cpu")


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no device have an LSTM in half precision, as processors without AVX-512 have none."""
    forward: Callable[..., Any] = nn.LSTM.forward

    def refuse(lstm: nn.LSTM, *tensors: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("could not create a primitive descriptor. Run workload with ONEDNN_VERBOSE")
        return forward(lstm, *tensors)

    monkeypatch.setattr(nn.LSTM, "forward", refuse)
    has_lstm.cache_clear()
    yield
    has_lstm.cache_clear()


def hours() -> Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))


def made(layer: type[nn.Module], *sizes: int) -> Any:
    torch.manual_seed(0)
    return layer(*sizes)


def test_a_head_is_a_linear_layer_that_autocast_leaves_alone() -> None:
    head, plain = made(Head, 5, 2), made(nn.Linear, 5, 2)
    expected = plain(hours())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(hours()), expected)
        assert not torch.equal(plain(hours()).float(), expected)
    assert head.state_dict().keys() == plain.state_dict().keys()


def test_a_head_reads_half_precision_and_keeps_double() -> None:
    head = made(Head, 5, 2)
    assert torch.equal(head(hours().bfloat16()), head(hours().bfloat16().float()))
    assert head.double()(hours().double()).dtype == torch.float64


def test_autocast_is_off_within_and_on_again_after() -> None:
    class Asks(nn.Module):
        @in_float32
        def forward(self, one: Tensor, present: Tensor) -> tuple[bool, torch.dtype, torch.dtype]:
            return torch.is_autocast_enabled("cpu"), one.dtype, present.dtype

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Asks()(hours().bfloat16(), hours() > 0) == (False, torch.float32, torch.bool)
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.usefixtures("lacking")
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_an_lstm_that_the_device_lacks_runs_in_float32(half: torch.dtype) -> None:
    lstm, plain = made(Lstm, 5, 6), made(nn.LSTM, 5, 6)
    packed = pack_padded_sequence(hours(), torch.tensor([4, 2, 1]), batch_first=True, enforce_sorted=False)
    for given in (hours(), packed):
        expected = plain(given)[1][0]
        with torch.autocast("cpu", dtype=half), pytest.raises(RuntimeError, match="primitive"):
            plain(given)
        with torch.autocast("cpu", dtype=half):
            assert torch.equal(lstm(given)[1][0], expected)
            assert torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", dtype=half):
        assert lstm(hours().to(half))[0].dtype == torch.float32


def test_an_lstm_that_the_device_has_runs_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm, precisions = made(Lstm, 5, 6), []
    monkeypatch.setattr("drfuse.models.precision.has_lstm", lambda *_: True)
    monkeypatch.setattr(
        nn.LSTM, "forward", lambda *_: precisions.append(torch.is_autocast_enabled("cpu")) or hours()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lstm(hours())
    assert precisions == [True]


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_an_lstm_trains_in_any_precision_on_this_processor(half: torch.dtype) -> None:
    lstm = made(Lstm, 5, 6)
    with torch.autocast("cpu", dtype=half):
        hidden, _ = lstm(hours())
    hidden.float().sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in lstm.parameters())


@pytest.mark.usefixtures("lacking")
def test_the_trial_is_made_once_and_draws_no_numbers() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert not has_lstm(torch.bfloat16, CPU)
    assert not has_lstm(torch.bfloat16, CPU)
    assert has_lstm.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_an_output_is_never_in_half_precision() -> None:
    output = FusionOutput(hours().bfloat16(), hours().half(), {"ehr": hours().half()})
    tensors = (output.logits, output.modality_weights, output.representations["ehr"])
    assert all(tensor is not None and tensor.dtype == torch.float32 for tensor in tensors)
    double = hours().double()
    assert FusionOutput(double).logits is double
