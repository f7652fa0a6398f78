"""What `import eqx_shortcut.losses` costs, which is what other research code pays."""

import json
import os
import subprocess
import sys

LIGHT = "import jax, equinox, jaxtyping, beartype"
HEAVY = {"optax", "grain", "orbax", "tyro", "matplotlib", "PIL", "sklearn", "pyarrow", "tqdm", "flax", "torch"}
REPORT = "import sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def modules_after(code: str) -> set[str]:
    """Top-level modules that are loaded after `code` in a fresh interpreter, without the standard library."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(
        [sys.executable, "-c", f"{code}\n{REPORT}"], capture_output=True, text=True, check=True, env=environment
    )
    return set(json.loads(out.stdout.splitlines()[-1])) - set(sys.stdlib_module_names)


def test_losses_add_nothing_to_jax_equinox_jaxtyping_beartype():
    light = modules_after(LIGHT)
    found = modules_after("import eqx_shortcut.losses")
    assert found - light == {"eqx_shortcut"}
    assert not found & HEAVY


def test_the_report_would_show_a_heavy_module():
    assert "optax" in modules_after("import eqx_shortcut.losses, optax")
