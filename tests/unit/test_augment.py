import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as peer

from kdlib.data.augment import Pictures, as_images, crop, grey, jitter, jitter_factors

PIXELS = torch.randint(256, (6, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("down", [-2, 0, 2])
@pytest.mark.parametrize("right", [-1, 0, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_is_that_of_the_image_padded_by_reflection(down, right, flip):
    found = crop(PIXELS[:1], torch.tensor([[down, right]]), torch.tensor([flip]))
    padded = F.pad(as_images(PIXELS[:1]), (2, 2, 2, 2), mode="reflect")
    moved = padded[..., 2 - down:18 - down, 2 - right:18 - right]
    if flip:  # mirrored as it lies, then moved
        moved = F.pad(as_images(PIXELS[:1]).flip(-1), (2, 2, 2, 2), mode="reflect")[..., 2 - down:18 - down, 2 + right:18 + right]
    assert torch.equal(found, moved) and found.is_contiguous(memory_format=torch.channels_last)


def test_jitter_is_torchvisions_image_by_image():
    x, factors = as_images(PIXELS), jitter_factors(6, strength=0.6, hue=0.2, generator=generator())
    for image, moved, (brightness, contrast, saturation, hue) in zip(x, jitter(x, factors), factors.tolist()):
        wanted = peer.adjust_hue(peer.adjust_saturation(peer.adjust_contrast(peer.adjust_brightness(
            image, brightness), contrast), saturation), hue)
        torch.testing.assert_close(moved, wanted, atol=2e-6, rtol=0)


def test_jitter_by_hand():
    x = torch.tensor([0.8, 0.4, 0.2]).view(1, 3, 1, 1)
    half = torch.tensor([[0.5, 1.0, 1.0, 0.0]])
    torch.testing.assert_close(jitter(x, half).flatten(), torch.tensor([0.4, 0.2, 0.1]))
    third = torch.tensor([[1.0, 1.0, 1.0, 1 / 3]])  # red becomes green
    torch.testing.assert_close(jitter(x, third).flatten(), torch.tensor([0.2, 0.8, 0.4]))
    no_colour = torch.tensor([[1.0, 1.0, 0.0, 0.1]])
    torch.testing.assert_close(jitter(x, no_colour), grey(x).expand(-1, 3, -1, -1))
    unchanged = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).expand(6, -1)
    torch.testing.assert_close(jitter(as_images(PIXELS), unchanged), as_images(PIXELS))


def test_factors_lie_in_their_ranges_and_repeat():
    factors = jitter_factors(4000, strength=0.4, hue=0.2, generator=generator())
    low, high = factors.amin(0), factors.amax(0)
    assert (low >= torch.tensor([0.6, 0.6, 0.6, -0.2])).all() and (low < torch.tensor([0.61, 0.61, 0.61, -0.19])).all()
    assert (high <= torch.tensor([1.4, 1.4, 1.4, 0.2])).all() and (high > torch.tensor([1.39, 1.39, 1.39, 0.19])).all()
    assert torch.equal(factors, jitter_factors(4000, strength=0.4, hue=0.2, generator=generator()))
    assert jitter_factors(4000, strength=2.0, hue=0.0, generator=generator())[:, :3].min() == 0


@pytest.mark.parametrize("colour", [None, (0.4, 0.2)])
def test_a_batch_depends_on_its_items_and_their_parameters_alone(colour):
    data = Pictures(PIXELS, torch.arange(6), colour)
    parameters = data.draw(generator())
    assert torch.equal(parameters, data.draw(generator())) and not torch.equal(parameters, data.draw(generator(2)))
    many = Pictures(PIXELS[:1].expand(4000, -1, -1, -1), torch.zeros(4000, dtype=torch.long), colour).draw(generator())
    down, right, flip = many[:, :3].unbind(1)
    assert down.unique().tolist() == right.unique().tolist() == [-2, -1, 0, 1, 2], "up to an eighth of 16 pixels either way"
    assert all(abs((moved == step).double().mean() - 0.2) < 0.03 for moved in (down, right) for step in (-2, 0, 2))
    assert abs(flip.mean() - 0.5) < 0.03 and flip.unique().tolist() == [0, 1] and abs(torch.corrcoef(torch.stack([down, right, flip])) - torch.eye(3)).max() < 0.06
    x, y = data.batch(torch.tensor([4, 1, 5]), parameters)
    alone = torch.cat([data.batch(torch.tensor([i]), parameters)[0] for i in (4, 1, 5)])
    assert y.tolist() == [4, 1, 5] and torch.equal(x, alone)
    still = parameters.clone()
    still[:, :3] = 0
    assert torch.equal(data.batch(torch.arange(6), still)[0], as_images(PIXELS)) == (colour is None)
