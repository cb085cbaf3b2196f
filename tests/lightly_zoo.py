"""Models of every method in Lightly, put together from Lightly's public modules as its examples do, but small."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import timm.models.vision_transformer as timm_vit
import torch
import torchvision
from lightly.models import ResNetGenerator
from lightly.models import modules as lm
from lightly.models.modules import heads, ijepa
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import deactivate_requires_grad, update_drop_path_rate
from torch import Tensor, nn
from torchvision.models import vision_transformer as torchvision_vit

SIZE = 32  # pixels; the transformers here are built for it


class Method(NamedTuple):
    """A model and what it should be represented by.

    Attributes:
        build: Takes the base class, `nn.Module` or `LightningModule`.
        path: Attribute path of the encoder that is meant.
        expected: Representation `(B, d)`, from that encoder in eval mode and normalised images.
        why: Part of the reason that is given.
    """

    build: Callable[[type[nn.Module]], nn.Module]
    path: str
    expected: Callable[[Any, Tensor], Tensor]
    why: str = "as Lightly evaluates it"


def assemble(base: type[nn.Module], name: str, **parts: Any) -> nn.Module:
    """Returns a model of a class of this name with these attributes."""
    model = type(name, (base,), {"__module__": "__main__"})()
    for attribute, part in parts.items():
        setattr(model, attribute, part)
    return model


def resnet(layers: int = 1) -> nn.Sequential:
    """torchvision's ResNet-18 without its last layers, as the examples slice it; with used batch norms."""
    model = nn.Sequential(*list(torchvision.models.resnet18().children())[:-layers])
    with torch.no_grad():
        model.train()(torch.randn(4, 3, SIZE, SIZE))
    return model


def vit(**arguments: Any) -> timm_vit.VisionTransformer:
    small = {"img_size": SIZE, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return timm_vit.VisionTransformer(**{**small, **arguments})


def masked_vit(**arguments: Any) -> nn.Module:
    return lm.MaskedVisionTransformerTIMM(vit=vit(**arguments))


def torchvision_transformer() -> Any:
    return torchvision_vit.VisionTransformer(
        image_size=SIZE, patch_size=8, num_layers=2, num_heads=3, hidden_dim=24, mlp_dim=48
    )


def averaged(module: nn.Module) -> nn.Module:
    """A moving average of a module: its own weights, no gradient."""
    twin = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.1)
    deactivate_requires_grad(twin)
    return twin


def positions(encoder: Any, images: Tensor) -> Tensor:
    return encoder(images).mean((2, 3))


def class_token(encoder: Any, images: Tensor) -> Tensor:
    return encoder.encode(images)[:, 0]


def tokens(encoder: Any, images: Tensor, which: slice) -> Tensor:
    return encoder.encode(images)[:, which].mean(1)


def _one_backbone(name: str, *, layers: int = 1, **others: Callable[[], Any]) -> Method:
    def build(base: type[nn.Module]) -> nn.Module:
        return assemble(base, name, backbone=resnet(layers), **{key: make() for key, make in others.items()})

    return Method(build, "backbone", positions)


def _with_momentum(name: str, head: Callable[[], nn.Module], layers: int = 1, **others: Callable[[], Any]) -> Method:
    def build(base: type[nn.Module]) -> nn.Module:
        backbone, projection_head = resnet(layers), head()
        return assemble(
            base,
            name,
            backbone=backbone,
            projection_head=projection_head,
            backbone_momentum=averaged(backbone),
            projection_head_momentum=averaged(projection_head),
            **{key: make() for key, make in others.items()},
        )

    return Method(build, "backbone", positions, why="passed over: backbone_momentum")


def _dino(base: type[nn.Module]) -> nn.Module:
    backbone = resnet()
    head = partial(lm.DINOProjectionHead, 512, 64, 32, 128)
    return assemble(
        base,
        "DINO",
        student_backbone=backbone,
        student_head=head(freeze_last_layer=1),
        teacher_backbone=averaged(backbone),
        teacher_head=head(),
    )


def _dinov2(base: type[nn.Module], name: str) -> nn.Module:
    teacher: Any = masked_vit(dynamic_img_size=True, init_values=1e-5)
    student: Any = copy.deepcopy(teacher)
    update_drop_path_rate(student.vit, drop_path_rate=0.1, mode="uniform")
    head = partial(lm.DINOProjectionHead, 24, 32, 16, 64)
    return assemble(
        base,
        name,
        teacher_backbone=averaged(teacher).eval(),
        student_backbone=student,
        student_head=head(norm_last_layer=False),
        teacher_head=head(),
    )


def _capi(base: type[nn.Module]) -> nn.Module:
    student = masked_vit(reg_tokens=7)
    return assemble(
        base,
        "CAPI",
        student_backbone=student,
        student_head=lm.CAPIProjectionHead(input_dim=24, num_clusters=16, weight_norm=True),
        predictor=lm.CAPIPredictorTIMM(embed_dim=24, grid_size=4, depth=1, num_heads=3),
        teacher_backbone=averaged(student),
        teacher_head=lm.CAPIProjectionHead(input_dim=24, num_clusters=16, bias=True),
    )


