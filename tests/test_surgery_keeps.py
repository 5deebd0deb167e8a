"""What hangs on a convolution stays when it becomes deformable and when it comes back, or nothing is changed."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import pliant
from pliant.nn import DeformConv2d


class Scaled(nn.Conv2d):
    """A subclass that computes the same, and has a method and a class attribute of its own."""

    gain = 3

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def norm(self) -> Tensor:
        return self.gain * self.weight.norm()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding="same", groups=2))


def image() -> Tensor:
    return torch.rand(1, 8, 6, 7, generator=torch.Generator().manual_seed(1))


CALLS: list[str] = []


def note(name: str, answer: Any = None) -> Callable[..., Any]:
    def hook(*args: Any, **_: Any) -> Any:
        CALLS.append(name)
        return answer(*args) if answer else None

    return hook


HOOKS: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda conv: conv.register_forward_hook(note("it", lambda _m, _a, out: out * 2)),
    "forward, kwargs": lambda conv: conv.register_forward_hook(note("it"), with_kwargs=True),
    "forward, always": lambda conv: conv.register_forward_hook(note("it"), always_call=True),
    "forward, prepended": lambda conv: conv.register_forward_hook(note("it"), prepend=True),
    "before forward": lambda conv: conv.register_forward_pre_hook(note("it", lambda _m, args: (args[0] * 2,))),
    "before forward, kwargs": lambda conv: conv.register_forward_pre_hook(note("it"), with_kwargs=True),
    "full backward": lambda conv: conv.register_full_backward_hook(note("it")),
    "before full backward": lambda conv: conv.register_full_backward_pre_hook(note("it")),
    "state_dict": lambda conv: conv.register_state_dict_post_hook(note("it")),
    "before state_dict": lambda conv: conv.register_state_dict_pre_hook(note("it")),
    "load_state_dict": lambda conv: conv.register_load_state_dict_post_hook(note("it")),
    "before load_state_dict": lambda conv: conv.register_load_state_dict_pre_hook(note("it")),
}


def use(model: nn.Module) -> Tensor:
    """Run all that has hooks, and give the output."""
    out = model(image().requires_grad_())
    out.sum().backward()
    model.load_state_dict(model.state_dict())
    return out.detach()


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_run_as_before_and_can_be_removed(kind: str) -> None:
    model = network()
    CALLS.clear()
    model[0].register_forward_hook(note("other"))
    handle = HOOKS[kind](model[0])
    before, called = use(model), CALLS.copy()
    assert "it" in called
    for change in (lambda: pliant.deform(model, "0"), lambda: pliant.undeform(model)):
        change()
        CALLS.clear()
        torch.testing.assert_close(use(model), before)
        assert called == CALLS
    pliant.deform(model, "0")
    handle.remove()
    CALLS.clear()
    use(model)
    assert "it" not in CALLS


def test_a_deformable_layers_own_hooks_and_extras_come_back_too() -> None:
    model = pliant.deform(network(), "0")
    model[0].register_forward_hook(lambda _m, _a, out: out + 1)
    model[0].extra = "mine"
    before = model(image())
    pliant.undeform(model)
    assert type(model[0]) is nn.Conv2d
    assert model[0].extra == "mine"
    assert vars(model[0]).keys() == {*vars(nn.Conv2d(1, 1, 1)), "extra"}
    torch.testing.assert_close(model(image()), before)


def test_every_attribute_stays_the_very_same() -> None:
    model = network().to(torch.float64).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    conv = model[0]
    conv.requires_grad_(False)
    conv.note = {"of": "user"}
    conv.me = (conv,)  # refers to the layer itself
    conv.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
    conv.child = nn.Linear(2, 2)
    conv.register_buffer("seen", torch.zeros(3))
    conv.register_buffer("passing", torch.zeros(3), persistent=False)
    before, held, state = model(image().double()), dict(vars(conv)), set(model.state_dict())
    assert pliant.deform(model, "0") is model
    assert model[0] is conv
    assert isinstance(conv, DeformConv2d)
    assert all(vars(conv)[name] is value for name, value in held.items() if name not in ("padding", "stride"))
    assert set(model.state_dict()) - state == {"0.offset_conv.weight", "0.offset_conv.bias"}
    assert (conv.weight.requires_grad, conv.training, conv.offset_conv.training) == (False, False, False)
    assert conv.offset_conv.weight.dtype == torch.float64
    assert conv.offset_conv.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(image().double()), before)
    pliant.undeform(model)
    assert all(vars(conv)[name] is value for name, value in held.items() if name not in ("padding", "stride"))
    assert vars(conv).keys() == held.keys()
    assert set(model.state_dict()) == state


def test_methods_of_a_subclass_stay_through_copies_and_files() -> None:
    model = nn.Sequential(Scaled(4))
    norm, before = model[0].norm(), model(torch.ones(1, 4, 5, 5))
    pliant.deform(model, "0")
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert isinstance(each[0], DeformConv2d)
        assert isinstance(each[0], Scaled)
        assert torch.equal(each[0].norm(), norm)
        torch.testing.assert_close(each(torch.ones(1, 4, 5, 5)), before)
        pliant.undeform(each)
        assert type(each[0]) is Scaled
        assert torch.equal(each(torch.ones(1, 4, 5, 5)), before)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_the_padding_of_tensorflow(size: tuple[int, int]) -> None:
    model = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), nn.ReLU(), Conv2dSame(4, 4, (5, 3), dilation=2))
    x = torch.randn(2, 3, *size)
    before = model(x)
    pliant.deform(model, 2, modulated=True)
    torch.testing.assert_close(model(x), before)
    assert [type(module).__name__ for module in (model[0], model[2])] == ["DeformConv2dSame"] * 2
    # and with offsets other than zero, it is the layer's convolution of the padded map
    nn.init.normal_(model[2].offset_conv.weight)
    inside = model[1](model[0](x))
    by_hand = nn.functional.pad(inside, (2, 2, 4, 4))
    torch.testing.assert_close(model[2](inside), DeformConv2d.forward(model[2], by_hand))
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), model(x))
    pliant.undeform(model)
    assert torch.equal(model(x), before)


def test_a_shared_layer_has_all_its_names() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv)})
    pliant.deform(model, "b.0")
    assert model["a"] is conv
    assert model["b"][0] is conv
    assert isinstance(conv, DeformConv2d)


def test_compiled_and_traced_models_follow() -> None:
    x = image()
    compiled, traced = torch.compile(network(), backend="eager"), torch.fx.symbolic_trace(network())
    layer = network()
    layer[0].compile(backend="eager")
    for model, where in ((compiled, "_orig_mod.0"), (traced, "0"), (layer, "0")):
        before = model(x)
        pliant.deform(model, where)
        torch.testing.assert_close(model(x), before)
        conv = model.get_submodule(where)
        nn.init.constant_(conv.offset_conv.bias, 0.5)
        assert not torch.allclose(model(x), before)
        pliant.undeform(model)
        torch.testing.assert_close(model(x), before)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_observers_of_quantization_go_on() -> None:
    model = network().eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    torch.ao.quantization.prepare(model, inplace=True)
    pliant.deform(model, "0")
    model(image())
    assert model[0].activation_post_process.max_val.isfinite()


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight - weight.mean(), bias)


class Slots(nn.Conv2d):
    __slots__ = ("one",)


def with_forward(conv: nn.Module) -> None:
    conv.forward = types.MethodType(lambda self, x: nn.Conv2d.forward(self, 2 * x), conv)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (nn.utils.weight_norm, "2: its weight is not a parameter but computed by WeightNorm"),
        (nn.utils.spectral_norm, "2: its weight is not a parameter but computed by SpectralNorm"),
        (lambda c: prune.l1_unstructured(c, "weight", 0.3), "2: its weight .* computed by L1Unstructured"),
        (lambda c: prune.l1_unstructured(c, "bias", 0.3), "2: its bias .* computed by L1Unstructured"),
        (parametrizations.weight_norm, "2: the convolution is parametrized"),
        (with_forward, "2: .* (already has|replaces) forward"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_what_computes_something_else_is_refused_in_both_directions(prepare: Any, message: str) -> None:
    model = network()
    prepare(model[2])
    with pytest.raises(ValueError, match=message):
        pliant.deform(model, 2)
    assert type(model[0]) is nn.Conv2d
    model = pliant.deform(network(), 2)
    prepare(model[2])
    with pytest.raises(ValueError, match=message):
        pliant.undeform(model)
    assert isinstance(model[0], DeformConv2d)


def put(name: str, value: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        conv = nn.Conv2d(3, 3, 3)
        setattr(conv, name, value)
        return conv

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (put("border", "mine"), "1: the convolution already has border"),
        (put("offset_conv", nn.Linear(1, 1)), "1: the convolution already has offset_conv"),
        (put("split", 1), "1: the convolution already has split"),
        (
            put("weight", nn.Parameter(torch.zeros(3, 2, 3, 3))),
            r"1: its weight must .* shape \[3, 3, 3, 3\], got .*2, 3",
        ),
        (lambda: nn.Conv2d(3, 3, 3, dtype=torch.complex64), "1: its weight must be floating point"),
        (lambda: nn.LazyConv2d(3, 3), r"1: its weight has no shape yet \(LazyConv2d\); run the model once"),
        (lambda: OwnConvForward(3, 3, 3), "1: OwnConvForward computes more than"),
        (lambda: timm.layers.StdConv2d(3, 3, 3), "1: StdConv2d computes more than"),
        (lambda: torch.jit.script(nn.Conv2d(3, 3, 3)), r"\(1 is a RecursiveScriptModule of Conv2d\)"),
        (lambda: torch.ao.nn.quantized.Conv2d(3, 3, 3), r"\(1 is a Conv2d\)"),
        (lambda: torch.ao.nn.qat.Conv2d(3, 3, 3, qconfig=torch.ao.quantization.default_qat_qconfig), "computes more"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_carried_is_refused_and_nothing_changes(build: Callable[[], nn.Module], message: str) -> None:
    odd = build()
    model = nn.Sequential(nn.Conv2d(3, 3, 3), odd)
    where: Any = "1" if "is a" in message else "[01]"
    with pytest.raises(ValueError, match=message):
        pliant.deform(model, where)
    assert type(model[0]) is nn.Conv2d
    assert model[1] is odd


def test_a_subclass_of_a_deformable_layer_does_not_lose_its_methods() -> None:
    class Named(DeformConv2d):
        def __init__(self) -> None:
            super().__init__(2, 2, 3)

    class Mine(Named):
        def mine(self) -> int:
            return 1

    assert type(pliant.undeform(nn.Sequential(Named()))[0]) is nn.Conv2d
    with pytest.raises(ValueError, match=r"0: Mine defines mine, which torch.nn.Conv2d does not have"):
        pliant.undeform(nn.Sequential(Mine()))


def test_distributed_models_are_changed_before_they_are_wrapped() -> None:
    class Wrapped(nn.parallel.DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    model = Wrapped(network())
    with pytest.raises(ValueError, match=r"the model is a DistributedDataParallel.*; deform the model first"):
        pliant.deform(model, 1)
    with pytest.raises(ValueError, match="undeform the model first"):
        pliant.undeform(Wrapped(pliant.deform(network(), 1)))
