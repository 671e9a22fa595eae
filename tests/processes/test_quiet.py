"""Whose warnings are printed."""

import subprocess
import sys

PROGRAM = """
import logging, warnings
from rfdit.processes.quiet import quiet_others

def warn(module, text):
    exec("import warnings; warnings.warn(text, stacklevel=2)", {"__name__": module, "text": text})

quiet_others()
warn("rfdit.data.somewhere", "3 samples are bad")
warn("torchmetrics.functional", "no data")
warn("torch.cuda", "CUDA initialization: the driver is too old")
logging.getLogger("torchao").warning("Skipping import of cpp extensions")
logging.getLogger("transformers.modeling_utils").warning("LOAD REPORT")
"""


def test_others_are_quiet_unless_a_user_can_act() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr == (
        "warning: 3 samples are bad\nwarning: CUDA initialization: the driver is too old\n"
    )