def _msn(base: type[nn.Module], name: str) -> nn.Module:
    anchor = lm.MaskedVisionTransformerTorchvision(vit=torchvision_transformer())
    return assemble(
        base,
        name,
        backbone=averaged(anchor),
        projection_head=heads.MSNProjectionHead(24, 32, 16),
        anchor_backbone=anchor,
        anchor_projection_head=heads.MSNProjectionHead(24, 32, 16),
        prototypes=nn.Linear(16, 32, bias=False).weight,
    )


def _mae(base: type[nn.Module]) -> nn.Module:
    decoder = lm.MAEDecoderTIMM(
        num_patches=16, patch_size=8, embed_dim=24, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2
    )
    return assemble(base, "MAE", backbone=masked_vit(), decoder=decoder)


def _pixio(base: type[nn.Module]) -> nn.Module:
    decoder = lm.PixioDecoderTIMM(
        num_patches=16,
        patch_size=8,
        embed_dim=24,
        decoder_embed_dim=16,
        decoder_depth=2,
        decoder_num_heads=2,
        num_prefix_tokens=8,
    )
    return assemble(base, "Pixio", backbone=masked_vit(reg_tokens=7), decoder=decoder)


def _simmim(base: type[nn.Module]) -> nn.Module:
    backbone = lm.MaskedVisionTransformerTorchvision(vit=torchvision_transformer())
    return assemble(base, "SimMIM", backbone=backbone, decoder=nn.Linear(24, 8**2 * 3))


def _ijepa(base: type[nn.Module]) -> nn.Module:
    transformer = torchvision_transformer()
    encoder = ijepa.IJEPABackbone.from_vit(transformer)
    predictor = ijepa.IJEPAPredictor.from_vit_encoder(torchvision_transformer().encoder, 16)
    momentum = (0.996 for _ in range(10))  # a generator: neither the model nor this can be copied
    return assemble(
        base,
        "IJEPA",
        encoder=encoder,
        predictor=predictor,
        target_encoder=averaged(encoder),
        momentum_scheduler=momentum,
    )


def _aim(base: type[nn.Module]) -> nn.Module:
    backbone = lm.MaskedCausalVisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=24, depth=2, num_heads=3, class_token=False, global_pool="avg"
    )
    head = lm.AIMPredictionHead(input_dim=24, output_dim=3 * 8**2, hidden_dim=32, num_blocks=1)
    return assemble(base, "AIM", backbone=backbone, projection_head=head)


def _lejepa(base: type[nn.Module]) -> nn.Module:
    backbone = vit(num_classes=0, dynamic_img_size=True, drop_path_rate=0.1)
    return assemble(base, "LeJEPA", backbone=backbone, projection_head=heads.LeJEPAProjectionHead(24, 32, 16))


def _directclr(_: type[nn.Module]) -> nn.Module:
    return resnet()  # no head, no class


_simclr_head = partial(heads.SimCLRProjectionHead, 512, 32, 16)
_barlow_head = partial(heads.BarlowTwinsProjectionHead, 512, 32, 32)
_siamese = {
    "projection_head": partial(heads.SimSiamProjectionHead, 512, 32, 16),
    "prediction_head": partial(heads.SimSiamPredictionHead, 16, 8, 16),
}
_swav = {
    "projection_head": partial(heads.SwaVProjectionHead, 512, 32, 16),
    "prototypes": partial(heads.SwaVPrototypes, 16, n_prototypes=512),
}
_teacher = "the teacher, which averages the student"

