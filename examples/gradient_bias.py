"""Why the inner problem is a regression without augmentation: the bias of hypergradients, measured.

Distillation steps synthetic images X down the gradient of an outer loss that depends on X through an inner problem.
This script computes that gradient for two inner problems, on real images and in float64:

* contrastive: the student takes a few SGD steps on Lightly's NT-Xent loss between random views of X. What is wanted is
  the gradient for the inner loss in expectation over the views; what one has is the gradient for the views drawn. The
  outer loss is no linear function of the inner gradients, so the second is, on average, not the first: it is biased,
  and stepping slower or longer does not average the bias away (Theorem 1 of KRR-ST, https://arxiv.org/abs/2310.06511).
* ridge: regression from features of X to representations, in closed form and without views, as lightly_distill does it.
  Nothing is drawn, so there is neither bias nor spread.

The expectation is stood for by a reference of many views a step, whose own error is printed. That the numbers are for
one student, one set X, few inner steps and a random target model is a limit of the script, not of the theorem. And it
says nothing about which inner problem learns the better images, only about whose gradient can be had.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import digits
import timm
import torch
from lightly.loss import NTXentLoss
from matplotlib.figure import Figure
from torch.func import functional_call
from torch.nn import functional as F
from tqdm import tqdm

from lightly_distill import as_target
from lightly_distill.data.source import open_source
from lightly_distill.method.krr import RIDGE
from lightly_distill.method.objective import Objective
from lightly_distill.method.step import RealBatch, outer_gradient
from lightly_distill.models.students import student_builder
from lightly_distill.models.targets import load_target, represent

SIZE = 16  # pixels
CHUNK = 32  # views at a time, for memory

criterion = NTXentLoss(temperature=0.5)


# --- the two hypergradients ---


def random_views(images, generator):
    """Zooms, shifts, mirrors each image and changes its contrast and brightness, at random; differentiable."""
    count = len(images)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=images.dtype)

    zoom = uniform(0.5, 1.0)
    flip = torch.randint(2, (count,), generator=generator) * 2 - 1
    shift = uniform(-1, 1, 2) * (1 - zoom)[:, None]
    affine = images.new_zeros(count, 2, 3)
    affine[:, 0, 0], affine[:, 1, 1], affine[:, :, 2] = zoom * flip, zoom, shift
    crops = F.grid_sample(images, F.affine_grid(affine, images.shape, align_corners=False), align_corners=False)
    return crops * uniform(0.6, 1.4, 1, 1, 1) + uniform(-0.4, 0.4, 1, 1, 1)


def contrastive_losses(student, parameters, images, num_views, seed):
    """Yields parts of the inner loss, which is the mean of NT-Xent over `num_views` pairs of views of all images."""
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, num_views, CHUNK):
        count = min(CHUNK, num_views - start)
        views = random_views(images.repeat(2 * count, 1, 1, 1), generator)
        z0, z1 = functional_call(student, parameters, views).chunk(2)
        pairs = zip(z0.split(len(images)), z1.split(len(images)), strict=True)
        yield sum(criterion(a, b) for a, b in pairs) / num_views


def readout_loss(student, parameters, images, representations, real):
    """The outer loss of KRR-ST, but with gradient to the student too: `lightly_distill.method.krr` holds it fixed."""
    syn_MF = functional_call(student, parameters, images)
    real_BF = functional_call(student, parameters, real.images)
    kernel_MM = syn_MF @ syn_MF.T + 1
    penalty = RIDGE * kernel_MM.detach().trace() * torch.eye(len(images), dtype=images.dtype)
    predicted = (real_BF @ syn_MF.T + 1) @ torch.linalg.solve(kernel_MM + penalty, representations)
    return F.mse_loss(predicted, real.representations)


def contrastive_gradient(student, images, representations, real, *, steps, lr, num_views, seed):
    """Returns the gradient of the outer loss to the images, through all SGD steps of the student.

    This is backpropagation through the unrolled steps, written out from the last to the first, so that the memory is
    that of one chunk of views of one step.
    """
    seeds = torch.randint(2**62, (steps,), generator=torch.Generator().manual_seed(seed)).tolist()
    images = images.detach().requires_grad_()
    names = [name for name, _ in student.named_parameters()]
    trajectory = [[parameter.detach().requires_grad_() for parameter in student.parameters()]]

    def gradients(step, **options):
        """Yields the gradient of each part of the loss of a step with respect to the parameters before it."""
        before = trajectory[step]
        for loss in contrastive_losses(student, dict(zip(names, before, strict=True)), images, num_views, seeds[step]):
            yield torch.autograd.grad(loss, before, **options)

    for step in range(steps):
        after = [parameter.detach().clone() for parameter in trajectory[step]]
        for part in gradients(step):
            torch._foreach_add_(after, part, alpha=-lr)
        trajectory.append([parameter.requires_grad_() for parameter in after])

    last = trajectory[-1]
    loss = readout_loss(student, dict(zip(names, last, strict=True)), images, representations, real)
    *adjoint, total = torch.autograd.grad(loss, [*last, images])
    for step in reversed(range(steps)):
        earlier = [value.clone() for value in adjoint]
        for part in gradients(step, create_graph=True):
            product = sum((a * g).sum() for a, g in zip(adjoint, part, strict=True))
            *to_parameters, to_images = torch.autograd.grad(product, [*trajectory[step], images])
            torch._foreach_add_(earlier, to_parameters, alpha=-lr)
            total = total - lr * to_images
        adjoint = earlier
    return total.flatten()


def ridge_gradient(student, images, representations, real):
    """Returns the gradient of the outer loss to the images, with the inner problem of lightly_distill."""
    images, representations = images.detach().requires_grad_(), representations.detach().requires_grad_()
    return outer_gradient(
        student, images, representations, real, objective=Objective(RIDGE, dtype=torch.float64)
    ).images.flatten()


# --- how far the draws of a gradient are from the true one ---


@dataclass
class Deviation:
    """All but `sigmas` and `cosine` in units of the length of the true gradient."""

    bias: float  # length of the mean draw minus the true one
    bias_error: float  # its standard error
    sigmas: float  # the squared bias in units of its standard error
    spread: float  # root mean squared distance of a draw from the mean draw
    cosine: float  # of a draw to the true one, on average


def deviation(draws, reference):
    """Compares draws (R, P) with independent draws (Q, P) whose mean stands for the true gradient."""
    count, total = len(draws), len(draws) + len(reference)
    both = torch.cat([draws, reference])
    inner = both @ both.T  # all that follows is in these products

    def squared_bias(kept):
        """Only products of different draws: the square of a draw's own noise would count as bias."""
        a, b = kept[kept < count], kept[kept >= count]
        return mean_of_pairs(inner, a) + mean_of_pairs(inner, b) - 2 * inner[a][:, b].mean()

    everything, own, true = torch.arange(total), torch.arange(count), torch.arange(count, total)
    squared = squared_bias(everything)
    jackknife = torch.stack([squared_bias(everything[everything != left_out]) for left_out in range(total)])
    variance = sum((len(part) - 1) * part.var(correction=0) for part in (jackknife[:count], jackknife[count:]))
    length = mean_of_pairs(inner, true).sqrt()
    bias, error = squared.clamp_min(0).sqrt(), variance.sqrt()
    return Deviation(
        bias=float(bias / length),
        bias_error=float(error / (2 * bias) / length) if bias > 0 else float(error.sqrt() / length),
        sigmas=float(squared / error) if error > 0 else 0.0,
        spread=float((inner.diagonal()[:count].mean() - mean_of_pairs(inner, own)).clamp_min(0).sqrt() / length),
        cosine=float(F.cosine_similarity(draws, reference.mean(0)[None]).mean()),
    )


