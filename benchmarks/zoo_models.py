"""The models of `bench_zoo.py`: real ones of four libraries, random weights, small inputs and configurations."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn

Made = tuple[nn.Module, Any]

HUGE = """
convnext_large convnext_base vit_h_14 vit_l_16 vit_l_32 regnet_y_128gf regnet_y_32gf regnet_x_32gf regnet_x_16gf
resnext101_64x4d efficientnet_v2_l efficientnet_v2_m efficientnet_b7 swin_b swin_v2_b swin3d_b mvit_v2_s
"""  # of torchvision: more than a hundred million parameters, nothing that smaller ones do not show
TIMM = """
resnet18 resnetv2_50 seresnet50 skresnet18 ecaresnet26t res2net50_26w_4s resnest14d regnety_002 regnetx_002
densenet121 dla34 dpn68 vovnet39a ese_vovnet19b_dw hrnet_w18_small inception_v4 inception_resnet_v2 xception41
mobilenetv3_small_050 mobilenetv4_conv_small efficientnet_lite0 tf_efficientnetv2_b0 mnasnet_small spnasnet_100
fbnetc_100 tinynet_e lcnet_035 rexnet_100 ghostnet_050 ghostnetv2_100 hardcorenas_a mixnet_s repvgg_a0 mobileone_s0
cspresnet50 cspdarknet53 darknet17 gernet_s tresnet_m selecsls42b nf_resnet26 vit_tiny_patch16_224
deit_tiny_patch16_224 cait_xxs24_224 xcit_nano_12_p16_224 beit_base_patch16_224 eva02_tiny_patch14_224
swin_tiny_patch4_window7_224 swinv2_cr_tiny_ns_224 pvt_v2_b0 twins_pcpvt_small convnext_atto convnextv2_atto
mixer_s32_224 resmlp_12_224 gmlp_ti16_224 poolformer_s12 caformer_s18 convformer_s18 edgenext_xx_small mobilevit_xxs
mobilevitv2_050 levit_128s fastvit_t8 repvit_m0_9 efficientformer_l1 efficientformerv2_s0 efficientvit_b0
efficientvit_m0 coat_lite_tiny coatnet_nano_rw_224 crossvit_tiny_240 convmixer_768_32 convit_tiny davit_tiny
focalnet_tiny_srf gcvit_xxtiny inception_next_atto mvitv2_tiny nest_tiny pit_ti_224 sequencer2d_s starnet_s1
tiny_vit_5m_224 tnt_s_patch16_224 visformer_tiny volo_d1_224 vgg11 hgnet_tiny hgnetv2_b0 rdnet_tiny mambaout_femto
shvit_s1 swiftformer_xs
"""
TRANSFORMERS = """
bert gpt2 llama t5 vit swin mixtral phi3 mamba distilbert bart detr wav2vec2 whisper qwen2 gemma2 roberta albert
electra deberta-v2 mpnet xlm-roberta camembert convbert mobilebert squeezebert rembert roformer ernie nystromformer
fnet modernbert big_bird funnel longformer deberta mistral gemma gemma3_text qwen3 phi opt gpt_neox gpt_neo gptj bloom
falcon mpt stablelm olmo olmo2 starcoder2 cohere glm granite qwen2_moe mamba2 rwkv codegen gpt_bigcode openai-gpt ctrl
xlnet pegasus mbart marian m2m_100 blenderbot prophetnet longt5 beit swinv2 dinov2 resnet vit_msn segformer hubert
clip convnext
"""
YOLO = """
yolov8n yolo11n yolov5n yolov10n yolov9t yolo12n yolov3-tiny yolov6n yolo26n yolov8n-seg yolo11n-cls yolov8n-pose
yolov8n-obb rtdetr-l
"""


def names() -> list[str]:
    """All models as ``library:name``, the libraries in turn."""
    from torchvision import models

    vision = [n for n in models.list_models() if not n.startswith("quantized") and n not in HUGE.split()]
    kinds = {"transformers": TRANSFORMERS.split(), "torchvision": vision, "yolo": YOLO.split(), "timm": TIMM.split()}
    columns = [[f"{kind}:{name}" for name in every] for kind, every in kinds.items()]
    return [name for row in zip_longest(*columns) for name in row if name is not None]


def made(name: str) -> Made:
    """A model in eval mode with lively norms, and its example inputs; the same each time."""
    kind, _, model = name.partition(":")
    build: dict[str, Callable[[str], Made]] = {
        "torchvision": _torchvision,
        "timm": _timm,
        "transformers": _transformers,
        "yolo": _yolo,
    }
    torch.manual_seed(0)
    built, inputs = build[kind](model)
    return lively(built).eval(), inputs


def lively(model: nn.Module) -> nn.Module:
    """Random statistics and affine parameters for every norm, so that a zeroed channel does not stay zero."""
    with torch.no_grad():
        for module in model.modules():
            if "Norm" not in type(module).__name__:
                continue
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if key in ("weight", "running_var"):
                    tensor.uniform_(0.5, 1.5)
                elif key in ("bias", "running_mean"):
                    tensor.uniform_(-0.5, 0.5)
    return model


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def _torchvision(name: str) -> Made:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if name.startswith(("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "fcos", "ssd")):
        sizes = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 96}
        model = models.get_model(name, weights=None, weights_backbone=None, num_classes=5, **sizes)
        return model, ([_noise(3, 96, 96), _noise(3, 96, 96) * 0.5],)
    if name.startswith(("deeplab", "fcn", "lraspp")):
        return models.get_model(name, weights=None, weights_backbone=None), _noise(2, 3, 64, 64)
    if name.startswith("vit"):
        options["image_size"] = 64
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False}
    model = models.get_model(name, **options)
    if name.startswith("raft"):
        return model, (_noise(1, 3, 128, 128), _noise(1, 3, 128, 128) * 0.5)
    sizes_of = {"maxvit_t": (3, 224, 224), "inception_v3": (3, 96, 96), "s3d": (3, 16, 224, 224)}
    if name.startswith("mvit"):
        shape: tuple[int, ...] = (3, 16, 224, 224)
    elif name in ("mc3_18", "r2plus1d_18", "r3d_18") or name.startswith("swin3d"):
        shape = (3, 8, 64, 64)
    else:
        shape = sizes_of.get(name, (3, 64, 64))
    return model, _noise(1 if len(shape) == 4 else 2, *shape)


def _timm(name: str) -> Made:
    import timm

    for options, size in (({"img_size": 96}, 96), ({}, 96), ({"img_size": 128}, 128), ({}, 224), ({}, 240)):
        torch.manual_seed(0)
        try:
            model = timm.create_model(name, pretrained=False, **options).eval()
            inputs = _noise(2, 3, size, size)
            with torch.no_grad():
                model(inputs)
        except (TypeError, RuntimeError, AssertionError, ValueError):
            continue
        return model, inputs
    raise ValueError(f"{name} takes none of the sizes")


SMALL: dict[str, Any] = {  # of whichever names a configuration has
    **dict.fromkeys(("vocab_size", "bos_vocab_size"), 99),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "num_decoder_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim", "d_inner"), 48),
    **dict.fromkeys(("n_inner", "hidden_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "dff"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
    **{"num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "image_size": 32, "patch_size": 8, "embed_dim": 16},
    **{"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "state_size": 8, "rotary_dim": 4},
    **{"attention_window": 4, "type_vocab_size": 2, "ngram": 2, "max_source_positions": 8},
}
WITHIN: dict[str, dict[str, Any]] = {
    "swin": {"depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 2},
    "swinv2": {"depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 2},
    "resnet": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "embedding_size": 8, "layer_type": "basic"},
    "convnext": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1]},
    "segformer": {
        **{"hidden_sizes": [16, 16, 32, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4]},
        **{"patch_sizes": [7, 3, 3, 3], "sr_ratios": [4, 2, 1, 1], "decoder_hidden_size": 32},
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "rwkv": {"attention_hidden_size": 32, "context_length": 32},
    "mobilebert": {"embedding_size": 32, "true_hidden_size": 16, "intra_bottleneck_size": 16},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_head": 8, "d_model": 32, "n_head": 4},
    "nystromformer": {"num_landmarks": 12, "segment_means_seq_len": 12},
    "big_bird": {"attention_type": "original_full"},
    "modernbert": {"cls_token_id": 2, "sep_token_id": 3, "global_attn_every_n_layers": 2},
    "mpt": {"max_seq_len": 64},
    "wav2vec2": {"conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3]},
    "hubert": {"conv_dim": [16, 16, 16], "conv_stride": [5, 2, 2], "conv_kernel": [10, 3, 3]},
    "detr": {
        **{"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "num_queries": 6},
    },
}
WITHIN["wav2vec2"] |= {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
WITHIN["hubert"] |= {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}


def _transformers(name: str) -> Made:
    from transformers import CONFIG_MAPPING, ResNetConfig

    kind = CONFIG_MAPPING[name]
    default = kind()
    known = {*default.to_dict(), *kind.attribute_map}
    options = {key: value for key, value in SMALL.items() if key in known}
    if name in ("swin", "swinv2", "convnext", "funnel"):  # numbers of layers and heads are lists, or follow from them
        options = {key: value for key, value in options.items() if key in ("image_size", "embed_dim", "vocab_size")}
    options |= WITHIN.get(name, {})
    if name == "detr":
        options["backbone_config"] = ResNetConfig(**WITHIN["resnet"], out_features=["stage4"])
    if name == "clip":
        part = {key: SMALL[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")}
        part |= {"num_attention_heads": 4, "projection_dim": 16}
        options = {"projection_dim": 16, "vision_config": {**part, "image_size": 32, "patch_size": 8}}
        options["text_config"] = {**part, "vocab_size": 99, "eos_token_id": 1, "bos_token_id": 1, "pad_token_id": 1}
    if name == "longformer":
        options["attention_window"] = [4] * 2
    config = kind(**options)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # as exporters want it
    model = _with_a_head(config).from_config(config).eval()
    return model, _asked(name, model)


def _with_a_head(config: Any) -> Any:
    """The automatic class that puts an output layer behind such a model, as users have it."""
    import transformers as t

    both = (t.AutoModelForSeq2SeqLM, t.AutoModelForSpeechSeq2Seq)
    if config.is_encoder_decoder and (
        made := next((head for head in both if type(config) in head._model_mapping), None)
    ):
        return made
    if type(config) in t.MODEL_FOR_MASKED_LM_MAPPING and type(config) in t.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return t.AutoModelForSequenceClassification
    heads = (
        t.AutoModelForImageClassification,
        t.AutoModelForObjectDetection,
        t.AutoModelForCausalLM,
        t.AutoModelForAudioClassification,
    )
    return next((head for head in heads if type(config) in head._model_mapping), t.AutoModel)


def _asked(name: str, model: nn.Module) -> dict[str, Any]:
    """What a model of transformers is called with."""
    words = torch.randint(4, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    if name in ("vit", "swin", "swinv2", "beit", "dinov2", "vit_msn", "deit"):
        return {"pixel_values": _noise(2, 3, 32, 32)}
    if name in ("resnet", "segformer", "convnext", "detr"):
        return {"pixel_values": _noise(2, 3, 64, 64)}
    if name in ("wav2vec2", "hubert"):
        return {"input_values": _noise(2, 800)}
    if name == "whisper":
        return {"input_features": _noise(2, 80, 16), "decoder_input_ids": words}
    if name == "clip":
        return {"input_ids": words, "pixel_values": _noise(2, 3, 32, 32)}
    if model.config.is_encoder_decoder:
        return {"input_ids": words, "decoder_input_ids": words.flip(0)}
    return {"input_ids": words} if name == "rwkv" else {"input_ids": words, "attention_mask": torch.ones_like(words)}


def _yolo(name: str) -> Made:
    from ultralytics import RTDETR, YOLO

    return (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml").model.float(), _noise(1, 3, 96, 96)
