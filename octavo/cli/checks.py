"""What `octavo doctor` looks at: a table of checks, each from the options of a start to one Finding."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

import msgspec

from octavo.api.build import open_model
from octavo.api.devices import check_dtypes, choose_device, diagnose_kernels
from octavo.api.model import Model
from octavo.api.quantization import online_quantization
from octavo.backends.cpu.host import default_threads, usable_cores
from octavo.base.config import env
from octavo.base.config.config import PARTS, EngineConfig, ServerConfig
from octavo.base.config.options import options
from octavo.base.errors import OctavoError
from octavo.cli.output import as_path
from octavo.cli.plan import make_report

Status = Literal["ok", "slow", "fails", "skipped"]
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """slow: it starts, but slower than it could, or without a part.  remedy: what to do, "" where nothing is wrong."""

    check: str
    status: Status
    cause: str
    remedy: str = ""


@dataclass
class Patient:
    """A start that is looked at. model: once it was opened, without weights; None before, and where it cannot be."""

    config: EngineConfig
    server: ServerConfig
    with_model: bool
    model: Model | None = None
    device: str = ""
    template_error: OctavoError | None = None  # found when the tokenizer was looked at
    findings: list[Finding] = field(default_factory=list)


Result = tuple[Status, str, str]
SKIPPED: Result = ("skipped", "needs a model that can be opened", "")


def examine(patient: Patient) -> list[Finding]:
    """Every check's finding, in the order of the table: later ones use what earlier ones found."""
    for name, check in CHECKS.items():
        try:
            status, cause, remedy = check(patient)
        except OctavoError as error:  # its message says what to do
            status, cause, remedy = "fails", error.message, _remedy(name, error.param)
        except Exception as error:
            cause, remedy = (
                f"{type(error).__name__}: {error}",
                "please report it, with the output of octavo collect-env",
            )
            status = "fails"
        patient.findings.append(Finding(name, status, cause, remedy))
    return patient.findings


def _remedy(check: str, option: str | None) -> str:
    """Of the option that an error names, else of the check that met it."""
    param = option or ""
    if param in _OPTIONS:
        return _OPTIONS[param]
    if param in _KNOWN and param != check:
        return f"see --{param.replace('_', '-')}"
    return _REMEDIES.get(check, "see the message")


def _versions(patient: Patient) -> Result:
    """Packages that Octavo needs are there, and those that PyTorch pins are the ones that it was built with."""
    wrong = [text for package in ("octavo", "torch") for text in _wrong_versions(package)]
    if wrong:
        return "fails", "; ".join(wrong), f"pip install {' '.join(repr(text.split(' (')[0]) for text in wrong)}"
    return "ok", "packages are there in versions that go together", ""


def _wrong_versions(package: str) -> list[str]:
    """Requirements without a marker, or pinned ones of this system, that are not met."""
    try:
        wanted = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    wrong = []
    for line in wanted:
        text, _, marker = (part.strip() for part in line.partition(";"))
        found = re.match(r"([\w.-]+)(\[[\w,-]*\])?\s*(==\s*([\w.+]+))?", text)
        if found is None or (marker and not ("linux" in marker.lower() and found[4])):
            continue
        try:
            version = metadata.version(found[1])
        except metadata.PackageNotFoundError:
            if not marker:
                wrong.append(f"{text} (missing)")
            continue
        if found[4] and version.partition("+")[0] != found[4].partition("+")[0]:
            wrong.append(f"{text} ({version} is installed)")
    return wrong


def _device(patient: Patient) -> Result:
    patient.device, reasons = choose_device(patient.config.device)
    cause = f"{patient.device} ({'; '.join(reasons)})"
    if patient.device == "cpu" and patient.config.device.device == "auto" and _gpu_is_there():
        return "slow", f"there is a GPU, and it is not used: {cause}", "pip install 'octavo[cuda]', and a driver for it"
    return "ok", cause, ""