def mean_of_pairs(inner, chosen):
    """Returns the mean product of two different ones of the chosen draws."""
    block = inner[chosen][:, chosen]
    return (block.sum() - block.diagonal().sum()) / (len(chosen) * (len(chosen) - 1))


def plot(rows, ridge, path, subtitle):
    """Draws bias and spread against the views of each inner step."""
    views = list(rows)
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    left.set_title("Bias of the hypergradient")
    right.set_title("Spread of one draw")
    for axes, attribute in ((left, "bias"), (right, "spread")):
        values = [getattr(row, attribute) for row in rows.values()]
        errors = [row.bias_error for row in rows.values()] if axes is left else None
        axes.errorbar(views, values, errors, marker="o", capsize=4, label="contrastive, random views")
        axes.axhline(getattr(ridge, attribute), color="tab:green", linewidth=2, label="ridge, no views")
        axes.set_xscale("log", base=2)
        axes.set_xticks(views, [str(count) for count in views])
        axes.set_xlabel("views of each image in an inner step")
        axes.set_ylim(bottom=-0.05 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    right.legend()
    left.set_ylabel("fraction of the true gradient's length")
    figure.suptitle(subtitle, fontsize="medium")
    figure.savefig(path, dpi=150)


# --- the experiment ---

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="real images: folder, Hub dataset, ...#split; default: scikit-learn's digits")
    parser.add_argument("--target", help="target model, such as timm:resnet18; default: a random ResNet-10")
    parser.add_argument("--student", default="convnet_8_16_in", help="one without batch norm")
    parser.add_argument("--num-images", type=int, default=8, help="images of the synthetic set")
    parser.add_argument("--steps", type=int, default=3, help="inner steps")
    parser.add_argument("--lr", type=float, default=0.1, help="of the inner steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/gradient_bias"))
    parser.add_argument("--smoke", action="store_true", help="few draws, a reference of fewer views")
    args = parser.parse_args()

    # draws by views of an inner step; the last is the reference
    draws = {1: 60, 4: 24, 32: 4} if args.smoke else {1: 400, 4: 128, 16: 48, 256: 8}
    torch.set_num_threads(1)  # many small tensors: threads would only wait for one another

    source = open_source(args.data or digits.Digits(num_images=args.num_images + 128), image_size=SIZE)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(args.seed))
    pictures = source.read(order[: args.num_images + 128])
    torch.manual_seed(args.seed)
    target = load_target(args.target) if args.target else as_target(timm.create_model("resnet10t", num_classes=0))
    representations = represent(target, [pictures], device="cpu").double()
    representations = (representations - representations.mean(0)) / representations.std(0).clamp_min(1e-6)
    mean, std = (torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1) for value in (target.mean, target.std))
    images = (pictures.double() / 255 - mean) / std
    student = student_builder(args.student, SIZE)().double()
    problem = (student, images[: args.num_images], representations[: args.num_images])
    real = RealBatch(images[args.num_images :], representations[args.num_images :])

    gradients = {}
    with tqdm(total=sum(views * count for views, count in draws.items()), unit="view", disable=None) as progress:
        for views, count in draws.items():
            gradients[views] = []
            for number in range(count):
                seed = args.seed * 10**6 + views * 10**3 + number
                options = {"steps": args.steps, "lr": args.lr, "num_views": views, "seed": seed}
                gradients[views].append(contrastive_gradient(*problem, real, **options))
                progress.update(views)
    many, reference = gradients.popitem()
    reference = torch.stack(reference)
    rows = {views: deviation(torch.stack(drawn), reference) for views, drawn in gradients.items()}
    closed_form = torch.stack([ridge_gradient(*problem, real) for _ in range(8)])
    ridge = deviation(closed_form[:4], closed_form[4:])

    print(f"Hypergradient of {args.num_images} images of {source.name}, relative to the length of the true one:\n")
    print("inner problem           draws   bias  +- s.e.   sigmas  spread  cosine")
    for name, count, row in [
        *((f"contrastive, {views} views", draws[views], row) for views, row in rows.items()),
        ("ridge, no views", len(closed_form), ridge),
    ]:
        print(
            f"{name:<22} {count:>6} {row.bias:6.3f}  +- {row.bias_error:5.3f}  {row.sigmas:6.1f} "
            f"{row.spread:7.3f} {row.cosine:7.3f}"
        )
    uncertain = deviation(reference, reference).spread / len(reference) ** 0.5
    most = max(rows)
    slow, fast = (rows[most].bias * (most / many) ** power for power in (0.5, 1))
    print(
        f"\nThe true one of the contrastive problem is the mean of {len(reference)} draws of {many} views, uncertain by"
    )
    print(
        f"{uncertain:.3f}, and has a bias of its own: {fast:.3f} if bias goes as 1 / views, {slow:.3f} if as its root."
    )
    print("That of the ridge is exact: nothing is drawn.")
    args.out.mkdir(parents=True, exist_ok=True)
    title = f"{args.num_images} images of {source.name}, {args.steps} inner steps; true gradient: {many} views a step"
    plot(rows, ridge, args.out / "gradient_bias.png", title)
    print(f"Picture: {args.out / 'gradient_bias.png'}")
