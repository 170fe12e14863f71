"""Attacks on watermarks by name. This file imports no plugin: a class is imported when its name is used."""

ATTACKS: dict[str, str] = {
    "none": "wmarena.attacks.none:NoAttack",
    "finetune": "wmarena.attacks.tuning.finetune:FineTune",
    "prune_weights": "wmarena.attacks.compression.pruning:PruneWeights",
    "prune_neurons": "wmarena.attacks.compression.pruning:PruneNeurons",
    "fine_prune": "wmarena.attacks.compression.pruning:FinePrune",
    "quantize": "wmarena.attacks.compression.quantize:Quantize",
    "weight_noise": "wmarena.attacks.tuning.weight_noise:WeightNoise",
    "wild": "wmarena.attacks.tuning.wild:Wild",
    "refit": "wmarena.attacks.tuning.refit:Refit",
    "distill": "wmarena.attacks.extraction.distill:Distill",
    "transfer": "wmarena.attacks.tuning.transfer:Transfer",
    "permute": "wmarena.attacks.equivalence.rewriting:Permute",
    "rescale": "wmarena.attacks.equivalence.rewriting:Rescale",
    "overwrite": "wmarena.attacks.overwriting.overwrite:Overwrite",
    "piracy": "wmarena.attacks.overwriting.piracy:PlantTriggers",
    "spoil": "wmarena.attacks.known_key.spoil:Spoil",
    "reverse_serial": "wmarena.attacks.extraction.reverse_serial:ReverseSerial",
    "ambiguity": "wmarena.attacks.forging.ambiguity:Ambiguity",
    "chain": "wmarena.attacks.chain:Chain",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.attacks``."""
