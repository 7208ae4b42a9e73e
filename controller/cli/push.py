"""`fleetctl push`: a model file becomes a signed release and is rolled out. Every default is said."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import typer

from controller.api import schema
from controller.bundling.bundle import Bundle, build_bundle
from controller.bundling.compilation import DEVICES_FIRST, compile_file, is_onnx
from controller.bundling.naming import Choice, choose_model, find_version
from controller.bundling.preflight import Preflight, preflight
from controller.bundling.source import ModelSource, read_source
from controller.bundling.testdata import read_test_data
from controller.cli import compiling, options, wording
from controller.cli.following import Following, conclude, keep_watching, show_plan
from controller.cli.publishing import ChosenRelease, Publication, Publisher, Upload
from controller.cli.screen import Screen, warn
from controller.cli.session import Session, session_of
from controller.client import FleetClient
from controller.errors import RefusedError
from protocol.identifiers import Version
from protocol.limits import DEFAULT_MEMORY_CAP_BYTES, MIB
from protocol.manifest import Contract

_DEFAULT_MEMORY_MIB = DEFAULT_MEMORY_CAP_BYTES // MIB
_NOTHING_TO_TEST = "without the outputs that --test-data gives, the model has to run here to record its own"


class PushResult(msgspec.Struct, frozen=True, kw_only=True):
    """The document of `fleetctl push --json`: with --dry-run it has a plan, else a rollout."""

    model: str
    version: str
    release_counter: int
    is_new: bool
    manifest_digest: str
    module_bytes: int
    contract: Contract
    upload: Upload | None = None
    targets_version: int | None = None
    plan: schema.Plan | None = None
    rollout: schema.Rollout | None = None


class _Push(msgspec.Struct, frozen=True, kw_only=True):
    """What is pushed to whom."""

    source: ModelSource
    checked: Preflight
    model: Choice
    wanted: Choice | None
    to: Sequence[str] | None
    soak_ms: int | None

    def build(self, version: Version, release_counter: int) -> Bundle:
        return build_bundle(
            self.source, self.checked, model=self.model.value, version=version, release_counter=release_counter
        )

    def request(self, chosen: ChosenRelease, *, is_planned: bool = False) -> schema.RolloutRequest:
        is_unknown = is_planned and (chosen.is_new or chosen.is_lost)
        return schema.RolloutRequest(
            model=self.model.value,
            version=chosen.version.value,
            to=tuple(self.to or options.EVERYBODY),
            soak_ms=self.soak_ms,
            is_dry_run=is_planned,
            manifest=chosen.bundle.manifest_bytes.decode() if is_unknown else None,
        )


class _Trial(NamedTuple):
    """How the model is tried here before anybody gets it."""

    test_data: Path | None
    is_unchecked: bool
    memory_mib: int


def push(  # noqa: PLR0913 - typer reads options from the signature
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .wasm or .wat file, or an .onnx file to compile.")],
    *,
    model: options.PushedModel = None,
    version: options.PushedVersion = None,
    to: options.To = None,
    wait: options.Wait = None,
    timeout_s: options.Timeout = 600.0,
    is_dry_run: options.DryRun = False,
    test_data: options.TestData = None,
    is_unchecked: options.SkipPreflight = False,
    memory_mib: options.MemoryMib = _DEFAULT_MEMORY_MIB,
    soak_ms: options.SoakMs = None,
    input_shape: compiling.InputShapes = None,
    input_value: compiling.InputValues = None,
    uint8_input: compiling.Uint8Inputs = None,
    normalize: compiling.Normalize = None,
    state: compiling.States = None,
    labels: compiling.Labels = None,
    weights: compiling.WeightsForm = None,
    is_json: options.Json = False,
) -> None:
    """Release a model and roll it out to devices.

    Compiles an ONNX model first, for devices and for browsers. Inspects the file, runs its self-test here (preflight),
    uploads it, signs the release, starts the rollout and, with --wait, follows it. What is not given is chosen and
    said. Content that is a release already makes no new one.

    The exit code is 0 when it is done (with --wait: when every device ended well), 1 after an error, and 3 when some
    device did not end well, or not within --timeout.
    """
    screen = Screen(is_json=is_json)
    flags = compiling.CompileFlags(
        input_shapes=input_shape,
        input_values=input_value,
        uint8_inputs=uint8_input,
        normalize=normalize,
        states=state,
        labels=labels,
        weights=weights,
    )
    source, checked = _prepare(screen, file, flags, _Trial(test_data, is_unchecked, memory_mib))
    job = _Push(
        source=source,
        checked=checked,
        model=choose_model(source, model),
        wanted=find_version(source, version),
        to=to,
        soak_ms=soak_ms,
    )
    _carry_out(screen, session_of(ctx), job, Following(wait, timeout_s, is_dry_run))


def _prepare(screen: Screen, file: Path, flags: compiling.CompileFlags, trial: _Trial) -> tuple[ModelSource, Preflight]:
    """Read the model, compile it where it is ONNX, and try it."""
    if trial.is_unchecked and trial.test_data is None:
        raise typer.BadParameter(_NOTHING_TO_TEST, param_hint="--skip-preflight")
    source = _read(screen, file, flags)
    _say_inspected(screen, source)
    given = None if trial.test_data is None else read_test_data(trial.test_data, source.spec)
    if trial.is_unchecked and given is not None and given.outputs is None:
        raise typer.BadParameter(_NOTHING_TO_TEST, param_hint="--skip-preflight")
    checked = preflight(source, given, memory_cap_bytes=trial.memory_mib * MIB, is_run=not trial.is_unchecked)
    _say_checked(screen, checked)
    return source, checked


def _read(screen: Screen, file: Path, flags: compiling.CompileFlags) -> ModelSource:
    """Return the model in a file, which is compiled first when it is ONNX."""
    if is_onnx(file):
        return compile_file(file, flags.options(), DEVICES_FIRST, screen.step).source()
    if flags.are_given:
        raise typer.BadParameter(f"{file.name} is compiled already: shapes and inputs are fixed in it")
    return read_source(file)


def _carry_out(screen: Screen, session: Session, job: _Push, how: Following) -> None:
    """Release the model and roll it out, or only plan that; the command ends with the exit code that this means."""
    with session.client() as client:
        for warning in client.info().warnings:
            warn(warning)
        if how.is_dry_run:
            _plan(screen, session, client, job)
            return
        with _resumable():
            publication, has_devices = _publish(screen, session, client, job)
            rollout = client.start_rollout(job.request(publication.chosen)) if has_devices else None
        if rollout is None:
            screen.document(_result(publication))
            screen.say("no device to roll it out to yet\nnext: fleetctl devices invite")
            return
        rollout, is_followed = keep_watching(screen, client, rollout, how)
    screen.document(_result(publication, rollout=rollout))
    raise typer.Exit(conclude(screen, rollout, is_followed=is_followed))


@contextmanager
def _resumable() -> Iterator[None]:
    """Say at Ctrl-C how to go on: what was done is not undone, and the same content makes no second release."""
    try:
        yield
    except KeyboardInterrupt:
        warn("stopped in the middle: the same push again does what is missing; `fleetctl releases` lists what is there")
        raise


def _plan(screen: Screen, session: Session, client: FleetClient, job: _Push) -> None:
    chosen = Publisher(client, session.operator).choose(job.model.value, job.wanted, job.build)
    _say_choices(screen, job, chosen)
    plan = client.plan(job.request(chosen, is_planned=True))
    screen.document(_result(Publication(chosen=chosen), plan=plan))
    show_plan(screen, plan)


def _publish(screen: Screen, session: Session, client: FleetClient, job: _Push) -> tuple[Publication, bool]:
    """Put the release in force; return it, and whether there are devices for it."""
    publisher = Publisher(client, session.operator)
    chosen = publisher.choose(job.model.value, job.wanted, job.build)
    _say_choices(screen, job, chosen)
    # What cannot be rolled out is found here, before anything is signed for ever.
    planned = client.plan(job.request(chosen, is_planned=True)).devices
    _check_wanted(planned)
    publication = publisher.publish(job.model.value, job.wanted, job.build, now=datetime.now(UTC))
    if publication.chosen.newest != chosen.newest:
        _say_choices(screen, job, publication.chosen)  # another release came first
    _say_published(screen, publication)
    return publication, bool(planned)


def _check_wanted(planned: Sequence[schema.PlannedDevice]) -> None:
    """Raise RefusedError when there are devices, but every one would refuse the release."""
    if planned and all(device.decision == "refused" for device in planned):
        first = f"{planned[0].device}: {planned[0].reason}"
        more = f" (and {len(planned) - 1} more)" if len(planned) > 1 else ""
        raise RefusedError(
            f"no device can take it, nothing was released: {first}{more}", hint="see each with --dry-run"
        )


def _say_published(screen: Screen, publication: Publication) -> None:
    manifest = publication.chosen.bundle.manifest
    sent = publication.upload
    if sent is None:
        screen.step("release", f"{manifest.model} {manifest.version} exists with the same content")
        return
    there = f", {sent.files - sent.files_sent} were there already" if sent.files_sent < sent.files else ""
    screen.step("upload", f"{wording.count(sent.files_sent, 'file')}, {wording.size(sent.bytes_sent)}{there}")
    if publication.chosen.is_lost:
        screen.step("recover", f"{manifest.model} {manifest.version} is signed already: the service had lost it")
        return
    counter, version = manifest.release_counter, publication.targets_version
    screen.step("sign", f"release counter {counter}, targets version {version}")


def _say_inspected(screen: Screen, source: ModelSource) -> None:
    inputs, outputs = wording.count(len(source.spec.inputs), "input"), wording.count(len(source.spec.outputs), "output")
    screen.step("inspect", f"{source.file_name}: {wording.size(len(source.wasm))}, {inputs}, {outputs}")


def _say_checked(screen: Screen, checked: Preflight) -> None:
    count = checked.self_test.count
    if checked.vectors_given is None:
        vectors = f"{count} recorded vectors"
    else:
        of = f" of {checked.vectors_given}" if checked.vectors_given > count else ""
        vectors = f"{count}{of} vectors of the test data"
    needs = ", ".join((f"needs {wording.size(checked.contract.memory_bytes)}", *checked.requires))
    if checked.latency_us is None:
        screen.say(f"- preflight  skipped; {vectors}; {needs}")
    else:
        screen.step("preflight", f"{vectors} pass, {wording.duration_us(checked.latency_us)} a call; {needs}")


def _say_choices(screen: Screen, job: _Push, chosen: ChosenRelease) -> None:
    to = Choice(value=", ".join(job.to or options.EVERYBODY), origin="given" if job.to else "default")
    screen.say(f"model {job.model} · version {chosen.version} · to {to}")
    if chosen.newest is not None and Version.parse(chosen.version.value) < chosen.newest:
        lower = f"{job.model.value} {chosen.version.value} is lower than {chosen.newest}, its newest release"
        warn(f"{lower}: a device that runs that one goes back")


def _result(
    publication: Publication, *, plan: schema.Plan | None = None, rollout: schema.Rollout | None = None
) -> PushResult:
    bundle = publication.chosen.bundle
    variant = bundle.manifest.variants[0]
    return PushResult(
        model=bundle.manifest.model,
        version=bundle.manifest.version,
        release_counter=bundle.manifest.release_counter,
        is_new=publication.chosen.is_new,
        manifest_digest=bundle.digest,
        module_bytes=variant.file.size,
        contract=variant.contract,
        upload=publication.upload,
        targets_version=publication.targets_version,
        plan=plan,
        rollout=rollout,
    )
