"""A classifier is trained by its command, and is what images are compared in."""

import numpy as np
import pytest

from commands import in_process
from eqx_shortcut.evaluate.networks import classifier_features
from eqx_shortcut.pretrained.small_classifier import load_classifier


@pytest.mark.slow
def test_a_classifier_learns_the_digits_and_its_file_says_how_well(tmp_path):
    file = tmp_path / "digits.safetensors"
    code, said, err = in_process("classifier", f"data:digits --out {file} --steps 120 --batch 64".split())
    assert code == 0 and "\r" not in err, err
    record = load_classifier(file)[1]
    # Chance is a tenth.
    assert 0.3 < record["accuracy"] <= 1 and f"{record['accuracy']:.2%} of 397 held-out images" in said
    assert record["steps"] == 120 and record["data"]["kind"].endswith("Digits")
    features = classifier_features(file)
    assert features.protocol["network"] == "small classifier"
    noise = np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 1)).astype(np.float32)
    assert np.isfinite(features(noise).vectors).all()


def test_a_file_of_another_suffix_is_refused_before_training(tmp_path):
    code, _, err = in_process("classifier", f"data:digits --out {tmp_path}/digits.bin".split())
    assert code == 1 and ".safetensors" in err
