"""Two trees of Octavo, each with its kernels built, on one model: the processor's time for each piece of work, A B A B.

One thread each, and its time rather than the clock's: others may use the machine as well. Least and 10th percentile of
the rounds. A decode counts its prompts' last blocks and the steps to settle too. Linux only.

With `--threads 2` or more the clock's, for a machine with nothing beside it: the median of the rounds' quotients.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from statistics import median

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


def least_times(workers: dict[str, Worker], work: Work, rounds: int) -> str:
    """Of one thread each, what the processor took."""
    sides = {n: lambda w=w: processor_seconds(w, work) for n, w in workers.items()}
    samples = [sorted(values) for values in alternate(sides, rounds).values()]
    least, tenth = ([values[at] for values in samples] for at in (0, rounds // 10))
    told = [f"{a * 1e3:.1f} -> {b * 1e3:.1f} ms ({b / a - 1:+.1%})" for a, b in (least, tenth)]
    return f"{told[0]}, 10th percentile {told[1]}"


def median_speeds(workers: dict[str, Worker], work: Work, rounds: int) -> str:
    """Tokens a second by the clock."""
    before, after = alternate({n: lambda w=w: w.speed(work) for n, w in workers.items()}, rounds).values()
    pairs = median(b / a for a, b in zip(before, after, strict=True))
    return f"{median(before):,.0f} -> {median(after):,.0f} tokens a second, in pairs {pairs - 1:+.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="root of the first tree")
    parser.add_argument("after", type=Path, help="root of the second one")
    parser.add_argument("model", type=Path, nargs="+", help="model files")
    parser.add_argument("--works", default="prefill_512,decode_32", help="comma separated, as of cpu.py")
    parser.add_argument("--rounds", type=int, default=15, help="samples of each tree")
    parser.add_argument("--threads", type=int, default=1, help="of each tree")
    parser.add_argument("--variants", default="auto,auto", help="of their kernels, such as avx2,avx512")
    arguments = parser.parse_args()
    trees = {"before": arguments.before, "after": arguments.after}
    variants = dict(zip(trees, arguments.variants.split(","), strict=True))
    compare = least_times if arguments.threads == 1 else median_speeds
    for model in arguments.model:
        with ExitStack() as stack:
            start = {
                name: Worker("octavo", model, threads=arguments.threads, options={"variant": variants[name]}, tree=tree)
                for name, tree in trees.items()
            }
            workers = {name: stack.enter_context(worker) for name, worker in start.items()}
            for work in pick_works(arguments.works):
                print(f"{model.stem} {work.name}: {compare(workers, work, arguments.rounds)}", flush=True)


if __name__ == "__main__":
    main()
