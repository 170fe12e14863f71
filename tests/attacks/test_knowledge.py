"""Guards of knowledge and budget: attacks that violate one rule each are stopped or read nothing."""

import contextlib
import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import make_view
from tests.orchestrator.digits import Bench
from tests.orchestrator.keys.test_derivation import leaked, marked, reachable, secrets  # noqa: F401 - a fixture among them
from tests.victims import Victim, arena, clean_model
from tests.victims import marked as marked_model
from wmarena.attacks import ATTACKS
from wmarena.attacks.base import Attack, AttackOutcome, AttackView, Family, Finding
from wmarena.attacks.chain import Chain
from wmarena.attacks.fine_tuning import sgd
from wmarena.attacks.knowledge import AuxiliaryData, Budget, Knowledge, Metered, NotGranted, SealedModel
from wmarena.attacks.known_key.spoil import Spoil
from wmarena.attacks.none import NoAttack
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.attacks.tuning.transfer import Transfer
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.plugins import build_attack, build_scheme, use_workloads
from wmarena.orchestrator.plan.task import Failure
from wmarena.orchestrator.worker.roles import attack_view
from wmarena.schemes.uchida import Uchida

Deed = Callable[[nn.Module, AttackView], object]
SCHEME = Uchida(bits=32)
INPUTS = torch.rand(4, 1, 24, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def victim() -> Victim:
    """A marked model."""
    return marked_model("digits_mlp", SCHEME)


def cheat(deed: Deed, *knows: Knowledge, data_sets: tuple[str, ...] = ()) -> Attack:
    """An attack that does ``deed`` with what it declares, and hands back the model that it got."""

    @dataclass(frozen=True, kw_only=True)
    class Cheat(Attack):
        name: ClassVar[str] = "cheat"
        family: ClassVar[Family] = "none"
        paper: ClassVar[str] = ""

        def data_sets(self) -> tuple[str, ...]:
            return data_sets

        def run(self, model: nn.Module, view: AttackView) -> AttackOutcome:
            deed(model, view)
            return model

    Cheat.knows = frozenset(knows)
    return Cheat()


def everything(victim: Victim, **budget: int) -> AttackView:
    """A view that was filled with care, for an attack that declares everything but what a test withholds."""
    return make_view(victim.arena, scheme=victim.scheme, key=victim.key, **budget)


def undeclared(victim: Victim, **budget: int) -> AttackView:
    """A view for an attack that declares neither algorithm nor key."""
    return make_view(victim.arena, **budget)


# What was not declared


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        (lambda model, view: view.test, "reads test data; use data or val"),
        (lambda model, view: view.train, "reads the owner's; use data"),
        (lambda model, view: view.key, "declare 'key'"),
        (lambda model, view: view.scheme, "declare 'algorithm'"),
        (lambda model, view: view.as_owner("overwrite"), "declare 'algorithm'"),
        (
            lambda model, view: view.auxiliary_data("mnist_lenet5"),
            "names, got 'mnist_lenet5'; add it to its `data_sets`",
        ),
    ],
    ids=["test", "train", "key", "scheme", "as_owner", "elsewhere"],
)
def test_reaching_for_what_was_not_declared(victim: Victim, deed: Deed, message: str) -> None:
    """Test data, the owner's split, key, algorithm, the owner's role, other data: absent, with the way out."""
    with pytest.raises(NotGranted, match=message):
        cheat(deed, "weights")(victim.model, undeclared(victim))


@pytest.mark.parametrize("deed", [lambda model, view: view.test, lambda model, view: view.train], ids=["test", "train"])
def test_no_declaration_opens_the_owners_data(victim: Victim, deed: Deed) -> None:
    """There is no knowledge that grants test data or the owner's split."""
    with pytest.raises(NotGranted, match="reads its own data"):
        cheat(deed, "weights", "algorithm", "key", "queries")(victim.model, everything(victim))


