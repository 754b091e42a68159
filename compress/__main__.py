"""`python -m compress` is the command `compress`."""

import sys

if __name__ == "__main__" and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))  # the working directory, where a file named json.py would be imported

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it prints a traceback of the imports
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def main() -> None:
    """Run the command line; until it handles signals, they end the process at once."""
    from compress.cli import main

    main()


if __name__ == "__main__":
    main()
