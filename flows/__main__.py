"""The command line: `flywheel COMMAND`, each command's options read from its flow's signature.

A flow's parameter is an option; a spec's field is `--spec.field`. Values are read as JSON where they are JSON, as
text where not, and judged by pydantic, as in Prefect's form. Results go to standard output (`--json`: one object),
everything else to standard error; a mistake is one line and exit code 2, and `doctor` ends with 1 if something is
wrong.
"""

import argparse
import difflib
import importlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from flows.deployments import presets, with_preset
from infra.settings import SetupError

COMMANDS: dict[str, tuple[str, str]] = {  # command → (module:function, what it does)
    "run": (
        "flows.flywheel:flywheel",
        "turn the wheel once: ingest, curate, distill, quantize, evaluate, release, redeploy",
    ),
    "ingest": ("flows.ingest:ingest", "read traffic and feedback: flywheel ingest jsonl | otel | mlflow | sql ..."),
    "traffic": ("flows.traffic:traffic", "show what is there: days, models, costs, feedback, quarantine"),
    "watch": ("flows.watch:watch", "measure what starts a wheel: new feedback, drift, the champion's quality"),
    "curate": ("flows.curate:curate", "freeze a workload's traffic as a dataset"),
    "distill": ("flows.distill:distill", "train a student on a dataset"),
    "quantize": ("flows.quantize:quantize", "quantize a student into candidates"),
    "evaluate": ("flows.evaluate:evaluate", "score teacher, champion and candidates on the holdout"),
    "release": ("flows.release:release", "gate the candidates and promote one, or --rollback"),
    "redeploy": ("flows.redeploy:redeploy", "make the gateway serve the champion"),
    "report": ("flows.report:report", "write a turn's report, or with --turns the page that compares them; --open"),
    "prune": ("flows.prune:prune", "delete what is older than a date, but for what datasets were made of"),
    "forget": ("flows.forget:forget", "erase a client or an interaction, and mark what was made of it"),
    "status": ("flows.status:status", "one screen: who serves, last verdicts, rollouts, the next run, alerts"),
    "doctor": ("flows.doctor:doctor", "check everything this needs, and say what mends it"),
    "backup": ("flows.backup:backup", "write database, registry, artifacts and keys to one file"),
    "restore": ("flows.restore:restore", "make an empty home what a backup was made of"),
    "up": ("flows.up:up", "start Prefect, MLflow, the gateway and the schedule; Ctrl-C stops them"),
    "demo": ("flows.demo:demo", "a day at the simulated shop, and one turn of the wheel"),
}
SINGLE = {
    "ingest", "traffic", "watch", "curate", "distill", "quantize", "evaluate", "release", "redeploy", "report", "prune",
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for a mistake that a person can mend, 130 after Ctrl-C."""
    from pydantic import ValidationError

    try:
        return execute(sys.argv[1:] if argv is None else argv)
    except ValidationError as problem:
        found = problem.errors()
        # A list without its one bad item is also too short: the bad item is what there is to mend.
        within = [e for e in found if not any(e["loc"] == o["loc"][: len(e["loc"])] and e is not o for o in found)]
        return complain(*(mistake(e, setting=problem.title == "Settings") for e in within))
    except SetupError as problem:
        return complain(str(problem))
    except BrokenPipeError:
        return 0
    except Exception as problem:
        said = str(problem)
        if "No space left on device" in said:  # OSError, or what safetensors and PyArrow make of it
            return complain(f"disk full: {said}; make room or set FLYWHEEL_HOME to another disk")
        if said.startswith("Failed to reach API at"):  # Prefect's, whose cause is a page long
            return complain(f"{said}: no Prefect server answers there; start `flywheel up`, or unset PREFECT_API_URL")
        if isinstance(problem, PermissionError):
            return complain(f"cannot write: {said}; set FLYWHEEL_HOME to a folder of yours")
        raise
    except KeyboardInterrupt:
        return 130


def execute(given: list[str]) -> int:
    top = Parser(
        prog="flywheel", description="Turn an LLM feature's traffic into a smaller model that is provably no worse."
    )
    menu = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        menu.add_parser(name, help=summary, add_help=False)
    command = top.parse_known_args(given or ["--help"])[0].command
    quiet_environment()
    function = resolve(COMMANDS[command][0])
    plain = getattr(function, "fn", function)
    parser, options = parser_of(command, plain)
    chosen = parser.parse_args(given[given.index(command) + 1 :])
    # A single stage needs no orchestrator, and none is started for it; one that runs already is told.
    called = plain if plain.__name__ in SINGLE and "PREFECT_API_URL" not in os.environ else function
    arguments = nested(options, chosen)
    if getattr(chosen, "preset", ""):
        arguments = with_preset(chosen.preset, arguments)
    result = called(**validated(plain, arguments))
    module = importlib.import_module(plain.__module__)
    if chosen.json:
        print(json.dumps(result, default=str))
    elif result is not None:
        render = getattr(module, "render", None)
        print(render(result) if render else json.dumps(result, indent=2, default=str))
    judged = getattr(module, "exit_code", None)
    return int(judged(result)) if judged else 0


class Parser(argparse.ArgumentParser):
    """Mistakes in one line, with the nearest option where one is near."""

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--")] if "unrecognized" in message else []
        if chosen := re.search(r"invalid choice: '(.*)' \(choose from", message):
            known, unknown = list(COMMANDS), [chosen[1]]
            message = f"there is no command {chosen[1]!r}"
        near = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        hint = f"did you mean {near[0]}?" if near else f"see {self.prog} --help"
        raise SetupError(f"{message}; {hint}")


def complain(*lines: str) -> int:
    for line in lines:
        print(f"flywheel: {' '.join(line.split())}", file=sys.stderr)
    return 2


def mistake(error: Any, setting: bool = False) -> str:
    """One of pydantic's findings in one line: where, what was given, what is allowed."""
    where = ".".join(str(part) for part in error["loc"])
    given = "" if error["type"] == "missing" else f" {error['input']!r}"[:120]
    if not where:
        return f"{error['msg']}{given}"
    return f"{f'FLYWHEEL_{where.upper()}' if setting else f'--{where}'}{given}: {error['msg']}"


def resolve(place: str) -> Callable[..., Any]:
    module, name = place.split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def parser_of(command: str, plain: Callable[..., Any]) -> tuple[argparse.ArgumentParser, dict[str, Any]]:
    """A parser whose options are the signature's parameters and, one level down, their specs' fields."""
    parser = Parser(
        prog=f"flywheel {command}",
        description=inspect.getdoc(plain),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    if plain.__name__ == "flywheel":
        names = ", ".join(presets())
        parser.add_argument("--preset", metavar="NAME", help=f"options to begin with, which others change: {names}")
    options: dict[str, Any] = {}
    for name, parameter in inspect.signature(plain).parameters.items():
        kind = parameter.annotation
        if parameter.default is inspect.Parameter.empty and choice_of(kind):
            parser.add_argument(name, metavar=name.upper(), help=f"kind of {name}: {', '.join(choice_of(kind))}")
            parser.add_argument(f"{name}_values", metavar="VALUE", nargs="*", help="its paths or addresses")
        specs = specs_of(kind)
        merged = {field.name: field for spec in reversed(specs) for field in fields(spec)}
        for field in merged.values():
            flag = f"{name}.{field.name}"
            options[flag] = field.type
            menu = choice_of(kind if field.name == "name" else field.type)
            parser.add_argument(
                f"--{flag}",
                metavar="{" + ",".join(menu) + "}" if menu else metavar(field.type),
                help=describe(field.type, field.default),
                default=argparse.SUPPRESS,
            )
        if not specs:
            options[name] = kind
            if kind is bool:
                parser.add_argument(
                    f"--{name.replace('_', '-')}", dest=name, action="store_true", default=argparse.SUPPRESS
                )
            else:
                required = parameter.default is inspect.Parameter.empty
                if required and getattr(kind, "__origin__", kind) is Path:  # a command's one file needs no option
                    parser.add_argument(name, metavar=name.upper(), help=describe(kind, parameter.default))
                    continue
                parser.add_argument(
                    f"--{name.replace('_', '-')}", dest=name, metavar=metavar(kind), required=required,
                    help=describe(kind, parameter.default), default=argparse.SUPPRESS,
                )  # fmt: skip
    return parser, options


def nested(options: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, as keyword arguments for the flow."""
    arguments: dict[str, Any] = {}
    for flag in options:
        if not hasattr(given, flag):
            continue
        value = read(getattr(given, flag))
        if isinstance(value, str) and spread(options[flag]):
            value = [value]
        elif isinstance(value, str) and choice_of(options[flag]):
            value = {"name": value}  # on a menu a name alone is that choice with its defaults
        first, _, field = flag.partition(".")
        if field:
            arguments.setdefault(first, {})[field] = value
        else:
            arguments[first] = value
    for name, value in vars(given).items():
        if name.endswith("_values"):
            choice = name.removesuffix("_values")
            arguments[choice] = {**arguments.get(choice, {}), "name": getattr(given, choice), "": value}
    return arguments


def validated(plain: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments as the types of the signature.

    Raises:
        ValidationError: With the option's path in `loc`.
        SetupError: A name is on no menu.
    """
    from pydantic import create_model

    parameters = inspect.signature(plain).parameters
    kinds = {name: parameter.annotation for name, parameter in parameters.items()}
    for name, given in arguments.items():
        menu = dict(zip(choice_of(kinds[name]), specs_of(kinds[name]), strict=False))
        if menu and isinstance(given, dict):
            chosen = given.setdefault("name", next(iter(menu)))
            if chosen not in menu:
                raise SetupError(f"{name} {chosen!r} does not exist; known are {', '.join(menu)}")
            kinds[name] = menu[chosen]
            if words := given.pop("", None):  # what stands on the line without an option is for the first field
                first = fields(menu[chosen])[0]
                given[first.name] = words if spread(first.type) or len(words) > 1 else words[0]
    model = create_model(  # type: ignore[call-overload]
        "options",
        **{n: (kinds[n], ... if p.default is inspect.Parameter.empty else p.default) for n, p in parameters.items()},
    )
    checked = model.model_validate(arguments)
    return {name: getattr(checked, name) for name in parameters}


def read(text: Any) -> Any:
    """JSON where it is JSON; names and numbers that must stay text are told apart by pydantic, which accepts both."""
    if not isinstance(text, str) or (text[:1] not in '[{"' and text not in ("true", "false", "null")):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def specs_of(kind: Any) -> list[type[Any]]:
    """The dataclasses behind an annotation, `Annotated` and `| None` taken off; several for a menu of them."""
    if is_dataclass(kind) and isinstance(kind, type):
        return [kind]
    return [spec for part in get_args(kind) for spec in specs_of(part)] if get_origin(kind) is not tuple else []


def spread(kind: Any) -> bool:
    """Whether an option holds several values, so that one given alone is a list of one."""
    return get_origin(kind) is tuple or any(get_origin(part) is tuple for part in get_args(kind))


def choice_of(kind: Any) -> list[str]:
    """The `name` of each spec on a menu, such as that of the sources; none for anything else."""
    return [str(field.default) for spec in specs_of(kind) for field in fields(spec) if field.name == "name"]


def metavar(kind: Any) -> str:
    if get_origin(getattr(kind, "__origin__", None)) is Literal:
        kind = kind.__origin__
    choices = get_args(kind)
    if choices and all(isinstance(c, str | int) for c in choices):
        return "{" + ",".join(map(str, choices)) + "}"
    return getattr(kind if not choices else choices[0], "__name__", "JSON").upper()


def describe(kind: Any, default: Any) -> str:
    notes = [m.description for m in getattr(kind, "__metadata__", ()) if getattr(m, "description", None)]
    shown = "" if default in (inspect.Parameter.empty, "", None) or is_dataclass(default) else f"(default {default})"
    return " ".join([*notes, shown if len(shown) < 60 else ""]).replace("%", "%%").strip()


def quiet_environment() -> None:
    """Everything under one home, no call-outs, no banners; what the person has set stays as it is."""
    from infra.servers import running
    from infra.settings import settings

    home = settings().home
    home.mkdir(parents=True, exist_ok=True)
    for name, value in {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "prefect" / "results"),
        # Prefect's page of a run gets its log; the terminal gets our one line, or Python's traceback.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "flywheel",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",  # the demo's gateway logs outside of any run
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    if "prefect" in (up := running()):
        os.environ.setdefault("PREFECT_API_URL", f"{up['prefect']}/api")


if __name__ == "__main__":
    sys.exit(main())