METHODS: dict[str, Method] = {
    "aim": Method(_aim, "backbone", lambda e, x: e.forward_features(x).mean(1), "mean of its tokens, without mask"),
    "barlowtwins": _one_backbone("BarlowTwins", projection_head=_barlow_head),
    "byol": _with_momentum(
        "BYOL",
        partial(heads.BYOLProjectionHead, 512, 32, 16),
        prediction_head=partial(heads.BYOLPredictionHead, 16, 32, 16),
    ),
    "capi": Method(_capi, "teacher_backbone", class_token, _teacher),
    "dcl": _one_backbone("DCL", projection_head=_simclr_head),
    "densecl": _with_momentum(
        "DenseCL",
        partial(heads.DenseCLProjectionHead, 512, 32, 16),
        layers=2,
        projection_head_local=partial(heads.DenseCLProjectionHead, 512, 32, 16),
        pool=partial(nn.AdaptiveAvgPool2d, (1, 1)),
    ),
    "detcon": _one_backbone("DetConS", layers=2, projection_head=_simclr_head),
    "dino": Method(_dino, "teacher_backbone", positions, f"{_teacher} and is what the method evaluates"),
    "dinov2": Method(partial(_dinov2, name="DINOv2"), "teacher_backbone", class_token, _teacher),
    "directclr": Method(_directclr, "", positions, "taken whole"),
    "fastsiam": _one_backbone("FastSiam", **_siamese),
    "fda": _one_backbone("FDA", projection_head=_simclr_head),
    "frossl": _one_backbone("FroSSL", projection_head=_barlow_head),
    "ibot": Method(partial(_dinov2, name="IBOT"), "teacher_backbone", class_token, _teacher),
    "ijepa": Method(_ijepa, "target_encoder", lambda e, x: e(x)[:, 1:].mean(1), "the target encoder, which averages"),
    "lejepa": Method(_lejepa, "backbone", lambda e, x: e(x)),
    "mae": Method(_mae, "backbone", class_token, "class token, without mask"),
    "mmcr": _with_momentum("MMCR", partial(heads.MMCRProjectionHead, 512, 32, 16)),
    "moco": _with_momentum("MoCo", partial(heads.MoCoProjectionHead, 512, 32, 16)),
    "msn": Method(partial(_msn, name="MSN"), "backbone", class_token, "the moving average of its 'anchor_backbone'"),
    "nnclr": _one_backbone(
        "NNCLR",
        projection_head=partial(heads.NNCLRProjectionHead, 512, 32, 16),
        prediction_head=partial(heads.NNCLRPredictionHead, 16, 32, 16),
    ),
    "pixio": Method(_pixio, "backbone", partial(tokens, which=slice(8)), "mean of its 8 prefix tokens"),
    "pmsn": Method(partial(_msn, name="PMSN"), "backbone", class_token, "the moving average of its 'anchor_backbone'"),
    "simclr": _one_backbone("SimCLR", projection_head=_simclr_head),
    "simmim": Method(_simmim, "backbone", partial(tokens, which=slice(1, None)), "mean of its patch tokens"),
    "simsiam": _one_backbone("SimSiam", **_siamese),
    "smog": _with_momentum(
        "SMoGModel",
        partial(heads.SMoGProjectionHead, 512, 32, 16),
        prediction_head=partial(heads.SMoGPredictionHead, 16, 32, 16),
        smog=lambda: heads.SMoGPrototypes(group_features=torch.rand(30, 16), beta=0.99),
    ),
    "swav": _one_backbone("SwaV", **_swav),
    "swav_queue": _one_backbone(
        "SwaV", **_swav, queues=lambda: nn.ModuleList([MemoryBankModule(size=(512, 16)) for _ in range(2)])
    ),
    "tico": _with_momentum("TiCo", partial(heads.TiCoProjectionHead, 512, 32, 16)),
    "vicreg": _one_backbone("VICReg", projection_head=partial(heads.VICRegProjectionHead, 512, 32, 32)),
    "vicregl": _one_backbone(
        "VICRegL",
        layers=2,
        projection_head=_barlow_head,
        local_projection_head=partial(heads.VicRegLLocalProjectionHead, 512, 32, 32),
        average_pool=partial(nn.AdaptiveAvgPool2d, output_size=(1, 1)),
    ),
}


def _headless_resnet() -> nn.Module:
    model = torchvision.models.resnet18()
    model.fc = nn.Identity()
    return model


def _benchmark(name: str, other: str | None = None) -> Callable[[type[nn.Module]], nn.Module]:
    def build(base: type[nn.Module]) -> nn.Module:
        backbone = _headless_resnet()
        others = {} if other is None else {other: averaged(backbone)}
        classifier = nn.Linear(512, 10)
        return assemble(
            base, name, backbone=backbone, projection_head=_simclr_head(), online_classifier=classifier, **others
        )

    return build


def _generated(base: type[nn.Module]) -> nn.Module:
    layers = list(ResNetGenerator("resnet-9").children())[:-1]
    return assemble(
        base, "SMoG", backbone=nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1)), projection_head=_simclr_head()
    )


_vectors: Callable[[Any, Tensor], Tensor] = lambda e, x: e(x)  # noqa: E731

# The modules of Lightly's ImageNet benchmarks differ from the examples in these.
BENCHMARKS: dict[str, Method] = {
    "simclr": Method(_benchmark("SimCLR"), "backbone", _vectors),
    "byol": Method(_benchmark("BYOL", "teacher_backbone"), "backbone", _vectors, "passed over: teacher_backbone"),
    "dino": Method(
        _benchmark("DINO", "student_backbone"), "backbone", _vectors, "the moving average of its 'student_backbone'"
    ),
    "mocov2": Method(_benchmark("MoCoV2", "key_backbone"), "backbone", _vectors, "passed over: key_backbone"),
    "tico": Method(_benchmark("TiCo", "backbone_momentum"), "backbone", _vectors),
    "generated": Method(_generated, "backbone", positions),
}
