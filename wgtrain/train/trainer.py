"""The training loop: windows of micro-batches in, one result per optimizer step out; no paths."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import numpy as np

from wgtrain import __version__
from wgtrain.data import Dataset, in_batches
from wgtrain.data.prompts import Prompt
from wgtrain.dual import aio_view, dual, dual_iterator
from wgtrain.engine.tables import from_json, of_this_version, to_json
from wgtrain.engine.tuning import Tuning
from wgtrain.errors import NonFiniteError, OptionError, OutOfMemoryError
from wgtrain.files.adapters import (
    Adapter,
    adapter_fits,
    write_adapter_gguf,
    write_adapter_peft,
)
from wgtrain.files.huggingface import class_modules
from wgtrain.files.source import shown
from wgtrain.model.base import OpenModel
from wgtrain.model.host import Host, Loaded, unseen
from wgtrain.model.lora import initial_parameters
from wgtrain.train import checkpoint as ckpt
from wgtrain.train.config import LoraConfig, TrainConfig
from wgtrain.train.fit import BROUGHT, Fit
from wgtrain.train.learner import lora_learner
from wgtrain.train.loop import Loop
from wgtrain.train.needs import Needs, lengths_of, needs_of
from wgtrain.train.results import Place, StepResult, Tested
from wgtrain.train.samples import Sampler
from wgtrain.train.schedule import make_schedule
from wgtrain.train.settings import as_mapping
from wgtrain.train.start import adopt, check_arguments, hash_rows, other_chats, settled_rows
from wgtrain.train.windows import At, Windows
from wgtrain.turn import Turn

# Settings that a checkpoint may differ in: they change no number, or what it holds covers them.
FREE = {"eval_every", "save_every", "save_total_limit", "valid", "tuning", "sample", "sample_every"}
FREE |= {"recompute", "seq_len", "train_on", "chat"}  # these are in the hash of the rows


class Trainer(Loop):
    """Trains an adapter on token rows; every number follows from rows, settings and seed.

    `valid` are rows for validation, `init_adapter` an adapter to start from (whatever
    `model.logits` takes as one), which brings rank, alpha and targets; `given` names settings of
    `lora` that a person set explicitly and that it must not differ from. `tuning` is the table of
    kernels to run with, in place of what `config.tuning` says; `host` is where this runs, in place
    of what the model was opened with; `test` are rows for `test()`, `samples` the prompts that
    `config` asks for, where they are made already.
    """

    aio = aio_view()

    def __init__(
        self,
        model: OpenModel,
        rows: Dataset,
        lora: LoraConfig | None = None,
        config: TrainConfig | None = None,
        valid: Dataset | None = None,
        init_adapter: Any = None,
        given: tuple[str, ...] = (),
        tuning: Tuning | None = None,
        host: Host | None = None,
        test: Dataset | None = None,
        samples: Sequence[Prompt] | None = None,
    ):
        check_arguments(model, rows, lora, config, valid, test)
        lora, config = lora or LoraConfig(), config or TrainConfig()
        rows, valid = settled_rows(rows, valid, test, config)
        if init_adapter is not None:
            init_adapter = model.read_adapter(init_adapter)
            adapter_fits(
                init_adapter, model.gguf.tensors, model.config.architecture, "init_adapter"
            )
            lora = adopt(
                lora, init_adapter, model.config.n_layer, model.config.block_linears, given
            )
        self.model, self.rows, self.valid, self.lora, self.config = model, rows, valid, lora, config
        self.test_rows = test
        self.host: Host = host or model.host

        self._rows_hash = hash_rows(rows.rows)
        self._windows = Windows(rows, config)
        self.total_steps = self._windows.total
        self.schedule = make_schedule(config, self.total_steps, self._windows.per_epoch)
        self._held = list(in_batches(valid.rows, config.batch_size)) if valid else []
        self._tests = list(in_batches(test.rows, config.batch_size)) if test else []
        if samples is None and config.samples:
            samples = model.sample_prompts(config.sample or (), rows, valid)
        self._sampler = Sampler(model, samples or ())
        model.clear_cache()  # a run asks for more than the time to read a prompt again
        self.memory_origin = model.device.find_budget()
        lengths = lengths_of(rows, valid, test, self._sampler.prompts)
        self._fit = Fit(model, lora, config, lengths, lora_learner)
        if init_adapter is not None:
            self._fit.fixed |= BROUGHT
        self.learner = self._fit.learner(tuning and self._listed(tuning, "tuning"))
        if tuning is None:
            batches = self.total_steps * config.grad_accum
            plan, max_row = self.learner.plan, self.learner.max_row
            self._use(self.host.choose_tuning(model.device, plan, max_row, batches, config.tuning))
        self.learner.set_parameters(
            init_adapter.matrices
            if init_adapter
            else initial_parameters(self.learner.shapes, config.seed)
        )
        super().__init__()
        self._turn = Turn("this trainer")

    def _listed(self, tuning: Tuning, name: str) -> Tuning:
        """What of a table, maybe of a file, this version has; what is replaced is said."""
        listed = of_this_version(tuning)
        if listed.origin != tuning.origin:
            self.host.say(f"{name}: kernels: {listed.origin}")
        return listed

    def _use(self, tuning: Tuning) -> None:
        """Makes a learner with another table, where it is another one."""
        if tuning.table != self.learner.tuning.table:
            self._renew(tuning)
        else:
            self.learner.tuning = tuning

    def _renew(self, tuning: Tuning) -> None:
        self._sampler.close()
        self.learner.close()
        self.learner = self._fit.learner(tuning)

    @dual
    async def build(self) -> None:
        """Allocates and compiles what `run` would at its start; OutOfMemoryError if it cannot,
        which says what would fit.
        """
        with self._turn():
            await self._build()

    async def _build(self) -> None:
        """Where nobody knew how much memory there is and it is too little, activations are
        recomputed from then on.
        """
        try:
            await self.learner.build()
        except OutOfMemoryError as error:
            if not self._fit.can_recompute:
                raise self._fit.explained(error, self.learner.tuning) from None
            self._fit.recompute = True
            smaller = self._fit.learner(self.learner.tuning)
            smaller.take_over(self.learner)
            self.learner.close()
            self.learner = smaller
            self.host.say(f"{error}: activations are recomputed now, which takes less")
            await self._build()
        await self._sampler.open(self.learner)

    def fixed_settings(self) -> None:
        """Errors propose no settings from now on: they are those of an earlier run."""
        self._fit.advises = False

    @property
    def recompute(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return self._fit.recompute

    @property
    def needs(self) -> Needs:
        """The GPU memory of the run by purpose."""
        samples = self._fit.samples(self.learner)
        return needs_of(self.model.base, self.learner, self.recompute, samples)

    # ---- the loop ------------------------------------------------------------------------------

    @dual_iterator
    async def run(self) -> AsyncGenerator[StepResult, None]:
        """Trains to the end, or from where it stands, yielding every step in order.

        Validation comes at the start, every `eval_every` steps and at the end. Reports are read
        every few steps; only after a step that is due for validation or a checkpoint, and the last
        one, `checkpoint()` is sure to be of the step just yielded. NonFiniteError ends the run
        with the parameters of the last good step. Until the loop over it ends, other threads may
        `stop` and `close`; all else is refused.
        """
        loop = object()
        try:
            with self._turn(loop):
                self._stopping = False
                await self._start()
                result = await self._next()
            while result:
                yield result
                with self._turn(loop):
                    self._resume_clock()
                    result = await self._next()
        finally:
            self._turn.leave(loop)
        if self.failure:
            raise self.failure

    @dual
    async def evaluate(self) -> tuple[float, int]:
        """(mean loss, number of trained tokens) of the validation rows."""
        with self._turn():
            await self._build()
            await self._settle()
            return await self._evaluate()

    @dual
    async def test(self, progress: Loaded = unseen) -> Tested:
        """The losses of the test rows, base alone and with the adapter; told how far it is."""
        with self._turn():
            await self._build()
            await self._settle()
            return await self._test(progress)

    @dual
    async def fit(self) -> "Trainer":
        """Trains to the end and shows progress: a bar in a terminal, a live chart in Jupyter."""
        with self.host.watch(self) as show:
            async for result in self.aio.run():
                show(result)
        return self

    def stop(self) -> None:
        """Makes `run` end after the steps already queued; safe to call from a signal handler."""
        self._stopping = True

    # ---- bytes out and in ----------------------------------------------------------------------

    @dual
    async def adapter(self) -> Adapter:
        """The adapter as it stands, float32; NonFiniteError where an update overflowed."""
        with self._turn():
            await self._build()
            await self._settle()
            return await self._adapter()

    async def _adapter(self) -> Adapter:
        model = self.model
        tensors = await self.learner.parameters()
        if wrong := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
            raise NonFiniteError(
                f"step {self.step}: the update made {len(wrong)} of {len(tensors)} matrices "
                f"infinite or not a number, {wrong[0]} first: use a smaller learning_rate"
            )
        return ckpt.to_adapter(
            tensors,
            architecture=model.config.architecture,
            rank=self.lora.rank,
            alpha=self.lora.alpha,
            metadata={
                "version": __version__,
                "base.name": str(model.gguf.metadata.get("general.name", model.name)),
                "base.fingerprint": model.fingerprint,
                "rank": self.lora.rank,
                "target_modules": self.lora.target_modules,
                "layers": self.lora.layers,
            },
        )

    @dual
    async def adapter_gguf(self) -> bytes:
        """The adapter as a GGUF file that llama.cpp loads."""
        return write_adapter_gguf(await self.aio.adapter())

    @dual
    async def adapter_peft(self) -> dict[str, bytes]:
        """The adapter as the files of a PEFT folder, {file name: bytes}."""
        config = self.model.config
        return write_adapter_peft(
            await self.aio.adapter(),
            base_name=self.model.base_name,
            n_head=config.n_head,
            n_head_kv=config.n_head_kv,
            dropout=self.lora.dropout,
            n_layer=config.n_layer,
            **class_modules(self.model.gguf),
        )

    @dual
    async def checkpoint(self) -> dict[str, bytes]:
        """All that `restore` needs to go on bit by bit as if never interrupted.

        The files of a checkpoint, {file name: bytes}.
        """
        with self._turn():
            await self._build()
            await self._settle()
            await self._read()
            if self.failure:
                raise self.failure
            m, v = await self.learner.moments()
            state = ckpt.State(
                self.step,
                *self._place.at,
                self.tokens_seen,
                self.elapsed_seconds,
                self._settings(),
                self._rows_hash,
                __version__,
                to_json(self.learner.tuning),
            )
            adapter = await self._adapter()
        return ckpt.pack(ckpt.Checkpoint(state, adapter, m, v))

    def restore(
        self, files: Mapping[str, bytes], name: str = "checkpoint", prolong: bool = False
    ) -> None:
        """Continues from a checkpoint of a run with the same base, rows and settings, with its
        kernels.

        With `prolong` iters and epochs may differ: the schedule is that of the new total from there
        on. Raises FileError for a damaged one, OptionError naming what differs for one of another
        run.
        """
        saved = ckpt.unpack(files, name)
        with self._turn():
            self._restore(saved, name, prolong)

    def _restore(self, saved: ckpt.Checkpoint, name: str, prolong: bool) -> None:
        state = saved.state
        own = self._settings()
        theirs = {"precision": "f32", "quantize_base": None, "recompute": False, **state.settings}
        problems = [
            f"{key} = {own[key]}: {name} was made with {shown(theirs.get(key))}"
            for key in own
            if key not in FREE
            and not (prolong and key in ("iters", "epochs"))
            and own[key] != theirs.get(key)
        ]
        if saved.adapter.metadata.get("base.fingerprint") != self.model.fingerprint:
            problems.append(f"{self.model.name}: {name} was made with another base model")
        if state.rows != self._rows_hash:
            told = other_chats(self.rows.chat, state.settings.get("chat"))
            problems.append(f"{self.rows.name}: {name} was made with other rows{told}")
        elif state.step > self.total_steps:
            stands = f"it stands at step {state.step} of {self.total_steps}"
            problems.append(f"{name}: {stands}; a run can be made longer, not shorter")
        elif (state.epoch, state.position) != self._windows.place(state.step):
            problems.append(f"{name}: its place in the data is not that of step {state.step}")
        parameters = saved.adapter.matrices
        for tensors in (parameters, saved.m, saved.v):
            if {key: x.shape for key, x in tensors.items()} != dict(self.learner.shapes):
                problems.append(f"{name}: its tensors are not those of this model and targets")
        if problems:
            raise OptionError("\n".join(dict.fromkeys(problems)))
        evaluations = self.evaluations
        broken = OptionError(f"restoring {name} was interrupted: restore a checkpoint again")
        self._place, self._begun = Place(failure=broken), None
        recompute = bool(theirs["recompute"])
        if self._fit.can_choose and self.config.capture != "f32" and recompute != self.recompute:
            self._fit.settle(recompute)  # another block's input is packed then
            self._renew(self.learner.tuning)
        if state.tuning:
            self._use(self._listed(from_json(state.tuning), name))
        self.learner.reset()
        self.learner.set_parameters(parameters)
        self.learner.set_moments(saved.m, saved.v)
        self._place = Place(
            state.step,
            At(state.epoch, state.position),
            state.tokens_seen,
            state.elapsed_seconds,
            evaluations=tuple(e for e in evaluations if e.step <= state.step > 0),
        )

    def _settings(self) -> dict[str, Any]:
        """All that the numbers of this run follow from, beside the rows."""
        more = {
            "precision": self.model.precision,
            "quantize_base": self.model.quantize_base,
            "recompute": self.recompute,
            "chat": self.rows.chat,
        }
        return as_mapping(self.lora, self.config) | more

    def close(self) -> None:
        """Frees the GPU memory of the training plan, the adapter's too; the model stays open.

        A step that another thread is in is waited for; its loop ends with DeviceLostError.
        """
        if self._turn.close("the trainer was closed: its adapter is gone from the GPU"):
            self._sampler.close()
            self.learner.close()
