import pytest
import torch
from torch import nn

from kdlib.models import Model, features, taps
from kdlib.networks import Attention, Dropout, Flatten, Map, PlainNet, Residual, ResidualNet, Tokens, TransformerNet

NETS = {"residual": (ResidualNet, dict(widths=(4, 8, 12))), "plain": (PlainNet, dict(widths=(4, 8, 12))),
        "transformer": (TransformerNet, dict(width=16, depth=2, heads=2))}


def lively(net):
    """Batch norms with statistics of their own, so that a test sees them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1), nn.init.uniform_(module.running_var, 0.5, 2), nn.init.uniform_(module.weight, 0.5, 2)
    return net.eval()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", NETS)
def test_the_last_map_has_8_by_8_cells_and_goes_through_one_linear_layer(name, size):
    make, arguments = NETS[name]
    stride = {"reduce": size // 16, "size": size} if name == "transformer" else {"stride": size // 32}
    if name == "transformer":
        stride["reduce"] = {32: 2, 64: 3}[size]
    net, x = lively(make(**arguments, **stride)), torch.rand(2, 3, size, size)
    with taps(net, "map", "flatten") as seen:
        logits = net(x)
    assert seen["map"].shape[2:] == (8, 8) and logits.shape == (2, 10)
    torch.testing.assert_close(net.fc(seen["map"].mean((2, 3))), logits)
    torch.testing.assert_close(seen["flatten"], seen["map"].mean((2, 3)))


@pytest.mark.parametrize("make", [ResidualNet, PlainNet])
def test_stages_halve_the_map_and_have_their_widths(make):
    net = make(widths=(4, 8, 12, 16)).eval()
    shapes = [features(net, torch.rand(1, 3, 32, 32), f"stage{k}").shape[1:] for k in (1, 2, 3, 4)]
    assert shapes == [(4, 32, 32), (8, 16, 16), (12, 8, 8), (16, 4, 4)]
    deeper = make(widths=(4, 8), **{"blocks" if make is ResidualNet else "convolutions": 3})
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in deeper.modules()) == (13 if make is ResidualNet else 6)


@pytest.mark.parametrize("stride, outputs", [(1, 4), (2, 4), (1, 6)])
def test_a_residual_block_is_its_equation(stride, outputs):
    block, x = lively(Residual(4, outputs, stride)), torch.randn(2, 4, 8, 8)
    first, norm1, _, second, norm2 = block.body
    skip = x if (stride, outputs) == (1, 4) else block.skip[1](nn.functional.conv2d(x, block.skip[0].weight, stride=stride))
    inner = norm1(nn.functional.conv2d(x, first.weight, stride=stride, padding=1)).relu()
    wanted = (skip + norm2(nn.functional.conv2d(inner, second.weight, padding=1))).relu()
    torch.testing.assert_close(block(x), wanted)


def test_attention_is_pytorchs():
    block, x = Attention(16, 4).eval(), torch.randn(2, 9, 16)
    peer = nn.TransformerEncoderLayer(16, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        for theirs, ours in ((peer.self_attn.in_proj_weight, block.qkv.weight), (peer.self_attn.in_proj_bias, block.qkv.bias),
                             (peer.self_attn.out_proj.weight, block.out.weight), (peer.self_attn.out_proj.bias, block.out.bias),
                             (peer.linear1.weight, block.mlp[0].weight), (peer.linear1.bias, block.mlp[0].bias),
                             (peer.linear2.weight, block.mlp[2].weight), (peer.linear2.bias, block.mlp[2].bias)):
            theirs.copy_(ours)
        torch.testing.assert_close(block(x), peer(x), atol=1e-5, rtol=1e-5)


def test_tokens_and_map_put_each_cell_in_its_place():
    tokens, x = Tokens(5, 3), torch.randn(2, 5, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(Map()(tokens(x) - tokens.position), x)
        assert torch.equal((tokens(x) - tokens.position)[1, 5], x[1, :, 1, 2]) or torch.allclose((tokens(x) - tokens.position)[1, 5], x[1, :, 1, 2])


@pytest.mark.parametrize("name, arguments, says", [
    ("transformer", {"width": 10, "heads": 4}, "heads"), ("transformer", {"size": 30, "reduce": 3}, "size"),
    ("residual", {"widths": ()}, "widths"), ("plain", {"widths": ()}, "widths"), ("residual", {"stride": 0}, "stride")])
def test_arguments_that_make_no_network_are_one_clear_line(name, arguments, says):
    with pytest.raises(ValueError, match=f"^{name}: {says} ") as error:
        Model(name, arguments).build()
    assert "\n" not in str(error.value)


# what is written for a CPU

def test_flattened_maps_have_their_channels_side_by_side():
    x = torch.rand(2, 3, 4, 5)
    flat = Flatten()(x)
    assert flat.shape == (2, 60) and torch.equal(flat[1, 3 * (2 * 5 + 4) + 1], x[1, 1, 2, 4])
    assert torch.equal(flat.view(2, 4, 5, 3).movedim(-1, 1), x)
    x = x.to(memory_format=torch.channels_last)
    assert Flatten()(x).data_ptr() == x.data_ptr(), "nothing is copied"


@pytest.mark.parametrize("p", [0.25, 0.5, 1 / 256, 255 / 256])
@pytest.mark.parametrize("shape", [(64, 7, 30, 31), (1000, 211)])
def test_dropout_zeroes_a_share_and_scales_the_rest(p, shape):
    torch.manual_seed(0)
    x, drop = torch.ones(shape), Dropout(p).train()
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    assert (y == 0).double().mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    torch.manual_seed(0)
    assert torch.equal(Dropout(p).train()(x), y) and not torch.equal(drop(x), y), "the seed decides"
    torch.manual_seed(0)
    assert torch.equal(Dropout(p).train()(x.to(memory_format=torch.channels_last) if x.ndim == 4 else x), y), "and not the layout"


def test_dropped_numbers_are_independent():
    torch.manual_seed(0)
    gone = (Dropout(0.5).train()(torch.ones(1, 1, 1000, 1000)) == 0).double().flatten()
    for lag in (1, 2, 7, 8, 9, 64):
        assert torch.corrcoef(torch.stack([gone[:-lag], gone[lag:]]))[0, 1].abs() < 5 / 1000


def test_dropout_passes_gradients_where_it_passes_numbers_and_keeps_the_type():
    x = torch.rand(8, 3, 5, 5, dtype=torch.bfloat16, requires_grad=True)
    y = Dropout(0.25).train()(x)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and torch.equal(x.grad == 0, y == 0) and (x.grad[x.grad != 0] == torch.tensor(4 / 3, dtype=torch.bfloat16)).all()


def test_dropout_at_its_ends():
    x = torch.rand(2, 3, 4, 4)
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0).train()(x) is x and not Dropout(1.0).train()(x).any()
    with pytest.raises(ValueError, match="^Dropout: p is a multiple of 1 / 256, not 0.3$"):
        Dropout(0.3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        Dropout(1.5)


GOLDEN = {  # version, logits, the sum of the weights' mean sizes
    "residual": (1, [-0.14194, 0.22742, -0.00679, -0.0966], 31.358777),
    "plain": (1, [0.22036, -0.13478, 0.18103, -0.09614], 13.223213),
    "transformer": (1, [-0.73392, -0.53542, -0.69559, -0.06153], 14.578227),
    "mnistnet": (2, [-0.02985, 0.00881, 0.08892, -0.00955], 1.356034)}


@pytest.mark.parametrize("name", GOLDEN)
def test_an_architecture_changes_only_with_its_version(name):
    # stored runs of a version are taken for what the network of that version computes
    torch.manual_seed(0)
    model = Model(*{"residual": ("residual", {"widths": [4, 8], "blocks": 2}), "plain": ("plain", {"widths": [4, 8]}),
                    "transformer": ("transformer", {"width": 8, "depth": 2}), "mnistnet": ("mnistnet", {"size": 16})}[name])
    net, x = model.build(), torch.rand(4, 3, 16 if name == "mnistnet" else 32, 16 if name == "mnistnet" else 32)
    net.train()(x)  # moves the batch norms' statistics
    state = {k: v.double().abs().mean().item() for k, v in net.state_dict().items()}
    version, wanted, weights = GOLDEN[name]
    assert model.version == version
    torch.testing.assert_close(net.eval()(x)[0, :4], torch.tensor(wanted), atol=2e-4, rtol=0)
    assert sum(state.values()) == pytest.approx(weights, rel=1e-5)
