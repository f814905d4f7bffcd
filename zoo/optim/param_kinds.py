"""What the parameters of a network are: their kind, and how deep they lie."""

import re
from collections import defaultdict

from torch import Tensor, nn

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_EMBEDDING_NAME = re.compile(r"emb|token|pos")
_NUMBERED = re.compile(r"(.*?)(\d+)")


def param_names(net: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Every parameter once, with all its names: a tied one has several.

    Args:
        net: the network.

    Returns:
        Parameter to names, in the order in which the network defines them.
    """
    names: dict[nn.Parameter, list[str]] = defaultdict(list)
    for name, param in net.named_parameters(remove_duplicate=False):
        names[param].append(name)
    return dict(names)


def is_embedding(net: nn.Module, name: str) -> bool:
    """Whether a parameter is a table that is looked up, or a learned position or token.

    Args:
        net: the network.
        name: the parameter's name in it.

    Returns:
        True for weights of ``nn.Embedding``, and for parameters without a layer of their own whose name holds "emb",
        "token" or "pos", such as ``pos_embed``.
    """
    owner, _, leaf = name.rpartition(".")
    if isinstance(net.get_submodule(owner), _EMBEDDINGS):
        return True
    return "weight" not in leaf and _EMBEDDING_NAME.search(leaf) is not None


def is_decayed(net: nn.Module, name: str, param: Tensor) -> bool:
    """Whether weight decay helps: yes for matrices and kernels, no for biases, normalisation and embeddings.

    Args:
        net: the network.
        name: the parameter's name in it.
        param: the parameter.

    Returns:
        False for vectors, such as biases and layer scales, for parameters named bias, those of layers whose class has
        "Norm" in its name, and embeddings.
    """
    owner, _, leaf = name.rpartition(".")
    if "bias" in leaf or "norm" in type(net.get_submodule(owner)).__name__.lower() or is_embedding(net, name):
        return False
    # ConvNeXt's layer scale is (c, 1, 1), yet a vector; a Linear's weight of (1, c) is a matrix all the same.
    return param.ndim > 1 if "weight" in leaf else sum(size > 1 for size in param.shape) > 1


def hidden_matrices(net: nn.Module) -> set[nn.Parameter]:
    """The parameters that map hidden units to hidden units: what Muon is for.

    Args:
        net: the network.

    Returns:
        The two-dimensional weights that are neither embeddings nor the output head's.
    """
    head = output_head(net)

    def is_hidden(name: str) -> bool:
        owner, _, leaf = name.rpartition(".")
        return "weight" in leaf and owner != head and not is_embedding(net, name)

    return {param for param, names in param_names(net).items() if param.ndim == 2 and all(map(is_hidden, names))}


def output_head(net: nn.Module) -> str | None:
    """The name of the layer that computes the output, as far as the order of definition tells.

    Args:
        net: the network.

    Returns:
        The last module that owns a matrix or kernel, or ``None`` where that one is a part of a repeated block.
    """
    owners = [n for n, m in net.named_modules() if any(p.ndim > 1 for p in m.parameters(recurse=False))]
    if not owners or any(owners[-1].startswith(member + ".") for member in repeated_blocks(net)):
        return None
    return owners[-1]


def repeated_blocks(net: nn.Module) -> list[str]:
    """The names of the numbered blocks or stages that the network is a stack of.

    Siblings whose names differ only in a number at the end are candidates: ``blocks.0 ... blocks.11``,
    ``encoder_layer_0 ...``, ``layer1 ... layer4``. Chosen is the longest list among those that hold most of the
    tensors (75 %), else the one that holds more than any other, if that is at least half.

    Args:
        net: the network.

    Returns:
        The members' names by number, those without parameters left out; empty if the network is no such stack.
    """
    siblings: dict[tuple[str, str], list[tuple[int, str, int]]] = defaultdict(list)
    for parent, module in net.named_modules():
        for child_name, child in module.named_children():
            numbered, tensors = _NUMBERED.fullmatch(child_name), len(list(child.parameters()))
            if numbered and tensors:
                name = f"{parent}.{child_name}" if parent else child_name
                siblings[parent, numbered[1]].append((int(numbered[2]), name, tensors))
    total = len(list(net.parameters()))
    stacks = [
        (sum(tensors for *_, tensors in members), [name for _, name, _ in sorted(members)])
        for members in siblings.values()
        if len(members) > 1
    ]
    longest = max((names for held, names in stacks if held >= 0.75 * total), key=len, default=[])
    held, names = max(stacks, default=(0, []))
    return longest or (names if held >= 0.5 * total else [])


def layer_ids(net: nn.Module) -> dict[str, int]:
    """How deep every parameter lies: 0 for stem and embeddings, 1, 2, ... for the blocks, the largest for the head.

    Args:
        net: a stack of numbered blocks or stages, see :func:`repeated_blocks`. What is defined before the first block
            is the stem, what is defined after the last one the head.

    Returns:
        Parameter name to layer id; tied parameters under all their names, with the id of the first.

    Raises:
        ValueError: most of the network is no stack of numbered blocks.
    """
    members = repeated_blocks(net)
    if not members:
        raise ValueError(
            f"layer_decay needs numbered blocks or stages (blocks.0, layer1, ...), but {type(net).__name__} has none"
        )
    numbers, last = {}, 0  # members without a matrix or kernel, such as VGG's norms, go with the one before
    for member in members:
        last = max(1, last + any(p.ndim > 1 for p in net.get_submodule(member).parameters()))
        numbers[member + "."] = last
    ids: dict[str, int] = {}
    reached = 0
    for names in param_names(net).values():
        inside = [number for member, number in numbers.items() if names[0].startswith(member)]
        if inside:
            reached = inside[0]
        elif reached == last:
            reached += 1
        ids.update(dict.fromkeys(names, 0 if is_embedding(net, names[0]) and not inside else reached))
    return ids
