"""The encoders: what reaches a representation, and which networks they are."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    ConvNextBackbone,
    ConvNextConfig,
    ResNetBackbone,
    ResNetConfig,
    ResNetForImageClassification,
)

from drfuse.errors import InputError, MissingInputError
from drfuse.models.encoders import (
    CxrEncoder,
    CxrStages,
    Dropout,
    EhrEncoder,
    EhrLstmEncoder,
    HourPooling,
    MeanMaxLastHour,
    build_backbone,
    enough_for_batch_norm,
)
from tests.builders import TINY_BACKBONE
from tests.models import reference

STEM_WEIGHTS_PER_CHANNEL = 64 * 7 * 7


def ehr_encoder(
    branches: int = 2, layers: int = 1, dropout: float = 0.0, pooling: HourPooling = "published"
) -> EhrEncoder:
    torch.manual_seed(0)
    return EhrEncoder(5, 8, 2, layers, dropout, branches, max_hours=12, feedforward=16, pooling=pooling)


def series(n_stays: int = 3, hours: int = 7) -> Tensor:
    return torch.randn(n_stays, hours, 5, generator=torch.Generator().manual_seed(1))


def n_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# --- EHR ----------------------------------------------------------------------------------------------------


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
        kind(5, pooling="max")  # type: ignore[arg-type]


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
    positions = EhrEncoder(5, 64, 4, max_hours=48).positions
    assert positions.shape == (48, 64)
    assert positions.abs().max() <= 0.1
    assert positions.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.05)


@pytest.mark.parametrize(("branches", "layers"), [(1, 1), (2, 1), (2, 3)])
def test_the_first_layer_is_shared_and_each_representation_has_its_own_others(
    branches: int, layers: int
) -> None:
    encoder = ehr_encoder(branches, layers)
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
    encoder = EhrEncoder(59)
    layer = encoder.first.layers[0]
    assert encoder.project.out_features == 256
    assert layer.self_attn.num_heads == 4
    assert layer.linear1.out_features == 2048
    assert layer.dropout.p == 0.3
    assert [len(branch.layers) for branch in encoder.branches] == [1, 1]


def test_a_series_longer_than_the_positions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"13 hours.* 12\b.*max_hours"):
        ehr_encoder()(series(1, 13), torch.tensor([13]))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="dim is 10, which 4 heads do not divide"):
        EhrEncoder(5, dim=10, heads=4)


def lstm_encoder(layers: int = 2, dropout: float = 0.0, pooling: HourPooling = "published") -> EhrLstmEncoder:
    torch.manual_seed(0)
    return EhrLstmEncoder(5, 8, layers, dropout, pooling)


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
    encoder = lstm_encoder(layers)
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
    encoder = EhrLstmEncoder(40, 64)
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
    encoder = EhrLstmEncoder(59)
    assert (encoder.lstm.input_size, encoder.lstm.hidden_size, encoder.lstm.num_layers) == (59, 256, 2)
    assert encoder.dropout.p == 0.3


@pytest.mark.parametrize("options", [{"dim": 0}, {"layers": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_an_lstm_without_width_or_layers_or_with_all_dropped_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="dim and layers of at least 1, dropout from 0 to below 1"):
        EhrLstmEncoder(5, **options)  # type: ignore[arg-type]


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


# --- CXR ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "with_three_channels"),
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("resnet101", 42_500_160)],
)
def test_a_resnet_has_the_parameters_of_its_paper_but_for_two_channels(
    name: str, with_three_channels: int
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert n_parameters(backbone) == with_three_channels - 2 * STEM_WEIGHTS_PER_CHANNEL


def test_the_radiograph_encoder_is_a_resnet_50_unless_told() -> None:
    with torch.device("meta"):
        encoder = CxrEncoder()
    projection = 2048 * 256 + 256
    assert n_parameters(encoder) == 23_508_032 - 2 * STEM_WEIGHTS_PER_CHANNEL + projection


def test_a_representation_is_the_projected_mean_over_space() -> None:
    torch.manual_seed(0)
    encoder = CxrEncoder(6, TINY_BACKBONE).eval()
    images = torch.randn(2, 1, 24, 24)
    maps = encoder.backbone(images).feature_maps[-1]
    assert maps.shape == (2, 16, 3, 3)
    mean = sum(maps[:, :, y, x] for y in range(3) for x in range(3)) / 9
    expected = mean @ encoder.project.weight.T + encoder.project.bias
    torch.testing.assert_close(encoder(images), expected)


def test_without_radiographs_neither_backbone_nor_batch_norm_is_touched() -> None:
    encoder = CxrEncoder(6, TINY_BACKBONE).train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.backbone.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    assert encoder(torch.zeros(0, 1, 16, 16)).shape == (0, 6)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


def test_training_moves_the_batch_norm_of_the_radiographs() -> None:
    encoder = CxrEncoder(6, TINY_BACKBONE).train()
    before = encoder.backbone.embedder.embedder.normalization.running_mean.clone()
    encoder(torch.randn(2, 1, 16, 16))
    assert not torch.equal(before, encoder.backbone.embedder.embedder.normalization.running_mean)


# --- a ResNet in its parts ----------------------------------------------------------------------------------

DEEP = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 3]}


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [True, False])
def test_a_resnet_run_stage_by_stage_or_block_by_block_is_the_resnet(layer_type: str, training: bool) -> None:
    fields = DEEP | {"layer_type": layer_type}
    resnet, parts = build_backbone(fields), CxrStages(fields)
    randomise_statistics(resnet)
    parts.load_state_dict({k.removeprefix("encoder."): v for k, v in resnet.state_dict().items()})
    images = torch.randn(2, 1, 48, 48)
    expected = resnet.train(training)(images, output_hidden_states=True).hidden_states
    maps = by_block = parts.train(training).embedder(images)
    for stage, channels, wanted in zip(parts.stages, parts.channels, expected[1:], strict=True):
        maps = stage(maps)
        assert maps.shape[1] == channels
        torch.testing.assert_close(maps, wanted)
    assert len(parts.blocks) == 7
    for block in parts.blocks:
        by_block = block(by_block)
    torch.testing.assert_close(by_block, maps)


def test_later_stages_can_be_left_out() -> None:
    parts = CxrStages(DEEP)
    parts.keep(2)
    assert parts.channels == [8, 16]
    assert len(parts.stages) == 2
    assert len(parts.blocks) == 3


def test_a_backbone_that_is_no_resnet_has_no_stages_to_reach_into(tmp_path: Path) -> None:
    tiny = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
    ConvNextBackbone(ConvNextConfig(**tiny)).save_pretrained(tmp_path)
    assert build_backbone(str(tmp_path)).channels == [16]
    with pytest.raises(InputError, match=f"{tmp_path} holds a ConvNextBackbone.* ResNet"):
        CxrStages(str(tmp_path))


def test_a_pretrained_resnet_keeps_its_weights_in_its_parts(tmp_path: Path) -> None:
    original = ResNetBackbone(config()).eval()
    randomise_statistics(original)
    original.save_pretrained(tmp_path)
    parts, grey = CxrStages(str(tmp_path)).eval(), torch.randn(2, 1, 16, 16)
    maps = parts.embedder(grey)
    for stage in parts.stages:
        maps = stage(maps)
    expected = original(grey.expand(-1, 3, -1, -1)).feature_maps[-1]
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


def test_only_batch_norm_s_complaint_is_explained() -> None:
    one = torch.zeros(1, 1, 9, 9)
    with pytest.raises(InputError, match="one radiograph of 9 pixels"), enough_for_batch_norm(one):
        nn.BatchNorm2d(1)(torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="another") as caught, enough_for_batch_norm(one):
        raise ValueError("another")
    assert not isinstance(caught.value, InputError)


# --- backbones ----------------------------------------------------------------------------------------------


def config(**fields: object) -> ResNetConfig:
    return ResNetConfig(num_channels=3, **(TINY_BACKBONE | fields))


def randomise_statistics(model: nn.Module) -> None:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)


def test_a_pretrained_backbone_sees_in_grey_what_it_saw_in_three_equal_channels(tmp_path: Path) -> None:
    torch.manual_seed(2)
    original = ResNetBackbone(config()).eval()
    randomise_statistics(original)
    original.save_pretrained(tmp_path)
    grey = torch.randn(2, 1, 16, 16)
    backbone = build_backbone(str(tmp_path)).eval()
    expected = original(grey.expand(-1, 3, -1, -1)).feature_maps[-1]
    torch.testing.assert_close(backbone(grey).feature_maps[-1], expected, rtol=1e-4, atol=1e-5)
    assert n_parameters(original) - n_parameters(backbone) == 2 * 8 * 7 * 7


def test_a_pretrained_classifier_serves_as_backbone_with_its_weights(tmp_path: Path) -> None:
    torch.manual_seed(2)
    classifier = ResNetForImageClassification(config(num_labels=4)).eval()
    randomise_statistics(classifier)
    classifier.save_pretrained(tmp_path)
    grey = torch.randn(2, 1, 16, 16)
    backbone = build_backbone(str(tmp_path)).eval()
    expected = classifier.resnet(grey.expand(-1, 3, -1, -1)).last_hidden_state
    torch.testing.assert_close(backbone(grey).feature_maps[-1], expected, rtol=1e-4, atol=1e-5)


def test_a_pretrained_backbone_of_one_channel_is_taken_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(2)
    original = ResNetBackbone(ResNetConfig(num_channels=1, **TINY_BACKBONE)).eval()
    original.save_pretrained(tmp_path)
    grey = torch.randn(2, 1, 16, 16)
    backbone = build_backbone(str(tmp_path)).eval()
    torch.testing.assert_close(backbone(grey).feature_maps[-1], original(grey).feature_maps[-1])


def test_a_pretrained_backbone_learns_all_its_weights(tmp_path: Path) -> None:
    ResNetBackbone(config()).save_pretrained(tmp_path)
    encoder = CxrEncoder(6, str(tmp_path)).train()
    encoder(torch.randn(2, 1, 24, 24)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_the_fields_of_a_config_make_a_new_backbone_for_grey_images() -> None:
    backbone = build_backbone(TINY_BACKBONE)
    assert backbone.channels[-1] == 16
    assert backbone(torch.zeros(1, 1, 16, 16)).feature_maps[-1].shape == (1, 16, 2, 2)


@pytest.mark.parametrize("name", ["resnet51", "ResNet50", "./some/where", "some/where/else"])
def test_an_unknown_backbone_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(MissingInputError, match="resnet18, resnet34, resnet50, resnet101"):
        build_backbone(name)


def test_a_name_that_the_hub_does_not_give_is_named() -> None:
    with pytest.raises(InputError, match="some/where holds no backbone"):  # the suite is offline
        build_backbone("some/where")


def test_an_empty_folder_is_no_backbone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} holds no backbone"):
        build_backbone(str(tmp_path))


def test_a_folder_without_weights_is_no_backbone(tmp_path: Path) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=f"{tmp_path} holds no backbone"):
        build_backbone(str(tmp_path))


def test_a_folder_with_damaged_weights_is_no_backbone(tmp_path: Path) -> None:
    ResNetBackbone(config()).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor in sight")
    with pytest.raises(InputError, match=f"{tmp_path} holds no backbone"):
        build_backbone(str(tmp_path))


def test_a_text_model_is_no_backbone(tmp_path: Path) -> None:
    tiny = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=8, **tiny)).save_pretrained(tmp_path)
    with pytest.raises(InputError):
        build_backbone(str(tmp_path))


def test_weights_that_do_not_fit_their_config_are_refused(tmp_path: Path) -> None:
    ResNetBackbone(config()).save_pretrained(tmp_path)
    config(depths=[2, 1]).save_pretrained(tmp_path)  # a layer for which the folder has no weights
    with pytest.raises(InputError):
        build_backbone(str(tmp_path))


def test_a_pretrained_backbone_is_ready_to_train(tmp_path: Path) -> None:
    ResNetBackbone(config()).save_pretrained(tmp_path)
    assert all(module.training for module in build_backbone(str(tmp_path)).modules())


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


# --- frozen backbones ---------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_asked_once_and_remembered() -> None:
    torch.manual_seed(0)
    encoder = CxrEncoder(8, TINY_BACKBONE)
    names = encoder.state_dict().keys()
    images = torch.randn(5, 1, 16, 16)
    with torch.no_grad():
        expected = encoder.eval()(images)
    encoder.train()
    encoder.freeze(images.split(2))
    assert encoder.backbone.training
    assert encoder.state_dict().keys() == names
    assert {name for name, one in encoder.named_parameters() if one.requires_grad} == {
        "project.weight",
        "project.bias",
    }
    encoder.backbone.forward = None  # type: ignore[assignment,method-assign]  # it would fail
    torch.testing.assert_close(encoder(torch.tensor([4, 0, 3])), expected[[4, 0, 3]])
    assert encoder(torch.tensor([], dtype=torch.int64)).shape == (0, 8)
