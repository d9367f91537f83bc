"""The radiographs' encoders: what reaches a representation, and which networks they are."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
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
from drfuse.models import EncoderSizes
from drfuse.models.cxr_encoders import (
    CxrEncoder,
    CxrStages,
    build_backbone,
    enough_for_batch_norm,
    only_new_backbones,
    pretrained_configs,
)
from drfuse.models.sizes import BackboneSpec
from tests.builders import N_FEATURES, TINY_BACKBONE, make_batch, n_parameters

STEM_WEIGHTS_PER_CHANNEL = 64 * 7 * 7


def cxr_encoder(backbone: BackboneSpec = TINY_BACKBONE) -> CxrEncoder:
    torch.manual_seed(0)
    return CxrEncoder(EncoderSizes(dim=6, cxr_backbone=backbone))


def cxr_stages(backbone: BackboneSpec) -> CxrStages:
    return CxrStages(EncoderSizes(cxr_backbone=backbone))


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
        encoder = CxrEncoder(EncoderSizes())
    projection = 2048 * 256 + 256
    assert n_parameters(encoder) == 23_508_032 - 2 * STEM_WEIGHTS_PER_CHANNEL + projection


def test_a_representation_is_the_projected_mean_over_space() -> None:
    encoder = cxr_encoder().eval()
    batch = make_batch(image_size=24)
    images = batch.cxr
    maps = encoder.backbone(images).feature_maps[-1]
    assert maps.shape == (2, 16, 3, 3)
    mean = sum(maps[:, :, y, x] for y in range(3) for x in range(3)) / 9
    expected = mean @ encoder.project.weight.T + encoder.project.bias
    torch.testing.assert_close(encoder(batch), expected)


def test_without_radiographs_neither_backbone_nor_batch_norm_is_touched() -> None:
    encoder = cxr_encoder().train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder.backbone.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    assert encoder(make_batch(())).shape == (0, 6)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())


def test_training_moves_the_batch_norm_of_the_radiographs() -> None:
    encoder = cxr_encoder().train()
    mean = encoder.backbone.get_buffer("embedder.embedder.normalization.running_mean")
    before = mean.clone()
    encoder(make_batch())
    assert not torch.equal(before, mean)


# --- a ResNet in its parts ----------------------------------------------------------------------------------

DEEP = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 3]}


@pytest.mark.parametrize("layer_type", ["basic", "bottleneck"])
@pytest.mark.parametrize("training", [True, False])
def test_a_resnet_run_stage_by_stage_or_block_by_block_is_the_resnet(layer_type: str, training: bool) -> None:
    fields = DEEP | {"layer_type": layer_type}
    resnet, parts = build_backbone(fields), cxr_stages(fields)
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
    parts = cxr_stages(DEEP)
    parts.keep(2)
    assert parts.channels == [8, 16]
    assert len(parts.stages) == 2
    assert len(parts.blocks) == 3


def test_a_backbone_that_is_no_resnet_has_no_stages_to_reach_into(tmp_path: Path) -> None:
    tiny = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    ConvNextBackbone(tiny).save_pretrained(tmp_path)
    assert build_backbone(str(tmp_path)).channels == [16]
    with pytest.raises(InputError, match=f"{tmp_path} holds a ConvNextBackbone.* ResNet"):
        cxr_stages(str(tmp_path))


def test_a_pretrained_resnet_keeps_its_weights_in_its_parts(tmp_path: Path) -> None:
    original = ResNetBackbone(config()).eval()
    randomise_statistics(original)
    original.save_pretrained(tmp_path)
    parts, grey = cxr_stages(str(tmp_path)).eval(), torch.randn(2, 1, 16, 16)
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
    return ResNetConfig.from_dict({"num_channels": 3} | TINY_BACKBONE | fields)


def randomise_statistics(model: nn.Module) -> None:
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
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
    original = ResNetBackbone(config(num_channels=1)).eval()
    original.save_pretrained(tmp_path)
    grey = torch.randn(2, 1, 16, 16)
    backbone = build_backbone(str(tmp_path)).eval()
    torch.testing.assert_close(backbone(grey).feature_maps[-1], original(grey).feature_maps[-1])


def test_a_pretrained_backbone_learns_all_its_weights(tmp_path: Path) -> None:
    ResNetBackbone(config()).save_pretrained(tmp_path)
    encoder = cxr_encoder(str(tmp_path)).train()
    encoder(make_batch(image_size=24)).square().sum().backward()
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
    tiny = BertConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    BertModel(tiny).save_pretrained(tmp_path)
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


# --- frozen backbones ---------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_asked_once_and_remembered() -> None:
    encoder = cxr_encoder()
    names = encoder.state_dict().keys()
    every = make_batch(range(5), (3,) * 5)  # of the cohort's radiographs
    with torch.no_grad():
        expected = encoder.eval()(every)
    encoder.train()
    encoder.freeze(every.cxr.split(2))
    assert encoder.backbone.training
    assert encoder.state_dict().keys() == names
    assert {name for name, one in encoder.named_parameters() if one.requires_grad} == {
        "project.weight",
        "project.bias",
    }
    encoder.backbone.register_forward_pre_hook(lambda *_: pytest.fail("the backbone ran"))
    rows = torch.tensor([4, 0, 3])
    without_pixels = replace(make_batch((0, 1, 2)), cxr=torch.empty(3, 1, 0, 0), cxr_row=rows)
    torch.testing.assert_close(encoder(without_pixels), expected[rows])
    assert encoder(without_pixels.keep_cxr(rows[:0])).shape == (0, 6)


# --- without weights ----------------------------------------------------------------------------------------


def test_a_backbone_is_built_again_from_its_configuration_alone(tmp_path: Path) -> None:
    first: dict[str, Any] = {"out_features": ["stage1"]}
    tiny = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, **first)
    ConvNextBackbone(tiny).save_pretrained(tmp_path / "backbone")
    sizes = EncoderSizes(dim=8, cxr_backbone=str(tmp_path / "backbone"))
    (fields,) = pretrained_configs(encoder := CxrEncoder(sizes)).values()
    fields = json.loads(json.dumps(fields))
    shutil.rmtree(tmp_path / "backbone")
    with only_new_backbones():
        again = CxrEncoder(EncoderSizes(dim=8, cxr_backbone=fields))
        with pytest.raises(InputError, match="has no configuration of its pretrained backbone"):
            CxrEncoder(sizes)
    again.load_state_dict(encoder.state_dict())
    cxr = torch.randn(2, 1, 32, 32)
    assert again.project.in_features == 4
    assert torch.equal(again.eval().pool(cxr), encoder.eval().pool(cxr))
    assert not pretrained_configs(CxrEncoder(EncoderSizes(dim=8, cxr_backbone=TINY_BACKBONE)))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"model_type": "bert"}, "model_type is 'bert', which is not a backbone"),
        ({"model_type": "timm_backbone", "backbone": "hf-hub:a/b"}, "model_type is 'timm_backbone'"),
        ({"model_type": "dinov2", "attn_implementation": "a/b"}, "'attn_implementation' is not a field"),
        ({"model_type": "resnet", "auto_map": {"AutoBackbone": "a.B"}}, "'auto_map' is not a field"),
        ({"model_type": "resnet", "name_or_path": "a/b"}, "'name_or_path' is not a field"),
    ],
)
def test_a_configuration_that_loads_something_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        build_backbone(fields)


def test_while_remembering_a_backbone_runs_once_on_the_same_radiographs() -> None:
    encoder, batch, runs = cxr_encoder().eval(), make_batch(cxr_of=(0, 2)), list[int]()
    encoder.backbone.register_forward_pre_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        expected = encoder(batch)
        with encoder.remembering():
            again = [encoder(batch), encoder(batch.matched_without_ehr(torch.zeros(N_FEATURES)))]
            other = encoder(replace(batch, cxr=batch.cxr.clone() + 1))
        encoder(batch)
    assert len(runs) == 4
    assert all(torch.equal(one, expected) for one in again)
    assert not torch.equal(other, expected)
