"""Renders the chat templates of a checkpoint, in a process of its own with little memory.

    python -I -S template_worker.py BYTES JINJA2 MARKUPSAFE

BYTES: of memory, where the platform limits it. The others: the folders of two packages, all that
is imported beside Python's own library. stdin is one JSON object, {"template": text, "jobs":
[{"messages": [...], "variables": {...}}, ...], "limit": characters}; stdout another: {"results":
[{"text": ...} or {"error": ...}, ...]} or {"error": ...}. What a template sees and does is as in
`transformers` 4.57.6.
"""

import importlib.util
import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes
    from jinja2.parser import Parser


def limit_resources(memory: int) -> None:
    """Hold this process to `memory` bytes, and let it write no file."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ValueError, OSError):  # macOS: a process has more than that from the start
        return


def import_package(folder: Path) -> None:
    """Import the package in a folder, without a search path that holds any others."""
    place = [str(folder)]
    init = folder / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        folder.name, init, submodule_search_locations=place
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)


def raise_exception(message: str) -> NoReturn:
    """What templates call for a conversation that they can't write."""
    import jinja2

    raise jinja2.TemplateError(message)


def strftime_now(format: str) -> str:
    """The date and time, as some templates have it in their system prompt."""
    return datetime.now().strftime(format)


def tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter of this name escapes HTML, which is not wanted here."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def make_environment() -> "jinja2.Environment":
    """The sandbox of jinja2, with what chat templates expect to find."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class GenerationTag(Extension):
        """{% generation %} marks answers for training; here its content is written as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: "Parser") -> "nodes.Node":
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A scope of its own, as in `transformers`: what is set inside is not known outside.
            return nodes.Scope(body).set_lineno(line)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


def describe(error: Exception) -> str:
    """An error in a few words."""
    if isinstance(error, MemoryError):
        return "it needs more memory than it has"
    line = getattr(error, "lineno", None)
    where = "" if line is None else f", line {line}"
    return f"{type(error).__name__}{where}: {error}"


def render_job(template: "jinja2.Template", job: dict, limit: int) -> str:
    """The text of one conversation; ValueError past `limit` characters."""
    parts = []
    for part in template.generate(messages=job["messages"], **job["variables"]):
        limit -= len(part)
        if limit < 0:
            raise ValueError("its text is too long")
        parts.append(part)
    return "".join(parts)


def render_all(request: dict) -> dict:
    """The answer to a request."""
    # A template can raise anything.
    try:
        template = make_environment().from_string(request["template"])
    except Exception as error:
        return {"error": describe(error)}
    results = []
    limit = request["limit"]
    for job in request["jobs"]:
        try:
            text = render_job(template, job, limit)
        except Exception as error:
            results.append({"error": describe(error)})
            continue
        limit -= len(text)
        results.append({"text": text})
    return {"results": results}


def main() -> None:
    memory, jinja2_folder, markupsafe_folder = sys.argv[1:]
    limit_resources(int(memory))
    import_package(Path(markupsafe_folder))
    import_package(Path(jinja2_folder))
    request = json.loads(sys.stdin.buffer.read())
    answer = json.dumps(render_all(request), ensure_ascii=False)
    # Half a surrogate pair is passed on: what reads the text refuses it.
    sys.stdout.buffer.write(answer.encode("utf-8", "surrogatepass"))


if __name__ == "__main__":
    main()
