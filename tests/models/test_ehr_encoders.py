"""The EHR's encoders: what reaches a representation, and which networks they are."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from drfuse.models import EncoderSizes
from drfuse.models.ehr_encoders import Dropout, EhrEncoder, EhrLstmEncoder, MeanMaxLastHour
from drfuse.models.sizes import HourPooling
from tests.builders import n_parameters
from tests.models import reference

SIZES = EncoderSizes(dim=8, heads=2, dropout=0.0, max_hours=12, feedforward=16)


def ehr_encoder(branches: int = 2, **sizes: Any) -> EhrEncoder:
    torch.manual_seed(0)
    return EhrEncoder(5, replace(SIZES, **sizes), branches)


def series(n_stays: int = 3, hours: int = 7) -> Tensor:
    return torch.randn(n_stays, hours, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", get_args(HourPooling))
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("padding", [0.0, 1e4, -7.0])
def test_padded_hours_have_no_influence(training: bool, padding: float, pooling: HourPooling) -> None:
    encoder = ehr_encoder(pooling=pooling).train(training)
    ehr, n_hours = series(), torch.tensor([7, 3, 1])
    ehr[torch.arange(7) >= n_hours[:, None]] = padding
    together = encoder(ehr, n_hours)
    for row, hours in enumerate(n_hours.tolist()):
        alone = encoder(ehr[row : row + 1, :hours], n_hours[row : row + 1])
        for branch in range(2):
            torch.testing.assert_close(together[branch][row], alone[branch][0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_inference_mode_and_gradient_mode_agree(training: bool) -> None:
    encoder = ehr_encoder().train(training)
    ehr, n_hours = series(), torch.tensor([7, 3, 1])
    with_gradient = encoder(ehr, n_hours)
    with torch.inference_mode():
        without = encoder(ehr, n_hours)
    torch.testing.assert_close(with_gradient, without, rtol=1e-4, atol=1e-5)


def test_a_representation_is_the_mean_over_the_hours_of_its_branch() -> None:
    encoder = ehr_encoder()
    ehr, n_hours = series(1, 4), torch.tensor([4])
    hidden = encoder.first(encoder.project(ehr) + encoder.positions[:4])
    for branch, representation in zip(encoder.branches, encoder(ehr, n_hours), strict=True):
        by_hour = branch(hidden)[0]
        expected = sum(by_hour[hour] for hour in range(4)) / 4
        torch.testing.assert_close(representation[0], expected)


def test_hours_are_pooled_to_their_mean_maximum_and_last_one() -> None:
    pool = MeanMaxLastHour(1)
    with torch.no_grad():
        pool.project.bias.zero_()
        pool.project.weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    hidden = torch.tensor([[[-4.0], [-1.0], [-2.5]], [[3.0], [1.0], [99.0]]])
    padded = torch.tensor([[False, False, False], [False, False, True]])
    expected = [[-2.5 + 10 * -1.0 + 100 * -2.5], [2.0 + 10 * 3.0 + 100 * 1.0]]
    torch.testing.assert_close(pool(hidden, padded), torch.tensor(expected))


@pytest.mark.parametrize("kind", [EhrEncoder, EhrLstmEncoder])
def test_an_unknown_pooling_is_refused(kind: type[EhrEncoder | EhrLstmEncoder]) -> None:
    with pytest.raises(ValueError, match="pooling is 'max'; expected one of 'published', 'mean-max-last'"):
        kind(5, EncoderSizes(pooling="max"))  # type: ignore[arg-type]


def test_padded_hours_get_no_gradient() -> None:
    ehr, n_hours = series().requires_grad_(), torch.tensor([7, 3, 1])
    sum(h.square().sum() for h in ehr_encoder()(ehr, n_hours)).backward()
    assert ehr.grad is not None
    observed = torch.arange(7) < n_hours[:, None]
    assert (ehr.grad[~observed] == 0).all()
    assert (ehr.grad[observed].abs().sum(-1) > 0).all()


def test_the_order_of_the_hours_matters() -> None:
    encoder, ehr, n_hours = ehr_encoder(), series(2, 6), torch.tensor([6, 6])
    forward, backward = encoder(ehr, n_hours), encoder(ehr.flip(1), n_hours)
    for one, other in zip(forward, backward, strict=True):
        assert (one - other).abs().max() > 1e-3
    with torch.no_grad():
        encoder.positions.zero_()
    torch.testing.assert_close(encoder(ehr, n_hours), encoder(ehr.flip(1), n_hours), rtol=1e-4, atol=1e-5)


def test_positions_start_uniform_within_a_tenth() -> None:
    positions = EhrEncoder(5, EncoderSizes(dim=64)).positions
    assert positions.shape == (48, 64)
    assert positions.abs().max() <= 0.1
    assert positions.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("branches", "layers"), [(1, 1), (2, 1), (2, 3)])
def test_the_first_layer_is_shared_and_each_representation_has_its_own_others(
    branches: int, layers: int
) -> None:
    encoder = ehr_encoder(branches, layers=layers)
    ehr, n_hours = series(), torch.tensor([7, 3, 1])
    representations = encoder(ehr, n_hours)
    assert len(representations) == branches
    assert all(representation.shape == (3, 8) for representation in representations)
    assert n_parameters(encoder.branches) == branches * layers * n_parameters(encoder.first)
    for branch, representation in enumerate(representations):
        encoder.zero_grad()
        representation.square().sum().backward(retain_graph=True)
        assert all(parameter.grad is not None for parameter in encoder.first.parameters())
        for other in range(branches):
            reached = [parameter.grad is not None for parameter in encoder.branches[other].parameters()]
            assert all(reached) if other == branch else not any(reached)


def test_the_published_sizes_are_the_defaults() -> None:
    encoder = EhrEncoder(59, EncoderSizes(), branches=2)
    layer = encoder.first.layers[0]
    assert encoder.project.out_features == 256
    assert layer.self_attn.num_heads == 4
    assert layer.linear1.out_features == 2048
    assert layer.dropout.p == 0.3
    branches = [branch for branch in encoder.branches if isinstance(branch, nn.TransformerEncoder)]
    assert [len(branch.layers) for branch in branches] == [1, 1]


def test_a_series_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 hours.* 12\b.*max_hours"):
        ehr_encoder()(series(1, 13), torch.tensor([13]))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="dim is 10, which 4 heads do not divide"):
        EhrEncoder(5, EncoderSizes(dim=10, heads=4))


def lstm_encoder(**sizes: Any) -> EhrLstmEncoder:
    torch.manual_seed(0)
    return EhrLstmEncoder(5, replace(SIZES, **sizes))


def test_the_lstm_s_hidden_states_are_pooled() -> None:
    encoder, ehr, n_hours = lstm_encoder(pooling="mean-max-last"), series(), torch.tensor([7, 3, 1])
    (pooled,) = encoder(ehr, n_hours)
    assert encoder.pool is not None
    for row, hours in enumerate(n_hours.tolist()):
        states = encoder.lstm(ehr[row : row + 1, :hours])[0]
        expected = encoder.pool(states, torch.zeros(1, hours, dtype=torch.bool))
        torch.testing.assert_close(pooled[row], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_lstm_s_representation_is_the_last_hidden_state_of_the_stay_s_own_hours(layers: int) -> None:
    encoder = lstm_encoder(lstm_layers=layers)
    with torch.no_grad():
        for name, parameter in encoder.lstm.named_parameters():
            if name.startswith("bias"):
                parameter.uniform_(-1, 1)
    ehr, n_hours = series(4), torch.tensor([3, 7, 1, 7])
    (together,) = encoder(ehr, n_hours)
    for row, hours in enumerate(n_hours.tolist()):
        hidden = ehr[row, :hours].double().numpy()
        for weights in encoder.lstm.all_weights:
            hidden = reference.lstm(hidden, *(weight.detach().double().numpy() for weight in weights))
        torch.testing.assert_close(together[row].double(), torch.from_numpy(hidden[-1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", get_args(HourPooling))
def test_hours_after_the_stay_s_last_one_have_no_influence_on_the_lstm_and_get_no_gradient(
    pooling: HourPooling,
) -> None:
    encoder, n_hours = lstm_encoder(pooling=pooling), torch.tensor([7, 3, 1])
    after = torch.arange(7) >= n_hours[:, None]
    ehr = series().masked_fill(after[..., None], 1e4).requires_grad_()
    (h,) = encoder(ehr, n_hours)
    torch.testing.assert_close(h, encoder(series(), n_hours)[0])
    h.square().sum().backward()
    assert ehr.grad is not None
    assert torch.equal(ehr.grad.abs().sum(-1) == 0, after)


def test_the_lstm_starts_with_orthogonal_recurrent_weights_xavier_s_input_weights_and_no_bias() -> None:
    encoder = EhrLstmEncoder(40, EncoderSizes(dim=64))
    for w_input, w_recurrent, *biases in encoder.lstm.all_weights:
        torch.testing.assert_close(w_recurrent.T @ w_recurrent, torch.eye(64), rtol=0, atol=1e-5)
        bound = (6 / sum(w_input.shape)) ** 0.5
        assert 0.98 * bound < w_input.abs().max() <= bound
        assert w_input.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not any(bias.any() for bias in biases)


def test_dropout_falls_on_the_lstm_s_representation() -> None:
    ehr, n_hours = series(64), torch.full((64,), 7)
    (exact,) = lstm_encoder()(ehr, n_hours)
    (dropped,) = lstm_encoder(dropout=0.25)(ehr, n_hours)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.08)
    torch.testing.assert_close(dropped[kept], exact[kept] / 0.75)
    assert torch.equal(lstm_encoder(dropout=0.25).eval()(ehr, n_hours)[0], exact)


def test_the_lstm_s_published_sizes_are_the_defaults() -> None:
    encoder = EhrLstmEncoder(59, EncoderSizes())
    assert (encoder.lstm.input_size, encoder.lstm.hidden_size, encoder.lstm.num_layers) == (59, 256, 2)
    assert encoder.dropout.p == 0.3


def test_what_follows_the_first_layer_acts_on_the_hours_it_is_given() -> None:
    encoder = ehr_encoder()
    ehr, n_hours = series(2, 4), torch.tensor([4, 2])
    hidden, padded = encoder.embed(ehr, n_hours)
    assert padded.tolist() == [[False] * 4, [False, False, True, True]]
    alone = encoder.first(encoder.project(ehr[1:, :2]) + encoder.positions[:2])
    torch.testing.assert_close(hidden[1, :2], alone[0], rtol=1e-4, atol=1e-5)
    changed = 3 * hidden - 1
    for branch, representation in zip(encoder.branches, encoder.finish(changed, padded), strict=True):
        by_hour = branch(changed[1:, :2])[0]
        expected = (by_hour[0] + by_hour[1]) / 2
        torch.testing.assert_close(representation[1], expected, rtol=1e-4, atol=1e-5)


# --- dropout ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.3, 0.9])
@pytest.mark.parametrize("shape", [(999, 101), (7, 31, 301)])
def test_dropout_drops_each_element_with_its_probability(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ones = torch.ones(shape)
    dropped = Dropout(p)(ones)
    torch.testing.assert_close(dropped[dropped > 0], torch.full((int((dropped > 0).sum()),), 1 / (1 - p)))
    deviation = (p * (1 - p) / ones.numel()) ** 0.5
    assert abs((dropped == 0).double().mean().item() - p) < 4 * deviation
    neighbours = ((dropped == 0).flatten()[:-1] & (dropped == 0).flatten()[1:]).double().mean().item()
    assert abs(neighbours - p * p) < 6 * deviation


def test_dropout_follows_the_seed_and_its_gradient_its_mask() -> None:
    def draw(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        given = torch.full((5, 11), 2.0, requires_grad=True)
        out = Dropout(0.4)(given)
        out.sum().backward()
        assert given.grad is not None
        return out.detach(), given.grad

    (first, gradient), (again, _), (other, _) = draw(3), draw(3), draw(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(gradient, first / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_keeps_type_and_evaluation(dtype: torch.dtype) -> None:
    given = torch.ones(33, dtype=dtype)
    assert Dropout(0.5)(given).dtype == dtype
    assert torch.equal(Dropout(0.5).eval()(given), given)
    assert torch.equal(Dropout(0.0)(given), given)
    assert (Dropout(1.0)(given) == 0).all()
    assert Dropout(0.5)(given[:0]).shape == (0,)