def test_an_attack_gets_the_data_sets_that_it_names_and_no_others(victim: Victim) -> None:
    """Whatever the view was filled with: the attack's own names decide, for a part of a chain too."""
    place = arena("digits_cnn")
    found = place.train, place.val, place.task.info
    filled = AuxiliaryData({"digits_cnn": found, "another": found})
    view = make_view(victim.arena, auxiliary_data=filled)
    reads_both = [
        cheat(lambda m, v, n=n: v.auxiliary_data(n), "weights", data_sets=("digits_cnn",)) for n in filled._data_sets
    ]
    honest = cheat(lambda m, v: v.auxiliary_data("another"), "weights", data_sets=("another",))

    reads_both[0](victim.model, view)
    for attack in (reads_both[1], Chain(attacks=(honest, reads_both[1]))):
        with pytest.raises(NotGranted, match="expected a data set that the attack names, got 'another'"):
            attack(victim.model, make_view(victim.arena, auxiliary_data=filled))
    Chain(attacks=(honest, reads_both[0]))(victim.model, make_view(victim.arena, auxiliary_data=filled))


# Weights


def read_hooks(model: nn.Module, view: AttackView) -> object:
    """Hooks on all modules of the process see the modules inside."""
    seen: list[nn.Module] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, i, o: seen.append(module))
    try:
        model(INPUTS)
    finally:
        handle.remove()
    return [m.weight for m in seen if isinstance(m, nn.Linear)]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.parametrize(
    "deed",
    [
        lambda model, view: list(model.parameters()),
        lambda model, view: dict(model.named_parameters()),
        lambda model, view: list(model.buffers()),
        lambda model, view: dict(model.named_buffers()),
        lambda model, view: model.state_dict(),
        lambda model, view: model.load_state_dict({}),
        lambda model, view: model.get_parameter("head.weight"),
        lambda model, view: model.get_buffer("head.weight"),
        lambda model, view: model.requires_grad_(False),
        lambda model, view: model.zero_grad(),
        lambda model, view: torch.optim.SGD(model.parameters(), lr=0.1),
        lambda model, view: torch.func.functional_call(model, {}, (INPUTS,)),
        lambda model, view: copy.deepcopy(model),
        lambda model, view: copy.copy(model),
        lambda model, view: pickle.dumps(model),
        lambda model, view: torch.save(model, io.BytesIO()),
        lambda model, view: torch.jit.trace(lambda x: model(x), INPUTS),
        read_hooks,
        lambda model, view: view.task.architecture(model),
        lambda model, view: view.task.fit(model, view.data, sgd(epochs=1, lr=0.1), seed=0),
        lambda model, view: FineTune().run(model, view),
    ],
    ids=[
        "parameters",
        "named_parameters",
        "buffers",
        "named_buffers",
        "state_dict",
        "load_state_dict",
        "get_parameter",
        "get_buffer",
        "freeze",
        "zero_grad",
        "optimiser",
        "functional_call",
        "deepcopy",
        "copy",
        "pickle",
        "save",
        "trace",
        "hooks",
        "architecture",
        "fit",
        "finetune",
    ],
)
def test_a_sealed_model_gives_no_weights(victim: Victim, deed: Deed) -> None:
    """Every way to a parameter or a buffer that code may try is refused, not answered with nothing."""
    attack = cheat(deed, "queries", "algorithm")

    with pytest.raises((NotGranted, TypeError), match=r"declare 'weights'|plain query|got SealedModel"):
        attack(victim.model, make_view(victim.arena, scheme=victim.scheme))


def test_a_walk_from_a_sealed_model_meets_no_weights(victim: Victim) -> None:
    """Submodules, attributes, closures and bound methods: no tensor and no other module within reach."""
    met: list[object] = []

    def walk(model: nn.Module, view: AttackView) -> None:
        answers = model(INPUTS)
        met.extend(thing for start in (model, vars(model), model.forward, model.__call__) for thing in reachable(start))
        met.extend([*model.modules(), *model.children(), *model.__dict__.values(), answers.grad_fn])
        assert not hasattr(model, "head")
        assert not answers.requires_grad

    cheat(walk, "queries")(victim.model, undeclared(victim))

    assert len(met) > 20
    assert not [thing for thing in met if isinstance(thing, Tensor)]
    assert {type(thing) for thing in met if isinstance(thing, nn.Module)} == {SealedModel}


def test_the_walk_meets_weights_that_are_there(victim: Victim) -> None:
    """The same search finds the parameters of a model that is not sealed, and those in a closure."""
    model = victim.model

    for start in (model, lambda: model):
        assert any(thing is model.get_parameter("head.weight") for thing in reachable(start))


