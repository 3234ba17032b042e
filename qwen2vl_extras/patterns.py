"""Regular expressions that stand in somebody else's file, matched with a limit on time and memory.

A pattern of twenty letters can keep Python busy for years, and nothing can stop it from within.
So patterns are matched in a process of its own, which is this file run as a script.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 5
MEGABYTES = 256


def match_patterns(
    patterns: Sequence[str], names: Sequence[str], source: object
) -> list[list[str]]:
    """For each pattern the names that it matches from end to end, in the order of `names`.

    source: where the patterns stand, for errors. ValueError for one that is no regular expression,
    or if all together need more than SECONDS or MEGABYTES.
    """
    if not patterns:
        return []  # the usual case
    # -I and -S: nothing of the user's environment is imported.
    command = [sys.executable, "-I", "-S", __file__]
    question = json.dumps({"patterns": list(patterns), "names": list(names)})
    try:
        done = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{source}: its patterns take more than {SECONDS} s to match") from None
    if done.returncode != 0:
        raise ValueError(f"{source}: its patterns take more than {MEGABYTES} MB to match")
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise ValueError(f"{source}: {answer['error']}")
    return answer["matches"]


def answer_question() -> None:
    """What the process does: read the question from stdin, write the answer to stdout."""
    limit_memory()
    question = json.load(sys.stdin)
    matches = []
    for pattern in question["patterns"]:
        # RecursionError and OverflowError: too deep, or repeated too often.
        try:
            compiled = re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            problem = f"{pattern!r:.99} is no regular expression: {error}"
            json.dump({"error": problem}, sys.stdout)
            return
        matches.append([name for name in question["names"] if compiled.fullmatch(name)])
    json.dump({"matches": matches}, sys.stdout)


def limit_memory() -> None:
    """Let this process have MEGABYTES of memory and no more, where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES * 2**20, MEGABYTES * 2**20))


if __name__ == "__main__":
    answer_question()
