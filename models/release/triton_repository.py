"""Triton's model repository, generated from bundles.

Knows config.pbtxt and the folder layout that Triton and `models.release.in_process` both read:
<model>/config.pbtxt and <model>/<version>/{model.py, bundle/}. A model that streams has a second
entry for Triton alone, its streaming form (`models.stream.stream_form`), which reads the first
one's bundle. Does not know which release is live (`models.release.store`) or how to talk to a server (`models.release.promotion`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import asdict
from json import dumps
from pathlib import Path

import models.release.triton_backend
from models.batch import ANSWERS, REQUESTS
from models.echo import SIGNATURE as ECHO_SIGNATURE
from models.registry import REGISTRY, streams
from models.release.bundle import BUNDLE_FILE, Bundle, read_bundle
from models.signature import Signature, TensorSpec
from models.stream import CANCEL, base_of, is_stream_form, stream_form

ECHO = "echo"
_BACKEND = Path(models.release.triton_backend.__file__).with_name("model.py")
_ROOT = Path(models.release.triton_backend.__file__).parents[3]


class ModelRepository:
    """The folder that Triton serves. Triton loads every version folder in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, bundle: Bundle) -> bool:
        """Writes a bundle's version folder atomically; False when the version exists already.

        Where the model streams, also its streaming form's.
        """
        signature = _configured(bundle)
        added = self._add(
            bundle.model, bundle.version, signature, lambda to: _copy(bundle.path, to)
        )
        if streams(bundle.model):
            self._add(stream_form(bundle.model), bundle.version, signature, _nothing)
        return added

    def add_echo(self) -> None:
        """Writes the self-test model `echo`."""
        self._add(ECHO, 1, ECHO_SIGNATURE, _write_echo)

    def models(self) -> tuple[str, ...]:
        """Names of the models, without those of streaming forms."""
        found = (path.parent.name for path in self.folder.glob("*/config.pbtxt"))
        return tuple(sorted(name for name in found if not is_stream_form(name)))

    def refresh_backends(self) -> None:
        """Replaces every model.py and config.pbtxt that is not this code's.

        Older ones import moved modules, and do not take several requests in one call.
        """
        for config in self.folder.glob("*/config.pbtxt"):
            model = config.parent.name
            base = base_of(model)
            folders = [self.bundle_folder(base, version) for version in self.versions(base)]
            sealed = [folder for folder in folders if (folder / BUNDLE_FILE).is_file()]
            if sealed:
                _write_config(config, config_text(model, _configured(read_bundle(sealed[-1]))))
        current = _BACKEND.read_bytes()
        for path in self.folder.glob("*/*/model.py"):
            if path.read_bytes() != current:
                partial = path.with_name(".model.py")
                partial.write_bytes(current)
                os.replace(partial, path)

    def versions(self, model: str) -> tuple[int, ...]:
        """Version folders, ascending."""
        folder = self.folder / model
        found = folder.iterdir() if folder.is_dir() else iter(())
        return tuple(sorted(int(path.name) for path in found if path.name.isdigit()))

    def keep_only(self, model: str, versions: Collection[int]) -> bool:
        """Removes other version folders, which the next load unloads; True if there were any."""
        stale = [
            self.folder / name / str(version)
            for name in (stream_form(model), model)
            for version in self.versions(name)
            if version not in versions
        ]
        for folder in stale:
            self._remove(folder)
        return bool(stale)

    def mark_changed(self, bundle: Bundle) -> None:
        """Makes the next load start the model's processes again; those that answer are kept until
        the new ones are ready."""
        for name in (bundle.model, stream_form(bundle.model)):
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.folder / name / str(bundle.version) / "model.py")

    def bundle_folder(self, model: str, version: int) -> Path:
        return self.folder / model / str(version) / "bundle"

    def _add(
        self, model: str, version: int, signature: Signature, fill: Callable[[Path], None]
    ) -> bool:
        target = self.folder / model / str(version)
        if target.exists():
            return False
        partial = self._aside()
        partial.mkdir(parents=True)
        fill(partial / "bundle")
        shutil.copyfile(_BACKEND, partial / "model.py")
        target.parent.mkdir(parents=True, exist_ok=True)
        _write_config(target.parent / "config.pbtxt", config_text(model, signature))
        os.replace(partial, target)
        return True

    def _remove(self, folder: Path) -> None:
        # Renamed first: a server that scans the folder meanwhile sees a whole version or none.
        aside = self._aside()
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _aside(self) -> Path:
        return self.folder.parent / f".{self.folder.name}-parts" / uuid.uuid4().hex


def _configured(bundle: Bundle) -> Signature:
    """The signature in config.pbtxt, which all versions of a model share: this code's where the
    bundle answers it, since an older version's may not hold a newer version's outputs."""
    entry = REGISTRY.get(bundle.model)
    fits = entry is not None and not entry.unmet_by(bundle.signature)
    return entry.load_signature() if entry is not None and fits else bundle.signature


def config_text(model: str, signature: Signature, root: Path = _ROOT) -> str:
    """A model's config.pbtxt. Every version folder that exists is loaded.

    There is no batch dimension: requests differ in their number of candidates, and an
    invalid request must not fail others. A call has either the model's inputs, of which the
    runtime names those that are missing, or several requests as one tensor (`models.batch`). A call
    to a streaming form has one request's inputs, or the id of a request to end.
    `root`: the folder of the `models` package.
    """
    in_parts = is_stream_form(model)
    own = [] if in_parts else [TensorSpec(ANSWERS, "BYTES", (1,))]
    policy = ["model_transaction_policy { decoupled: true }"] if in_parts else []
    extra = TensorSpec(CANCEL if in_parts else REQUESTS, "BYTES", (1,))
    return "\n".join(
        [
            f'name: "{model}"',
            'backend: "python"',
            "max_batch_size: 0",
            *(_tensor_text("input", spec) for spec in (*signature.inputs, extra)),
            *(_tensor_text("output", spec) for spec in (*signature.outputs, *own)),
            "version_policy: { all {} }",
            *policy,
            "instance_group [{ kind: KIND_CPU, count: 1 }]",
            f'parameters: {{ key: "root", value: {{ string_value: "{root}" }} }}',
            "",
        ]
    )


def _tensor_text(side: str, spec: TensorSpec) -> str:
    dtype = "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}"
    dims = ", ".join(str(size) for size in spec.shape)
    optional = ", optional: true" if side == "input" else ""
    return f'{side} [{{ name: "{spec.name}", data_type: {dtype}, dims: [ {dims} ]{optional} }}]'


def _write_config(path: Path, text: str) -> None:
    """An equal file stays untouched, since a new one makes Triton reload all versions."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target)


def _nothing(_target: Path) -> None:
    """A streaming form has no files of its own: it reads the model's."""


def _write_echo(target: Path) -> None:
    target.mkdir(parents=True)
    stated = {
        "model": ECHO,
        "version": 1,
        "runtime": "models.echo:EchoRuntime",
        "signature": asdict(ECHO_SIGNATURE),
        "created_ms": 0,
        "metrics": {},
        "sha256": "",
    }
    (target / "bundle.json").write_text(dumps(stated), encoding="utf-8")
