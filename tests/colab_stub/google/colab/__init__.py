"""What the notebook uses of Colab's own module, for a kernel that has this folder on its path.

The scripts that the kernel starts are run by another Python: see forked_python in tests/forked.py.
"""

import os
import sys

sys.executable = os.environ["PYTHON_OF_SCRIPTS"]