def test_own_hooks_see_answers_only(victim: Victim) -> None:
    """Hooks on the sealed model itself are free to listen: there is nothing but inputs and probabilities."""
    heard: list[tuple[nn.Module, Any, Any]] = []

    def listen(model: nn.Module, view: AttackView) -> None:
        model.register_forward_hook(lambda module, given, answers: heard.append((module, given, answers)))
        model(INPUTS)

    cheat(listen, "queries")(victim.model, undeclared(victim))

    ((module, given, answers),) = heard
    assert isinstance(module, SealedModel)
    assert given[0] is INPUTS
    assert answers.shape == (4, 10)


def test_answers_are_the_victims_probabilities(victim: Victim) -> None:
    """Sealed or not, the model answers the same, in eval mode whatever the attack sets."""
    sealed = SealedModel(copy.deepcopy(victim.model), None)

    assert torch.equal(victim.model(INPUTS).softmax(dim=1), sealed.train()(INPUTS))


def test_a_sealed_model_that_is_handed_back_is_the_victim(victim: Victim) -> None:
    """Doing nothing needs no knowledge; but nothing sealed comes out as part of a finding."""
    untouched = cheat(lambda model, view: None)(victim.model, undeclared(victim))
    assert isinstance(untouched, type(victim.model))
    assert torch.equal(untouched(INPUTS), victim.model(INPUTS))

    class Found(NoAttack):
        def run(self, model: nn.Module, view: AttackView) -> Any:
            return Finding(model, {})

    with pytest.raises(NotGranted, match="declare 'weights'"):
        Found()(victim.model, undeclared(victim))


# Queries


def test_one_query_too_many(victim: Victim) -> None:
    """So many answers as were granted, counted by the input and before they are given; a refusal costs nothing."""
    counts: list[int] = []

    def ask(model: nn.Module, view: AttackView) -> None:
        assert isinstance(model, SealedModel)
        for n in (4, 4, 3, 2):
            try:
                model(INPUTS[:n])
            finally:
                counts.append(model.queries)

    with pytest.raises(NotGranted, match=r"expected at most 10 queries, got 11; raise adversary\.max_queries"):
        cheat(ask, "queries")(victim.model, undeclared(victim, max_queries=10))
    assert counts == [4, 8, 8]


@pytest.mark.parametrize(
    "deed",
    [
        lambda model, view: setattr(model, "queries", 0),
        lambda model, view: object.__setattr__(model, "queries", 0),
        lambda model, view: model.__dict__.update(queries=0, _limit=None, limit=None),
        lambda model, view: view.task.score(model, view.val),
    ],
    ids=["set", "object_set", "dict", "score"],
)
def test_the_count_cannot_be_set_back(victim: Victim, deed: Deed) -> None:
    """The weights are not reachable by assignment or otherwise, and evaluation counts queries too."""

    def ask_again(model: nn.Module, view: AttackView) -> None:
        model(INPUTS)
        with contextlib.suppress(AttributeError):
            deed(model, view)
        model(INPUTS)

    with pytest.raises(NotGranted, match="expected at most 5 queries"):
        cheat(ask_again, "queries")(victim.model, undeclared(victim, max_queries=5))


def test_queries_have_to_be_declared(victim: Victim) -> None:
    """An attack that declares neither weights nor queries gets no answer at all."""
    with pytest.raises(NotGranted, match="declare 'queries'"):
        cheat(lambda model, view: model(INPUTS))(victim.model, undeclared(victim))


# Epochs


def once(batches: Iterator[Any]) -> int:
    """Read a pass; how many samples it had."""
    return sum(len(inputs) for inputs, _ in batches)


def shuffled(samples: Any, epoch: int = 0) -> int:
    """A pass in random order."""
    return once(samples.batches(20, seed=0, epoch=epoch))


