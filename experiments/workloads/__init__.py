"""Table of built-in workloads. This file imports no plugin; names are resolved to classes when used."""

WORKLOADS: dict[str, str] = {
    "digits_mlp": "wmarena.experiments.workloads.images.digits:DigitsMlp",
    "digits_cnn": "wmarena.experiments.workloads.images.digits:DigitsCnn",
    "mnist_lenet5": "wmarena.experiments.workloads.images.mnist:MnistLeNet5",
    "fashion_lenet5": "wmarena.experiments.workloads.images.mnist:FashionLeNet5",
    "mnist_resnet18": "wmarena.experiments.workloads.images.mnist_resnet:MnistResNet18",
    "fashion_resnet18": "wmarena.experiments.workloads.images.mnist_resnet:FashionResNet18",
    "mnist_dsn": "wmarena.experiments.workloads.images.mnist_dsn:MnistDsn",
    "gtsrb_dsn": "wmarena.experiments.workloads.images.gtsrb:GtsrbDsn",
    "cifar10_resnet18": "wmarena.experiments.workloads.images.cifar:Cifar10ResNet18",
    "cifar10_allcnn": "wmarena.experiments.workloads.images.cifar10_allcnn:Cifar10AllCnn",
    "cifar10_resnet32": "wmarena.experiments.workloads.images.cifar10_resnet32:Cifar10ResNet32",
}
"""Name in a spec -> "module:Class". Third parties add theirs with the entry point group ``wmarena.workloads``."""
