"""What every scheme must honour: a plugin joins by one subclass of ``SchemeContract`` with a ``scheme`` fixture.

The contract runs on scikit-learn's digits with a small batch-normalised network; clean networks are trained once for
all schemes, a scheme's mark is embedded once for all its tests.
"""

import copy
import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from tests.marks import (
    OWNER_SECRET,
    Embedded,
    SmallBatches,
    altered_keys,
    another_process,
    arena,
    clean_model,
    describe_key,
    embed,
    embedded,
    strangers,
)
from tests.victims import NewestOnly
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.orchestrator.keys.storage import load_key, save_key
from wmarena.schemes.base import Cancelled, Scheme, Suspect, untouched
from wmarena.schemes.commitment import model_digest, tensor_bytes
from wmarena.schemes.params import STAGE_ORDER
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import binomial_threshold, clopper_pearson, discrete_ks, log10_binomial_tail


class SchemeContract:
    """Join with ``class TestX(SchemeContract)`` and a fixture ``scheme``.

    Attributes:
        n_strangers: random keys, half of them on the marked network.
        max_drop: accuracy that a mark may cost here.
        null_seeds: seeds of the independent networks that the owner's key must not be found in.
        min_margin: of the largest margin, that the mark must have where it was embedded.
        twin_is_clean: the scheme trains a network of its own beside the clean one, which is then its twin.
    """

    n_strangers: ClassVar[int] = 400
    max_drop: ClassVar[float] = 0.03
    null_seeds: ClassVar[tuple[int, ...]] = (1, 2, 3)
    min_margin: ClassVar[float] = 0.9
    twin_is_clean: ClassVar[bool] = False

    @pytest.fixture
    def scheme(self) -> Scheme:
        """The scheme under test, with settings that embed within seconds."""
        raise NotImplementedError("expected a fixture `scheme` in the subclass of SchemeContract")

    @pytest.fixture
    def mark(self, scheme: Scheme) -> Embedded:
        """The scheme's mark in a network, shared by all tests."""
        return embedded(scheme)

    # Configuration.

    def test_configuration_comes_back(self, scheme: Scheme) -> None:
        """A scheme is what its configuration says, through JSON too."""
        assert type(scheme).from_config(json.loads(json.dumps(scheme.config()))) == scheme

    def test_every_field_has_a_stage(self, scheme: Scheme) -> None:
        """Each field has a stage and a meaning; the scheme names its source."""
        for parameter in scheme.parameters().values():
            assert parameter.stage in STAGE_ORDER
            assert parameter.doc
        assert scheme.paper
        assert scheme.threat_model
        assert scheme.access in ("black", "white")

    def test_pretrained_schemes_have_a_twin(self, scheme: Scheme) -> None:
        """A scheme that trains the clean network further declares how, so that its twin gets the same training."""
        alone = scheme.from_scratch or self.twin_is_clean
        assert (scheme.twin_recipe(arena().task, len(arena().train)) is None) == alone

    # Keys.

    def test_keygen_is_the_same_in_another_process(self, scheme: Scheme) -> None:
        """A seed gives the same key in a process of its own."""
        named = type(scheme).__module__, type(scheme).__name__, json.dumps(scheme.config())

        # The process may have been started before the scheme's package could be imported.
        found = another_process().submit(describe_key, *named, search=list(sys.path)).result()

        assert found == describe_key(*named)

    def test_keygen_reads_the_secret_alone(self, scheme: Scheme) -> None:
        """Another secret gives another key; the global generators neither matter nor move."""
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = scheme.keygen(arena().task, Prf(OWNER_SECRET))
        assert torch.equal(before, torch.get_rng_state())
        torch.manual_seed(2)
        second = scheme.keygen(arena().task, Prf(OWNER_SECRET))
        other = scheme.keygen(arena().task, Prf(b"somebody else's secret"))

        assert first.commitment == second.commitment
        assert first.commitment != other.commitment

    def test_commitment_opens_for_this_key_alone(self, mark: Embedded) -> None:
        """One flipped bit in seed, public part or any secret tensor, and the commitment does not open."""
        published = mark.key.commitment

        assert mark.key.verifies(published)
        assert not any(key.verifies(published) for key in altered_keys(mark.key))

    def test_stranger_has_the_same_structure(self, scheme: Scheme, mark: Embedded) -> None:
        """A randomised key is judged by the same test, and shares neither seed nor commitment with the owner's."""
        stranger = scheme.randomise_key(mark.key, Prf(b"strangers to the owner, for tests"))

        assert scheme.trials(stranger) == scheme.trials(mark.key)
        assert set(stranger.public) == set(mark.key.public)
        assert stranger.seed != mark.key.seed
        assert stranger.commitment != mark.key.commitment

    def test_no_secret_is_published(self, mark: Embedded) -> None:
        """Neither the public part, nor a key's text, nor the published network holds seed or secret tensors."""
        public = json.dumps(dict(mark.key.public))
        weights = [tensor_bytes(tensor) for tensor in mark.model.state_dict().values()]

        assert mark.key.seed.hex() not in public
        assert repr(mark.key.seed) not in repr(mark.key)
        assert set(mark.model.state_dict()) == set(clean_model().state_dict())
        for tensor in mark.key.secret.values():
            raw = tensor_bytes(tensor)
            assert raw.hex() not in public
            assert raw not in weights

    # Embedding.

    def test_embedded_mark_is_found(self, mark: Embedded) -> None:
        """The owner's key is found in the marked network, with nine tenths of the largest margin unless said."""
        verdict = mark.judge()

        assert verdict.verdict
        assert verdict.margin >= self.min_margin

    def test_accuracy_survives(self, mark: Embedded) -> None:
        """The marked network is as good as the clean one, within a few points, for those who may use it."""
        task, test = mark.arena.task, mark.arena.test
        licensed = mark.scheme.licensed_task(task, mark.key) or task

        assert licensed.score(mark.model, test) >= task.score(clean_model(), test) - self.max_drop

    def test_embedding_resumes_to_the_same_bits(self, scheme: Scheme, mark: Embedded) -> None:
        """An embedding that was stopped after its second checkpoint ends with the same weights and the same key."""
        key = scheme.keygen(arena().task, Prf(OWNER_SECRET))
        checkpoints = NewestOnly(stop_at=2)
        with pytest.raises(Cancelled):
            embed(scheme, key, checkpoints)
        model, completed = embed(scheme, key, checkpoints)

        assert model_digest(model.state_dict()) == model_digest(mark.model.state_dict())
        assert completed.commitment == mark.key.commitment

    def test_embedding_for_given_epochs(self, scheme: Scheme) -> None:
        """``for_epochs`` fixes the length of the training that is added, and nothing that a key depends on."""
        task, n = arena().task, len(arena().train)
        short, long = scheme.for_epochs(1, n), scheme.for_epochs(3, n)

        assert short.config(until="key") == scheme.config(until="key")
        one, three = short.twin_recipe(task, n), long.twin_recipe(task, n)
        if one is not None and three is not None:
            assert one.steps is not None
            assert three.steps == 3 * one.steps

    # Evidence.

    def test_clean_models_are_refused(self, mark: Embedded) -> None:
        """The owner's key is not found in the clean network, nor in independent ones."""
        verdicts = [mark.judge(clean_model())]
        verdicts += [mark.judge(clean_model(seed, epochs=2)) for seed in self.null_seeds]

        assert not any(v.verdict for v in verdicts)
        assert sum(v.log10_p <= -3 for v in verdicts) <= 1

    def test_strangers_are_refused(self, scheme: Scheme) -> None:
        """No key that nobody embedded is found in the marked network."""
        on_marked, _ = strangers(scheme, self.n_strangers)

        assert not any(v.verdict for v in on_marked)

    def test_p_values_are_calibrated(self, scheme: Scheme) -> None:
        """Keys that nobody embedded match as often as the null model says: as a whole, and in its tails."""
        if scheme.p_method != "binomial":
            pytest.skip("only a binomial p-value claims to be exact")
        on_marked, on_clean = strangers(scheme, self.n_strangers)
        counts = [v.k for v in on_marked + on_clean if v.k is not None]
        n, q = scheme.trials(embedded(scheme).key)

        assert len(counts) == self.n_strangers
        assert discrete_ks(counts, n, q) > 1e-3
        for level in (0.05, 0.01):
            passing = binomial_threshold(n, q, level)
            # 99.9 %, because a dozen schemes' rates are checked and each may fail by chance.
            low, high = clopper_pearson(sum(k >= passing for k in counts), len(counts), 0.999)
            assert low <= 10 ** log10_binomial_tail(passing, n, q) <= high

    def test_evidence_survives_the_disk(self, mark: Embedded, tmp_path: Path) -> None:
        """Key and network, saved and read again, give the same evidence in every field."""
        save_key(mark.key, tmp_path / "key", None)
        raw = save({n: t.contiguous() for n, t in mark.model.state_dict().items()})
        model = arena().task.network(seed=99)
        model.load_state_dict(load(raw))

        assert mark.judge(model, load_key(tmp_path / "key", None)) == mark.judge()

    def test_judging_changes_nothing(self, mark: Embedded) -> None:
        """Weights, statistics, training flags, gradients and random state are the same afterwards."""
        model = copy.deepcopy(mark.model).train()
        next(model.children()).eval()
        flags = [m.training for m in model.modules()]
        digest = model_digest(model.state_dict())
        states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
        verdict = mark.judge(model)

        assert verdict == mark.judge()
        assert model_digest(model.state_dict()) == digest
        assert [m.training for m in model.modules()] == flags
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1:] == (random.getstate(), str(np.random.get_state()))

    def test_batch_size_does_not_matter(self, scheme: Scheme, mark: Embedded) -> None:
        """Evaluating seven inputs at a time gives the same verdict."""
        task = mark.arena.task
        assert isinstance(task, ImageTask)

        assert scheme.judge(Suspect(mark.model, SmallBatches.of(task)), mark.key) == mark.judge()

    def test_half_precision_around_does_not_matter(self, mark: Embedded) -> None:
        """Judging inside a bfloat16 region gives the same evidence: it computes in full precision."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            verdict = mark.judge()

        assert verdict == mark.judge()

    def test_another_architecture_is_evidence(self, scheme: Scheme, mark: Embedded) -> None:
        """A network of another kind is judged or refused as not fitting; it is never an error."""
        place = arena("digits_mlp")
        verdict = scheme.judge(Suspect(place.task.network(seed=5), place.task), mark.key)

        assert not verdict.verdict
        assert verdict.reason == ("structure" if scheme.access == "white" else None)

    def test_another_task_does_not_fit(self, scheme: Scheme, mark: Embedded) -> None:
        """If a suspect lacks classes or tensors of the key, the reason is its structure and p is 1."""
        place = arena("digits_mlp")
        assert isinstance(place.task, ImageTask)
        other = replace(place.task, info=replace(place.task.info, num_classes=7))
        verdict = scheme.judge(Suspect(other.network(seed=5), other), mark.key)

        assert verdict.reason == "structure"
        assert (verdict.verdict, verdict.log10_p) == (False, 0.0)
        assert verdict.details["found"]

    def test_queries_are_counted_for_black_boxes(self, scheme: Scheme, mark: Embedded) -> None:
        """A black-box test reports its number of queries; a white-box test reports none."""
        assert (mark.judge().queries > 0) == (scheme.access == "black")

    # Hooks.

    def test_mark_can_be_reached(self, scheme: Scheme, mark: Embedded) -> None:
        """Spoiling and overwriting find a hook; a mark's loss is low where it was embedded, and differentiable."""
        model, task = copy.deepcopy(mark.model), mark.arena.task
        with untouched(model):
            loss = scheme.mark_loss(model, task, mark.key)
            clean = scheme.mark_loss(clean_model(), task, mark.key)
            carriers, triggers = scheme.carriers(model, mark.key), scheme.triggers(mark.key)
            assert loss is not None or carriers or triggers is not None
            if loss is not None and clean is not None:
                torch.autograd.backward(loss)
                assert loss.item() < 0.5 * clean.item()
                assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())

    def test_carriers_are_parameters(self, scheme: Scheme, mark: Embedded) -> None:
        """A weight-type mark names tensors that the network has, with masks of their shape."""
        parameters = dict(mark.model.named_parameters())
        for carrier in scheme.carriers(mark.model, mark.key):
            assert carrier.name in parameters
            assert carrier.mask is None or carrier.mask.shape == parameters[carrier.name].shape

    def test_triggers_have_labels(self, scheme: Scheme, mark: Embedded) -> None:
        """A black-box scheme's triggers are raw inputs of the task, one class each; verification is their answers."""
        found = scheme.triggers(mark.key)
        if found is None:
            assert scheme.access == "white"
            return
        raw, labels = found
        info = mark.arena.task.info
        answers = mark.arena.task.predict(mark.model, raw)

        assert tuple(raw.shape[1:]) == info.input_shape
        assert bool(((labels >= 0) & (labels < info.num_classes)).all())
        assert int((answers == labels).sum()) == mark.judge().k
