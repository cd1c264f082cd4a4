"""Two trees of Octavo, each with its kernels built, on one model: the processor's time for each piece of work, A B A B.

One thread each, and its time rather than the clock's: others may use the machine as well. Least and 10th percentile of
the rounds. A decode counts its prompts' last blocks and the steps to settle too. Linux only.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from peers.compare import Worker, alternate
from peers.rows import Work, pick_works


def processor_seconds(worker: Worker, work: Work) -> float:
    """What all threads of a worker's process ran for, once."""
    tasks = Path(f"/proc/{worker.pid}/task")

    def so_far() -> int:
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())

    before = so_far()
    worker.speed(work)
    return (so_far() - before) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="root of the first tree")
    parser.add_argument("after", type=Path, help="root of the second one")
    parser.add_argument("model", type=Path, nargs="+", help="model files")
    parser.add_argument("--works", default="prefill_512,decode_32", help="comma separated, as of cpu.py")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each tree")
    arguments = parser.parse_args()
    trees = {"before": arguments.before, "after": arguments.after}
    for model in arguments.model:
        with ExitStack() as stack:
            start = {name: Worker("octavo", model, threads=1, options={}, tree=tree) for name, tree in trees.items()}
            workers = {name: stack.enter_context(worker) for name, worker in start.items()}
            for work in pick_works(arguments.works):
                sides = {n: lambda w=w, x=work: processor_seconds(w, x) for n, w in workers.items()}
                samples = {name: sorted(values) for name, values in alternate(sides, arguments.rounds).items()}
                least, tenth = ([samples[name][at] for name in trees] for at in (0, len(samples["before"]) // 10))
                told = [f"{a * 1e3:.1f} -> {b * 1e3:.1f} ms ({b / a - 1:+.1%})" for a, b in (least, tenth)]
                print(f"{model.stem} {work.name}: {told[0]}, 10th percentile {told[1]}", flush=True)


if __name__ == "__main__":
    main()
