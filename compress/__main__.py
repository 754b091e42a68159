"""`python -m compress` is the command `compress`."""

import sys

if not sys.flags.safe_path:  # Python puts the working directory first, where a file named json.py would be imported
    sys.path.append(sys.path.pop(0))

from compress.cli import main

main()
