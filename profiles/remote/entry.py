"""Where the runner begins on the other machine.

In the words of any Python since 2.7, so that one that is too old says so in a sentence and not by a syntax error: no
annotations, no f-strings, and nothing imported before the version is known.
"""

import json
import sys

#: what the shipped files are written for: the oldest Python that is still maintained
OLDEST = (3, 10)
#: around the answer on standard output, where a login shell may have said something of its own
BEGIN, END = "=====compress begins=====", "=====compress ends====="


def main():
    """Serve an order that comes on standard input, or, as `measure FOLDER`, do what it asks for."""
    if sys.version_info < OLDEST:
        found = "{}.{}".format(*sys.version_info[:2])
        needed = ".".join(map(str, OLDEST))
        answer({"error": sys.executable + " is Python " + found + ", expected " + needed + " or newer"})
        sys.exit(1)
    from profiles.remote import serving

    sys.exit(serving.main(sys.argv))


def answer(reply):
    """Print `reply` as one line of JSON between the markers."""
    sys.stdout.write("\n" + BEGIN + "\n" + json.dumps(reply) + "\n" + END + "\n")
    sys.stdout.flush()
