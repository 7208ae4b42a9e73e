"""From files on the disk to a model that passed its self-test on this CPU: plan, verify, compile, test.

Each step is a job for the worker thread and ends in an engine event, also when it fails. A compiled model waits here
until it is activated or abandoned.
"""

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from tuf.api.metadata import Targets

from agent import faults
from agent.engine import Installed
from agent.engine.actions import Compile, DeploymentAction, Download, Test, Verify
from agent.engine.events import Compiled, Event, Failed, Planned, Spoiled, Tested, Verified
from agent.errors import AgentError, CorruptFileError
from agent.files import Files
from agent.runtime import Caps, LoadedModel, ModelError, ModuleCache, Zygote, load_model, run_self_test
from agent.runtime.errors import DeviceMemoryError
from protocol.admission import AdmissionError, Capacity, select_variant
from protocol.assignment import target_path
from protocol.errors import MalformedError, ProtocolError, RollbackError
from protocol.identifiers import Digest
from protocol.limits import STACK_CLASSES_KIB
from protocol.manifest import Manifest, Variant
from protocol.messages import Reason
from protocol.repository import check_floor

COMPILE_PAUSES_S: Final = (2.0, 8.0)
"""How long to wait before each further try when the kernel killed the compiler: memory may be free again soon."""

_log = logging.getLogger(__name__)
_A = TypeVar("_A", Download, Verify, Compile, Test)


