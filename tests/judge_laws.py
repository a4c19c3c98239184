"""Judge the laws by the two collections: false alarms, faults that are missed, and diagnoses.

    python tests/judge_laws.py --examples 300 --seeds 10

draws what the promise asks for (hours on two cores); the defaults take some minutes.
"""

import argparse
import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections import Counter


def judge(job):
    """One binding with one seed: what was found, and whether that is right."""
    kind, index, seed, examples = job
    warnings.simplefilter("ignore")
    from right_bindings import RIGHT
    from wrong_bindings import WRONG

    from jaxbind import testing

    case = (RIGHT if kind == "right" else WRONG)[index]
    started = time.perf_counter()
    try:
        testing.check(case.make(), seed=seed, max_examples=examples, **case.check)
        found = None
    except testing.LawViolation as violation:
        found = violation
    except Exception:
        return kind, case.name, seed, ["crash"], traceback.format_exc(), 0.0
    seconds = time.perf_counter() - started
    if kind == "right":
        return kind, case.name, seed, ["alarm"] if found else ["quiet"], str(found or ""), seconds
    if found is None:
        return kind, case.name, seed, ["missed"], "", seconds
    said = ["found", "law" if found.law in case.laws else "other law"]
    if case.diagnosis is not None:
        same = found.diagnosis is not None and found.diagnosis.kind == case.diagnosis
        said.append("diagnosis" if same else "other diagnosis")
    return kind, case.name, seed, said, str(found), seconds


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", choices=["right", "wrong"])
    parser.add_argument("names", nargs="*", help="bindings; default: all")
    options = parser.parse_args()
    from right_bindings import RIGHT
    from wrong_bindings import WRONG

    jobs = [
        (kind, index, seed, options.examples)
        for seed in range(options.seeds)
        for kind, cases in (("right", RIGHT), ("wrong", WRONG))
        for index, case in enumerate(cases)
        if options.only in (None, kind) and (not options.names or case.name in options.names)
    ]
    counts = Counter()
    started = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), maxtasksperchild=20) as pool:
        for kind, name, seed, said, text, seconds in pool.imap_unordered(judge, jobs):
            counts.update((kind, word) for word in said)
            bad = [w for w in said if w in ("crash", "alarm", "missed") or w.startswith("other")]
            if bad or options.names:
                print(f"{kind} {name}, seed {seed}, {seconds:.1f} s: {', '.join(said)}")
                print("    " + text.replace("\n", "\n    "), flush=True)
            done = sum(n for (_, w), n in counts.items() if w in END)
            print(f"\r{done} of {len(jobs)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for (kind, word), number in sorted(counts.items()):
        print(f"{kind}: {number} {word}")
    print(f"in {time.perf_counter() - started:.0f} s")
    return any(counts[k] for k in [("right", "alarm"), ("wrong", "missed")])


END = ("quiet", "alarm", "missed", "found", "crash")

if __name__ == "__main__":
    sys.exit(main())