def _gpu_is_there() -> bool:
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/nvidia0", "/proc/driver/nvidia"))


def _kernels(patient: Patient) -> Result:
    if not patient.device:
        return "skipped", "needs a device", ""
    cause, remedy = diagnose_kernels(patient.device)
    return ("slow" if remedy else "ok"), cause, remedy


def _threads(patient: Patient) -> Result:
    """More threads than cores wait for one another at every product."""
    ordered = env.ordered_threads()
    asked = patient.config.device.threads or ordered or 0
    usable, best = usable_cores(), default_threads()
    if asked > usable:
        return "slow", f"{asked} threads on {usable} usable cores", f"--threads {best}, and unset OMP_NUM_THREADS"
    if not asked and ordered == 0:
        given = env.read("OMP_NUM_THREADS")
        cause = f"OMP_NUM_THREADS={given} is no number above 0 and is passed over: {best} threads are taken"
        return "slow", cause, f"--threads {best}, or OMP_NUM_THREADS={best}"
    return "ok", f"{asked or best} threads on {usable} usable cores", ""


def _cache(patient: Patient) -> Result:
    what = "converted tokenizers and packed weights are made anew at each start"
    folder = env.find_cache_folder()
    if folder is None:
        return "slow", f"this user has no home directory: {what}", "set OCTAVO_CACHE to a folder that can be written"
    return _writable(folder, what, "give it rights, or set OCTAVO_CACHE to a folder that has them")


def _downloads(patient: Patient) -> Result:
    home = env.read("HF_HOME") or f"{env.read('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    chosen = patient.config.model.download_dir or env.read("HF_HUB_CACHE") or f"{home}/hub"
    name = next((one for one in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME") if env.read(one)), "HF_HOME")
    name = "--download-dir" if patient.config.model.download_dir else name
    remedy = f"give it rights, or let {name} name a folder that has them"
    folder = as_path(chosen)  # as huggingface_hub does, which minds no missing home
    return _writable(folder, "models cannot be downloaded", remedy)


def _writable(folder: Path, what: str, remedy: str) -> Result:
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return "slow", f"{folder} cannot be written ({error.strerror}): {what}", remedy
    return "ok", f"{folder} can be written", ""


def _options(patient: Patient) -> Result:
    """What a server refuses before it loads anything."""
    from octavo.server.openai.parsing import check_chats
    from octavo.server.origins import Origins
    from octavo.server.tracing import check_endpoint

    if patient.device:
        check_dtypes(patient.device, patient.config)
    server = patient.server
    check_chats(server, patient.config.model)
    Origins(server.host, server.allowed_origins)
    if server.otlp_traces_endpoint is not None:
        check_endpoint(server.otlp_traces_endpoint)
    if server.batch_dir is not None:
        status, cause, _ = _writable(as_path(server.batch_dir), "batches cannot be kept", "")
        if status != "ok":
            return "fails", cause, _OPTIONS["batch_dir"]
    return "ok", "none is refused", ""


def _port(patient: Patient) -> Result:
    from octavo.server.listener import listen

    listen(patient.server.host, patient.server.port).close()
    return "ok", f"{patient.server.host}:{patient.server.port} is free", ""


def _model(patient: Patient) -> Result:
    if not patient.with_model:
        return "skipped", "no model was named", ""
    patient.model = open_model(patient.config.model, with_text=False, with_weights=False)
    if patient.device:
        online_quantization(patient.model, device=patient.device)
    return "ok", f"{patient.model.spec.family} in {patient.model.path}", ""


def _tokenizer(patient: Patient) -> Result:
    if patient.model is None:
        return SKIPPED
    if patient.config.model.skip_tokenizer_init:
        return "skipped", "skip_tokenizer_init is set", ""
    patient.model = _open_text(patient)
    tokenizer, text = patient.model.tokenizer, "Hello, world"
    if tokenizer is None:
        return "fails", "there is none", _REMEDIES["tokenizer"]
    shown = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False), skip_special_tokens=True)
    if shown.strip().lower() != text.lower() and patient.model.spec.pooling is None:
        return "fails", f"it makes {shown!r} of {text!r}", _REMEDIES["tokenizer"]
    if tokenizer.vocab_size > patient.model.spec.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens, and the model has {patient.model.spec.vocab_size}"
        return "slow", f"it has {sizes}: prompts with the others are refused", _REMEDIES["tokenizer"]
    return "ok", f"{tokenizer.vocab_size} tokens", ""