class Installer:
    """The steps, and the models between compilation and activation."""

    def __init__(
        self,
        files: Files,
        capacity: Capacity,
        targets: Callable[[], Targets | None],
        *,
        cache: ModuleCache | None = None,
        zygote: Zygote | None = None,
    ) -> None:
        self._files = files
        self.capacity = capacity
        """What the device's policy allows now."""
        self._targets = targets
        self._cache = cache
        self._zygote = zygote
        self._waiting: dict[str, tuple[Manifest, LoadedModel]] = {}

    def plan(self, action: Download) -> Event:
        """Read the manifest and choose the variant for this device."""
        return self._guarded(action, self._plan)

    def verify(self, action: Verify) -> Event:
        """Hash every file again and judge the release by the newest signed floor."""
        return self._guarded(action, self._verify)

    def compile(self, action: Compile) -> Event:
        """Compile and instantiate the module under its caps."""
        return self._guarded(action, self._compile)

    def test(self, action: Test) -> Event:
        """Run the self-test vectors."""
        return self._guarded(action, self._test)

    def take(self, deployment_id: str) -> tuple[Manifest, LoadedModel] | None:
        """Hand out a tested model, once."""
        return self._waiting.pop(deployment_id, None)

    def abandon(self, deployment_id: str) -> None:
        """Drop the model of a deployment. A job like the others, so that no other job uses the model meanwhile."""
        waiting = self._waiting.pop(deployment_id, None)
        if waiting:
            waiting[1].close()

    def prune(self, keep: frozenset[Digest]) -> None:
        """Delete compiled modules that belong to none of the files `keep`."""
        try:
            if self._cache:
                self._cache.prune(keep)
        except OSError as error:
            _log.warning("cannot delete compiled modules that are not needed any more: %s", error)

    def load(self, model: str, installed: Installed) -> tuple[Manifest, LoadedModel]:
        """Load a release that was verified before; raises CorruptFileError, ProtocolError or ModelError."""
        manifest = self.check_policy(model, installed)
        return manifest, self._load_model(manifest, installed)

    def check_policy(self, model: str, installed: Installed) -> Manifest:
        """Return the manifest of an installed release if it can run at all under the device's present policy.

        Its memory is what it needs; time and stack are bounds, of which the stricter counts.

        Raises:
            AdmissionError: it asks for more: the policy was lowered since.
            CorruptFileError, ProtocolError: the manifest cannot be read.
        """
        manifest = self._read_manifest(model, installed)
        need, have = _variant(manifest, installed).contract.memory_bytes, self.capacity.max_model_memory_bytes
        if need > have:
            raise AdmissionError(
                f"{model} {installed.version} is not served: it needs {need:,} bytes of memory, the device allows "
                f"{have:,}. Raise the limit in the device's policy.toml, or deploy a release that fits"
            )
        return manifest

    def close(self) -> None:
        """Drop every model that waits; after the last job."""
        for deployment_id in list(self._waiting):
            self.abandon(deployment_id)

    def _plan(self, action: Download) -> Event:
        raw = self._files.read(action.manifest)
        manifest = self._check_release(raw, action.model, action.version)
        variant = select_variant(manifest, self.capacity)
        faults.reach("install.planned")
        candidate = Installed(
            version=action.version,
            deployment_id=action.deployment_id,
            manifest=action.manifest,
            module=variant.file,
            vectors=manifest.self_test.file,
        )
        return Planned(model=action.model, deployment_id=action.deployment_id, candidate=candidate)

    def _verify(self, action: Verify) -> Event:
        start_ns = time.perf_counter_ns()
        candidate = action.candidate
        for file in candidate.files[1:]:
            self._files.read(file)
        self._check_release(self._files.read(candidate.manifest), action.model, candidate.version)
        faults.reach("install.verified")
        return Verified(model=action.model, deployment_id=action.deployment_id, elapsed_ms=_since(start_ns))

    def _compile(self, action: Compile) -> Event:
        start_ns = time.perf_counter_ns()
        self.abandon(action.deployment_id)
        self._waiting[action.deployment_id] = self._load_patiently(action)
        faults.reach("install.compiled")
        return Compiled(model=action.model, deployment_id=action.deployment_id, elapsed_ms=_since(start_ns))

    def _load_patiently(self, action: Compile) -> tuple[Manifest, LoadedModel]:
        """Load a release, and try again when memory was short; only the worker has the time to."""
        for pause_s in COMPILE_PAUSES_S:
            try:
                return self.load(action.model, action.candidate)
            except DeviceMemoryError as error:
                _log.warning(
                    "%s %s: %s; it is tried again in %g s", action.model, action.candidate.version, error, pause_s
                )
                time.sleep(pause_s)
        return self.load(action.model, action.candidate)

    def _test(self, action: Test) -> Event:
        start_ns = time.perf_counter_ns()
        waiting = self._waiting.get(action.deployment_id)
        if waiting is not None:  # abandoned meanwhile: the engine ignores the answer
            manifest, model = waiting
            run_self_test(model, manifest.self_test, self._files.read(action.candidate.vectors))
        faults.reach("install.tested")
        return Tested(model=action.model, deployment_id=action.deployment_id, elapsed_ms=_since(start_ns))

    def _check_release(self, raw: bytes, model: str, version: str) -> Manifest:
        """Return the manifest `raw` if the image repository's newest metadata lets it be installed."""
        manifest = Manifest.from_bytes(raw)
        if (manifest.model, manifest.version) != (model, version):
            raise MalformedError(f"expected the manifest of {model} {version}, got {manifest.model} {manifest.version}")
        targets = self._targets()
        if targets is None:
            raise MalformedError("the image repository's metadata was lost: it comes again with the next connection")
        check_floor(targets, manifest, target_path(model, version))
        return manifest

    def _read_manifest(self, model: str, installed: Installed) -> Manifest:
        manifest = Manifest.from_bytes(self._files.read(installed.manifest))
        if manifest.model != model:
            raise MalformedError(f"expected a manifest of {model}, got one of {manifest.model}")
        return manifest

    def _load_model(self, manifest: Manifest, installed: Installed) -> LoadedModel:
        contract = _variant(manifest, installed).contract
        # The device's owner may have become stricter since the release was admitted.
        caps = Caps(
            memory_bytes=min(contract.memory_bytes, self.capacity.max_model_memory_bytes),
            stack_kib=_stack_class(min(contract.stack_kib, self.capacity.max_stack_kib)),
            deadline_ms=min(contract.deadline_ms, self.capacity.max_deadline_ms),
        )
        wasm = self._files.read(installed.module)
        return load_model(
            wasm,
            manifest.inputs,
            manifest.outputs,
            caps,
            stateful=manifest.stateful,
            cache=self._cache,
            zygote=self._zygote,
        )

    def _guarded(self, action: _A, job: Callable[[_A], Event]) -> Event:
        try:
            return job(action)
        except CorruptFileError as error:
            return Spoiled(
                model=action.model, deployment_id=action.deployment_id, reason=Reason.of(error.code, str(error))
            )
        except (AdmissionError, RollbackError) as error:
            return _failed(action, error.code, str(error), is_rejection=True)
        except (ModelError, ProtocolError, AgentError) as error:
            return _failed(action, error.code, str(error))
        except MemoryError:
            return _failed(action, "out_of_memory", "the device has too little free memory for this release")
        except Exception as error:  # noqa: BLE001 - whatever a release makes happen, the worker lives on
            _log.exception("unexpected error while installing %s", action.model)
            return _failed(action, "internal", f"unexpected {type(error).__name__}: see the device's log")


def _failed(action: DeploymentAction, code: str, message: str, *, is_rejection: bool = False) -> Failed:
    return Failed(
        model=action.model,
        deployment_id=action.deployment_id,
        reason=Reason.of(code, message),
        is_rejection=is_rejection,
    )


def _variant(manifest: Manifest, installed: Installed) -> Variant:
    for variant in manifest.variants:
        if variant.file == installed.module:
            return variant
    raise MalformedError(f"the manifest of {manifest.model} {manifest.version} no longer names the installed module")


def _stack_class(stack_kib: int) -> int:
    """Return the largest stack class within `stack_kib`, else the smallest there is."""
    return max((kib for kib in STACK_CLASSES_KIB if kib <= stack_kib), default=min(STACK_CLASSES_KIB))


def _since(start_ns: int) -> int:
    return (time.perf_counter_ns() - start_ns) // 1_000_000