PASSES: dict[str, Deed] = {
    "batches": lambda model, view: [shuffled(view.data, e) for e in range(3)],
    "unaugmented": lambda model, view: [once(view.data.batches(7, seed=e, epoch=0, augment=False)) for e in range(3)],
    "in_order": lambda model, view: [once(view.data.in_order(30)) for _ in range(3)],
    "raw": lambda model, view: [view.data.raw() for _ in range(3)],
    "share": lambda model, view: [shuffled(view.data.share(1.0, domain=str(e), seed=0)) for e in range(3)],
    "shares": lambda model, view: [shuffled(view.data.share(0.5, domain=str(e), seed=0)) for e in range(6)],
    "split": lambda model, view: [
        shuffled(part) for e in range(3) for part in view.data.split(0.3, domain=str(e), seed=0)
    ],
    "val": lambda model, view: [shuffled(view.val) for _ in range(1 + 3 * len(view.data) // len(view.val))],
    "granted": lambda model, view: [shuffled(view.granted) for _ in range(3)],
    "narrowed": lambda model, view: [shuffled(view.naming(()).data) for _ in range(3)],
    "spend": lambda model, view: [view.spend(len(view.data)) for _ in range(3)],
    "mixed": lambda model, view: [shuffled(view.data), once(view.data.in_order()), shuffled(view.val)],
    "fit": lambda model, view: view.task.fit(model, view.data, sgd(epochs=3, lr=1e-3), seed=0),
    "fits": lambda model, view: [view.task.fit(model, view.data, sgd(epochs=2, lr=1e-3), seed=e) for e in range(2)],
}


@pytest.mark.parametrize("name", PASSES)
def test_one_epoch_too_many(victim: Victim, name: str) -> None:
    """Two passes were granted: whichever way the third is read, it is stopped; any number may be read without a cap."""
    attack = cheat(PASSES[name], "weights")

    attack(victim.model, undeclared(victim))
    with pytest.raises(NotGranted, match=r"expected at most 2 passes .* raise adversary\.max_epochs"):
        attack(victim.model, undeclared(victim, max_epochs=2))


def test_passes_over_other_data_are_counted_too(victim: Victim) -> None:
    """Each data set that was named has a count of its own."""

    def train(model: nn.Module, view: AttackView) -> None:
        samples, _, _ = view.auxiliary_data("digits_cnn")
        for epoch in range(2):
            assert shuffled(view.data, epoch) == len(view.data)
            assert shuffled(samples, epoch) == len(samples)
        shuffled(samples.share(0.1, domain="part", seed=0))

    place = arena("digits_cnn")
    elsewhere = AuxiliaryData({"digits_cnn": (place.train, place.val, place.task.info)})
    attack = cheat(train, "weights", data_sets=("digits_cnn",))
    with pytest.raises(NotGranted, match="expected at most 2 passes"):
        attack(victim.model, make_view(victim.arena, auxiliary_data=elsewhere, max_epochs=2))


def test_what_was_granted_can_be_used_to_the_last_sample(victim: Victim) -> None:
    """Two passes in parts, with any amount of evaluation beside them, and not one sample more."""

    def train(model: nn.Module, view: AttackView) -> None:
        rest, part = view.data.split(0.3, domain="parts", seed=0)
        for epoch in range(2):
            assert shuffled(rest, epoch) + shuffled(part, epoch) == len(view.data)
            for samples in (view.data, view.val, rest):
                view.task.score(model, samples)
            with torch.no_grad():
                assert once(view.data.in_order()) == len(view.data.raw()[1])
        with pytest.raises(NotGranted):
            next(iter(part.batches(1, seed=0, epoch=0)))

    cheat(train, "weights")(victim.model, undeclared(victim, max_epochs=2))


def test_every_part_of_a_chain_has_its_own_epochs(victim: Victim) -> None:
    """A chain of two attacks may train twice as long, each part as long as it could alone."""
    chain = Chain(attacks=(FineTune(epochs=2), FineTune(epochs=2)))

    chain(victim.model, undeclared(victim, max_epochs=2))
    with pytest.raises(NotGranted, match="expected at most 2 passes"):
        Chain(attacks=(FineTune(epochs=2), FineTune(epochs=3)))(victim.model, undeclared(victim, max_epochs=2))


def test_the_owners_role_has_the_schemes_own_epochs(victim: Victim) -> None:
    """Embedding is no training attack: a scheme reads the adversary's data as often as it embeds."""
    view = make_view(victim.arena, scheme=victim.scheme, max_epochs=1)
    owner = view.as_owner("overwrite")

    assert not isinstance(owner.train, Metered)
    assert not isinstance(owner.val, Metered)
    assert [shuffled(owner.train, e) for e in range(3)] == 3 * [len(view.data)]
    assert view.data.raw()[1].equal(owner.train.raw()[1]), "the adversary's own samples, not the owner's"


# What the orchestrator grants


@pytest.fixture
def five_classes() -> Iterator[str]:
    """Name of a registered workload on another data set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(WORKLOADS, "digit_pairs", "tests.attacks.test_transfer:DigitPairs")
        use_workloads(WORKLOADS)
        yield "digit_pairs"
    use_workloads(WORKLOADS)


REQUIRED: dict[str, dict[str, Any]] = {
    "chain": {"attacks": [{"name": "transfer", "target": "digit_pairs"}, {"name": "overwrite"}]},
    "transfer": {"target": "digit_pairs"},
}
"""Fields without a default."""


def view_of(bench: Bench, attack: Attack) -> AttackView:
    """What the orchestrator gives an attack on the bench's marked model."""
    return attack_view(bench.job(bench.attack_task(attack)), attack, build_scheme(bench.embed.config["scheme"]))


def images(samples: Any) -> set[bytes]:
    """Raw images as bytes."""
    return {image.numpy().tobytes() for image in samples.raw()[0]}


def images_within(view: AttackView) -> set[bytes]:
    """Every raw image that a walk from the view meets."""
    met = [t for t in reachable(view) if isinstance(t, Tensor) and t.dtype == torch.uint8 and t.dim() == 4]
    return {image.numpy().tobytes() for tensor in met for image in tensor}


@pytest.mark.usefixtures("five_classes")
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_walk_from_any_attacks_view_meets_no_key_and_no_test_data(marked: Bench, name: str) -> None:  # noqa: F811
    """Every registered attack: no owner's key unless declared, no test image, no more of the owner's than the share."""
    attack = build_attack({"name": name, **REQUIRED.get(name, {})})
    view = view_of(marked, attack)
    place = marked.context.workload(marked.workload)
    met = images_within(view)

    assert images(view.data) <= met
    assert not met & (images(place.test) - images(place.train) - images(place.val))
    if not attack.data_sets():
        assert met <= images(place.train)
        assert len(met) <= round(0.2 * len(place.train))
    assert bool(leaked(view, secrets(marked))) == ("key" in attack.needs())


def test_the_walk_meets_test_data_that_are_there(marked: Bench) -> None:  # noqa: F811
    """The search above would have noticed."""
    view = view_of(marked, FineTune())
    place = marked.context.workload(marked.workload)
    view.log = lambda step, place=place, **metrics: None

    assert images(place.test) <= images_within(view)


@pytest.mark.usefixtures("five_classes")
def test_a_part_of_a_chain_cannot_walk_to_what_another_was_granted(marked: Bench) -> None:  # noqa: F811
    """Transfer after spoiling: the chain has the key, the part's view has no path to it."""
    chain = Chain(attacks=(Spoil(), Transfer(target="digit_pairs"), FineTune()))
    view = view_of(marked, chain)

    assert leaked(view, secrets(marked)) != []
    for index in (1, 2):
        assert leaked(chain._view(view, index), secrets(marked)) == []


def test_the_owners_data_set_is_nobodys_target(marked: Bench) -> None:  # noqa: F811
    """Another workload on the same data would give the adversary more of the owner's samples than the share."""
    attack = Transfer(target="digits_cnn")

    with pytest.raises(NotGranted, match="another data set than the owner's digits, got 'digits_cnn'"):
        view_of(marked, attack)
    outcome = marked.attempt(marked.attack_task(attack))
    assert isinstance(outcome, Failure)


@pytest.mark.usefixtures("five_classes")
@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ({"name": "transfer", "target": "digit_pairs", "epochs": 1}, {"target_accuracy", "target_classes"}),
        ({"name": "distill", "epochs": 1}, {"queries", "agreement"}),
    ],
    ids=["transfer", "distill"],
)
def test_what_an_attack_finds_out_is_kept(marked: Bench, config: dict[str, Any], facts: set[str]) -> None:  # noqa: F811
    """A finding's details stand in the task's result, next to the suspect's score."""
    result = marked.attempt(marked.attack_task(build_attack(config)))

    assert isinstance(result, dict)
    assert set(result["facts"]) == facts
    assert 0 <= result["metric_test"] <= 1


def test_the_model_behind_a_sealed_one_is_let_go_with_it() -> None:
    """The entry of a sealed model is freed together with it."""
    model = copy.deepcopy(clean_model("digits_mlp"))
    sealed, alive = SealedModel(model, None), weakref.ref(model)
    del model
    gc.collect()
    assert alive() is not None
    assert sealed(INPUTS).shape == (4, 10)

    del sealed
    gc.collect()
    assert alive() is None


def test_a_budget_describes_what_it_counts() -> None:
    """Every field is documented, and the default grants any number of passes and answers."""
    assert (Budget().max_epochs, Budget().max_queries) == (None, None)
    assert all(p.doc for p in Budget.parameters().values())