def _open_text(patient: Patient) -> Model:
    """The model with its tokenizer; a template that cannot be had is the next check's matter."""
    try:
        return open_model(patient.config.model, with_weights=False)
    except OctavoError as error:
        if error.param != "chat_template":
            raise
        patient.template_error = error
        plain = msgspec.structs.replace(patient.config.model, chat_template="{{ '' }}")
        return open_model(plain, with_weights=False)


def _template(patient: Patient) -> Result:
    if patient.template_error is not None:
        raise patient.template_error
    if patient.model is None or patient.model.tokenizer is None:
        return SKIPPED
    if patient.model.spec.pooling is not None:
        return "skipped", "a model that pools has no use for one", ""
    if patient.model.template is None:
        return "slow", "there is none: chats are refused, completions work", "--chat-template FILE"
    if (tools := patient.model.tool_template) is not None and tools.fault is not None:
        raise tools.fault
    ids = patient.model.render_chat([{"role": "user", "content": "Hello"}])
    return "ok", f"a greeting takes {len(ids)} tokens", ""


def _memory(patient: Patient) -> Result:
    if patient.model is None or not patient.device:
        return SKIPPED
    report, device, _ = make_report(patient.config, patient.model)
    free = report.free_bytes or 0
    cause = f"{report.weight_bytes / GIB:.2f} GiB of weights and {report.kv_bytes_full / GIB:.2f} GiB for one context"
    cause += f" of {report.max_model_len} tokens; {free / GIB:.2f} GiB are free on {device}"
    if report.sequences:
        return "ok", cause, ""
    if report.weight_bytes > free:
        return "fails", f"{cause}: the weights do not fit", "a smaller or quantized model, or free memory"
    reason, _, remedy = report.reason.rpartition("; ")
    return "fails", f"{cause}: {reason}", remedy


_REMEDIES = {
    "device": "leave --device at auto, or install what the message names",
    "port": "--port 0 takes a free one",
    "model": "octavo plan MODEL tells what a name stands for; HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are of the hub",
    "tokenizer": "name one that fits by --tokenizer",
    "template": "give another by --chat-template FILE",
    "memory": "lower --max-model-len",
}
"""By check, beside the message of the error that it met."""
_OPTIONS = {
    "host": "--host 127.0.0.1 is for this machine alone, --host 0.0.0.0 for all that reach it",
    "chat_template": _REMEDIES["template"],
    "dtype": "leave --dtype out",
    "activation_dtype": "leave --activation-dtype out",
    "quantization": "leave --quantization out",
    "tool_call_parser": "leave --tool-call-parser out: the chat template tells",
    "reasoning_parser": "leave --reasoning-parser out: the chat template tells",
    "otlp_traces_endpoint": "give --otlp-traces-endpoint a collector's URL, with octavo[otel] installed",
    "batch_dir": "name a folder that can be written by --batch-dir",
}
"""By the option that an error names."""
_KNOWN = {name for part in (*PARTS.values(), ServerConfig) for name in options(part)}

CHECKS: dict[str, Callable[[Patient], Result]] = {
    "versions": _versions,
    "device": _device,
    "kernels": _kernels,
    "threads": _threads,
    "cache": _cache,
    "downloads": _downloads,
    "port": _port,
    "options": _options,
    "model": _model,
    "tokenizer": _tokenizer,
    "template": _template,
    "memory": _memory,
}
