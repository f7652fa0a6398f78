"""Images a second through Inception-V3, ours beside torch-fidelity's module: by turns, in one process, on two threads of a CPU.

    OMP_WAIT_POLICY=passive python benchmarks/inception.py              # 8 images of 32 x 32 at once, 6 rounds
    OMP_WAIT_POLICY=passive python benchmarks/inception.py --batch 32 --side 256 --rounds 4

Both read the same bytes and the same random weights, resize to 299 x 299, and must give the same features. Prints medians of
images a second by the clock and by the processor time of all threads: compare the second on a machine that others load. Needs
the extra `parity`. Without `passive` torch's threads spin while they wait, and that time counts.
"""

import argparse
import importlib
import importlib.util
import pathlib
import sys
import tempfile
import time
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import trange

from eqx_shortcut.evaluate.networks import NetworkFeatures
from eqx_shortcut.evaluate.preprocess import TF
from eqx_shortcut.pretrained.inception import load_inception

THREADS = 2


def random_module() -> Any:
    """torch-fidelity's network with random weights, imported without the package itself, which needs torchvision."""
    package = types.ModuleType("torch_fidelity")
    found = importlib.util.find_spec("torch_fidelity")
    if found is None:
        raise SystemExit("torch-fidelity is missing: pip install 'eqx_shortcut[parity]'")
    package.__path__ = list(found.submodule_search_locations or [])
    sys.modules["torch_fidelity"] = package
    module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")

    class Random(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: Any) -> None:
            pass

    module.load_state_dict_from_url = lambda *_, **__: {}
    return Random("random", ["2048"])


def programs(batch: int, side: int) -> dict[str, Callable[[], np.ndarray]]:
    """Both networks as functions that return the features of the same images."""
    import torch  # pyright: ignore[reportMissingImports]

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    theirs = random_module()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "random.pth"
        torch.save(theirs.state_dict(), path)
        ours = NetworkFeatures("FID", {}, load_inception(path), TF, batch)
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    given, scaled = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), images.astype(np.float32) / 127.5 - 1
    return {"torch-fidelity": lambda: theirs(given)[0].numpy(), "ours": lambda: ours(scaled).vectors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, usual in (("batch", 8), ("side", 32), ("rounds", 6)):
        parser.add_argument(f"--{name}", type=int, default=usual)
    args = parser.parse_args()
    both = programs(args.batch, args.side)
    theirs, ours = (run() for run in both.values())
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(np.abs(theirs).max()))
    seconds = np.zeros((args.rounds, len(both), 2))
    for i in trange(args.rounds, desc="rounds", leave=False):
        for j, run in list(enumerate(both.values()))[:: 1 if i % 2 else -1]:
            start = time.perf_counter(), time.process_time()
            run()
            seconds[i, j] = time.perf_counter() - start[0], time.process_time() - start[1]
    print("| network | images a second | images a second of processor time |\n|---|---|---|")
    for name, rate in zip(both, args.batch / np.median(seconds, axis=0), strict=True):
        print(f"| {name} | {rate[0]:.2f} | {rate[1]:.2f} |")
    ratio = np.median(seconds[:, 0] / seconds[:, 1], axis=0)
    print(f"\nours over torch-fidelity: {ratio[0]:.2f} by the clock, {ratio[1]:.2f} by processor time (medians of rounds)")


if __name__ == "__main__":
    main()
