"""Trains a small classifier, in whose features images are then compared where published networks do not fit.

    python experiments/classifier.py data:fashion-mnist --data.mirror \\
        --out experiments/features/fashion_mnist.safetensors
    eqx-shortcut evaluate runs/fashion_mnist/shortcut --features experiments/features/fashion_mnist.safetensors

Prints the share of held-out images that it gets right, which the file keeps too. A distance in its features is comparable to
others in the same file's alone.
"""

import dataclasses
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import tyro

    from eqx_shortcut import ranges
    from eqx_shortcut.cli import check_out, command
    from eqx_shortcut.data import CIFAR10, Digits, FashionMNIST
    from eqx_shortcut.optimizer import AdamW
    from eqx_shortcut.ranges import Count, Natural

if TYPE_CHECKING:
    from eqx_shortcut.data import Images
    from eqx_shortcut.pretrained.small_classifier import SmallClassifier

Source = (
    Annotated[FashionMNIST, tyro.conf.subcommand("fashion-mnist")]
    | Annotated[CIFAR10, tyro.conf.subcommand("cifar10")]
    | Annotated[Digits, tyro.conf.subcommand("digits")]
)


OPTIMIZER = AdamW(lr=2e-3, schedule="cosine", warmup=100, weight_decay=0.05, clip=1.0)


@dataclasses.dataclass(frozen=True)
class Config(ranges.Checked):
    """Images, training, and the file."""

    data: Source
    """The images, those held out by their source among them."""
    out: pathlib.Path
    """File to write."""
    optimizer: AdamW = OPTIMIZER
    """How it is trained."""
    steps: Count = 8000
    """Training steps (1 or more)."""
    batch: Count = 128
    """Images a step (1 or more)."""
    shift: Natural = 1
    """Pixels by which images are moved at random, at most, in either direction (0 or more)."""
    seed: Natural = 0
    """Seed of initialisation, order and every draw (0 or more)."""


def main(config: Config) -> None:
    """Trains, judges, writes."""
    from eqx_shortcut import settings
    from eqx_shortcut.compilation import use_compilation_cache
    from eqx_shortcut.pretrained.small_classifier import save_classifier

    check_out(config.out, ".safetensors")
    if unkept := use_compilation_cache():
        print(unkept, file=sys.stderr)
    train, held_out = config.data.build()
    network = trained(config, train)
    found = accuracy(network, held_out)
    record = {name: value for name, value in settings.dump(config).items() if name not in ("kind", "out")}
    save_classifier(config.out, network, record | {"held-out images": len(held_out.labels), "accuracy": found})
    print(f"{config.out}: {found:.2%} of {len(held_out.labels):,} held-out images are given their label")


def trained(config: Config, images: "Images") -> "SmallClassifier":
    """Trains the classifier and returns it."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    from eqx_shortcut import rng
    from eqx_shortcut.data import batches, prepare
    from eqx_shortcut.pretrained.small_classifier import SmallClassifier
    from eqx_shortcut.progress import bar

    k_network, k_train = jax.random.split(rng.key(config.seed))
    network, tx = SmallClassifier(images.classes, key=k_network), config.optimizer.build(config.steps)
    ready = prepare(images, mirror=config.data.mirror)

    @eqx.filter_jit(donate="all-except-first")
    def step(raw, network, opt_state, number):
        k_prepare, k_shift = jax.random.split(jax.random.fold_in(k_train, number))
        batch = ready(raw, k_prepare)
        x = shifted(k_shift, coloured(batch.x), config.shift)

        def loss_fn(network):
            logits = jax.vmap(network)(x).logits
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.cond))

        loss, gradient = eqx.filter_value_and_grad(loss_fn)(network)
        with jax.numpy_dtype_promotion("standard"):  # as Optax needs it
            updates, opt_state = tx.update(gradient, opt_state, eqx.filter(network, eqx.is_inexact_array))
        return eqx.apply_updates(network, updates), opt_state, loss

    opt_state = tx.init(eqx.filter(network, eqx.is_inexact_array))
    loader = batches(images, config.batch, seed=config.seed, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    shown = bar(range(config.steps), desc="classifier", unit="step")
    for number in shown:
        network, opt_state, loss = step(next(loader), network, opt_state, jnp.int32(number))
        if number % 50 == 0:
            shown.set_postfix(loss=f"{float(loss):.3f}")
    loader.close()
    return network


def coloured(x):
    """Grey images with three equal channels, others as they are."""
    import jax.numpy as jnp

    return jnp.broadcast_to(x, (*x.shape[:-1], 3))


def shifted(key, x, most: int):
    """Each image shifted at random by up to `most` pixels, with its edge repeated."""
    import jax
    import jax.numpy as jnp

    def one(start, image):
        padded = jnp.pad(image, ((most, most), (most, most), (0, 0)), mode="edge")
        return jax.lax.dynamic_slice(padded, (start[0], start[1], 0), image.shape)

    return jax.vmap(one)(jax.random.randint(key, (len(x), 2), 0, 2 * most + 1), x)


def accuracy(network: "SmallClassifier", images: "Images") -> float:
    """Share of the images that are given their label."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import numpy as np

    from eqx_shortcut.data.pipeline import host_batches

    answer = eqx.filter_jit(lambda network, x: jnp.argmax(jax.vmap(network)(coloured(x)).logits, axis=1))
    found = [np.asarray(answer(network, x)) for x in host_batches(images.scaled(), 1000)]
    return float(np.mean(np.concatenate(found) == images.labels))


if __name__ == "__main__":
    command(main, Config, __doc__)
