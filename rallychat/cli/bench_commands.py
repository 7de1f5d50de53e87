"""The commands under `rallychat bench` and their options. What is measured lives in `rallychat.bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rallychat.cli.options import DataDir, Json, ModelName, Threads, settings_from
from rallychat.cli.running import run

Rounds = Annotated[int, typer.Option(min=1, help="Times each row is measured, in turn.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of each answer.")]
AtATime = Annotated[int | None, typer.Option(min=1, max=256, help="Answers at the same time (4).")]
Echo = Annotated[bool, typer.Option("--echo", help="The scripted engine in place of a model.")]
Texts = Annotated[
    Path | None, typer.Option(help="JSON lines of conversations whose users' messages are said.")
]

bench_app = typer.Typer(
    help="Measurements, each against the raw engine or the naive way.", no_args_is_help=True
)


@bench_app.command("serve")
def bench_serve(
    model: ModelName = None,
    users: Annotated[str, typer.Option(help="Users at the same time, in order.")] = "1,4,8,16",
    max_tokens: MaxTokens = 64,
    rounds: Rounds = 5,
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Tokens per second and time to first token, against the raw engine in the same run."""
    from rallychat.cli.bench import bench_serve as measure

    settings = settings_from(model=model, data_dir=data_dir, threads=threads)
    run(measure(settings, users=users, max_tokens=max_tokens, rounds=rounds, as_json=as_json))


