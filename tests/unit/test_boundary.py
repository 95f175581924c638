import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import nn

from kdlib.probes import boundary


def draw(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_plane_by_hand():
    # three "images" of three pixels: the origin, 4 along the first, and (1, 2) off it
    x = torch.tensor([[0.0, 0, 0], [4, 0, 0], [1, 0, 2]]).view(3, 3, 1, 1)
    points, corners = boundary.plane(x, margin=0.5, resolution=3)
    assert corners.tolist() == [[0, 0], [4, 0], [1, 2]]
    assert points.shape == (9, 3, 1, 1)
    # first axis -2, 2, 6; second -1, 1, 3, running fastest
    assert points.flatten(1).tolist() == [[s, 0, t] for s in (-2, 2, 6) for t in (-1, 1, 3)]
    assert boundary.plane(x, margin=0.5, resolution=3, clip=True)[0].min() == 0


def test_the_plane_holds_its_three_images():
    x = draw(3, 3, 5, 5)
    points, corners = boundary.plane(x, margin=0.0, resolution=2)
    u, v = (points[2] - points[0]) / (corners[:, 0].max() - corners[:, 0].min()), (points[1] - points[0]) / corners[2, 1]
    start = x[0] + min(0.0, corners[2, 0].item()) * u
    torch.testing.assert_close(points[0], start, atol=1e-5, rtol=0)
    for image, (s, t) in zip(x, corners):
        torch.testing.assert_close(x[0] + s * u + t * v, image, atol=1e-5, rtol=0)


def test_the_grid_is_the_cited_codes():
    # the formula of dbViz, written out in numpy: coordinates, then linspace with 10 % on either side
    x = draw(3, 3, 4, 4, seed=1)
    p1, p2, p3 = (i.flatten().double().numpy() for i in x)
    a, b = p2 - p1, p3 - p1
    proj = (b @ a) / (a @ a) * a
    u, v = a / np.linalg.norm(a), (b - proj) / np.linalg.norm(b - proj)
    first, second = [0, np.linalg.norm(a), b @ u], [0, 0, b @ v]
    axes = [np.linspace(min(c) - 0.1 * (max(c) - min(c)), max(c) + 0.1 * (max(c) - min(c)), 7) for c in (first, second)]
    wanted = np.stack([p1 + s * u + t * v for s in axes[0] for t in axes[1]])
    np.testing.assert_allclose(boundary.plane(x, resolution=7)[0].flatten(1).numpy(), wanted, atol=1e-6)


def test_images_on_a_line_are_refused():
    x = draw(1, 3, 4, 4)
    with pytest.raises(ValueError, match="lie on one line"):
        boundary.plane(torch.cat([x, 2 * x, 3 * x]))


def test_regions_of_a_linear_network_are_a_half_plane():
    # class 1 where the first pixel exceeds 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
        net[1].bias.copy_(torch.tensor([0.0, -2]))
    x = torch.tensor([[0.0, 0, 0], [4, 0, 0], [0, 0, 4]]).view(3, 3, 1, 1)
    found = boundary.regions(net, x, margin=0.0, resolution=4, batch=5)  # first axis 0, 4/3, 8/3, 4
    assert found.tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]


def test_agreement_and_jaccard_by_hand():
    a, b = torch.tensor([[0, 0], [1, 2]]), torch.tensor([[0, 1], [1, 1]])
    assert boundary.agreement(a, b) == 0.5
    assert boundary.jaccard(a, b) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)
    assert boundary.agreement(a, a) == boundary.jaccard(a, a) == 1


def test_jaccard_is_scikit_learns():
    random = torch.Generator().manual_seed(2)
    a, b = torch.randint(5, (30, 30), generator=random), torch.randint(1, 6, (30, 30), generator=random)
    assert boundary.jaccard(a, b) == pytest.approx(jaccard_score(a.flatten(), b.flatten(), average="macro"))


def test_triplets_are_of_three_items_and_classes():
    labels = torch.tensor([0] * 50 + [1, 2])
    found = boundary.triplets(labels, 20, generator=torch.Generator().manual_seed(0))
    assert found.shape == (20, 3) and all(set(labels[row].tolist()) == {0, 1, 2} for row in found)
    same = boundary.triplets(labels, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found, same)
    free = boundary.triplets(labels, 20, distinct=False, generator=torch.Generator().manual_seed(0))
    assert all(len(set(row.tolist())) == 3 for row in free) and any(len(set(labels[row].tolist())) < 3 for row in free)
    with pytest.raises(ValueError, match="needs three classes, got 4 items of 2 classes"):
        boundary.triplets(torch.tensor([0, 0, 1, 1]), 1)