@bench_app.command("batch")
def bench_batch(
    model: ModelName = None,
    lines: Annotated[int, typer.Option(min=1, help="Lines of each batch.")] = 64,
    max_tokens: MaxTokens = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Times each way is measured, in turn.")] = 3,
    slots: Annotated[
        int | None, typer.Option(min=1, max=256, help="Answers generated at the same time (by the machine).")
    ] = None,
    beside: Annotated[
        int, typer.Option(min=0, max=256, help="Measure instead what so many people who chat notice of it.")
    ] = 0,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long, with --beside.")] = 6,
    think: Annotated[
        float, typer.Option(min=0, help="Seconds they think between two turns, with --beside.")
    ] = 2,
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of a batch from file to file, against the raw engine with all slots busy."""
    from rallychat.cli.bench import bench_batch as measure
    from rallychat.cli.bench import bench_beside

    settings = settings_from(model=model, slots=slots, data_dir=data_dir, threads=threads)
    if beside:
        run(
            bench_beside(
                settings,
                people=beside,
                minutes=minutes,
                think=think,
                max_tokens=max_tokens,
                rounds=rounds,
                as_json=as_json,
            )
        )  # fmt: skip
        return
    run(measure(settings, lines=lines, max_tokens=max_tokens, rounds=rounds, as_json=as_json))


@bench_app.command("page")
def bench_page(
    messages: Annotated[str, typer.Option(help="Lengths of the chat, in messages.")] = "2,400",
    rounds: Rounds = 3,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Server CPU for each streamed update of the page, in a short and in a long chat."""
    from rallychat.cli.bench import bench_page as measure

    settings = settings_from(data_dir=data_dir)
    run(measure(settings, messages=messages, rounds=rounds, as_json=as_json))


@bench_app.command("titles")
def bench_titles(model: ModelName = None, data_dir: DataDir = None, as_json: Json = False) -> None:
    """What a model calls twenty conversations, beside what the rule calls them."""
    from rallychat.cli.bench import bench_titles as measure

    run(measure(settings_from(model=model, data_dir=data_dir), as_json=as_json))


@bench_app.command("crash")
def bench_crash(
    model: ModelName = None,
    streams: Annotated[int, typer.Option(min=1, help="Answers that grow while their maker is killed.")] = 8,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Kill the engine, then the server, amid many answers; count what is lost."""
    from rallychat.cli.bench import bench_crash as measure

    run(measure(settings_from(model=model, data_dir=data_dir), streams=streams, as_json=as_json))


@bench_app.command("chaos")
def bench_chaos(
    model: ModelName = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long things fail.")] = 10,
    people: Annotated[int, typer.Option(min=1, max=256, help="People who chat meanwhile.")] = 8,
    seed: Annotated[int | None, typer.Option(help="Which faults come when; printed if not given.")] = None,
    echo: Echo = False,
    postgres: Annotated[
        bool, typer.Option("--postgres", help="On a PostgreSQL of its own, which is stopped, too.")
    ] = False,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Kill, freeze, cut and fill everything while people chat; count what is lost. Ctrl-C ends it early."""
    from rallychat.bench.chaos import ECHO
    from rallychat.cli.bench import bench_chaos as measure

    settings = settings_from(model=ECHO if echo else model, data_dir=data_dir)
    run(measure(settings, minutes=minutes, people=people, seed=seed, postgres=postgres, as_json=as_json))


@bench_app.command("soak")
def bench_soak(
    model: ModelName = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long they chat.")] = 30,
    users: Annotated[int, typer.Option(min=1, max=1000, help="People who chat.")] = 32,
    image: Annotated[Path | None, typer.Option(help="PNG file of the memory over time.")] = None,
    echo: Echo = False,
    slots: AtATime = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Many people chat for long: does memory grow, are tasks, sockets or slots left over? Ctrl-C ends it early."""
    from rallychat.bench.chaos import ECHO
    from rallychat.cli.bench import bench_soak as measure

    settings = settings_from(model=ECHO if echo else model, data_dir=data_dir, slots=slots)
    run(measure(settings, minutes=minutes, users=users, image=image, as_json=as_json))


@bench_app.command("load")
def bench_load(
    model: ModelName = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long, all ways together.")] = 15,
    users: Annotated[int, typer.Option(min=1, max=256, help="People of a round.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="Messages of each of them.")] = 6,
    speed: Annotated[
        float, typer.Option(min=0.1, help="How much faster than in the trace people think.")
    ] = 30,
    seed: Annotated[int, typer.Option(help="Who says what, and thinks how long.")] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="Mooncake's trace; times in its shape are made up if not given.")
    ] = None,
    texts: Texts = None,
    image: Annotated[Path | None, typer.Option(help="PNG file of the time to first token.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines: each turn is added here.")] = None,
    slots: AtATime = None,
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """People who come, ask, read and think, against the raw engine and llama-server's way. Ctrl-C ends it early."""
    from rallychat.cli.bench import bench_load as measure

    settings = settings_from(model=model, data_dir=data_dir, threads=threads, slots=slots)
    run(
        measure(
            settings, minutes=minutes, users=users, turns=turns, speed=speed, seed=seed, trace=trace, texts=texts,
            image=image, out=out, as_json=as_json,
        )
    )  # fmt: skip


@bench_app.command("hf")
def bench_hf(
    shape: Annotated[str, typer.Option(help="llama-7b, llama-1b, llama-100m or tiny.")] = "llama-100m",
    users: Annotated[str, typer.Option(help="Users at the same time, in order.")] = "1,64",
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 128,
    arms: Annotated[str, typer.Option(help="What is measured, in order; all of it if not given.")] = "",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "bfloat16",
    rounds: Annotated[int, typer.Option(min=1, help="Times each row is measured.")] = 3,
    folder: Annotated[
        Path | None,
        typer.Option(help="Where the checkpoint is made, and kept; a temporary one if not given."),
    ] = None,
    as_json: Json = False,
) -> None:
    """The Transformers engine on a checkpoint of random weights, beside plain `generate`."""
    from rallychat.cli.bench import bench_hf as measure

    run(
        measure(
            shape=shape, users=users, prompt=prompt, max_tokens=max_tokens, arms=arms, dtype=dtype,
            rounds=rounds, folder=folder, as_json=as_json,
        )
    )  # fmt: skip


@bench_app.command("context")
def bench_context(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Recorded conversations, or folders of them; a .jsonl file of dialogues is one.",
            metavar="FILE...",
        ),
    ] = None,
    strategies: Annotated[str, typer.Option(help="Strategies to compare.")] = (
        "full,last_n,summary,ledger,facts,hybrid"
    ),
    budgets: Annotated[str, typer.Option(help="Budgets in tokens.")] = "1024,2048,4096,8192",
    make: Annotated[int, typer.Option(min=0, help="Make this many conversations in the folder instead.")] = 0,
    seed: Annotated[int, typer.Option(help="The first conversation that is made.")] = 1,
    meaning: Annotated[
        bool, typer.Option("--meaning", help="Search by meaning, too (needs the extra embed).")
    ] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Count tokens by the rule, whatever weights are here.")
    ] = False,
    reading: Annotated[
        float | None,
        typer.Option(min=0.001, help="Milliseconds a token takes to be read: quotes as on such a machine."),
    ] = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What each strategy keeps of recorded conversations, and what it costs. Needs no model."""
    from rallychat.cli.bench import bench_context as measure

    settings = settings_from(data_dir=data_dir)
    run(
        measure(
            settings,
            files=files or [],
            strategies=strategies,
            budgets=budgets,
            make=make,
            seed=seed,
            meaning=meaning,
            by_rule=approximate,
            reading=reading,
            as_json=as_json,
        )
    )


@bench_app.command("turns")
def bench_turns(
    model: ModelName = None,
    turns: Annotated[int, typer.Option(min=2, help="Turns of the conversation.")] = 200,
    think: Annotated[str, typer.Option(help="Seconds a person thinks between two turns, in order.")] = "0,2",
    way: Annotated[
        list[str] | None, typer.Option("--way", help="Only this way; may be given several times.")
    ] = None,
    texts: Texts = None,
    question_tokens: Annotated[
        str | None, typer.Option(help="Say only messages of so many tokens, such as 25-35.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="End after so many minutes, all ways at the same turn.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="PNG file of the time to first token by turn.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON lines: each turn of each way is added here.")] = None,
    window: Annotated[int, typer.Option(min=512, help="Context window in tokens.")] = 2048,
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """Does turn 200 begin as fast as turn 2? Five ways to keep a context, in turn. Ctrl-C ends it early."""
    from rallychat.cli.bench import bench_turns as measure

    settings = settings_from(model=model, data_dir=data_dir, threads=threads, window=window)
    run(
        measure(
            settings, turns=turns, think=think, question_tokens=question_tokens, ways=way or (), texts=texts,
            minutes=minutes, image=image, out=out, as_json=as_json,
        )
    )  # fmt: skip


@bench_app.command("neighbours")
def bench_neighbours(
    model: ModelName = None,
    people: Annotated[int, typer.Option(min=1, help="People who chat; as many conversations beside.")] = 4,
    turns: Annotated[int, typer.Option(min=1, help="Turns of each of them in a round.")] = 5,
    rounds: Rounds = 4,
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What people notice while other conversations are compacted, against the same without."""
    from rallychat.cli.bench import bench_neighbours as measure

    settings = settings_from(model=model, data_dir=data_dir, threads=threads, slots=2 * people + 1)
    run(measure(settings, people=people, turns=turns, rounds=rounds, as_json=as_json))


@bench_app.command("fair")
def bench_fair(
    model: ModelName = None,
    people: Annotated[int, typer.Option(min=1, help="People who chat beside the flood.")] = 7,
    flood: Annotated[int, typer.Option(min=1, help="Requests of the one who floods.")] = 50,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long, all parts together.")] = 6,
    rounds: Rounds = 3,
    max_tokens: MaxTokens = 64,
    slots: Annotated[int, typer.Option(min=1, max=256, help="Answers generated at the same time.")] = 8,
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What people notice of one who floods, with fair turns and in order of arrival. Ctrl-C ends it early."""
    from rallychat.cli.bench import bench_fair as measure

    settings = settings_from(model=model, data_dir=data_dir, threads=threads, slots=slots)
    run(
        measure(
            settings, people=people, flood=flood, minutes=minutes, rounds=rounds,
            max_tokens=max_tokens, as_json=as_json,
        )
    )  # fmt: skip


@bench_app.command("answers")
def bench_answers(
    model: ModelName = None,
    fillers: Annotated[str, typer.Option(help="Turns between a fact and the question, in order.")] = "10,50",
    threads: Threads = None,
    data_dir: DataDir = None,
    as_json: Json = False,
) -> None:
    """What the model still knows of facts that were told long before."""
    from rallychat.cli.bench import bench_answers as measure

    settings = settings_from(model=model, data_dir=data_dir, threads=threads)
    run(measure(settings, fillers=fillers, as_json=as_json))
